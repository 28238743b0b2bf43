"""Offers and answers: what an introducer alters, repeats, redirects or invents is refused, with names."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable

import pytest
from net_peers import Site, roster_of
from webrtc_sites import Ends

from p2pfl.crypto import pack, sign_envelope
from p2pfl.crypto.boxes import BOX_STEP, open_box, seal_box
from p2pfl.errors import LinkError, MalformedMessage, Refusal, RemoteError, SignatureRefused
from p2pfl.net.webrtc.answering import GLARE
from p2pfl.net.webrtc.ice import DATAGRAM_LIMIT, EARLY_DATAGRAMS
from p2pfl.net.webrtc.offers import (
    ANSWER_KIND,
    OFFER_KIND,
    REMEMBERED,
    SKEW,
    VALID,
    Candidate,
    Description,
    SeenOffers,
    open_offer,
    seal_offer,
)
from p2pfl.types import Digest, PeerId

NOW = 1_800_000_000
GOOD = Description(bytes(32), "abcd", "p" * 22, (Candidate("f1", "10.1.2.3", 4000, 1, "host"),))

Lie = Callable[[Ends, PeerId, PeerId, bytes], Awaitable[bytes]]


def made_by(site: Site, to: PeerId, network: str, *, now: int, kind: str = OFFER_KIND, **changes: object) -> bytes:
    """A box with whatever content, signed by ``site``."""
    payload = {
        "network": network, "to": to, "nonce": secrets.token_bytes(32), "made": now, "valid": VALID, "offer": "",
        "fingerprint": GOOD.fingerprint, "username": GOOD.username, "password": GOOD.password,
        "candidates": [["f1", "10.1.2.3", 4000, 1, "host"]], **changes,
    }  # fmt: skip
    return seal_box(to, sign_envelope(site.identity, kind, pack(payload)).encode(), kind)


async def flipped(ends: Ends, sender: PeerId, to: PeerId, box: bytes) -> bytes:
    """Bytes changed on the way."""
    altered = bytearray(box)
    altered[len(box) // 2] ^= 1
    return await ends.carrier.honestly(ends.introducer.peer_id, sender, to, bytes(altered))


async def swapped_fingerprint(ends: Ends, sender: PeerId, to: PeerId, box: bytes) -> bytes:
    """What an introducer could do that knew the target's key: open the box, put its own fingerprint in, seal anew."""
    envelope = open_box(ends.two_site.identity, box, OFFER_KIND)
    place = envelope.index(b"fingerprint") + len(b"fingerprint") + 2
    altered = envelope[:place] + secrets.token_bytes(32) + envelope[place + 32 :]
    return await ends.carrier.honestly(ends.introducer.peer_id, sender, to, seal_box(to, altered, OFFER_KIND))


async def own_offer(ends: Ends, sender: PeerId, to: PeerId, box: bytes) -> bytes:
    """The introducer makes an offer of its own in the other's name, to sit in between."""
    mine = made_by(ends.introducer, to, ends.roster.charter, now=int(ends.two.transport.clock()))
    return await ends.carrier.honestly(ends.introducer.peer_id, sender, to, mine)


async def for_somebody_else(ends: Ends, sender: PeerId, to: PeerId, box: bytes) -> bytes:
    """An offer made for a third member is brought to this one."""
    other, _ = seal_offer(
        ends.one_site.identity, ends.roster.charter, ends.third.peer_id, GOOD,
        nonce=secrets.token_bytes(32), now=int(ends.two.transport.clock()),
    )  # fmt: skip
    return await ends.carrier.honestly(ends.introducer.peer_id, sender, to, other)


async def resealed_for_us(ends: Ends, sender: PeerId, to: PeerId, box: bytes) -> bytes:
    """The same, by a third member that opened its offer and seals it for the wrong one."""
    other, _ = seal_offer(
        ends.one_site.identity, ends.roster.charter, ends.third.peer_id, GOOD,
        nonce=secrets.token_bytes(32), now=int(ends.two.transport.clock()),
    )  # fmt: skip
    envelope = open_box(ends.third.identity, other, OFFER_KIND)
    return await ends.carrier.honestly(ends.introducer.peer_id, sender, to, seal_box(to, envelope, OFFER_KIND))


async def replayed(ends: Ends, sender: PeerId, to: PeerId, box: bytes) -> bytes:
    """The right offer first, then the same once more."""
    await ends.carrier.honestly(ends.introducer.peer_id, sender, to, box)
    return await ends.carrier.honestly(ends.introducer.peer_id, sender, to, box)


async def stale(ends: Ends, sender: PeerId, to: PeerId, box: bytes) -> bytes:
    """An honest offer, kept back for too long."""
    now = int(ends.two.transport.clock())
    old = made_by(ends.one_site, to, ends.roster.charter, now=now - VALID - SKEW - 1)
    return await ends.carrier.honestly(ends.introducer.peer_id, sender, to, old)


async def strangers(ends: Ends, sender: PeerId, to: PeerId, box: bytes) -> bytes:
    """An offer by a key that the charter does not name."""
    stranger = Site("stranger")
    mine = made_by(stranger, to, ends.roster.charter, now=int(ends.two.transport.clock()))
    return await ends.carrier.honestly(ends.introducer.peer_id, stranger.peer_id, to, mine)


async def other_charter(ends: Ends, sender: PeerId, to: PeerId, box: bytes) -> bytes:
    other = made_by(ends.one_site, to, "22" * 32, now=int(ends.two.transport.clock()))
    return await ends.carrier.honestly(ends.introducer.peer_id, sender, to, other)


LIES: dict[str, tuple[Lie, str]] = {
    "altered": (flipped, "does not open with our key"),
    "fingerprint swapped": (swapped_fingerprint, "a signature in the name of {one} does not hold"),
    "introducer's own": (own_offer, "came in the name of {one} but is signed by {introducer}"),
    "for somebody else": (for_somebody_else, "does not open with our key"),
    "for somebody else, sealed anew": (resealed_for_us, "is meant for {third}, not for us"),
    "replayed": (replayed, "the offer of {one} was taken before: replayed"),
    "stale": (stale, "stale"),
    "a stranger's": (strangers, "who is not a member of this charter"),
    "another charter's": (other_charter, "is for another charter"),
}


@pytest.mark.parametrize("name", LIES)
async def test_a_lying_introducer_is_named_and_nothing_comes_of_it(name: str) -> None:
    lie, expected = LIES[name]
    async with Ends() as ends:
        ends.carrier.lies[ends.introducer.peer_id] = lambda sender, to, box: lie(ends, sender, to, box)
        with pytest.raises((LinkError, RemoteError)):
            await ends.one.dial(ends.two)
        who, error = ends.two.refused[-1]
        assert who == ends.introducer.peer_id and error.peer == ends.introducer.peer_id
        words = expected.format(one=ends.one_site.peer_id, introducer=ends.introducer.peer_id, third=ends.third.peer_id)
        assert words in str(error)
        assert str(error).startswith(f"{ends.introducer.name} ({ends.introducer.peer_id}) brought")
        assert ends.two.incoming.empty()


@pytest.mark.parametrize("name", LIES)
async def test_another_introducer_is_asked_when_the_first_one_lies(name: str) -> None:
    lie, _ = LIES[name]
    async with Ends() as ends:
        ends.carrier.introducers_ = [ends.introducer.peer_id, ends.other_introducer.peer_id]
        ends.carrier.lies[ends.introducer.peer_id] = lambda sender, to, box: lie(ends, sender, to, box)
        one, two = await ends.pair()
        await one.send(b"straight")
        assert await two.receive() == b"straight"
        assert one.introducer == two.introducer == ends.other_introducer.peer_id
        assert ends.one.signaller.successes == [ends.other_introducer.peer_id]


ANSWERS: dict[str, str] = {
    "altered": "does not open with our key",
    "its own": "came in the name of {two} but is signed by {introducer}",
    "to another offer": "belongs to another offer",
    "the offer itself": "does not open with our key",
}


@pytest.mark.parametrize("name", ANSWERS)
async def test_a_lie_about_the_answer_is_refused_by_the_dialler(name: str) -> None:
    async with Ends() as ends:

        async def lie(sender: PeerId, to: PeerId, box: bytes) -> bytes:
            answer = await ends.carrier.honestly(ends.introducer.peer_id, sender, to, box)
            now = int(ends.one.transport.clock())
            return {
                "altered": answer[:-1] + bytes([answer[-1] ^ 1]),
                "its own": made_by(ends.introducer, sender, ends.roster.charter, now=now, kind=ANSWER_KIND),
                "to another offer": made_by(
                    ends.two_site, sender, ends.roster.charter, now=now, kind=ANSWER_KIND, offer="33" * 32
                ),
                "the offer itself": box,
            }[name]

        ends.carrier.lies[ends.introducer.peer_id] = lie
        with pytest.raises(LinkError) as caught:
            await ends.one.dial(ends.two)
        words = ANSWERS[name].format(two=ends.two_site.peer_id, introducer=ends.introducer.peer_id)
        assert words in str(caught.value) and ends.introducer.peer_id in str(caught.value)
        who, error = ends.one.refused[-1]
        assert who == ends.introducer.peer_id and words in str(error)


async def test_the_introducer_sees_nothing_but_who_and_whom() -> None:
    async with Ends() as ends:
        await ends.pair()
        ((sender, to, box),) = ends.carrier.carried
        assert (sender, to) == (ends.one_site.peer_id, ends.two_site.peer_id)
        assert len(box) % BOX_STEP == 48  # padded: the number of addresses does not show
        for telling in (b"127.0.0.1", b"fingerprint", b"candidates", ends.roster.charter.encode()):
            assert telling not in box
        for nosy in (ends.introducer, ends.third, ends.one_site):
            with pytest.raises(SignatureRefused):
                open_box(nosy.identity, box, OFFER_KIND)


BAD_FIELDS: dict[str, dict[str, object]] = {
    "a name as address": {"candidates": [["f", "evil.example", 1, 1, "host"]]},
    "an mDNS name": {"candidates": [["f", "abc.local", 1, 1, "host"]]},
    "multicast": {"candidates": [["f", "224.0.0.251", 5353, 1, "host"]]},
    "broadcast": {"candidates": [["f", "255.255.255.255", 1, 1, "host"]]},
    "unspecified": {"candidates": [["f", "0.0.0.0", 1, 1, "host"]]},
    "a scoped address": {"candidates": [["f", "fe80::1%eth0", 1, 1, "host"]]},
    "port 0": {"candidates": [["f", "10.0.0.1", 0, 1, "host"]]},
    "a true port": {"candidates": [["f", "10.0.0.1", True, 1, "host"]]},
    "an unknown type": {"candidates": [["f", "10.0.0.1", 1, 1, "prflx"]]},
    "too short a candidate": {"candidates": [["f", "10.0.0.1"]]},
    "too many candidates": {"candidates": [["f", "10.0.0.1", 1, 1, "host"]] * 25},
    "a short password": {"password": "p" * 21},
    "a password with a line end": {"password": "p" * 22 + "\n"},
    "no user name": {"username": ""},
    "a short fingerprint": {"fingerprint": bytes(31)},
    "a short nonce": {"nonce": bytes(31)},
    "a long life": {"valid": 901},
    "no life": {"valid": 0},
    "an unknown field": {"surprise": 1},
    "candidates as a map": {"candidates": {"f": 1}},
}


@pytest.mark.parametrize("name", BAD_FIELDS)
def test_fields_that_cannot_be(name: str) -> None:
    one, two = Site("one"), Site("two")
    roster = roster_of(one.member(), two.member())
    box = made_by(one, two.peer_id, roster.charter, now=NOW, **BAD_FIELDS[name])
    with pytest.raises(MalformedMessage):
        open_offer(two.identity, roster, one.peer_id, box, now=NOW)


def test_every_altered_byte_of_a_box_is_refused() -> None:
    one, two = Site("one"), Site("two")
    roster = roster_of(one.member(), two.member())
    box, _ = seal_offer(one.identity, roster.charter, two.peer_id, GOOD, nonce=bytes(32), now=NOW)
    assert open_offer(two.identity, roster, one.peer_id, box, now=NOW).description == GOOD
    for place in range(0, len(box), 7):
        altered = box[:place] + bytes([box[place] ^ 0x20]) + box[place + 1 :]
        with pytest.raises(SignatureRefused):
            open_offer(two.identity, roster, one.peer_id, altered, now=NOW)


@pytest.mark.parametrize(("age", "holds"), [
    (0, True), (VALID + SKEW, True), (VALID + SKEW + 1, False), (-SKEW, True), (-SKEW - 1, False),
])  # fmt: skip
def test_age(age: int, holds: bool) -> None:
    one, two = Site("one"), Site("two")
    roster = roster_of(one.member(), two.member())
    box, _ = seal_offer(one.identity, roster.charter, two.peer_id, GOOD, nonce=bytes(32), now=NOW)
    if holds:
        open_offer(two.identity, roster, one.peer_id, box, now=NOW + age)
        return
    with pytest.raises(RemoteError, match=r"stale|in the future"):
        open_offer(two.identity, roster, one.peer_id, box, now=NOW + age)


def test_an_answer_is_no_offer_and_the_other_way_round() -> None:
    one, two = Site("one"), Site("two")
    roster = roster_of(one.member(), two.member())
    offer, digest = seal_offer(one.identity, roster.charter, two.peer_id, GOOD, nonce=bytes(32), now=NOW)
    answer, _ = seal_offer(two.identity, roster.charter, one.peer_id, GOOD, nonce=bytes(32), now=NOW, offer=digest)
    open_offer(one.identity, roster, two.peer_id, answer, now=NOW, offer=digest)
    with pytest.raises(SignatureRefused):
        open_offer(one.identity, roster, two.peer_id, answer, now=NOW)
    with pytest.raises(SignatureRefused):
        open_offer(two.identity, roster, one.peer_id, offer, now=NOW, offer=digest)
    with pytest.raises(SignatureRefused, match="another offer"):
        open_offer(one.identity, roster, two.peer_id, answer, now=NOW, offer=Digest("44" * 32))


def test_what_is_remembered_of_offers_is_bounded() -> None:
    one, two = Site("one"), Site("two")
    roster = roster_of(one.member(), two.member())
    seen = SeenOffers()

    def offer(now: int) -> None:
        box, _ = seal_offer(one.identity, roster.charter, two.peer_id, GOOD, nonce=secrets.token_bytes(32), now=now)
        seen.take(open_offer(two.identity, roster, one.peer_id, box, now=now), now)

    for _ in range(REMEMBERED):
        offer(NOW)
    with pytest.raises(RemoteError, match=f"more than {REMEMBERED} offers"):
        offer(NOW + 1)
    offer(NOW + 3600)  # the old ones are forgotten


async def test_a_slow_introducer_costs_its_time_and_no_more() -> None:
    """The carrier's own limit ends the wait (Host.request); the next one is asked."""
    async with Ends() as ends:
        ends.carrier.introducers_ = [ends.introducer.peer_id, ends.other_introducer.peer_id]
        asked = asyncio.Event()

        async def slow(sender: PeerId, to: PeerId, box: bytes) -> bytes:
            asked.set()
            raise LinkError("did not answer /p2pfl/introduce/1 within 10 s; try again later")

        ends.carrier.lies[ends.introducer.peer_id] = slow
        one, _ = await ends.pair()
        assert asked.is_set() and one.introducer == ends.other_introducer.peer_id


async def test_all_introducers_are_named_when_none_helps() -> None:
    async with Ends() as ends:
        ends.carrier.introducers_ = [ends.introducer.peer_id, ends.other_introducer.peer_id]

        async def refuses(sender: PeerId, to: PeerId, box: bytes) -> bytes:
            raise LinkError("no link to it here")

        for introducer in ends.carrier.introducers_:
            ends.carrier.lies[introducer] = refuses
        with pytest.raises(LinkError) as caught:
            await ends.one.dial(ends.two)
        for introducer in ends.carrier.introducers_:
            assert introducer in str(caught.value)


# --- found by review: what a single liar or a hostile member could do


async def test_a_lie_about_glare_does_not_keep_the_others_from_helping() -> None:
    async with Ends() as ends:
        ends.carrier.introducers_ = [ends.introducer.peer_id, ends.other_introducer.peer_id]

        async def lie(sender: PeerId, to: PeerId, box: bytes) -> bytes:
            raise Refusal(GLARE)

        ends.carrier.lies[ends.introducer.peer_id] = lie
        one, _ = await ends.pair()
        assert one.introducer == ends.other_introducer.peer_id


async def test_a_withheld_offer_of_an_earlier_dial_does_not_break_the_later_one() -> None:
    async with Ends(clock=lambda: clock[0]) as ends:
        clock = [float(NOW)]
        ends.two.transport.clock = lambda: clock[0]
        kept: list[bytes] = []

        async def keep(sender: PeerId, to: PeerId, box: bytes) -> bytes:
            kept.append(box)
            raise LinkError("no answer")

        ends.carrier.lies[ends.introducer.peer_id] = keep
        with pytest.raises(LinkError):
            await ends.one.dial(ends.two)
        clock[0] += 5

        async def answer_and_then_the_old_one(sender: PeerId, to: PeerId, box: bytes) -> bytes:
            answer = await ends.carrier.honestly(ends.introducer.peer_id, sender, to, box)
            with pytest.raises(Refusal, match="older than the one being answered"):
                await ends.carrier.honestly(ends.introducer.peer_id, sender, to, kept[0])
            return answer

        ends.carrier.lies[ends.introducer.peer_id] = answer_and_then_the_old_one
        one, two = await ends.pair()
        await one.send(b"still")
        assert await two.receive() == b"still"


async def test_many_offers_of_one_member_hold_one_place() -> None:
    async with Ends() as ends:
        now = int(ends.two.transport.clock())
        boxes = [made_by(ends.third, ends.two_site.peer_id, ends.roster.charter, now=now) for _ in range(40)]
        answers = await asyncio.gather(
            *(
                ends.carrier.honestly(ends.introducer.peer_id, ends.third.peer_id, ends.two_site.peer_id, box)
                for box in boxes
            ),
            return_exceptions=True,
        )
        assert sum(isinstance(answer, bytes) for answer in answers) == 1
        assert len(ends.two.transport._stacks) == 1
        assert {type(answer) for answer in answers} == {bytes, Refusal}


async def test_what_a_member_has_signed_is_not_laid_at_the_introducers_door() -> None:
    async with Ends() as ends:
        now = int(ends.two.transport.clock())
        bad = made_by(ends.third, ends.two_site.peer_id, ends.roster.charter, now=now, **BAD_FIELDS["multicast"])
        with pytest.raises(MalformedMessage):
            await ends.carrier.honestly(ends.introducer.peer_id, ends.third.peer_id, ends.two_site.peer_id, bad)
        who, error = ends.two.refused[-1]
        assert who == error.peer == ends.third.peer_id
        assert f"brought by {ends.introducer.name}" in str(error)


async def test_a_stop_leaves_no_answer_under_way() -> None:
    async with Ends() as ends:
        now = int(ends.two.transport.clock())
        box = made_by(ends.third, ends.two_site.peer_id, ends.roster.charter, now=now)
        answering = asyncio.create_task(
            ends.carrier.honestly(ends.introducer.peer_id, ends.third.peer_id, ends.two_site.peer_id, box)
        )
        await asyncio.sleep(0)
        await ends.two.transport.close()
        await asyncio.gather(answering, return_exceptions=True)
        await ends.two.transport.close()
        assert not ends.two.transport._stacks and ends.two.transport.answers.idle


async def test_strangers_cannot_fill_the_port() -> None:
    async with Ends() as ends:
        stack = ends.one.transport.new_stack(controlling=True)
        description = await stack.gather(5)
        (candidate,) = description.candidates
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(
            asyncio.DatagramProtocol, remote_addr=(candidate.host, candidate.port)
        )
        for _ in range(4 * EARLY_DATAGRAMS):
            transport.sendto(b"\x20" * DATAGRAM_LIMIT)
            transport.sendto(b"\x20" * (DATAGRAM_LIMIT + 1))
            await asyncio.sleep(0)
        queue = stack._connection._queue
        async with asyncio.timeout(5):
            while queue.qsize() < EARLY_DATAGRAMS:
                await asyncio.sleep(0.01)
        transport.close()
        assert queue.qsize() == EARLY_DATAGRAMS
        while not queue.empty():
            assert len(queue.get_nowait()[0]) <= DATAGRAM_LIMIT
        await stack.close()
