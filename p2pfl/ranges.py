"""A range that a number must lie in, and its words for people."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Range:
    """``low`` <= value <= ``high``, or < ``high`` where ``below``."""

    low: float
    high: float
    below: bool = False

    @property
    def allowed(self) -> str:
        """In words."""
        return f"a number from {self.low:g} {'up to, not including,' if self.below else 'to'} {self.high:g}"

    def holds(self, value: float) -> bool:
        """Whether the value lies in it; what is no number does not."""
        return self.low <= value < self.high if self.below else self.low <= value <= self.high
