"""The shared battery, part 2: who gets a link, over every transport.

Whoever is refused never believes it is connected.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from dataclasses import replace

import pytest
from net_peers import BOUND, CHARTER, PATIENT, Consortium, Peer, Site, roster_of, sites

from p2pfl.crypto.envelope import sign_envelope
from p2pfl.crypto.packing import pack, unpack
from p2pfl.errors import LinkError
from p2pfl.net.limits import HELLO_LIMIT
from p2pfl.types import Digest, PeerId, Roster

pytestmark = pytest.mark.timeout(30)


async def listener(consortium: Consortium, *known: Site, charter: Digest = CHARTER) -> Peer:
    """A peer that listens and whose roster holds itself (first) and the others."""
    roster = roster_of(*(site.member() for site in known), charter=charter)
    return await consortium.start(known[0], roster)


async def dialler(consortium: Consortium, site: Site, roster: Roster, target: PeerId) -> tuple[Peer, LinkError]:
    """A peer whose dial of ``target`` fails, and the error."""
    peer = await consortium.start(site, roster, listen=False)
    with pytest.raises(LinkError) as caught:
        await peer.host.dial(target)
    return peer, caught.value


def assert_never_up(*peers: Peer) -> None:
    for peer in peers:
        assert peer.events == [] and peer.host.links == {}


async def test_a_stranger_that_dials_is_refused(consortium: Consortium) -> None:
    victim_site, member, stranger = Site("lille"), Site("rouen"), Site("stranger")
    victim = await listener(consortium, victim_site, member)
    roster = roster_of(victim_site.member((victim.address,)), stranger.member())
    outsider, _ = await dialler(consortium, stranger, roster, victim.peer_id)
    await consortium.until(lambda: len(victim.refusals) == 1)
    assert consortium.kind.words_for_strangers in victim.refusals[0][1]
    assert_never_up(victim, outsider)


async def test_a_stranger_that_listens_is_refused(addressed: Consortium) -> None:
    member, wanted, stranger = Site("lille"), Site("rouen"), Site("stranger")
    trap = await listener(addressed, stranger, member)
    roster = roster_of(member.member(), wanted.member((trap.address,)))
    peer, error = await dialler(addressed, member, roster, wanted.peer_id)
    assert "in no member's record" in str(error) and trap.address in str(error)
    assert len(peer.refusals) == 1 and peer.refusals[0][0] == trap.address
    assert_never_up(peer, trap)


@pytest.mark.parametrize("claims", ["its own id", "the member's id"])
async def test_a_stranger_with_a_stolen_certificate_is_refused(addressed: Consortium, claims: str) -> None:
    victim_site, robbed, thief = Site("lille"), Site("rouen"), Site("thief")
    victim = await listener(addressed, victim_site, robbed)
    thief.certificate = robbed.certificate
    own_id = thief.peer_id
    roster = roster_of(victim_site.member((victim.address,)), thief.member())
    if claims == "the member's id":
        thief.identity.peer_id = robbed.peer_id  # but it can sign with its own key only
        roster = roster_of(victim_site.member((victim.address,)), robbed.member())
    outsider, error = await dialler(addressed, thief, roster, victim.peer_id)
    await addressed.until(lambda: len(victim.refusals) == 1)
    who, why = victim.refusals[0]
    if claims == "its own id":
        assert who == own_id and "not a member" in why and "not a member" in str(error)
    else:
        assert "signature" in why
    assert "refused us" in str(error)
    assert_never_up(victim, outsider)


async def test_a_member_under_another_members_certificate_is_refused(addressed: Consortium) -> None:
    victim_site, member, other = Site("lille"), Site("rouen"), Site("caen")
    victim = await listener(addressed, victim_site, member, other)
    roster = roster_of(victim_site.member((victim.address,)), member.member(), other.member())
    member.certificate = other.certificate
    outsider, error = await dialler(addressed, member, roster, victim.peer_id)
    await addressed.until(lambda: len(victim.refusals) == 1)
    assert victim.refusals[0][0] == member.peer_id
    assert "a certificate that is not in its record" in victim.refusals[0][1] and "rouen" in victim.refusals[0][1]
    assert "refused us" in str(error)
    assert_never_up(victim, outsider)


async def test_another_member_than_the_dialled_one_is_refused(addressed: Consortium) -> None:
    one, two, three = Site("lille"), Site("rouen"), Site("caen")
    other = await listener(addressed, three, one, two)
    roster = roster_of(one.member(), two.member((other.address,)), three.member())
    peer, error = await dialler(addressed, one, roster, two.peer_id)
    assert "belongs to caen" in str(error) and "not to rouen" in str(error)
    assert peer.refusals[0][0] == three.peer_id
    await addressed.until(lambda: not other.host._connecting)
    assert_never_up(peer, other)


async def test_another_charter_is_refused_by_both(consortium: Consortium) -> None:
    one, two = Site("lille"), Site("rouen")
    listening = await listener(consortium, two, one, charter=Digest("22" * 32))
    roster = roster_of(one.member(), two.member((listening.address,)))
    peer, error = await dialler(consortium, one, roster, two.peer_id)
    assert "another charter" in str(error)
    await consortium.until(lambda: len(listening.refusals) == 1)
    who, why = listening.refusals[0]
    assert one.peer_id in who + why and "another charter" in why
    assert_never_up(peer, listening)


async def test_a_peer_does_not_link_to_itself(addressed: Consortium) -> None:
    one, two = Site("lille"), Site("rouen")
    peer = await listener(addressed, one, two)
    peer.host.update_roster(roster_of(one.member(), two.member((peer.address,))))
    with pytest.raises(LinkError, match="is our own address"):
        await peer.host.dial(two.peer_id)
    assert_never_up(peer)
    assert peer.refusals == []


async def test_a_revoked_member_is_closed_and_stays_out(consortium: Consortium) -> None:
    one, two = await consortium.pair()
    notes: list[bytes] = []
    two.host.handle_notify("/note/1", lambda peer, payload: notes.append(payload))
    two.host.update_roster(roster_of(two.site.member()))
    assert two.host.links == {} and two.events[-1][:2] == (one.peer_id, False)
    await consortium.until(lambda: not one.host.links)
    assert "no longer a member" in one.events[-1][2]
    with pytest.raises(LinkError):
        await one.host.dial(two.peer_id)
    await consortium.until(lambda: len(two.refusals) == 1)
    assert notes == [] and two.host.links == {} and one.host.links == {}


async def test_a_revoked_member_is_not_heard_while_the_goodbye_is_under_way(consortium: Consortium) -> None:
    one, two = await consortium.pair()
    notes: list[bytes] = []
    two.host.handle_notify("/note/1", lambda peer, payload: notes.append(payload))
    link = two.host._table.get(one.peer_id)

    async def stuck(*parts: bytes) -> None:
        await asyncio.Event().wait()

    link.connection.send = stuck
    two.host.update_roster(roster_of(two.site.member()))
    heard = link.connection.bytes_in
    await one.host.notify(two.peer_id, "/note/1", b"too late")
    await consortium.until(lambda: link.connection.bytes_in > heard and not one.host.links)
    assert notes == []


async def test_a_renewed_certificate_needs_the_new_record(addressed: Consortium) -> None:
    one, two = await addressed.pair()
    before, renewed = one.site.member(), replace(one.site, identity=one.site.identity)
    both = replace(before, certificates=(renewed.certificate.der, *before.certificates))
    two.host.update_roster(roster_of(two.site.member(), both))
    assert list(two.host.links) == [one.peer_id]  # rotation with overlap
    two.host.update_roster(roster_of(two.site.member(), replace(both, certificates=both.certificates[:1])))
    assert two.host.links == {}
    assert "certificate is no longer in its record" in two.events[-1][2]


async def record_hello(consortium: Consortium, one: Peer, two: Peer) -> list[bytes]:
    """The frames that ``one`` sends while it links to ``two``."""
    sent: list[bytes] = []
    transport = one.host._transports[0]
    dial = transport.dial

    async def recorded(address: str):
        connection = await dial(address)
        send = connection.send

        async def record(*parts: bytes) -> None:
            sent.append(b"".join(parts))
            await send(*parts)

        connection.send = record
        return connection

    transport.dial = recorded
    await one.host.dial(two.peer_id)
    await consortium.until(lambda: one.peer_id in two.host.links)
    return sent[:3]


async def test_a_replayed_hello_is_refused(consortium: Consortium) -> None:
    one, two = Site("lille"), Site("rouen")
    victim = await listener(consortium, two, one)
    roster = roster_of(one.member(), two.member((victim.address,)))
    honest = await consortium.start(one, roster, listen=False)
    sent = await record_hello(consortium, honest, victim)
    await honest.host.stop()
    await consortium.until(lambda: not victim.host.links)
    events = len(victim.events)
    attacker = consortium.kind.transport(one, PATIENT)  # the attacker even holds the certificate's key
    attacker.trust(roster)
    connection = await attacker.dial(victim.address)
    for frame in sent:
        await connection.send(frame)
    await consortium.until(lambda: len(victim.refusals) == 1)
    assert "another connection" in victim.refusals[0][1] and victim.refusals[0][0] == one.peer_id
    assert len(victim.events) == events and victim.host.links == {}
    connection.abort()


def altered_hello(site: Site, **changes: object) -> bytes:
    fields = {
        "version": 1,
        "network": CHARTER,
        "peer": site.peer_id,
        "nonce": bytes(32),
        "process": bytes(16),
        "protocols": [],
    }
    return b"H" + pack({**fields, **changes})


BAD_HELLOS = {
    "version": ({"version": 2}, "version 2"),
    "nonce too short": ({"nonce": bytes(31)}, "wrong size"),
    "process too long": ({"process": bytes(17)}, "wrong size"),
    "too many protocols": ({"protocols": ["x"] * 65}, "wrong size"),
    "protocol of another type": ({"protocols": [1]}, "wrong size"),
    "unknown field": ({"extra": 1}, "extra"),
}


@pytest.mark.parametrize("case", [*BAD_HELLOS, "no map", "wrong frame", "empty frame", "unproven"])
async def test_a_bad_hello_is_refused(consortium: Consortium, case: str) -> None:
    one, two = Site("lille"), Site("rouen")
    victim = await listener(consortium, two, one)
    attacker = consortium.kind.transport(one, PATIENT)
    attacker.trust(roster_of(one.member(), two.member()))
    connection = await attacker.dial(victim.address)
    changes, words = BAD_HELLOS.get(case, ({}, ""))
    frames = {"no map": [b"H\x01"], "wrong frame": [b"W" + bytes(8)], "empty frame": [b""]}
    unproven = sign_envelope(one.identity, "/p2pfl/hello/1", pack({})).encode()
    frames["unproven"] = [altered_hello(one), b"P" + unproven]
    for frame in frames.get(case, [altered_hello(one, **changes)]):
        await connection.send(frame)
    await consortium.until(lambda: len(victim.refusals) == 1)
    assert words in victim.refusals[0][1]
    assert_never_up(victim)
    connection.abort()


async def test_an_unproven_end_may_not_send_large_frames(consortium: Consortium) -> None:
    one, two = Site("lille"), Site("rouen")
    victim = await listener(consortium, two, one)
    attacker = consortium.kind.transport(one, PATIENT)
    attacker.trust(roster_of(one.member(), two.member()))
    connection = await attacker.dial(victim.address)
    with contextlib.suppress(LinkError):  # memory tells at once
        await connection.send(b"H" + bytes(HELLO_LIMIT))
    await consortium.until(lambda: len(victim.refusals) == 1)
    assert f"exceeds {HELLO_LIMIT}" in victim.refusals[0][1]
    assert_never_up(victim)
    connection.abort()


def proof_frame(binding: bytes, ends: tuple[Site, Site], hello: bytes, theirs: bytes, signer: Site) -> bytes:
    """The dialler's proof as the protocol wants it, built from its description alone."""
    nonce = unpack(theirs[1:], what="hello", limit=HELLO_LIMIT)["nonce"]
    both = b"".join(len(data).to_bytes(4, "big") + data for data in (hello[1:], theirs[1:]))
    proof = {
        "network": CHARTER,
        "role": "dialler",
        "dialler": ends[0].peer_id,
        "listener": ends[1].peer_id,
        "dialler_nonce": bytes(32),
        "listener_nonce": nonce,
        "binding": binding,
        "hellos": hashlib.sha256(both).digest(),
    }
    return b"P" + sign_envelope(signer.identity, "/p2pfl/hello/1", pack(proof)).encode()


async def test_a_proof_signed_by_another_member_is_refused(consortium: Consortium) -> None:
    one, two, three = Site("lille"), Site("rouen"), Site("caen")
    victim = await listener(consortium, two, one, three)
    attacker = consortium.kind.transport(one, PATIENT)
    attacker.trust(roster_of(one.member(), two.member()))
    connection = await attacker.dial(victim.address)
    hello = altered_hello(one)
    await connection.send(hello)
    theirs = await connection.receive()
    await connection.send(proof_frame(connection.binding, (one, two), hello, theirs, three))
    await consortium.until(lambda: len(victim.refusals) == 1)
    assert f"signed as {three.peer_id}" in victim.refusals[0][1]
    assert_never_up(victim)
    connection.abort()


@pytest.mark.parametrize("frames_sent", [0, 1, 2])
async def test_an_end_that_falls_silent_in_the_hello_is_let_go(consortium: Consortium, frames_sent: int) -> None:
    one, two = sites("lille", "rouen")
    roster = roster_of(one.member(), two.member())
    victim = await consortium.start(two, roster, limits=replace(PATIENT, hello=0.1))
    attacker = consortium.kind.transport(one, PATIENT)
    attacker.trust(roster)
    connection = await attacker.dial(victim.address)
    hello = altered_hello(one)
    if frames_sent:
        await connection.send(hello)
    if frames_sent == 2:
        theirs = await connection.receive()
        await connection.send(proof_frame(connection.binding, (one, two), hello, theirs, one))
        await connection.receive()  # their proof
        assert await connection.receive() == b"O"  # the proof above is good: only the welcome is missing
    with pytest.raises(LinkError):
        async with asyncio.timeout(BOUND):
            while True:
                await connection.receive()
    assert_never_up(victim)


async def test_refusals_are_told_at_a_bounded_rate(addressed: Consortium) -> None:
    one, two, stranger = Site("lille"), Site("rouen"), Site("stranger")
    limits = replace(PATIENT, refusals_per_minute=3)
    victim = await addressed.start(one, roster_of(one.member(), two.member()), limits=limits)
    outsider = addressed.kind.transport(stranger, PATIENT)
    outsider.trust(roster_of(one.member(), stranger.member()))
    for number in range(1, 6):
        connection = await outsider.dial(victim.address)
        with pytest.raises(LinkError):
            await connection.receive()
        await addressed.until(lambda number=number: victim.host.refused == number)
    assert len(victim.refusals) == 3
