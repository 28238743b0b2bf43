"""Declared losses: what an entry "epoch_opened" or "loss_declared" can excuse in a comparison of logs, and what not.

A log that was put back from an older copy goes on behind its first ``kept`` entries. Lost are entries that were written
after those and before the declaration; whatever the log should have had at another time was not lost with them. Rounds
say when: the last one that the kept part began, and the first one that was begun after the declaration.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

WINDOW = 16
"""Rounds by which a neighbour's message, or the end of an edge, may lie beside the own round (docs/protocol.md)."""

CLOCKS = 24 * 3600 * 1000
"""Milliseconds by which two hospitals' clocks may differ where nothing but time says what a loss can have taken."""


UNSEEN = 64
"""Entries that may have been lost behind the largest checkpoint that anybody holds of them: some rounds' worth, for
what a site sends carries its newest checkpoint."""


@dataclass(frozen=True, slots=True)
class Loss:
    """One declared loss; ``since`` is the entry that opened its epoch, ``size`` the largest head that was lost.

    ``lost`` are all heads that it names: epoch, size and root (32 bytes).
    """

    entry: int
    since: int
    epoch: int
    kept: int
    size: int
    time: int
    lost: tuple[tuple[int, int, bytes], ...]

    def covers(self, epoch: int, size: int, root: bytes) -> bool:
        """Whether a checkpoint is among what was declared lost, by the rule that witnesses judge with (growth.py)."""
        return size > self.kept and any(
            before == epoch and (most > size or (most, head) == (size, root)) for before, most, head in self.lost
        )

    def may_have_taken(self, time: int) -> bool:
        """Whether something of a time on another hospital's clock (Unix milliseconds) may be among what was lost."""
        return time <= self.time + CLOCKS


@dataclass(frozen=True, slots=True)
class LostRounds:
    """What one loss can have taken of one run: from round ``first`` on, before round ``until`` (None: to its end)."""

    first: int
    until: int | None
    kept: int

    def has(self, round_: int, slack: int) -> bool:
        """Whether an entry of this round may be among them; received ones lie up to ``slack`` rounds beside."""
        return self.first - slack <= round_ and (self.until is None or round_ < self.until + slack)


def read_loss(position: int, time: int, body: Mapping[str, Any], earlier: list[Loss]) -> Loss | None:
    """A loss as its entry declares it; None for a body that no version writes."""
    epoch, kept, lost = body.get("epoch"), body.get("kept"), body.get("lost")
    if type(epoch) is not int or type(kept) is not int or not 0 <= kept <= position or not isinstance(lost, list):
        return None
    heads = [tuple(row) for row in lost if isinstance(row, list) and [type(item) for item in row] == [int, int, bytes]]
    if not heads or len(heads) != len(lost):
        return None
    since = min([position, *(loss.since for loss in earlier if loss.epoch == epoch)])
    return Loss(position, since, epoch, kept, max(size for _, size, _ in heads), time, tuple(heads))


def most_lost(losses: Iterable[Loss]) -> int:
    """How many entries these declarations can explain, by the sizes that they name."""
    return sum(max(0, loss.size - loss.kept) + UNSEEN for loss in losses)


def lost_rounds(loss: Loss, first: int, closed: int, away: bool, begun: list[tuple[int, int]]) -> LostRounds | None:
    """What a loss can have taken of a run whose first entry is ``first``; ``begun`` are (entry, round), in order.

    Nothing if the run was ``closed`` (its entry; -1: it was not) in what was kept. Nor if it is of a later time: then
    it has no entry before the declaration, and its owner was not ``away`` in it.
    """
    if 0 <= closed < loss.kept or (first > loss.since and not away):
        return None
    before = max((round_ for entry, round_ in begun if entry < loss.kept), default=-1)
    after = min((round_ for entry, round_ in begun if entry > loss.since), default=None)
    return LostRounds(before, after, loss.kept)
