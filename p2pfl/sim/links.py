"""What links are like: delay, chance, and a bandwidth that concurrent transfers of one site share."""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass, field

from p2pfl.errors import ConfigError
from p2pfl.sim.clock import Action, Clock, Scheduled


@dataclass(frozen=True, slots=True)
class LinkModel:
    """The same for all links but for the uplinks in ``uplinks`` (bytes per second, by site number).

    A lost message is one whose notify failed silently. A duplicate comes once more, a reordered one up to
    ``reorder_by`` seconds later; neither holds up what follows it.
    """

    latency: float = 0.01  # seconds one way
    jitter: float = 0.0  # seconds, uniform on top of the latency; the order of messages stays
    bandwidth: float | None = None  # bytes per second of each site's uplink; None: transfers take no time
    uplinks: Mapping[int, float] = field(default_factory=dict)
    loss: float = 0.0  # probability per message
    duplicate: float = 0.0
    reorder: float = 0.0
    reorder_by: float = 1.0  # seconds at most
    closed_after: float = 0.2  # seconds until the end of a process is noticed at the other end of its links
    silent_after: float = 15.0  # seconds until silence is noticed: cut wires, stopped processes
    connect_after: float = 1.0  # seconds from the moment two sites can reach each other until their link is up

    def __post_init__(self) -> None:
        for name in ("loss", "duplicate", "reorder"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ConfigError(f"{name} {getattr(self, name)} is no probability; give 0 to 1")
        rates = [*self.uplinks.values(), *([] if self.bandwidth is None else [self.bandwidth])]
        if any(rate <= 0 for rate in rates):
            raise ConfigError("a bandwidth is not positive; give bytes per second, or None for no limit")

    def rate(self, site: int) -> float | None:
        """Bytes per second of one site's uplink; None without limit."""
        return self.uplinks.get(site, self.bandwidth)


class Flow:
    """One transfer on an uplink; ``done`` is None once it ended or was cancelled."""

    __slots__ = ("done", "finish")

    def __init__(self, finish: float, done: Action) -> None:
        self.finish = finish
        self.done: Action | None = done


class Uplink:
    """Fair sharing: n transfers at once get a rate of ``bandwidth / n`` each, recomputed when one begins or ends.

    ``_served`` is the number of bytes that a transfer present from the beginning would have got by now. A transfer of
    s bytes that begins at served = b ends when served = b + s, however many others come and go meanwhile.
    """

    def __init__(self, clock: Clock, bandwidth: float | None) -> None:
        self._clock = clock
        self._bandwidth = bandwidth
        self._served = 0.0
        self._since = 0.0
        self._heap: list[tuple[float, int, Flow]] = []
        self._active = 0
        self._entered = 0
        self._next: Scheduled | None = None

    @property
    def unlimited(self) -> bool:
        """Whether transfers take no time here."""
        return self._bandwidth is None

    def start(self, size: int, done: Action) -> Flow:
        """Transfer ``size`` bytes; ``done`` is called when the last one has left."""
        self._advance()
        flow = Flow(self._served + size, done)
        self._entered += 1
        heapq.heappush(self._heap, (flow.finish, self._entered, flow))
        self._active += 1
        self._plan()
        return flow

    def cancel(self, flow: Flow | None) -> None:
        """Stop a transfer: the others get its share from now on."""
        if flow is not None and flow.done is not None:
            self._advance()
            flow.done = None
            self._active -= 1
            self._plan()

    def _advance(self) -> None:
        now = self._clock.now
        if self._active and self._bandwidth is not None:
            self._served += (now - self._since) * self._bandwidth / self._active
        self._since = now

    def _plan(self) -> None:
        self._clock.cancel(self._next)
        while self._heap and self._heap[0][2].done is None:
            heapq.heappop(self._heap)
        if not self._heap:
            self._next = None
            return
        seconds = 0.0
        if self._bandwidth is not None:
            seconds = max(0.0, self._heap[0][0] - self._served) * self._active / self._bandwidth
        self._next = self._clock.after(seconds, self._finish)

    def _finish(self) -> None:
        self._advance()
        _, _, flow = heapq.heappop(self._heap)
        self._served = flow.finish  # exactly: no rounding of times adds up
        self._active -= 1
        done, flow.done = flow.done, None
        self._plan()
        if done is not None:
            done()
