"""The shared battery, part 1: what a live link promises, over every transport."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import replace

import pytest
from net_peers import BOUND, PATIENT, QUICK, Consortium, Peer, roster_of, sites

from p2pfl.errors import IllegalStep, LimitExceeded, LinkError, MalformedMessage, PolicyRefusal, Refusal
from p2pfl.net import CHUNK_LIMIT, PAYLOAD_LIMIT
from p2pfl.net.limits import HANDLERS_IN_FLIGHT, PULL_RANGE, PULL_WINDOW, REQUESTS_IN_FLIGHT
from p2pfl.types import PeerId

pytestmark = pytest.mark.timeout(30)
CHUNK = 65536 + 16


async def echo(peer: PeerId, payload: bytes) -> bytes:
    return payload


def chunk_of(index: int, size: int = CHUNK) -> bytes:
    return hashlib.sha256(index.to_bytes(4, "big")).digest() * (size // 32) + bytes(size % 32)


def connection_of(peer: Peer, other: Peer):
    return peer.host._table.get(other.peer_id).connection


@pytest.mark.parametrize("size", [0, 1, 16384, 65536, PAYLOAD_LIMIT])
async def test_requests_are_answered_in_both_directions(consortium: Consortium, size: int) -> None:
    one, two = await consortium.pair()
    one.host.handle("/echo/1", echo)
    two.host.handle("/echo/1", echo)
    payload = chunk_of(size, size)
    assert await one.host.request(two.peer_id, "/echo/1", payload, BOUND) == payload
    assert await two.host.request(one.peer_id, "/echo/1", payload, BOUND) == payload


async def test_a_payload_above_the_limit_is_refused_here_and_harms_nothing(consortium: Consortium) -> None:
    one, two = await consortium.pair()
    two.host.handle("/echo/1", echo)
    for call in (one.host.request, one.host.notify):
        with pytest.raises(IllegalStep, match="fetch"):
            await call(two.peer_id, "/echo/1", bytes(PAYLOAD_LIMIT + 1))
    assert await one.host.request(two.peer_id, "/echo/1", b"still here") == b"still here"


async def test_many_requests_at_once_each_get_their_own_answer(consortium: Consortium) -> None:
    one, two = await consortium.pair()
    two.host.handle("/echo/1", echo)
    payloads = [index.to_bytes(4, "big") for index in range(3 * REQUESTS_IN_FLIGHT)]
    answers = await asyncio.gather(*(one.host.request(two.peer_id, "/echo/1", each) for each in payloads))
    assert answers == payloads


async def test_notifications_arrive_in_order_each_once(consortium: Consortium) -> None:
    one, two = await consortium.pair()
    got: list[tuple[PeerId, bytes]] = []
    two.host.handle_notify("/note/1", lambda peer, payload: got.append((peer, payload)))
    for index in range(50):
        await one.host.notify(two.peer_id, "/note/1", bytes([index]))
    await consortium.until(lambda: len(got) == 50)
    assert got == [(one.peer_id, bytes([index])) for index in range(50)]


async def test_ten_megabytes_by_chunks_arrive_intact_in_order(consortium: Consortium) -> None:
    one, two = await consortium.pair()
    asked: list[tuple[PeerId, str, int]] = []

    async def provider(peer: PeerId, content: str, index: int) -> bytes | None:
        asked.append((peer, content, index))
        return chunk_of(index)

    two.host.serve(provider)
    chunks = 160
    got = [chunk async for chunk in one.host.fetch(two.peer_id, "delta", chunks, CHUNK, BOUND)]
    assert got == [chunk_of(index) for index in range(chunks)]
    assert asked == [(one.peer_id, "delta", index) for index in range(chunks)]


async def test_fetches_side_by_side_do_not_mix(consortium: Consortium) -> None:
    one, two = await consortium.pair()

    async def provider(peer: PeerId, content: str, index: int) -> bytes | None:
        return f"{content}:{index}".encode()

    two.host.serve(provider)

    async def fetch(content: str) -> list[bytes]:
        return [chunk async for chunk in one.host.fetch(two.peer_id, content, 70, 100, BOUND)]

    names = [f"content{number}" for number in range(20)]
    got = await asyncio.gather(*map(fetch, names))
    assert got == [[f"{name}:{index}".encode() for index in range(70)] for name in names]


async def test_a_slow_consumer_bounds_what_is_produced(consortium: Consortium) -> None:
    one, two = await consortium.pair()
    produced: list[int] = []

    async def provider(peer: PeerId, content: str, index: int) -> bytes | None:
        produced.append(index)
        return chunk_of(index)

    two.host.serve(provider)
    two.host.handle("/echo/1", echo)
    fetched = one.host.fetch(two.peer_id, "delta", 1000, CHUNK, BOUND)
    assert await anext(fetched) == chunk_of(0)
    await consortium.until(lambda: len(produced) == PULL_WINDOW)
    assert await one.host.request(two.peer_id, "/echo/1", b"control passes") == b"control passes"
    assert len(produced) == PULL_WINDOW
    for index in range(1, PULL_RANGE + 1):
        assert await anext(fetched) == chunk_of(index)
    await consortium.until(lambda: len(produced) == PULL_WINDOW + PULL_RANGE)
    await fetched.aclose()


async def test_a_reader_that_stands_still_stops_the_writer(consortium: Consortium) -> None:
    one, two = await consortium.pair(replace(PATIENT, write=60.0))
    never = asyncio.Event()
    remote = connection_of(two, one)
    receive, remote.receive = remote.receive, never.wait
    got: list[bytes] = []
    two.host.handle_notify("/note/1", lambda peer, payload: got.append(payload))
    wanted, sent = 512, 0  # 32 MiB: several times all socket buffers

    async def write() -> None:
        nonlocal sent
        for _ in range(wanted):
            await one.host.notify(two.peer_id, "/note/1", bytes(65536))
            sent += 1

    writer = asyncio.create_task(write())
    last, same = -1, 0
    while same < 50:  # stands still for 50 turns
        await asyncio.sleep(0.001)
        last, same = sent, same + 1 if sent == last else 0
    assert 0 < sent < wanted
    remote.receive = receive
    never.set()  # the frame read meanwhile is lost with the stub: the link has to end, not to hang
    await consortium.until(lambda: not two.host.links)
    writer.cancel()


async def test_a_neighbour_that_takes_no_data_loses_the_link(consortium: Consortium) -> None:
    one, two = await consortium.pair(replace(PATIENT, write=0.1, write_rate=1 << 30))
    connection_of(two, one).receive = asyncio.Event().wait
    with pytest.raises(LinkError, match="took no data"):
        for _ in range(1024):
            await one.host.notify(two.peer_id, "/note/1", bytes(65536))
    assert one.events[-1][1] is False and "took no data" in one.events[-1][2]


async def test_a_silent_neighbour_is_noticed_and_a_quiet_one_is_kept(consortium: Consortium) -> None:
    one, two = await consortium.pair(QUICK)

    async def swallow(*parts: bytes) -> None:
        return None

    loop = asyncio.get_running_loop()
    began = loop.time()
    await consortium.until(lambda: loop.time() - began > 3 * QUICK.silent_after)
    assert all(event[1] for event in one.events + two.events)  # nobody asked anything: pings kept it up
    connection_of(two, one).send = swallow
    await consortium.until(lambda: len(one.events) == 2)
    assert one.events[1][:2] == (two.peer_id, False) and "silent" in one.events[1][2]
    await consortium.until(lambda: len(two.events) == 2)


async def test_a_handler_that_fails_costs_its_requester_an_error_and_not_the_link(
    consortium: Consortium,
) -> None:
    one, two = await consortium.pair()
    faults = {
        "/policy": PolicyRefusal("the site allows no such plan"),
        "/malformed": MalformedMessage("field x is missing"),
        "/bug": ZeroDivisionError("secret path /home/x"),
    }

    async def refuse(peer: PeerId, payload: bytes) -> bytes:
        raise faults[payload.decode()]

    async def too_long(peer: PeerId, payload: bytes) -> bytes:
        return bytes(PAYLOAD_LIMIT + 1)

    def refuse_note(peer: PeerId, payload: bytes) -> None:
        raise faults[payload.decode()]

    two.host.handle("/refuse", refuse)
    two.host.handle("/long", too_long)
    two.host.handle("/echo/1", echo)
    two.host.handle_notify("/refuse", refuse_note)
    with pytest.raises(Refusal, match="the site allows no such plan"):
        await one.host.request(two.peer_id, "/refuse", b"/policy")
    with pytest.raises(Refusal, match="field x is missing"):
        await one.host.request(two.peer_id, "/refuse", b"/malformed")
    with pytest.raises(LinkError, match="failed to answer") as caught:
        await one.host.request(two.peer_id, "/refuse", b"/bug")
    assert "secret" not in str(caught.value)
    with pytest.raises(LinkError, match="failed to answer"):
        await one.host.request(two.peer_id, "/long", b"")
    for name in faults:
        await one.host.notify(two.peer_id, "/refuse", name.encode())
    assert await one.host.request(two.peer_id, "/echo/1", b"alive") == b"alive"
    assert two.host._table.get(one.peer_id).handler_faults == 7


async def test_an_unknown_protocol_is_said_to_be_unknown(consortium: Consortium) -> None:
    one, two = await consortium.pair()
    with pytest.raises(LinkError, match="does not know this protocol"):
        await one.host.request(two.peer_id, "/nothing/1", b"")
    await one.host.notify(two.peer_id, "/nothing/1", b"")
    two.host.handle("/echo/1", echo)
    assert await one.host.request(two.peer_id, "/echo/1", b"alive") == b"alive"


async def test_a_request_without_answer_ends_in_time_and_frees_its_place(consortium: Consortium) -> None:
    one, two = await consortium.pair()
    started: list[bytes] = []

    async def never(peer: PeerId, payload: bytes) -> bytes:
        started.append(payload)
        await asyncio.Event().wait()
        return b""

    two.host.handle("/never", never)
    two.host.handle("/echo/1", echo)
    for _ in range(2):
        calls = [one.host.request(two.peer_id, "/never", b"", 0.05) for _ in range(REQUESTS_IN_FLIGHT)]
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(result, LinkError) and "within 0.05 s" in str(result) for result in results)
    await consortium.until(lambda: len(started) == HANDLERS_IN_FLIGHT)
    with pytest.raises(LinkError, match="within"):  # all handlers there are busy: dropped and counted
        await one.host.request(two.peer_id, "/echo/1", b"", 0.05)
    assert two.host._table.get(one.peer_id).dropped_requests == 1
    assert one.host._table.get(two.peer_id)._answers == {}


async def test_closing_ends_what_is_under_way_and_tells_both_sides(consortium: Consortium) -> None:
    one, two = await consortium.pair()
    running = asyncio.Event()

    async def never(peer: PeerId, payload: bytes) -> bytes:
        running.set()
        await asyncio.Event().wait()
        return b""

    two.host.handle("/never", never)
    call = asyncio.create_task(one.host.request(two.peer_id, "/never", b"", BOUND))
    async with asyncio.timeout(BOUND):
        await running.wait()
    await two.host.stop()
    with pytest.raises(LinkError, match="ended before it answered"):
        await call
    assert two.events[-1] == (one.peer_id, False, "the peer stopped")
    assert one.events[-1][:2] == (two.peer_id, False) and "the peer stopped" in one.events[-1][2]
    assert one.host.links == {} and two.host.links == {}
    for call_again in (one.host.request, one.host.notify):
        with pytest.raises(LinkError, match="no link to"):
            await call_again(two.peer_id, "/never", b"")
    await two.host.stop()


async def test_what_the_neighbour_does_not_hold_is_missing_and_a_fault_of_its_provider_too(
    consortium: Consortium,
) -> None:
    one, two = await consortium.pair()

    async def provider(peer: PeerId, content: str, index: int) -> bytes | None:
        if content == "failing":
            raise RuntimeError("disk")
        if content == "large":
            return bytes(CHUNK_LIMIT + 1)
        return b"x" if content == "short" and index < 5 else None

    with pytest.raises(LinkError, match="does not hold chunk 0"):  # nothing is served yet
        await anext(one.host.fetch(two.peer_id, "short", 5, 10))
    two.host.serve(provider)
    got = []
    with pytest.raises(LinkError, match="does not hold chunk 5"):
        async for chunk in one.host.fetch(two.peer_id, "short", 40, 10):
            got.append(chunk)
    assert got == [b"x"] * 5
    for content in ("failing", "large", "unknown"):
        with pytest.raises(LinkError, match="does not hold chunk 0"):
            await anext(one.host.fetch(two.peer_id, content, 5, 10))
    assert one.peer_id in two.host.links


async def test_a_chunk_above_the_agreed_size_ends_the_link(consortium: Consortium) -> None:
    one, two = await consortium.pair()

    async def provider(peer: PeerId, content: str, index: int) -> bytes | None:
        return bytes(101)

    two.host.serve(provider)
    with pytest.raises(LimitExceeded, match="agreed were 100"):
        await anext(one.host.fetch(two.peer_id, "delta", 5, 100))
    assert one.refusals[0][0] == two.peer_id and "agreed were 100" in one.refusals[0][1]


async def test_a_fetch_resumes_after_one_break_and_fails_after_two(consortium: Consortium) -> None:
    one, two = await consortium.pair()
    one.host.want([two.peer_id])
    produced: list[int] = []
    breaks = [20]

    async def provider(peer: PeerId, content: str, index: int) -> bytes | None:
        produced.append(index)
        if breaks and index == breaks[0] and peer in two.host.links:
            breaks.pop(0)
            two.host._table.close(peer, "pulled the plug")
        return chunk_of(index)

    two.host.serve(provider)
    got = [chunk async for chunk in one.host.fetch(two.peer_id, "delta", 60, CHUNK, BOUND)]
    assert got == [chunk_of(index) for index in range(60)]
    assert produced.count(0) == 1  # went on where it was, not from the start
    breaks[:] = [20, 40]
    with pytest.raises(LinkError, match="pulled the plug"):
        async for _ in one.host.fetch(two.peer_id, "delta", 60, CHUNK, BOUND):
            pass


async def test_a_stalled_fetch_ends_in_time(consortium: Consortium) -> None:
    one, two = await consortium.pair()

    async def provider(peer: PeerId, content: str, index: int) -> bytes | None:
        await asyncio.Event().wait()
        return None

    two.host.serve(provider)
    with pytest.raises(LinkError, match="no chunk 0 of delta within"):
        await anext(one.host.fetch(two.peer_id, "delta", 5, 100, 0.05))


async def test_links_say_what_they_carried(consortium: Consortium) -> None:
    one, two = await consortium.pair()
    two.host.handle("/echo/1", echo)
    before = one.host.links[two.peer_id]
    await one.host.request(two.peer_id, "/echo/1", bytes(1000))
    after = one.host.links[two.peer_id]
    assert after.kind == consortium.kind.name
    assert after.address == two.address or after.address.startswith("/ip4/127.0.0.1/udp/")
    assert 1000 < after.bytes_in - before.bytes_in < 1100
    assert 1000 < after.bytes_out - before.bytes_out < 1100


async def test_a_peer_is_told_why_there_is_no_link(addressed: Consortium) -> None:
    one, two, three, four = sites("lille", "rouen", "caen", "amiens")
    roster = roster_of(one.member(), two.member(listens=False), three.member(), four.member((f"/memory/{four.name}",)))
    peer = await addressed.start(one, roster, listen=False)
    cases = {
        two.peer_id: "has no listening port",
        three.peer_id: "no address of",
        PeerId("12D3KooWnobody"): "not a member",
    }
    for other, words in cases.items():
        assert words in peer.host.why_not(other)
        with pytest.raises(LinkError, match=words):
            await peer.host.dial(other)
        with pytest.raises(LinkError, match=words):
            await peer.host.request(other, "/echo/1", b"")
