"""Two processes with one key: the one that is linked and answers stays, the other one is refused by name."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from net_peers import PATIENT, SOON, Consortium, Peer, fall_silent, roster_of, sites

from p2pfl.errors import LinkError
from p2pfl.net import Limits
from p2pfl.net.instances import ALIVE


def told_of(peer: Peer) -> list[tuple[str, str]]:
    """What the host tells its owner of second instances from now on."""
    told: list[tuple[str, str]] = []
    peer.host._on_second_instance = lambda whose, why: told.append((whose, why))
    return told


async def copy_of(consortium: Consortium, peer: Peer, limits: Limits = PATIENT) -> Peer:
    """Another process with the same key and certificate. It is a program that never stops by itself."""
    return await consortium.start(peer.site, peer.host.roster, listen=False, limits=limits)


async def test_a_second_live_instance_is_refused_by_name(consortium: Consortium) -> None:
    one, two = await consortium.pair()
    link, told, own = two.host._table.get(one.peer_id), told_of(two), told_of(one)
    link.since -= PATIENT.fresh + 1  # a link of any age
    second = await copy_of(consortium, one)
    for _ in range(2):
        with pytest.raises(LinkError, match="second process with the key of a member that is linked"):
            await second.host.dial(two.peer_id)
    assert f"refused us: {one.site.name}" in second.host.why_not(two.peer_id)
    assert two.host._table.get(one.peer_id) is link and [up for _, up, _ in two.events] == [True]
    assert second.events == [] and {who for who, _ in two.refusals} == {one.peer_id}
    assert told and told[0][0] == one.peer_id and "its key was copied" in told[0][1]
    assert own and own[0] == (one.peer_id, f"{two.peer_id} has met another process with this peer's key")
    await one.host.stop()  # said goodbye: now the other one may come
    await second.host.dial(two.peer_id)
    await consortium.until(lambda: [up for _, up, _ in two.events] == [True, False, True])


async def test_nobody_is_let_in_or_named_while_bytes_come_and_no_answer(consortium: Consortium) -> None:
    """The answer may wait behind bulk; or what comes are the last words of a dead process, which we read slowly."""
    limits = replace(SOON, ping_every=0.02, redial_first=0.001, dearer_after=0.002)
    one, two = await consortium.pair(limits)
    link, told, go = two.host._table.get(one.peer_id), told_of(two), asyncio.Event()

    async def late(peer: str, payload: bytes) -> bytes:
        await go.wait()
        return b""

    one.host.handle(ALIVE, late)
    second = await copy_of(consortium, one, limits)
    with pytest.raises(LinkError, match="still holds an earlier link"):
        await second.host.dial(two.peer_id)
    assert two.host._table.get(one.peer_id) is link and two.refusals == [] and told == []
    go.set()
    with pytest.raises(LinkError, match="second process"):
        await second.host.dial(two.peer_id)


async def test_after_a_power_cut_the_restarted_one_gets_in_whoever_dials(addressed: Consortium) -> None:
    one, two = sites("lille", "rouen")
    second = await addressed.start(two, roster_of(one.member(), two.member()), limits=SOON)
    first = await addressed.start(one, roster_of(one.member(), two.member((second.address,))), listen=False)
    await first.host.dial(two.peer_id)
    await addressed.until(lambda: second.host.links != {})
    fall_silent(first, second)
    told = told_of(second)
    again = await addressed.start(one, first.host.roster, listen=addressed.kind.name == "tcp")
    known = roster_of(one.member(tuple(filter(None, [again.address]))), two.member((second.address,)))
    for peer in (second, again):
        peer.host.update_roster(known)
    second.host.want([one.peer_id])
    again.host.want([two.peer_id])
    await addressed.until(lambda: [up for _, up, _ in second.events] == [True, False, True])
    await addressed.until(lambda: again.host.links != {})
    assert second.refusals == [] and told == []
    assert second.events[1][2] == "it has restarted"


async def test_of_two_that_come_at_one_time_one_is_linked(consortium: Consortium) -> None:
    one, two = sites("lille", "rouen")
    other = await consortium.start(two, roster_of(one.member(listens=False), two.member()))
    known = roster_of(one.member(listens=False), two.member((other.address,)))
    other.host.update_roster(known)
    copies = [await consortium.start(one, known, listen=False) for _ in range(2)]
    await asyncio.gather(*(each.host.dial(two.peer_id) for each in copies), return_exceptions=True)
    await consortium.until(lambda: sum(each.host.links != {} for each in copies) == 1 and other.host.links != {})
    linked = other.host._table.get(one.peer_id).greeting.process
    assert [each.host._greeter.process for each in copies if each.host.links] == [linked]
    assert [up for _, up, _ in other.events] == [True]


async def test_many_hellos_ask_one_question(consortium: Consortium) -> None:
    one, two = await consortium.pair()
    go, asked = asyncio.Event(), []

    async def answer(peer: str, payload: bytes) -> bytes:
        asked.append(peer)
        await go.wait()
        return b""

    one.host.handle(ALIVE, answer)
    instances, process = two.host._instances, bytes(16)
    waiting = [asyncio.create_task(instances.make_way(one.peer_id, process, "x")) for _ in range(20)]
    await consortium.until(lambda: bool(asked))
    go.set()
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(outcome).__name__ for outcome in outcomes] == ["SecondInstanceError"] * 20
    assert asked == [two.peer_id] and instances._asked == {}
