"""Small consortium for the link tests: members with real certificates, over any transport of a table."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from p2pfl.crypto.certificates import Certificate, create_certificate
from p2pfl.crypto.identity import Identity
from p2pfl.net import Host, Limits, MemoryNetwork, TcpTransport, Transport
from p2pfl.types import Digest, Member, PeerId, Roster

PASSWORD = b"only for tests"
CHARTER = Digest("11" * 32)
BOUND = 10.0
"""Seconds that bound every wait of a test; never reached when it passes."""

QUICK = Limits(
    handshake=2.0,
    hello=2.0,
    ping_every=0.02,
    silent_after=0.1,
    write=0.3,
    close=0.2,
    linger=0.05,
    redial_first=0.01,
    redial_longest=0.05,
    resume=2.0,
)
PATIENT = replace(QUICK, ping_every=4.0, silent_after=12.0, write=10.0)
"""As quick, but a loaded machine's pauses are no silence."""

SOON = replace(PATIENT, alive=0.1)
"""Where nobody is there to answer whether it lives."""


@dataclass
class Site:
    """One hospital's keys."""

    name: str
    identity: Identity = field(default_factory=Identity.generate)
    certificate: Certificate = field(init=False)

    def __post_init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        now = int(time.time())
        self.certificate = create_certificate(
            self.name, not_before=now - 3600, not_after=now + 86400, password=PASSWORD
        )

    @property
    def peer_id(self) -> PeerId:
        return self.identity.peer_id

    def member(self, addresses: tuple[str, ...] = (), *, listens: bool = True) -> Member:
        certificates = (self.certificate.der,)
        return Member(self.peer_id, self.name, addresses, listens, certificates, 1, 2_000_000_000)


def roster_of(*members: Member, charter: Digest = CHARTER) -> Roster:
    return Roster(charter, members, len(members) // 2 + 1)


def sites(*names: str) -> list[Site]:
    """In the order of their peer ids, so that the first is the decider of every pair."""
    return sorted((Site(name) for name in names), key=lambda site: site.peer_id)


class TcpKind:
    """Row of the transport table: tcp on the loopback interface, any free port."""

    name = "tcp"
    words_for_nobody = "cannot connect"
    words_for_strangers = "no certificate of a current member"
    listen_address = staticmethod(lambda site: "/ip4/127.0.0.1/tcp/0")

    def transport(self, site: Site, limits: Limits) -> Transport:
        return TcpTransport(site.certificate, PASSWORD, limits)


class MemoryKind:
    """Row of the transport table: one network inside this process."""

    name = "memory"
    words_for_nobody = "cannot connect"
    words_for_strangers = "no certificate of a current member"
    listen_address = staticmethod(lambda site: f"/memory/{site.name}")

    def __init__(self) -> None:
        self.network = MemoryNetwork()

    def transport(self, site: Site, limits: Limits) -> Transport:
        return self.network.transport(site.name, site.certificate.der)


class WebRtcKind:
    """Row of the transport table: data channels on the loopback interface, introduced by this process."""

    name = "webrtc"
    words_for_nobody = "is not linked to"  # the introducer's words
    words_for_strangers = "who is not a member of this charter"
    listen_address = staticmethod(lambda site: "/webrtc")

    def __init__(self) -> None:
        from webrtc_sites import Carrier

        self.carrier = Carrier()

    def transport(self, site: Site, limits: Limits) -> Transport:
        from webrtc_sites import LOOPBACK

        from p2pfl.net.webrtc import WebRtcTransport

        return WebRtcTransport(site.identity, self.carrier.signaller(site.peer_id), LOOPBACK, limits)


Kind = TcpKind | MemoryKind | WebRtcKind

TRANSPORTS: dict[str, Callable[[], Kind]] = {"memory": MemoryKind, "tcp": TcpKind, "webrtc": WebRtcKind}
"""The next transport adds a row and has to pass the whole battery."""


@dataclass
class Peer:
    """A host and what it told its owner."""

    site: Site
    host: Host
    events: list[tuple[PeerId, bool, str]]
    refusals: list[tuple[str, str]]
    address: str = ""

    @property
    def peer_id(self) -> PeerId:
        return self.site.peer_id


def fall_silent(peer: Peer, other: Peer) -> None:
    """As after a power cut: the connection stands, nothing comes from there any more."""

    async def swallow(*parts: bytes) -> None:
        return None

    connection = peer.host._table.get(other.peer_id).connection
    connection.send = swallow
    connection.abort = lambda: None


class Consortium:
    """Starts hosts of one transport and stops them all at the end."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.peers: list[Peer] = []
        self._changed = asyncio.Event()

    async def start(self, site: Site, roster: Roster, *, listen: bool = True, limits: Limits = PATIENT) -> Peer:
        events: list[tuple[PeerId, bool, str]] = []
        refusals: list[tuple[str, str]] = []

        def on_link(peer: PeerId, up: bool, text: str) -> None:
            events.append((peer, up, text))
            self._changed.set()

        def on_refused(who: str, why: str) -> None:
            refusals.append((who, why))
            self._changed.set()

        host = Host(
            site.identity,
            roster,
            [self.kind.transport(site, limits)],
            on_link=on_link,
            on_refused=on_refused,
            limits=limits,
        )
        peer = Peer(site, host, events, refusals)
        self.peers.append(peer)
        found = await host.start([self.kind.listen_address(site)] if listen else [])
        peer.address = found[0] if found else ""
        return peer

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until the condition holds, looking after each event and each turn of the loop."""
        async with asyncio.timeout(BOUND):
            while not condition():
                await asyncio.sleep(0.001)

    async def pair(self, limits: Limits = PATIENT) -> tuple[Peer, Peer]:
        """Two linked peers; the first has dialled."""
        one, two = sites("lille", "rouen")
        hidden = roster_of(one.member(listens=False), two.member())
        second = await self.start(two, hidden, limits=limits)
        known = roster_of(one.member(listens=False), two.member((second.address,)))
        second.host.update_roster(known)
        first = await self.start(one, known, listen=False, limits=limits)
        await first.host.dial(two.peer_id)
        await self.until(lambda: one.peer_id in second.host.links)
        return first, second

    async def stop(self) -> None:
        for peer in self.peers:
            async with asyncio.timeout(BOUND):
                await peer.host.stop()
