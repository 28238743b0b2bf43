"""One pair of sites: its connection, its wires, and what is on its way between the two."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from p2pfl.sim.clock import Scheduled
from p2pfl.sim.links import Flow

Way = tuple[int, int]  # from, to: site numbers


class Endpoint(Protocol):
    """What the network needs of a site."""

    number: int
    alive: bool
    frozen: bool  # the process is stopped: its kernel still takes messages in
    frozen_since: float  # when it was stopped last

    def link_up(self, other: int) -> None:
        """The link to ``other`` is up."""
        ...

    def link_down(self, other: int, reason: str) -> None:
        """The link to ``other`` has ended."""
        ...

    def receive(self, source: int, kind: str, data: bytes) -> None:
        """A message of ``source`` is here."""
        ...


@dataclass(slots=True)
class Lane:
    """Messages one way over one link: one after the other, as the shell sends them."""

    waiting: deque[tuple[str, bytes]] = field(default_factory=deque)
    flow: Flow | None = None
    newest: float = 0.0  # when the newest message in order arrives
    held: list[tuple[str, bytes]] = field(default_factory=list)  # behind a cut


@dataclass(slots=True)
class Pair:
    """One pair of sites. ``epoch`` counts its connections: what belongs to an older one is lost."""

    sites: Way
    wanted: bool = False
    up: bool = False
    epoch: int = 0
    sees: set[int] = field(default_factory=set)  # which ends hold the link for alive
    lanes: dict[Way, Lane] = field(default_factory=dict)
    cut_since: dict[Way, float] = field(default_factory=dict)
    cuts: Counter[Way] = field(default_factory=Counter)
    attempt: Scheduled | None = None
    pulls: dict[int, Callable[[str], None]] = field(default_factory=dict)

    def other(self, site: int) -> int:
        """The other end."""
        return self.sites[1] if self.sites[0] == site else self.sites[0]
