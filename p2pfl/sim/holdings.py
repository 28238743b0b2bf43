"""Neighbours' states that a site holds for others: what `p2pfl.peer.holdings` does, for one process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from p2pfl.gossip import effects
from p2pfl.gossip.messages import decode_announcement
from p2pfl.gossip.offers import Offer
from p2pfl.sim.disk import Holding
from p2pfl.sim.hands import with_inline
from p2pfl.types import Digest, PeerId

if TYPE_CHECKING:
    from p2pfl.sim.site import Site


class Holdings:
    """What is held is on the disk; what was kept and not held yet, and who was offered what, ends with the process."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._kept: dict[Digest, list[bytes]] = {}
        self._offered: set[tuple[PeerId, Digest]] = set()

    def keep(self, core: Digest, chunks: list[bytes]) -> None:
        """Keep the sealed bytes of a content that was fetched."""
        self._kept[core] = chunks

    def perform(self, effect: effects.Hold | effects.LetGo | effects.SendOffer) -> None:
        """Carry out one effect."""
        held = self._site.disk.holdings
        match effect:
            case effects.Hold(core=core, announcement=announcement, recipients=recipients):
                chunks = self._kept.pop(core, None)
                if chunks is not None and not self._site.disk.full:  # else it is here since before a restart
                    held[core] = Holding(announcement, chunks, recipients)
            case effects.LetGo(core=core):
                held.pop(core, None)
                self._kept.pop(core, None)
            case effects.SendOffer(peer=peer, origin=origin, core=core):
                self._offer(peer, origin, held.get(core) if core is not None else None, core)

    def _offer(self, peer: PeerId, origin: PeerId, held: Holding | None, core: Digest | None) -> None:
        data = b""
        if held is not None and core is not None and peer in held.recipients:
            self._offered.add((peer, core))
            data = with_inline(decode_announcement(held.announcement), held.chunks, self._site)
        self._site.send(peer, "offer", Offer(self._site.world.proposal.run, origin, data).encode())

    def serve(self, asker: int, core: Digest) -> list[bytes] | None:
        """The chunks of a held state for a member that was offered it."""
        held = self._site.disk.holdings.get(core)
        return held.chunks if held is not None and (self._site.world.peers[asker], core) in self._offered else None
