"""Flooded statements at one site: each once to the machine, once to every other member, again over new links."""

from __future__ import annotations

from typing import TYPE_CHECKING

from p2pfl.crypto import Envelope
from p2pfl.errors import RemoteError
from p2pfl.gossip import Flood, events
from p2pfl.gossip.flood import kind_kept

if TYPE_CHECKING:
    from p2pfl.sim.site import Site


class Spreading:
    """What `p2pfl.peer.runs` does with statements, for one process."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._flood = Flood(site.world.roster, site.world.kit.verify)
        self._seen: set[bytes] = set()
        self._reminded: set[int] = set()

    def own(self, envelope: Envelope) -> None:
        """Tell an own statement to everybody, this site included."""
        site, data = self._site, envelope.encode()
        self._flood.own(site.world.proposal.run, envelope, site.world.clock.now)
        self._seen.add(data)
        self._forward(data, None)
        site.later(0.0, lambda: site.post(events.StatementReceived(site.now, site.peer_id, data)))

    def hear(self, source: int, data: bytes) -> None:
        """A neighbour's statement: to the machine, and on to the others."""
        site = self._site
        if site.disk.over and kind_kept(data) != "closing":
            self._remind(source)
        if site.machine is None or data in self._seen:
            return  # the very bytes were checked before; Flood would say the same at a higher price
        self._seen.add(data)
        try:
            envelope = self._flood.hear(site.world.proposal.run, data, site.world.clock.now)
        except RemoteError as error:
            site.world.refused.append((site.number, str(error)))
            return
        if envelope is not None:
            life = site.life
            site.post(events.StatementReceived(site.now, site.world.peers[source], data))
            if site.life == life:
                self._forward(data, source)

    def linked(self, other: int) -> None:
        """A link came up: the neighbour may have missed statements of a run that is still open."""
        site = self._site
        self._reminded.discard(other)
        if site.machine is not None and not site.machine.closing.complete:
            for data in site.disk.statements:
                site.send(site.world.peers[other], "flood", data)

    def _forward(self, data: bytes, origin: int | None) -> None:
        site = self._site
        peers = site.world.peers
        linked = [peers[number] for number in site.world.network.linked(site.number)]
        for peer in self._flood.targets(linked, None if origin is None else peers[origin]):
            site.send(peer, "flood", data)

    def _remind(self, source: int) -> None:
        """A neighbour, back from a restart, still speaks of a run that is over: it may lack how that ended."""
        if source in self._reminded:
            return
        self._reminded.add(source)
        for data in self._site.disk.statements:
            self._site.send(self._site.world.peers[source], "flood", data)

    def hear_of_over(self, source: int) -> None:
        """A neighbour speaks of the run, which has no machine here any more."""
        if self._site.disk.over:
            self._remind(source)

    def share_closings(self, source: int) -> None:
        """Send a neighbour the closing statements that are kept here."""
        site = self._site
        for data in site.disk.statements:
            if kind_kept(data) == "closing":
                site.send(site.world.peers[source], "flood", data)
