"""The shared battery, part 3: wanted links come up, come back, and are one per pair, over every transport."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from net_peers import BOUND, PATIENT, SOON, Consortium, Peer, Site, fall_silent, roster_of, sites

from p2pfl.errors import ConfigError, IllegalStep, LinkError
from p2pfl.net import Host

pytestmark = pytest.mark.timeout(30)


async def listening_pair(consortium: Consortium) -> tuple[Peer, Peer]:
    """Two listening peers that know each other's address and are not linked."""
    one, two = sites("lille", "rouen")
    first = await consortium.start(one, roster_of(one.member(), two.member()))
    second = await consortium.start(two, roster_of(one.member(), two.member()))
    known = roster_of(one.member((first.address,)), two.member((second.address,)))
    first.host.update_roster(known)
    second.host.update_roster(known)
    return first, second


def ups_and_downs(peer: Peer) -> list[bool]:
    return [up for _, up, _ in peer.events]


@pytest.mark.parametrize("turn", range(12))
async def test_simultaneous_dials_end_in_one_link_without_a_down(consortium: Consortium, turn: int) -> None:
    one, two = await listening_pair(consortium)

    async def later(peer: Peer, other: Peer, turns: int) -> None:
        for _ in range(turns):
            await asyncio.sleep(0)
        await peer.host.dial(other.peer_id)

    async with asyncio.timeout(BOUND):
        await asyncio.gather(later(one, two, max(0, turn - 6)), later(two, one, max(0, 6 - turn)))
    assert list(one.host.links) == [two.peer_id] and list(two.host.links) == [one.peer_id]
    await consortium.until(lambda: one.host._table.connections == two.host._table.connections == 1)
    numbers = [peer.host._table.all()[0].greeting.number for peer in (one, two)]
    assert numbers[0] == numbers[1]
    assert ups_and_downs(one) == ups_and_downs(two) == [True]


async def test_a_replaced_link_still_answers_what_is_under_way(consortium: Consortium) -> None:
    one, two = await listening_pair(consortium)
    go = asyncio.Event()

    async def wait(peer: str, payload: bytes) -> bytes:
        await go.wait()
        return b"answered over " + payload

    two.host.handle("/wait/1", wait)
    await one.host.dial(two.peer_id)
    await consortium.until(lambda: one.peer_id in two.host.links)
    call = asyncio.create_task(one.host.request(two.peer_id, "/wait/1", b"the old link", BOUND))
    old = one.host._table.get(two.peer_id)
    for peer, other in ((one, two), (two, one)):  # as if both had lived for long
        peer.host._table.get(other.peer_id).since -= PATIENT.fresh + 1
    await one.host._connect(two.address, two.peer_id)
    await consortium.until(lambda: one.host._table.get(two.peer_id) is not old)
    await consortium.until(lambda: two.host._table.connections == 2)
    go.set()
    assert await call == b"answered over the old link"
    await consortium.until(lambda: one.host._table.connections == two.host._table.connections == 1)
    assert ups_and_downs(one) == ups_and_downs(two) == [True]


async def test_a_second_dial_finds_the_link(consortium: Consortium) -> None:
    one, two = await listening_pair(consortium)
    async with asyncio.timeout(BOUND):
        await asyncio.gather(*(one.host.dial(two.peer_id) for _ in range(5)))
        await two.host.dial(one.peer_id)
    assert ups_and_downs(one) == [True]
    await consortium.until(lambda: ups_and_downs(two) == [True])
    assert one.host.why_not(two.peer_id) == ""


async def test_wanted_links_come_up_and_come_back(consortium: Consortium) -> None:
    one, two = await listening_pair(consortium)
    one.host.want([two.peer_id, one.peer_id])
    two.host.want([one.peer_id])
    await consortium.until(lambda: one.host.links != {} and two.host.links != {})
    for count in (3, 5):
        two.host._table.close(one.peer_id, "pulled the plug")
        await consortium.until(lambda count=count: len(one.events) == len(two.events) == count)
        assert ups_and_downs(one) == ups_and_downs(two) == [number % 2 == 0 for number in range(count)]
    one.host.want([])
    two.host.want([])
    await consortium.until(lambda: not (one.host._connecting or two.host._connecting))
    two.host._table.close(one.peer_id, "for good")
    await consortium.until(lambda: len(one.events) == 6)
    assert one.host.links == {}


async def test_a_late_listener_is_found_by_redialling(consortium: Consortium) -> None:
    one, two = sites("lille", "rouen")
    probe = await consortium.start(two, roster_of(two.member()))
    address = probe.address
    await probe.host.stop()
    known = roster_of(one.member(listens=False), two.member((address,)))
    first = await consortium.start(one, known, listen=False)
    first.host.want([two.peer_id])
    await consortium.until(lambda: consortium.kind.words_for_nobody in first.host.why_not(two.peer_id))
    if consortium.kind.name != "webrtc":  # which has no address to listen on again
        assert address in first.host.why_not(two.peer_id)
        consortium.kind.listen_address = lambda site: address
    second = await consortium.start(two, known)
    await consortium.until(lambda: first.host.links != {} and second.host.links != {})


async def test_a_portless_peer_is_waited_for(addressed: Consortium) -> None:
    one, two = await listening_pair(addressed)
    roster = roster_of(one.site.member(listens=False), two.site.member((two.address,)))
    for peer in (one, two):
        peer.host.update_roster(roster)
    two.host.want([one.peer_id])
    await addressed.until(lambda: "it dials us" in two.host.why_not(one.peer_id))
    one.host.want([two.peer_id])
    await addressed.until(lambda: one.host.links != {} and two.host.links != {})


async def test_a_restarted_neighbour_is_a_down_and_an_up(consortium: Consortium) -> None:
    one, two = await consortium.pair(SOON)
    old = two.host._table.get(one.peer_id)
    fall_silent(one, two)
    again = await consortium.start(one.site, one.host._roster, listen=False)
    await again.host.dial(two.peer_id)
    await consortium.until(lambda: two.host._table.get(one.peer_id) not in (old, None))
    assert ups_and_downs(two) == [True, False, True]
    assert two.events[1][2] == "it has restarted"


async def test_heard_addresses_lead_to_wanted_members(addressed: Consortium) -> None:
    one, two, three = sites("lille", "rouen", "caen")
    roster = roster_of(one.member(), two.member(), three.member())
    first, second, third = [await addressed.start(site, roster) for site in (one, two, three)]
    dead = "/memory/nobody" if addressed.kind.name == "memory" else "/ip4/127.0.0.1/tcp/1"
    first.host.want([two.peer_id])
    for address in (dead, first.address, third.address, second.address, "/unknown/kind"):
        first.host.candidate(address)
    await addressed.until(lambda: two.peer_id in first.host.links and one.peer_id in second.host.links)
    second.host._table.close(one.peer_id, "pulled the plug")
    await addressed.until(lambda: ups_and_downs(second)[-1:] == [True] and len(second.events) == 3)
    assert first.refusals == [] and third.refusals == []


async def test_heard_addresses_are_bounded_and_forgotten(addressed: Consortium) -> None:
    one, two = sites("lille", "rouen")
    limits = replace(PATIENT, candidates=3, redial_first=0.001, redial_longest=0.002)
    peer = await addressed.start(one, roster_of(one.member(), two.member()), limits=limits)
    memory = addressed.kind.name == "memory"
    dead = [f"/memory/none{number}" if memory else f"/ip4/127.0.0.1/tcp/{number}" for number in range(1, 6)]
    for address in dead:
        peer.host.candidate(address)
    assert list(peer.host._known.candidates) == dead[2:]
    peer.host.want([two.peer_id])
    await addressed.until(lambda: peer.host._known.candidates == {})


async def test_exploring_does_not_disturb_a_live_link(consortium: Consortium) -> None:
    one, two, three = sites("lille", "rouen", "caen")
    roster = roster_of(one.member(), two.member(), three.member())
    first, second = await consortium.start(one, roster), await consortium.start(two, roster)
    first.host.want([two.peer_id, three.peer_id])
    first.host.candidate(second.address)
    await consortium.until(lambda: second.host.links != {} and first.host.links != {})
    for peer, other in ((first, second), (second, first)):
        peer.host._table.get(other.peer_id).since -= PATIENT.fresh + 1
    link = first.host._table.get(two.peer_id)
    first.host._known.candidates.clear()
    first.host.candidate(second.address)
    await consortium.until(lambda: first.host._known.candidates[second.address].owner == two.peer_id)
    assert first.host._table.get(two.peer_id) is link
    assert ups_and_downs(first) == ups_and_downs(second) == [True]


async def test_links_are_bounded(consortium: Consortium) -> None:
    one, two, three = sites("lille", "rouen", "caen")
    roster = roster_of(one.member(), two.member(), three.member())
    hub = await consortium.start(one, roster, limits=replace(PATIENT, links=1))
    known = roster_of(one.member((hub.address,)), two.member(), three.member())
    first = await consortium.start(two, known, listen=False)
    await first.host.dial(one.peer_id)
    second = await consortium.start(three, known, listen=False)
    second.host.want([one.peer_id])
    await consortium.until(lambda: len(hub.host._connecting) == 0)
    assert list(hub.host.links) == [two.peer_id]


async def test_bad_calls_say_what_to_do(addressed: Consortium) -> None:
    site = Site("lille")
    roster = roster_of(site.member())
    host = Host(
        site.identity,
        roster,
        [addressed.kind.transport(site, PATIENT)],
        on_link=lambda peer, up, text: None,
    )
    with pytest.raises(IllegalStep, match="start first"):
        host.want([])
    with pytest.raises(IllegalStep, match="start first"):
        await host.dial(site.peer_id)
    with pytest.raises(ConfigError, match="no transport for address"):
        await host.start(["/dns6/example.org/tcp/1"])
    peer = await addressed.start(site, roster)
    other = Site("rouen") if addressed.kind.name == "tcp" else site
    addressed.kind.listen_address = lambda site: peer.address
    with pytest.raises(ConfigError, match=r"in use; .*choose another"):
        await addressed.start(other, roster_of(other.member()))
    with pytest.raises(IllegalStep, match="chunk limit"):
        await anext(peer.host.fetch(other.peer_id, "x", 1, 1 << 20))
    with pytest.raises(LinkError, match="no link"):
        await anext(peer.host.fetch(other.peer_id, "x", 1, 100))
