"""Hosts with two kinds of memory transport in one network: ``memory`` at no cost, and ``slow`` that costs 1."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from net_peers import PATIENT, Consortium, MemoryKind, Peer, Site, roster_of, sites

from p2pfl.net import Host, Limits, MemoryTransport
from p2pfl.net.memory import MemoryConnection
from p2pfl.types import PeerId, Roster


class SlowConnection(MemoryConnection):
    kind = "slow"
    prefix = "/slow/"


class SlowTransport(MemoryTransport):
    kind = "slow"
    cost = 1
    connection_type = SlowConnection


def cheap(site: Site) -> str:
    return f"/memory/{site.name}"


def dear(site: Site) -> str:
    return f"/slow/{site.name}-slow"


def both(site: Site) -> tuple[str, str]:
    return cheap(site), dear(site)


@dataclass
class Watched(Peer):
    """Also what went over to another kind, which ways worked, and which addresses were dialled."""

    replaced: list[tuple[PeerId, str, str]] = field(default_factory=list)
    worked: list[tuple[PeerId, str]] = field(default_factory=list)
    dialled: list[str] = field(default_factory=list)

    def kind(self, other: Peer) -> str | None:
        info = self.host.links.get(other.peer_id)
        return info.kind if info else None

    @property
    def ups(self) -> list[bool]:
        return [up for _, up, _ in self.events]


class TwoKinds(Consortium):
    """A consortium whose hosts have both transports; ``self.network`` cuts and holds each path by itself."""

    def __init__(self) -> None:
        self._kind = MemoryKind()
        super().__init__(self._kind)
        self.network = self._kind.network

    async def open(
        self,
        site: Site,
        roster: Roster,
        *,
        listen: tuple[str, ...] | None = None,
        limits: Limits = PATIENT,
        worked: Mapping[PeerId, str] | None = None,
        transports: tuple[MemoryTransport, ...] | None = None,
    ) -> Watched:
        if transports is None:
            der = site.certificate.der
            transports = (
                SlowTransport(self.network, f"{site.name}-slow", der),
                MemoryTransport(self.network, site.name, der),
            )
        events: list[tuple[PeerId, bool, str]] = []
        refusals: list[tuple[str, str]] = []
        replaced: list[tuple[PeerId, str, str]] = []
        used: list[tuple[PeerId, str]] = []
        host = Host(
            site.identity,
            roster,
            transports,
            on_link=lambda *event: events.append(event),
            on_refused=lambda *refusal: refusals.append(refusal),
            on_replaced=lambda *change: replaced.append(change),
            on_worked=lambda *way: used.append(way),
            worked=worked or {},
            limits=limits,
        )
        peer = Watched(site, host, events, refusals, replaced=replaced, worked=used)
        watch_dials(peer, transports)
        self.peers.append(peer)
        await host.start(both(site) if listen is None else listen)
        return peer

    async def two(
        self, *, limits: Limits = PATIENT, way: Callable[[Site], str] | None = None
    ) -> tuple[Watched, Watched]:
        """Two hosts, not linked. The second has both addresses in its record (or this one), the first has none."""
        one, two = sites("lille", "rouen")
        roster = roster_of(one.member(listens=False), two.member((way(two),) if way else both(two)))
        return await self.open(one, roster, listen=(), limits=limits), await self.open(two, roster, limits=limits)

    def cut_cheap(self, one: Peer, other: Peer) -> None:
        """Dials over ``memory`` fail, what is sent is lost."""
        self.network.cut(one.site.name, other.site.name)

    def hold(self, one: Peer, other: Peer, *, suffix: str = "") -> None:
        """Dials pass, and then nothing is heard: a hello stands still until ``release``."""
        self.network.hold(one.site.name + suffix, other.site.name + suffix)

    def release(self, one: Peer, other: Peer, *, suffix: str = "") -> None:
        self.network.release(one.site.name + suffix, other.site.name + suffix)


def watch_dials(peer: Watched, transports: tuple[MemoryTransport, ...]) -> None:
    for transport in transports:

        async def dial(address: str, below: MemoryTransport = transport) -> MemoryConnection:
            peer.dialled.append(address)
            return await type(below).dial(below, address)

        transport.dial = dial  # type: ignore[method-assign]
