"""What one run may send: committed cores, each under the newest cover that the log can vouch for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from p2pfl.crypto import Identity
from p2pfl.gossip.anchors import Outbound, decode_outbound
from p2pfl.gossip.messages import Announcement
from p2pfl.peer.journal import Journal
from p2pfl.types import Digest


@dataclass(slots=True)
class _Item:
    outbound: Outbound
    position: int  # of its entry in the log
    size: int = 0  # of the log under the checkpoint that the announcement carries
    announcement: Announcement | None = None


class Outbox:
    """Committed and not yet released. Nothing is in it before its transaction is durable."""

    def __init__(self, identity: Identity, journal: Journal, witnessed: Callable[[], bytes] = bytes) -> None:
        self._identity = identity
        self._journal = journal
        self._witnessed = witnessed  # gives the newest checkpoint with cosignatures, or nothing
        self._items: dict[Digest, _Item] = {}
        self._covering = asyncio.Lock()

    def add(self, core: Digest, outbound: Outbound, position: int) -> None:
        """The entry at ``position`` lets this core out."""
        self._items[core] = _Item(outbound, position)

    def restore(self, core: Digest, document: bytes, position: int) -> None:
        """From the log of before a restart."""
        self.add(core, decode_outbound(document), position)

    def release(self, core: Digest) -> None:
        """Nobody needs it any more."""
        self._items.pop(core, None)

    async def announcement(self, core: Digest) -> Announcement | None:
        """The announcement of a core, without its content, under the newest checkpoint; None if it is released.

        One cover is made for all who are sent it under the same checkpoint. Raises StoreError if the log's tree is
        damaged: then nothing leaves.
        """
        async with self._covering:
            item = self._items.get(core)
            if item is None:
                return None
            size = self._journal.head.size
            if item.announcement is None or item.size != size:
                proof = await self._journal.prove(item.position)
                item.announcement = item.outbound.announce(
                    core, self._identity, proof.encode(), witnessed=self._witnessed()
                )
                item.size = size
            return item.announcement
