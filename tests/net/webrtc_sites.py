"""WebRTC ends for tests: on the loopback interface, introduced by a carrier that a test may let lie."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from net_peers import Site, roster_of, sites

from p2pfl.errors import LinkError, RemoteError
from p2pfl.net.connection import Connection
from p2pfl.net.limits import DEFAULT, FRAME_LIMIT, Limits
from p2pfl.net.webrtc import IceSettings, WebRtcTransport
from p2pfl.types import PeerId, Roster

LOOPBACK = IceSettings(interfaces=("127.0.0.1",))

Carry = Callable[[PeerId, PeerId, bytes], Awaitable[bytes]]
"""(from, to, box) -> answer's box."""


class Carrier:
    """Joins transports of one process. ``lie`` replaces what is carried; ``introducer`` is who is blamed."""

    def __init__(self, *introducers: PeerId) -> None:
        self.ends: dict[PeerId, Signals] = {}
        self.introducers_ = list(introducers) or [PeerId("the introducer")]
        self.lies: dict[PeerId, Carry] = {}
        self.carried: list[tuple[PeerId, PeerId, bytes]] = []

    def signaller(self, own: PeerId) -> Signals:
        self.ends[own] = Signals(self, own)
        return self.ends[own]

    async def honestly(self, introducer: PeerId, sender: PeerId, to: PeerId, box: bytes) -> bytes:
        end = self.ends.get(to)
        if end is None or end.on_offer is None:
            raise LinkError(f"{to} is not linked to {introducer}")
        return await end.on_offer(sender, introducer, box)


class Signals:
    """One transport's access to a Carrier."""

    def __init__(self, carrier: Carrier, own: PeerId) -> None:
        self._carrier = carrier
        self._own = own
        self.on_offer: Any = None
        self.successes: list[PeerId] = []

    def introducers(self, to: PeerId) -> list[PeerId]:
        return list(self._carrier.introducers_)

    async def carry(self, introducer: PeerId, to: PeerId, box: bytes) -> bytes:
        self._carrier.carried.append((self._own, to, box))
        lie = self._carrier.lies.get(introducer)
        if lie is not None:
            return await lie(self._own, to, box)
        return await self._carrier.honestly(introducer, self._own, to, box)

    def worked(self, introducer: PeerId, to: PeerId) -> None:
        self.successes.append(introducer)


class End:
    """One site's transport, the connections it was given and what it refused."""

    def __init__(self, site: Site, carrier: Carrier, roster: Roster, limits: Limits, **options: Any) -> None:
        settings = options.pop("settings", LOOPBACK)
        self.site = site
        self.signaller = carrier.signaller(site.peer_id)
        self.transport = WebRtcTransport(site.identity, self.signaller, settings, limits, **options)
        self.transport.trust(roster)
        self.incoming: asyncio.Queue[Connection] = asyncio.Queue()
        self.refused: list[tuple[str, RemoteError]] = []

    async def listen(self) -> None:
        async def accept(connection: Connection) -> None:
            self.incoming.put_nowait(connection)

        await self.transport.listen("/webrtc", accept, lambda who, error: self.refused.append((who, error)))

    async def dial(self, other: End) -> Connection:
        return await self.transport.dial(f"/webrtc/p2p/{other.site.peer_id}")


class Ends:
    """Two ends, their introducer's keys, and a third member; closed at the end."""

    def __init__(self, limits: Limits = DEFAULT, **options: Any) -> None:
        self.one_site, self.two_site, self.third, self.introducer, self.other_introducer = sites(
            "a", "b", "c", "d", "e"
        )
        members = [self.one_site, self.two_site, self.third, self.introducer, self.other_introducer]
        self.roster = roster_of(*(site.member(listens=False) for site in members))
        self.carrier = Carrier(self.introducer.peer_id)
        self.one = End(self.one_site, self.carrier, self.roster, limits, **options)
        self.two = End(self.two_site, self.carrier, self.roster, limits)
        self._open: list[Connection] = []

    async def __aenter__(self) -> Ends:
        await self.one.listen()
        await self.two.listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        for connection in self._open:
            connection.abort()
        await self.one.transport.close()
        await self.two.transport.close()

    async def pair(self) -> tuple[Connection, Connection]:
        """An open connection: the dialler's end, the listener's end."""
        first = await self.one.dial(self.two)
        second = await self.two.incoming.get()
        for connection in (first, second):
            connection.allow(FRAME_LIMIT)
            self._open.append(connection)
        return first, second
