"""From the notes of single sites to recorded rounds: what each site did in each of its own rounds.

Two things of the machines need a word. A site that leaves a round of two mixings in between has moved its message for
the second one already, but its parameters take the first mixing in only with the next round that it ends: its edges are
counted in the round, taken back at its end, and counted again then. And a site whose number jumps while it trains
(asynchronous runs) is active in the round whose number its training had, and mixes in the one it jumped to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from p2pfl.sim.decisions import ADOPTED, RecordedRound, edge_rows

Tag = tuple[int, int, int]  # sender, its round, its step
Took = tuple[int | float, ...]  # the same, the weight, and in directed mixings what was given up


class Note(NamedTuple):
    """One thing that a site's trainer was told, and when it had done it."""

    kind: str  # "train", "mix" or "adopt"
    round: int
    step: int
    time: float  # virtual seconds
    sent: int  # bytes that the site had sent until then
    taken: tuple[Took, ...] = ()  # messages mixed, or states taken in
    taken_back: tuple[Tag, ...] = ()
    last: bool = False
    amount: float = 0.0  # local steps, or the weight of the own parameters
    flooded: int = 0  # of ``sent``: in heartbeats and other statements that everybody sends on
    pulled: int = 0  # of ``sent``: in deltas that others fetched


class Page(NamedTuple):
    """A note, and the page before it: so that a restart goes back to a page and no other one changes."""

    note: Note
    before: Page | None


@dataclass(slots=True)
class Journal:
    """The notes of one site. ``saved``: where they stood at each checkpoint, by its digest."""

    newest: Page | None = None
    saved: dict[str, Page | None] = field(default_factory=dict)
    before: int | None = None  # bytes sent when the run began here
    flooded_before: int = 0  # of them, in what is flooded

    def add(self, note: Note) -> None:
        """One more."""
        self.newest = Page(note, self.newest)

    def notes(self) -> list[Note]:
        """Oldest first."""
        found, page = [], self.newest
        while page is not None:
            found.append(page.note)
            page = page.before
        return found[::-1]


class Sheet:
    """What one site did, by own round. ``mixings``: how many each round has; the last entry is for the closing."""

    def __init__(self, number: int, mixings: Sequence[int], journal: Journal, began: float) -> None:
        self.number, self.mixings = number, mixings
        total = len(mixings)
        self.steps = [0] * total  # local steps, 0: did not train
        self.idle = [False] * total  # took part and had none to take
        self.seconds = [float("nan")] * total
        self.bytes, self.floods = [0] * total, [0] * total
        self.edges: list[list[list[tuple[Any, ...]]]] = [[[] for _ in range(count)] for count in mixings]
        self.adopted: list[list[tuple[Any, ...]]] = [[] for _ in range(total)]
        self.before = self.sent = journal.before or 0
        self.flooded, self.pulled = journal.flooded_before, 0
        self._amounts: dict[Tag, Took] = {}
        self._open: list[tuple[int, Took]] = []  # (step, edge) of the round in work
        self._carried: list[Took] = []  # mixed in rounds that were left, and not in the parameters yet
        self._round = -1  # the round in work
        for note in journal.notes():
            self._take(note, began)
        self._leave(-1)
        self._fill_times()

    @property
    def settled_late(self) -> bool:
        """Whether its parameters changed after the last round."""
        return bool(self.edges[-1][0] or self.adopted[-1])

    def _take(self, note: Note, began: float) -> None:
        t = note.round
        self._leave(t)
        self.seconds[t] = note.time - began
        if note.kind == "train":
            self.steps[t], self.idle[t] = int(note.amount), not note.amount
        elif note.kind == "adopt":
            self.adopted[t] += [(self.number, *took, note.amount) for took in note.taken]
        else:
            self._mix(note)

    def _mix(self, note: Note) -> None:
        t = note.round
        self._open += [(note.step, took) for took in note.taken]
        self._amounts.update({(int(took[0]), int(took[1]), int(took[2])): took[3:] for took in note.taken})
        if not note.last:
            return
        for step, took in self._open:
            self.edges[t][step].append(self._row(took, 1))
        self.edges[t][-1] += [self._row(took, 1) for took in self._carried]
        self.edges[t][-1] += [self._row((*tag, *self._amounts[tag]), -1) for tag in note.taken_back]
        self._open, self._carried = [], []
        self.bytes[t] += note.sent - self.sent
        self.floods[t] += note.flooded - self.flooded
        self.sent, self.flooded, self.pulled = note.sent, note.flooded, note.pulled

    def _leave(self, round_: int) -> None:
        """Another round begins: what was mixed in one that was never ended counts with the next that is."""
        if round_ != self._round and self._open:
            for step, took in self._open:
                self.edges[self._round][step].append(self._row(took, 1))
            self.edges[self._round][-1] += [self._row(took, -1) for _, took in self._open]
            self._carried += [took for _, took in self._open]
            self._open = []
        self._round = round_

    def _row(self, took: Took, sign: int) -> tuple[Any, ...]:
        return (self.number, *took[:4], sign, took[-1])

    def _fill_times(self) -> None:
        """In a round that it skipped the site holds what it held before."""
        known = 0.0
        for t, seconds in enumerate(self.seconds):
            known = self.seconds[t] = known if seconds != seconds else seconds


def recorded_round(sheets: Sequence[Sheet], t: int) -> RecordedRound:
    """Own round ``t`` of all sites."""
    steps = np.array([sheet.steps[t] for sheet in sheets], dtype=np.int64)
    mixings = sheets[0].mixings[t]
    return RecordedRound(
        active=steps > 0,
        steps=steps,
        edges=tuple(edge_rows([row for sheet in sheets for row in sheet.edges[t][step]]) for step in range(mixings)),
        seconds=np.array([sheet.seconds[t] for sheet in sheets]),
        bytes=np.array([sheet.bytes[t] for sheet in sheets], dtype=np.float64),
        adopted=np.array([row for sheet in sheets for row in sheet.adopted[t]], dtype=ADOPTED),
        floods=np.array([sheet.floods[t] for sheet in sheets], dtype=np.float64),
        idle=np.array([sheet.idle[t] for sheet in sheets]),
    )
