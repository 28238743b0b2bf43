"""When a site may work: hours of a day. Seconds in, seconds out, for one site or for arrays of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from p2pfl.errors import ConfigError

DAY = 86_400.0
HOUR = 3_600.0


@dataclass(frozen=True, slots=True)
class Calendar:
    """Local work is done from ``opens`` to ``closes`` o'clock on every day; what is unfinished goes on the next day.

    ``at_start``: o'clock when virtual time is 0. Hours, not whole ones necessarily. Messages come and go at all times.
    """

    opens: float = 8.0
    closes: float = 18.0
    at_start: float = 8.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.opens < self.closes <= 24.0 or not 0.0 <= self.at_start < 24.0:
            raise ConfigError(
                f"office hours from {self.opens} to {self.closes} o'clock; give 0 <= opens < closes <= 24"
            )

    def ends(self, begins: Any, work: Any) -> Any:
        """Virtual seconds at which ``work`` seconds of work are done that begin at ``begins``; floats or arrays."""
        opens, hours = self.opens * HOUR, (self.closes - self.opens) * HOUR
        clock = np.asarray(begins, dtype=np.float64) + self.at_start * HOUR  # seconds since some midnight
        days = np.floor(clock / DAY)
        done = days * hours + np.clip(clock - days * DAY - opens, 0.0, hours) + work  # office seconds since then
        whole = np.ceil(done / hours) - 1.0  # work that ends just at closing time ends on that day
        ends = whole * DAY + opens + (done - whole * hours) - self.at_start * HOUR
        return np.where(np.asarray(work) > 0.0, np.maximum(ends, begins), begins)
