"""Hosts without a port, linked over WebRTC by a neighbour of both; with the real signalling over real tcp links."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
import pytest_asyncio
from net_peers import BOUND, PASSWORD, PATIENT, Peer, Site, roster_of, sites
from webrtc_sites import LOOPBACK

from p2pfl.crypto import pack
from p2pfl.errors import LinkError, Refusal
from p2pfl.net import Host, Introductions, Limits, TcpTransport
from p2pfl.net.introductions import BOX_LIMIT, INTRODUCE, OFFER, PER_MINUTE
from p2pfl.net.webrtc import WebRtcTransport
from p2pfl.types import PeerId, Roster

LIMITS = replace(PATIENT, introduce=3.0, webrtc=8.0, dearer_after=0.05)


class Neighbourhood:
    """Some sites with a port, some without; all charter members of each other."""

    def __init__(self, listening: int, portless: int) -> None:
        made = sites(*(f"site-{number}" for number in range(listening + portless)))
        self.listening, self.portless = made[:listening], made[listening:]
        self.peers: dict[PeerId, Peer] = {}
        self.introductions: dict[PeerId, Introductions] = {}
        self.roster = self._roster({})

    def _roster(self, addresses: dict[PeerId, str]) -> Roster:
        members = [
            site.member((addresses[site.peer_id],) if site.peer_id in addresses else ()) for site in self.listening
        ]
        return roster_of(*members, *(site.member(listens=False) for site in self.portless))

    async def start(self, *, unwilling: tuple[int, ...] = (), limits: Limits = LIMITS) -> None:
        for number, site in enumerate(self.listening):
            await self._start(site, ["/ip4/127.0.0.1/tcp/0"], number not in unwilling, limits)
        self.roster = self._roster({site.peer_id: self.peers[site.peer_id].address for site in self.listening})
        for site in self.listening:
            self.peers[site.peer_id].host.update_roster(self.roster)
        for site in self.portless:
            await self._start(site, [], True, limits)

    async def _start(self, site: Site, listen: list[str], willing: bool, limits: Limits) -> None:
        introductions = Introductions(limits, willing=willing)
        events: list[tuple[PeerId, bool, str]] = []
        refusals: list[tuple[str, str]] = []
        host = Host(
            site.identity,
            self.roster,
            [
                TcpTransport(site.certificate, PASSWORD, limits),
                WebRtcTransport(site.identity, introductions, LOOPBACK, limits),
            ],
            on_link=lambda peer, up, text: events.append((peer, up, text)),
            on_refused=lambda who, why: refusals.append((who, why)),
            limits=limits,
        )
        introductions.attach(host)
        self.introductions[site.peer_id] = introductions
        peer = self.peers[site.peer_id] = Peer(site, host, events, refusals)
        found = await host.start([*listen, "/webrtc"])
        peer.address = found[0]

    async def link_portless(self) -> None:
        """Every portless site to every listening one, over tcp."""
        for site in self.portless:
            for other in self.listening:
                await self.host(site).dial(other.peer_id)
        for other in self.listening:
            for site in self.portless:
                await self.until(lambda other=other, site=site: site.peer_id in self.host(other).links)  # type: ignore[misc]

    def host(self, site: Site) -> Host:
        return self.peers[site.peer_id].host

    async def until(self, condition: Any) -> None:
        async with asyncio.timeout(BOUND):
            while not condition():
                await asyncio.sleep(0.001)

    async def stop(self) -> None:
        for peer in self.peers.values():
            async with asyncio.timeout(BOUND):
                await peer.host.stop()


@pytest_asyncio.fixture
async def one_hub() -> AsyncIterator[Neighbourhood]:
    found = Neighbourhood(1, 2)
    yield found
    await found.stop()


@pytest_asyncio.fixture
async def two_hubs() -> AsyncIterator[Neighbourhood]:
    found = Neighbourhood(2, 2)
    yield found
    await found.stop()


async def answer(peer: PeerId, payload: bytes) -> bytes:
    return payload[::-1]


async def test_two_sites_without_a_port_are_linked_by_a_third(one_hub: Neighbourhood) -> None:
    await one_hub.start()
    await one_hub.link_portless()
    one, two = one_hub.portless
    (hub,) = one_hub.listening
    one_hub.host(two).handle("/test/1", answer)
    await one_hub.host(one).dial(two.peer_id)
    assert await one_hub.host(one).request(two.peer_id, "/test/1", b"abc") == b"cba"
    info = one_hub.host(one).links[two.peer_id]
    assert (info.kind, info.path, info.introducer) == ("webrtc", "direct", hub.peer_id)
    assert one_hub.host(one).links[hub.peer_id].kind == "tcp"
    await one_hub.until(lambda: one.peer_id in one_hub.host(two).links)
    assert one_hub.host(two).links[one.peer_id].introducer == hub.peer_id
    assert one_hub.introductions[hub.peer_id].carried == 1


async def test_the_link_outlives_its_introducer(one_hub: Neighbourhood) -> None:
    await one_hub.start()
    await one_hub.link_portless()
    one, two = one_hub.portless
    one_hub.host(two).handle("/test/1", answer)
    await one_hub.host(one).dial(two.peer_id)
    await one_hub.host(one_hub.listening[0]).stop()
    await one_hub.until(lambda: list(one_hub.host(one).links) == [two.peer_id])
    assert await one_hub.host(one).request(two.peer_id, "/test/1", b"still") == b"llits"


async def test_another_neighbour_introduces_when_one_has_gone(two_hubs: Neighbourhood) -> None:
    await two_hubs.start()
    await two_hubs.link_portless()
    one, two = two_hubs.portless
    first, second = two_hubs.listening
    await two_hubs.host(first).stop()
    await two_hubs.until(lambda: first.peer_id not in two_hubs.host(one).links)
    await two_hubs.host(one).dial(two.peer_id)
    assert two_hubs.host(one).links[two.peer_id].introducer == second.peer_id


async def test_another_neighbour_introduces_when_one_will_not_or_cannot(two_hubs: Neighbourhood) -> None:
    """The first refuses; where nobody else knows the target either, all are named."""
    await two_hubs.start(unwilling=(0,))
    one, two = two_hubs.portless
    first, second = two_hubs.listening
    for hub in (first, second):
        await two_hubs.host(one).dial(hub.peer_id)
    await two_hubs.host(two).dial(first.peer_id)
    await two_hubs.until(lambda: two.peer_id in two_hubs.host(first).links)
    with pytest.raises(LinkError) as caught:
        await two_hubs.host(one).dial(two.peer_id)
    words = str(caught.value)
    assert f"through {first.name} ({first.peer_id})" in words and "does not introduce others" in words
    assert f"through {second.name} ({second.peer_id})" in words and "no link to" in words
    await two_hubs.host(two).dial(second.peer_id)
    await two_hubs.until(lambda: two.peer_id in two_hubs.host(second).links)
    await two_hubs.host(one).dial(two.peer_id)
    assert two_hubs.host(one).links[two.peer_id].introducer == second.peer_id


async def test_a_slow_introducer_is_given_up(two_hubs: Neighbourhood) -> None:
    await two_hubs.start(limits=replace(LIMITS, introduce=0.3))
    await two_hubs.link_portless()
    one, two = two_hubs.portless
    for hub in two_hubs.listening:
        carry = two_hubs.introductions[hub.peer_id]._introduce

        async def slow(asker: PeerId, payload: bytes, hub: Site = hub, carry: Any = carry) -> bytes:
            if hub is order[0]:
                await asyncio.Event().wait()
            return bytes(await carry(asker, payload))

        two_hubs.host(hub).handle(INTRODUCE, slow)
    order = [
        next(site for site in two_hubs.listening if site.peer_id == peer)
        for peer in two_hubs.introductions[one.peer_id].introducers(two.peer_id)
    ]
    await two_hubs.host(one).dial(two.peer_id)
    assert two_hubs.host(one).links[two.peer_id].introducer == order[1].peer_id


async def test_wanted_links_come_up_by_themselves_and_again(one_hub: Neighbourhood) -> None:
    await one_hub.start()
    one, two = one_hub.portless
    (hub,) = one_hub.listening
    for site, other in ((one, two), (two, one)):
        one_hub.host(site).want([hub.peer_id, other.peer_id])
    for site, other in ((one, two), (two, one)):
        await one_hub.until(lambda site=site, other=other: other.peer_id in one_hub.host(site).links)  # type: ignore[misc]
    before = one_hub.host(one).links[two.peer_id].since
    one_hub.host(one)._table.get(two.peer_id).connection.abort()  # type: ignore[union-attr]
    await one_hub.until(
        lambda: two.peer_id in one_hub.host(one).links and one_hub.host(one).links[two.peer_id].since > before
    )
    assert one_hub.host(one).links[two.peer_id].kind == "webrtc"


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a stranger": ({"to": "12D3KooWnobody", "box": b"x"}, "is no other member"),
    "oneself": ({"to": "self", "box": b"x"}, "is no other member"),
    "a large box": ({"to": "two", "box": bytes(BOX_LIMIT + 1)}, "bytes"),
    "a field too many": ({"to": "two", "box": b"x", "more": 1}, "cannot be decoded"),
    "no box": ({"to": "two"}, "wrong fields"),
    "not linked": ({"to": "two", "box": b"x"}, "no link to"),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_what_an_introducer_will_not_carry(one_hub: Neighbourhood, name: str) -> None:
    fields, words = REFUSED[name]
    await one_hub.start()
    one, two = one_hub.portless
    (hub,) = one_hub.listening
    await one_hub.host(one).dial(hub.peer_id)
    names = {"self": one.peer_id, "two": two.peer_id}
    payload = pack({**fields, "to": names.get(fields["to"], fields["to"])})
    with pytest.raises(Refusal, match=words):
        await one_hub.host(one).request(hub.peer_id, INTRODUCE, payload)


async def test_a_neighbour_that_asks_too_often_is_refused(one_hub: Neighbourhood) -> None:
    await one_hub.start()
    await one_hub.link_portless()
    one, two = one_hub.portless
    (hub,) = one_hub.listening
    payload = pack({"to": two.peer_id, "box": b"rubbish"})
    for _ in range(PER_MINUTE):
        with pytest.raises(Refusal, match="does not open with our key"):
            await one_hub.host(one).request(hub.peer_id, INTRODUCE, payload)
    with pytest.raises(Refusal, match="introductions a minute"):
        await one_hub.host(one).request(hub.peer_id, INTRODUCE, payload)
    blamed = {who for who, _ in one_hub.peers[two.peer_id].refusals}
    assert blamed == {hub.peer_id}


async def test_a_member_that_introduces_itself_is_refused(one_hub: Neighbourhood) -> None:
    await one_hub.start()
    await one_hub.link_portless()
    one, (hub,) = one_hub.portless[0], one_hub.listening
    payload = pack({"from": hub.peer_id, "box": b"x"})
    with pytest.raises(Refusal, match="introduces itself"):
        await one_hub.host(hub).request(one.peer_id, OFFER, payload)


async def test_without_any_neighbour_the_reason_says_what_to_do(one_hub: Neighbourhood) -> None:
    await one_hub.start()
    one, two = one_hub.portless
    with pytest.raises(LinkError, match=r"nobody can introduce us .*\(p2pfl link offer\)"):
        await one_hub.host(one).dial(two.peer_id)
