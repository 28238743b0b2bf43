"""Checkpoints of others' logs, seen in covers or told by members, that may not be joined yet with what is held.

Each teller has room of its own, so that none can push out what another has told. The newest of each teller is on disk:
what left a peer under its signature stays known here, also before it is checked.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable

from p2pfl.audit import SeenHead, WitnessStore
from p2pfl.types import PeerId

Place = tuple[int, int]
"""Epoch and size of a checkpoint."""

ROOM = 16  # checkpoints of one log by one teller
FLUSH_PACE = 0.2  # seconds between two writes: what comes in between is written together


class Sightings:
    """What was seen of all logs. All calls belong to one event loop."""

    def __init__(self, store: WitnessStore) -> None:
        self._store = store
        self._notes: defaultdict[PeerId, dict[Place, bytes]] = defaultdict(dict)
        self._open: defaultdict[PeerId, set[Place]] = defaultdict(set)  # not joined yet
        self._rooms: defaultdict[PeerId, dict[PeerId, dict[Place, None]]] = defaultdict(dict)
        self._unwritten: dict[tuple[PeerId, PeerId], SeenHead] = {}
        self._writing = False
        for item in store.seen():
            self._take(PeerId(item.log), PeerId(item.teller), (item.epoch, item.size), item.note)

    def at(self, owner: PeerId, place: Place) -> bytes | None:
        """The note seen there, with the owner's signature alone."""
        return self._notes[owner].get(place)

    def newest(self, owner: PeerId, epoch: int) -> Place | None:
        """The largest one seen of an epoch."""
        return max((place for place in self._notes[owner] if place[0] == epoch), default=None)

    def add(self, owner: PeerId, teller: PeerId, place: Place, note: bytes) -> bool:
        """Take one in; whether it was new. The caller has compared it with what is known there."""
        held = self._unwritten.get((owner, teller))
        if held is None or place > (held.epoch, held.size):
            self._unwritten[(owner, teller)] = SeenHead(owner, teller, *place, note)
        return self._take(owner, teller, place, note)

    def _take(self, owner: PeerId, teller: PeerId, place: Place, note: bytes) -> bool:
        notes, room = self._notes[owner], self._rooms[owner].setdefault(teller, {})
        new = place not in notes
        if new:
            notes[place] = note
            self._open[owner].add(place)
        room[place] = None
        if len(room) > ROOM:
            oldest = next(iter(room))
            del room[oldest]
            if not any(oldest in other for other in self._rooms[owner].values()):
                self._open[owner].discard(oldest)
                del notes[oldest]
        return new

    def pending(self, owner: PeerId) -> Place | None:
        """What is to be joined next: the tellers take turns, each with the newest that it showed."""
        waiting, rooms = self._open[owner], self._rooms[owner]
        for teller in list(rooms):
            if places := waiting.intersection(rooms[teller]):
                rooms[teller] = rooms.pop(teller)
                return max(places)
        return None

    def joined(self, owner: PeerId, place: Place) -> None:
        """It is of the history that is held here, or was declared lost from it."""
        self._open[owner].discard(place)

    def write(self, spawn: Callable[..., None]) -> None:
        """Have what is new written down soon."""
        if self._unwritten and not self._writing:
            self._writing = True
            spawn(self._write())

    async def _write(self) -> None:
        try:
            while self._unwritten:
                rows: Iterable[SeenHead] = list(self._unwritten.values())
                self._unwritten = {}
                await asyncio.to_thread(self._store.see, rows)
                await asyncio.sleep(FLUSH_PACE)
        finally:
            self._writing = False
