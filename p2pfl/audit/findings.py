"""What a comparison of logs comes to: findings, what agreed, what was explained, what could not be judged."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum


class Sort(StrEnum):
    """What kind of thing a finding is."""

    MISSING = "missing"  # one log has what the other should have, too
    CONTRADICTORY = "contradictory"  # two entries cannot both be true
    UNEXPLAINED = "unexplained"  # something did not happen, and nobody wrote down why


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to ask about. ``peer`` is whose log it stands in, ``other`` whose it was compared with."""

    sort: Sort
    run: str
    round: int | None
    peer: str
    other: str | None
    text: str
    entries: tuple[tuple[str, int], ...] = ()  # (peer id, position) of what was compared


@dataclass(frozen=True, slots=True)
class Notice:
    """Something that one log says of its own losses or of another member's log, told whether or not it agrees."""

    peer: str
    other: str | None
    text: str
    entry: int | None


@dataclass(slots=True)
class Reconciliation:
    """The outcome over all runs; ``agreed`` and ``explained`` count what was compared, by what it was."""

    findings: list[Finding] = field(default_factory=list)
    agreed: Counter[str] = field(default_factory=Counter)
    explained: Counter[tuple[str, str]] = field(default_factory=Counter)  # (what, why)
    not_judged: Counter[str] = field(default_factory=Counter)  # by the peer whose log is not here
    runs: list[str] = field(default_factory=list)
    notices: list[Notice] = field(default_factory=list)
    parts: dict[str, tuple[int, int, int]] = field(default_factory=dict)  # of exports in part: first, last, of how many

    @property
    def clean(self) -> bool:
        """Nothing is missing, contradictory or unexplained among the given logs, and each of them was whole."""
        return not self.findings and not self.parts

    @property
    def verdict(self) -> str:
        """In one line. Logs that were not given are no fault of the others; a log that was cut says little."""
        if self.findings:
            return f"FINDINGS     {len(self.findings)}"
        if self.parts:
            return f"NOT JUDGED   {len(self.parts)} logs were given in part: what they lack was not asked for"
        return "clean" if not self.not_judged else "clean, as far as the given logs go"
