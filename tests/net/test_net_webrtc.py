"""The data channel as a connection: bounds against a hostile member, ends, glare, and links carried by hand."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import threading
import tracemalloc
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from webrtc_sites import End, Ends

from p2pfl.errors import ConfigError, LimitExceeded, LinkError, MalformedMessage, RemoteError, SignatureRefused
from p2pfl.net.limits import DEFAULT, FRAME_LIMIT
from p2pfl.net.outcomes import AlreadyLinkedError
from p2pfl.net.webrtc import IceSettings, WebRtcConnection
from p2pfl.net.webrtc.channel import QUEUE, WINDOW, WRITE_BUFFER
from p2pfl.net.webrtc.stack import EARLY_MESSAGES, MESSAGE_LIMIT, make_certificate

BOUND = 20.0
QUICK = replace(DEFAULT, close=0.3, webrtc=8.0)


def channel_of(connection: Any) -> Any:
    return connection._channel


# --- what it promises


async def test_both_ends_agree_on_the_connection() -> None:
    async with Ends() as ends:
        one, two = await ends.pair()
        assert one.binding == two.binding and len(one.binding) == 32
        assert (one.kind, one.path, one.dialled, two.dialled) == ("webrtc", "direct", True, False)
        assert (one.pinned, two.pinned) == (ends.two_site.peer_id, ends.one_site.peer_id)
        assert one.introducer == two.introducer == ends.introducer.peer_id
        assert one.address.startswith("/ip4/127.0.0.1/udp/")


async def test_two_connections_of_one_pair_have_different_bindings_and_certificates() -> None:
    async with Ends() as ends:
        first, _ = await ends.pair()
        second, _ = await ends.pair()
        assert first.binding != second.binding
        assert first.remote_certificate != second.remote_certificate


@pytest.mark.parametrize(
    "size", [0, 1, MESSAGE_LIMIT - 2, MESSAGE_LIMIT - 1, MESSAGE_LIMIT, 3 * MESSAGE_LIMIT, FRAME_LIMIT]
)
async def test_frames_of_every_size_arrive_whole(size: int) -> None:
    async with Ends() as ends:
        one, two = await ends.pair()
        frame = os.urandom(size)
        async with asyncio.timeout(BOUND):
            await asyncio.gather(one.send(frame[: size // 3], frame[size // 3 :]), one.send(b"next"))
            assert await two.receive() == frame
            assert await two.receive() == b"next"


async def test_no_message_is_larger_than_every_webrtc_stack_takes() -> None:
    async with Ends() as ends:
        one, two = await ends.pair()
        sizes: list[int] = []
        send = channel_of(one).send
        channel_of(one).send = lambda message: (sizes.append(len(message)), send(message))
        await asyncio.gather(one.send(bytes(FRAME_LIMIT)), two.receive())
        assert max(sizes) == MESSAGE_LIMIT <= 16 << 10


async def test_a_reader_that_does_not_read_stops_the_sender() -> None:
    async with Ends() as ends:
        one, two = await ends.pair()
        sent = 0

        async def push() -> None:
            nonlocal sent
            while True:
                await one.send(bytes(60_000))
                sent += 60_000

        task = asyncio.create_task(push())
        queue = channel_of(one)
        async with asyncio.timeout(BOUND):
            while two.bytes_in < WINDOW - 2 * MESSAGE_LIMIT or queue.bufferedAmount:
                await asyncio.sleep(0.01)
        assert two.bytes_in <= WINDOW and sent <= WINDOW + WRITE_BUFFER + QUEUE
        got = 0
        async with asyncio.timeout(BOUND):
            while got < 2 * WINDOW:  # and reading sets it free again
                got += len(await two.receive())
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_packets_that_wait_together_cost_one_turn_of_the_loop() -> None:
    """asyncio reads one datagram in a turn; then each packet would also have an acknowledgement of its own."""
    async with Ends() as ends:
        one, two = await ends.pair()
        sent: Counter[str] = Counter()

        def counted(name: str, send: Any) -> Any:
            async def count(data: bytes) -> None:
                sent[name] += 1
                await send(data)

            return count

        for name, connection in (("packets", one), ("acknowledgements", two)):
            connection._stack.ice._send = counted(name, connection._stack.ice._send)
        frames = [os.urandom(30_000) for _ in range(40)]

        async def push() -> None:
            for frame in frames:
                await one.send(frame)

        async with asyncio.timeout(BOUND):
            pushing = asyncio.create_task(push())
            assert [await two.receive() for _ in frames] == frames
            await pushing
        assert sent["packets"] > 1000
        assert sent["acknowledgements"] < 0.7 * sent["packets"]


@pytest.mark.parametrize("share", [0.02, 0.1])
async def test_lost_datagrams_are_sent_again(share: float) -> None:
    """Both directions lose datagrams at random (drawn from a seed): everything arrives, once and in order."""
    async with Ends() as ends:
        one, two = await ends.pair()
        draw = random.Random(7)
        lost = 0

        def lossy(send: Any) -> Any:
            async def maybe(data: bytes) -> None:
                nonlocal lost
                if draw.random() < share:
                    lost += 1
                else:
                    await send(data)

            return maybe

        for connection in (one, two):
            association = connection._stack.sctp
            association._rto = 0.05  # not the second that RFC 9260 asks for: the test would wait for it
            association._update_rto = lambda rtt: None
            connection._stack.ice._send = lossy(connection._stack.ice._send)
        frames = [os.urandom(30_000) for _ in range(20)]

        async def push() -> None:
            for frame in frames:
                await one.send(frame)

        async with asyncio.timeout(BOUND):
            pushing = asyncio.create_task(push())
            assert [await two.receive() for _ in frames] == frames
            await pushing
        assert lost > 5


async def test_closing_says_what_was_sent_before() -> None:
    async with Ends() as ends:
        one, two = await ends.pair()
        await one.send(b"x" * 500_000)
        await asyncio.gather(one.close(), asyncio.sleep(0))
        assert await two.receive() == b"x" * 500_000
        with pytest.raises(LinkError, match="closed by the other side"):
            await two.receive()
        with pytest.raises(LinkError):
            await one.send(b"more")


async def test_closing_is_bounded_when_the_other_end_is_gone() -> None:
    async with Ends(QUICK) as ends:
        one, two = await ends.pair()
        two._stack._receiver = lambda data: None  # as a stopped process: nothing is answered any more
        async with asyncio.timeout(BOUND):
            await one.close()
            await one.close()


async def test_an_abort_is_noticed_at_the_other_end() -> None:
    async with Ends() as ends:
        one, two = await ends.pair()
        one.abort()
        one.abort()
        async with asyncio.timeout(BOUND):
            with pytest.raises(LinkError):
                await two.receive()


# --- a hostile member at the other end


def overrun(one: Any) -> None:
    for _ in range(WINDOW // MESSAGE_LIMIT + 2):
        channel_of(one).send(b"\x01" + bytes(MESSAGE_LIMIT - 1))


HOSTILE: dict[str, tuple[Callable[[Any], None], type[RemoteError], str]] = {
    "text": (lambda one: channel_of(one).send("hello"), MalformedMessage, "text or empty"),
    "empty": (lambda one: channel_of(one).send(b""), MalformedMessage, "text or empty"),
    "unknown type": (lambda one: channel_of(one).send(b"\x09abc"), MalformedMessage, "unknown type"),
    "a long FIN": (lambda one: channel_of(one).send(b"\x03abc"), MalformedMessage, "unknown type"),
    "a short credit": (lambda one: channel_of(one).send(b"\x02abc"), MalformedMessage, "unknown type"),
    "credit for nothing": (
        lambda one: channel_of(one).send(b"\x02" + (10**6).to_bytes(8, "big")), MalformedMessage, "never sent"
    ),
    "no heed to credit": (overrun, LimitExceeded, "without credit"),
    "a frame above what is allowed": (
        lambda one: [channel_of(one).send(b"\x00" + bytes(MESSAGE_LIMIT - 1)) for _ in range(66)],
        LimitExceeded,
        "a frame exceeds",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
async def test_what_a_member_may_not_send_ends_the_connection(name: str) -> None:
    act, fault, words = HOSTILE[name]
    async with Ends() as ends:
        one, two = await ends.pair()
        act(one)
        with pytest.raises(fault, match=words):
            async with asyncio.timeout(BOUND):
                while True:  # frames before the fault are still delivered
                    await asyncio.wait_for(two.receive(), BOUND) if name != "no heed to credit" else await _look(two)


async def _look(connection: Any) -> None:
    """Do not read, only see whether it has failed."""
    await asyncio.sleep(0.01)
    if connection._failure is not None:
        raise connection._failure


async def test_a_second_stream_ends_the_connection() -> None:
    from aiortc import RTCDataChannel, RTCDataChannelParameters

    async with Ends() as ends:
        one, two = await ends.pair()
        RTCDataChannel(one._stack.sctp, RTCDataChannelParameters(label="another"))
        async with asyncio.timeout(BOUND):
            with pytest.raises(LinkError):
                await two.receive()


async def test_an_endless_message_ends_the_connection() -> None:
    """aiortc assembles without a bound: the guard counts what waits."""
    from aiortc import rtcsctptransport as sctp

    async with Ends() as ends:
        one, two = await ends.pair()
        association = one._stack.sctp
        stopped = asyncio.Event()
        two._channel.on("close", stopped.set)

        async def endless() -> None:
            tsn = association._local_tsn
            while not stopped.is_set():
                chunk = sctp.DataChunk()
                chunk.flags = sctp.SCTP_DATA_FIRST_FRAG if tsn == association._local_tsn else 0
                chunk.tsn, chunk.stream_id, chunk.stream_seq = tsn, 0, 0
                chunk.protocol, chunk.user_data = sctp.WEBRTC_BINARY, bytes(1100)
                await association._send_chunk(chunk)
                tsn = sctp.tsn_plus_one(tsn)
                await asyncio.sleep(0)

        task = asyncio.create_task(endless())
        async with asyncio.timeout(BOUND):
            with pytest.raises(LinkError):
                await two.receive()
            await asyncio.gather(task, return_exceptions=True)
        held = sum(len(stream.reassembly) for stream in two._stack.sctp._inbound_streams.values())
        assert held * 1160 < 4 << 20


async def test_a_certificate_that_the_identity_did_not_sign_for_is_refused() -> None:
    """Somebody who can answer ICE in the target's place (he knows the offer's secrets) has not its certificate."""
    async with Ends(QUICK) as ends:
        make = ends.two.transport.new_stack

        def swapped(*, controlling: bool) -> Any:
            stack = make(controlling=controlling)
            _, stack.own_certificate = make_certificate()  # the signed fingerprint is another one than DTLS shows
            return stack

        ends.two.transport.new_stack = swapped  # type: ignore[method-assign]
        with pytest.raises(SignatureRefused, match="somebody sits between"):
            await ends.one.dial(ends.two)
        assert ends.two.incoming.empty()


async def test_what_comes_before_anybody_listens_is_kept_and_bounded() -> None:
    """One datagram may open the channel, and the next one in the same turn of the loop bring the hello."""
    async with Ends() as ends:
        stack = ends.one.transport.new_stack(controlling=True)
        got: list[Any] = []
        for number in range(EARLY_MESSAGES):
            stack.channel.emit("message", bytes([number]))
        assert stack.closing is None
        stack.receive_with(got.append)
        stack.channel.emit("message", b"later")
        assert got == [*(bytes([number]) for number in range(EARLY_MESSAGES)), b"later"]
        flooded = ends.one.transport.new_stack(controlling=True)
        for _ in range(EARLY_MESSAGES + 1):
            flooded.channel.emit("message", b"x")
        assert flooded.closing is not None
        await asyncio.gather(stack.close(), flooded.close())


# --- both at once, many at once


async def test_when_both_dial_one_connection_comes_of_it() -> None:
    async with Ends() as ends:
        first = asyncio.create_task(ends.one.dial(ends.two))
        second = asyncio.create_task(ends.two.dial(ends.one))
        async with asyncio.timeout(BOUND):
            done = await asyncio.gather(first, second, return_exceptions=True)
        made = [item for item in done if isinstance(item, WebRtcConnection)]
        waits = [item for item in done if isinstance(item, AlreadyLinkedError)]
        assert len(made) == 1 and len(waits) == 1
        smaller = min((ends.one, ends.two), key=lambda end: end.site.peer_id)
        assert made[0] is done[0 if smaller is ends.one else 1]
        made[0].abort()


async def test_a_new_offer_of_the_same_member_replaces_the_one_under_way() -> None:
    async with Ends() as ends:
        held = asyncio.Event()

        async def lost(sender: Any, to: Any, box: bytes) -> bytes:
            await ends.carrier.honestly(ends.introducer.peer_id, sender, to, box)
            held.set()
            raise LinkError("the answer was lost")

        ends.carrier.introducers_ = [ends.introducer.peer_id, ends.other_introducer.peer_id]
        ends.carrier.lies[ends.introducer.peer_id] = lost
        one, _ = await ends.pair()
        assert held.is_set() and one.introducer == ends.other_introducer.peer_id
        assert ends.two.transport.answers.idle


async def test_no_udp_path_is_said_in_plain_words() -> None:
    async with Ends(replace(QUICK, webrtc=1.0)) as ends:
        ends.two.transport.answers._finish = _never  # type: ignore[method-assign]
        with pytest.raises(LinkError, match=r"no connection within 1 s|no UDP path") as caught:
            await ends.one.dial(ends.two)
        assert "TURN" in str(caught.value)


async def _never(stack: Any, opened: Any, introducer: Any, seconds: Any) -> None:
    stack.close()


async def test_nothing_is_contacted_that_is_not_configured() -> None:
    async with Ends() as ends:
        stack = ends.one.transport.new_stack(controlling=True)
        assert stack._connection.stun_server is None and stack._connection.turn_server is None
        description = await stack.gather(5)
        assert [candidate.host for candidate in description.candidates] == ["127.0.0.1"]
        await stack.close()


@pytest.mark.parametrize(("settings", "words"), [
    ({"stun": "stun.example:3478"}, "stun:stun.hospital.example"),
    ({"stun": "stun:host:99999"}, "write it like"),
    ({"stun": "turn:host:1"}, "write it like"),
    ({"turn": "turn:host"}, "turn_username"),
    ({"turn": "turns:host?transport=udp", "turn_username": "u", "turn_password": "p"}, "DTLS is not spoken"),
    ({"turn": "http://host", "turn_username": "u", "turn_password": "p"}, "write it like"),
    ({"relay_only": True}, "relay_only needs a TURN server"),
])  # fmt: skip
def test_settings_that_cannot_work(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        IceSettings(**settings)


def test_the_turn_password_is_never_shown() -> None:
    settings = IceSettings(turn="turn:host", turn_username="u", turn_password="open sesame")
    assert "open sesame" not in repr(settings)


# --- by hand


async def test_an_offer_carried_by_hand() -> None:
    async with Ends() as ends:
        offer = await ends.one.transport.by_hand.offer(ends.two_site.peer_id)
        asker, answer = await ends.two.transport.by_hand.take_offer(offer)
        assert asker == ends.one_site.peer_id
        async with asyncio.timeout(BOUND):
            assert await ends.one.transport.by_hand.take_answer(answer) == ends.two_site.peer_id
            one, two = await ends.one.incoming.get(), await ends.two.incoming.get()
        assert (one.dialled, two.dialled, one.introducer) == (True, False, None)
        await one.send(b"by hand")
        assert await two.receive() == b"by hand"
        one.abort()
        two.abort()


BY_HAND: dict[str, str] = {
    "the same answer twice": "answers no offer",
    "the answer to an older offer": "answers no offer",
    "the offer at the wrong site": "does not open with our key",
    "the offer twice": "replayed",
    "the offer brought back": "answers no offer",
}


@pytest.mark.parametrize("name", BY_HAND)
async def test_texts_in_the_wrong_place(name: str) -> None:
    async with Ends() as ends:
        by_hand, other = ends.one.transport.by_hand, ends.two.transport.by_hand
        offer = await by_hand.offer(ends.two_site.peer_id)
        with pytest.raises((ConfigError, RemoteError), match=BY_HAND[name]):
            if name == "the offer at the wrong site":
                await by_hand.take_offer(offer)
            elif name == "the offer brought back":
                await by_hand.take_answer(offer)
            else:
                _, answer = await other.take_offer(offer)
                if name == "the offer twice":
                    await other.take_offer(offer)
                if name == "the answer to an older offer":
                    await by_hand.offer(ends.two_site.peer_id)
                    await by_hand.take_answer(answer)
                await by_hand.take_answer(answer)
                (await ends.one.incoming.get()).abort()
                await by_hand.take_answer(answer)


# --- nothing is left behind


async def cycle(ends: Ends) -> None:
    one, two = await ends.pair()
    await one.send(b"ping")
    await two.receive()
    await asyncio.gather(one.close(), two.close())


async def leaks(cycles: int) -> None:
    """Tasks, threads, descriptors and memory after ``cycles`` connections are what they were after a few."""
    clock = [1_800_000_000.0]  # a minute passes with each connection, or the 257th offer would be one too many
    async with Ends(clock=lambda: clock[0]) as ends:
        ends.two.transport.clock = lambda: clock[0]
        end: End
        for _ in range(8):
            await cycle(ends)
        gc.collect()
        tracemalloc.start()
        try:
            before = (len(asyncio.all_tasks()), threading.active_count(), len(os.listdir("/proc/self/fd")))
            memory = tracemalloc.get_traced_memory()[0]
            for _ in range(cycles):
                clock[0] += 60
                await cycle(ends)
                ends._open.clear()
                ends.carrier.carried.clear()
            gc.collect()
            after = (len(asyncio.all_tasks()), threading.active_count(), len(os.listdir("/proc/self/fd")))
            grown = tracemalloc.get_traced_memory()[0] - memory
        finally:
            tracemalloc.stop()
        assert after == before
        assert grown < 100_000 + 1000 * cycles, f"{grown} bytes after {cycles} connections"
        for end in (ends.one, ends.two):
            assert not end.transport._stacks and end.transport.answers.idle


async def test_twenty_connections_leave_nothing_behind() -> None:
    await leaks(20)


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_three_hundred_connections_leave_nothing_behind() -> None:
    await leaks(300)
