"""What a comparison of logs comes to: findings, what agreed, what was explained, what could not be judged."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from enum import StrEnum


class Sort(StrEnum):
    """What kind of thing a finding is."""

    MISSING = "missing"  # one log has what the other should have, too
    CONTRADICTORY = "contradictory"  # two entries cannot both be true
    UNEXPLAINED = "unexplained"  # something did not happen, and nobody wrote down why


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to ask about. ``peer`` is whose log it stands in, ``other`` whose it was compared with.

    ``about`` is the owner of a third log, where both say something of that one.
    """

    sort: Sort
    run: str
    round: int | None
    peer: str
    other: str | None
    text: str
    entries: tuple[tuple[str, int], ...] = ()  # (peer id, position) of what was compared
    about: str | None = None


@dataclass(frozen=True, slots=True)
class Notice:
    """Something that one log says of its own losses or of another member's log, told whether or not it agrees."""

    peer: str
    other: str | None
    text: str
    entry: int | None


@dataclass(frozen=True, slots=True)
class Fork:
    """Two notes of one size and epoch with different roots, both signed by the owner of the log (evidence.py)."""

    log: str
    origin: str
    notes: tuple[bytes, bytes]


@dataclass(slots=True)
class History:
    """How much of a log of so many ``entries`` is what others saw: ``agreed`` checkpoints, the largest of ``up_to``."""

    entries: int
    agreed: int = 0
    up_to: int = 0
    holders: set[str] = field(default_factory=set)

    def agree(self, holder: str, size: int) -> None:
        """A checkpoint of this size that ``holder`` brought is the log's own beginning."""
        self.agreed, self.up_to = self.agreed + 1, max(self.up_to, size)
        self.holders.add(holder)


@dataclass(slots=True)
class Reconciliation:
    """The outcome over all runs; ``agreed`` and ``explained`` count what was compared, by what it was."""

    findings: list[Finding] = field(default_factory=list)
    agreed: Counter[str] = field(default_factory=Counter)
    explained: Counter[tuple[str, str]] = field(default_factory=Counter)  # (what, why)
    not_judged: Counter[str] = field(default_factory=Counter)  # by the peer whose log is not here
    runs: list[str] = field(default_factory=list)
    notices: list[Notice] = field(default_factory=list)
    # of logs given in part: first, last, of how many; an export says so itself, of another log its checkpoints do
    parts: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    cut: dict[str, tuple[str, ...]] = field(default_factory=dict)  # of those others: who holds checkpoints of more
    histories: dict[str, History] = field(default_factory=dict)  # of each log that was given as a whole
    unwitnessed: list[str] = field(default_factory=list)  # of those: none of the others holds a checkpoint of it
    unseen: list[tuple[str, int]] = field(default_factory=list)  # (peer, entry): losses that no holder was told of
    # entries that a log lacks and its declared losses explain, by the log: each once, whoever mirrors it
    excused: defaultdict[str, set[tuple[object, ...]]] = field(default_factory=lambda: defaultdict(set))
    forks: list[Fork] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Nothing is missing, contradictory or unexplained among the given logs, each whole and seen by others."""
        return not self.findings and not self.partly

    @property
    def partly(self) -> list[str]:
        """Why the absence of findings would say little; empty where it says what can be said."""
        reasons = [
            (len(self.parts), "logs were given in part: what they lack was not asked for"),
            (len(self.unwitnessed), "histories were compared with no witness's"),
            (len(self.unseen), "declared losses were seen by none who holds what was lost"),
        ]
        return [f"{number} {text}" for number, text in reasons if number]

    @property
    def verdict(self) -> str:
        """In one line. Logs that were not given are no fault of the others; a log that was cut says little."""
        if self.findings:
            return f"FINDINGS     {len(self.findings)}"
        if self.partly:
            return f"NOT JUDGED   {'; '.join(self.partly)}"
        return "clean" if not self.not_judged else "clean, as far as the given logs go"
