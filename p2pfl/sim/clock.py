"""Virtual time: a heap of actions, and the clocks of single sites, which may be wrong.

Nothing here sleeps. Actions that are due at the same time run in the order in which they were entered, so a run is the
same run whenever it is repeated.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass

from p2pfl.errors import ConfigError, LocalError

Action = Callable[[], None]
EVENT_LIMIT = 2_000_000  # actions in one call of `Clock.run`; a run of 12 sites and 8 rounds needs some 20,000


class TooManyEvents(LocalError):
    """The simulation does not come to rest: something goes round in circles."""


class Scheduled:
    """One action on the heap; ``action`` is None once it ran or was cancelled."""

    __slots__ = ("action", "time")

    def __init__(self, time: float, action: Action) -> None:
        self.time = time
        self.action: Action | None = action


class Clock:
    """The queue of what is to happen, and ``now`` in seconds of virtual time."""

    def __init__(self) -> None:
        self.now = 0.0
        self.handled = 0  # actions carried out so far
        self._heap: list[tuple[float, int, Scheduled]] = []
        self._entered = 0

    def at(self, time: float, action: Action) -> Scheduled:
        """Do ``action`` at ``time``, or at once after what is already due if that time is past."""
        entry = Scheduled(max(time, self.now), action)
        self._entered += 1
        heapq.heappush(self._heap, (entry.time, self._entered, entry))
        return entry

    def after(self, seconds: float, action: Action) -> Scheduled:
        """Do ``action`` in so many seconds."""
        return self.at(self.now + seconds, action)

    def cancel(self, entry: Scheduled | None) -> None:
        """Do not do it after all; one that ran already, or None, is nothing to cancel."""
        if entry is not None:
            entry.action = None

    def step(self) -> bool:
        """Carry out the next action; False if there is none."""
        while self._heap:
            time, _, entry = heapq.heappop(self._heap)
            action = entry.action
            if action is None:
                continue
            self.now, entry.action = time, None
            self.handled += 1
            action()
            return True
        return False

    def run(
        self,
        until: Callable[[], bool] | None = None,
        *,
        limit_seconds: float | None = None,
        limit_events: int = EVENT_LIMIT,
    ) -> bool:
        """Step until ``until`` holds (True), nothing is left to do, or ``limit_seconds`` of virtual time are over.

        Without ``until`` the answer is whether nothing was left to do. Raises TooManyEvents.
        """
        end = None if limit_seconds is None else self.now + limit_seconds
        last = self.handled + limit_events
        while until is None or not until():
            due = self.due()
            if due is None:
                return until is None
            if end is not None and due > end:
                self.now = end
                return False
            if self.handled >= last:
                raise TooManyEvents(f"{limit_events} actions by {self.now:.3f} s and no end; look for a circle")
            self.step()
        return True

    def due(self) -> float | None:
        """When the next action is due; None if there is none."""
        while self._heap and self._heap[0][2].action is None:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None


@dataclass(slots=True)
class SiteClock:
    """What one site's own monotonic clock shows: ``shown`` at virtual time ``since``, then ``rate`` times as fast."""

    shown: float = 0.0
    since: float = 0.0
    rate: float = 1.0

    def at(self, time: float) -> float:
        """The site's own reading at a virtual time."""
        return self.shown + self.rate * (time - self.since)

    def when(self, reading: float) -> float:
        """The virtual time at which the site's clock shows ``reading``."""
        return self.since + (reading - self.shown) / self.rate

    def skew(self, time: float, rate: float, offset: float) -> None:
        """From ``time`` on run at ``rate``, after a jump by ``offset`` seconds; own clocks never go back."""
        if rate <= 0 or offset < 0:
            raise ConfigError(f"rate {rate} and offset {offset}: a monotonic clock runs forward; give positive ones")
        self.shown, self.since, self.rate = self.at(time) + offset, time, rate
