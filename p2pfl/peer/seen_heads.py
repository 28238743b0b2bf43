"""Checkpoints of other members' logs that were seen in covers, or told by other members; handed on to all linked ones.

Two of one size must be equal; the owner must join the others to what it shows here. Bounded by the roster: so many are
remembered, and handed on in a minute, for each log.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

from p2pfl.audit import WitnessStore, compare_notes
from p2pfl.crypto import epoch_of, log_origin, open_checkpoint
from p2pfl.errors import LinkError
from p2pfl.net import Host
from p2pfl.types import PeerId, Roster

HEAD = "/p2pfl/head/1"

SEEN = 32  # checkpoints per log kept in memory to compare with
JOINED = 4  # checkpoints seen elsewhere that are joined in one go, the newest ones
RELAYED_PER_MINUTE = 60  # checkpoints of one log handed on

Place = tuple[int, int]
"""Epoch and size."""


class SeenHeads:
    """What was seen of all logs. All calls belong to one event loop; ``spawn`` runs a task."""

    def __init__(
        self, consortium: str, host: Host, store: WitnessStore, *,
        roster: Callable[[], Roster], spawn: Callable[[Coroutine[Any, Any, None]], None],
    ) -> None:  # fmt: skip
        self._consortium, self._host, self._store = consortium, host, store
        self._roster, self._spawn = roster, spawn
        self._seen: dict[PeerId, dict[Place, bytes]] = {}
        self._pending: dict[PeerId, set[Place]] = {}  # not yet joined with what the owner shows here
        self._relayed: dict[PeerId, deque[float]] = {}
        self._held: dict[PeerId, Place] = {}

    def owner_of(self, note: bytes) -> PeerId | None:
        """The member in whose log's name a checkpoint speaks; no signature is checked."""
        line = note.partition(b"\n")[0].decode(errors="replace")
        for peer in self._roster().peer_ids:
            if epoch_of(line, log_origin(self._consortium, peer)) is not None:
                return peer
        return None

    def holds(self, owner: PeerId, place: Place) -> None:
        """The newest checkpoint of this log in the witness store."""
        self._held[owner] = place

    async def take(self, owner: PeerId, note: bytes) -> bool:
        """Remember a checkpoint that was seen; whether it is news.

        Raises LogMisbehaviour if another one of its size is known, RemoteError for what the owner has not signed.
        """
        origin = log_origin(self._consortium, owner)
        checkpoint = open_checkpoint(note, origin, owner)
        place = (epoch_of(checkpoint.origin, origin) or 0, checkpoint.size)
        seen = self._seen.setdefault(owner, {})
        known = seen.get(place)
        if known is None and place <= self._held.get(owner, place):  # newer ones cannot be in the store
            known = await asyncio.to_thread(self._store.at, owner, *place)
        if known is not None:
            compare_notes(known, note, origin, owner)
            return False
        seen[place] = note
        while len(seen) > SEEN:
            self._pending.get(owner, set()).discard(first := next(iter(seen)))
            del seen[first]
        self._pending.setdefault(owner, set()).add(place)
        return True

    def compare(self, owner: PeerId, place: Place, note: bytes) -> None:
        """Raises LogMisbehaviour if another checkpoint was seen for the place of one that the owner shows here."""
        seen = self._seen.get(owner, {})
        if place in seen:
            compare_notes(seen[place], note, log_origin(self._consortium, owner), owner)

    def to_join(self, owner: PeerId) -> list[tuple[Place, bytes]]:
        """Some of those that the owner has not joined with what it shows here, the newest first."""
        return [
            (place, self._seen[owner][place]) for place in sorted(self._pending.get(owner, ()), reverse=True)[:JOINED]
        ]

    def joined(self, owner: PeerId, place: Place) -> None:
        """The owner has joined this one."""
        self._pending.get(owner, set()).discard(place)

    def tell(self, owner: PeerId, note: bytes, sender: PeerId | None) -> None:
        """Hand a checkpoint on to all linked members that may not know it; so many a minute and no more."""
        now, times = asyncio.get_running_loop().time(), self._relayed.setdefault(owner, deque())
        while times and times[0] < now - 60:
            times.popleft()
        if len(times) >= RELAYED_PER_MINUTE:
            return
        times.append(now)
        for peer in self._host.links:
            if peer not in (owner, sender):
                self._spawn(self._notify(peer, note))

    async def _notify(self, peer: PeerId, note: bytes) -> None:
        try:
            await self._host.notify(peer, HEAD, note)
        except LinkError:
            pass  # it hears the next one
