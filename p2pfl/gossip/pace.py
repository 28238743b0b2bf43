"""Deadlines that tune themselves: how long each neighbour usually takes, and how long it is worth waiting for.

For each neighbour j and mixing step, with r the seconds from the start of a position here until j's message for it is
there (Jacobson's estimator, RFC 6298 section 2, gains 1/8 and 1/4):

    deviation <- 3/4 deviation + 1/4 |mean - r|;   mean <- 7/8 mean + 1/8 r
    limit = min(max(mean + 4 deviation, 1.5 usual), 2.5 usual, upper),   usual = the greatest mean of all neighbours

never below ``FLOOR``. A late message counts with its true r, so a site that became slower is waited for again after a
few rounds; the factor 2.5 bounds what a dead one costs the round in which it dies. Until five rounds were seen,
and always at most, the plan's own deadline holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from p2pfl.gossip.messages import Position
from p2pfl.types import PeerId

FLOOR = 5.0  # seconds, one heartbeat; below, a machine that stalls for a moment would look like an absence
PATIENT = 1.5  # times the usual: the least that anybody is waited for
MOST = 2.5  # times the usual: own training included, a round with a dead neighbour stays below 3 times
LEARNT = 5  # observations before the estimate counts
WORD = -1  # in place of a step: word that a round is done, without the content; it comes sooner than contents do
STARTS_KEPT = 64  # positions whose start is remembered; late messages come within the settling window


@dataclass(slots=True)
class Estimate:
    """Mean and deviation of one neighbour's seconds at one mixing step."""

    mean: float = 0.0
    deviation: float = 0.0
    count: int = 0

    def take(self, seconds: float) -> None:
        """One more observation."""
        if self.count == 0:
            self.mean, self.deviation = seconds, seconds / 2
        else:
            self.deviation += (abs(self.mean - seconds) - self.deviation) / 4
            self.mean += (seconds - self.mean) / 8
        self.count += 1


@dataclass(slots=True)
class Pace:
    """What was observed of all neighbours of one run."""

    estimates: dict[tuple[PeerId, int], Estimate] = field(default_factory=dict)
    starts: dict[Position, float] = field(default_factory=dict)
    counted: dict[PeerId, Position] = field(default_factory=dict)  # the newest position that was observed
    heard: dict[PeerId, int] = field(default_factory=dict)  # the newest round whose word was observed

    def start(self, position: Position, now: float) -> None:
        """This position begins here."""
        self.starts[position] = now
        while len(self.starts) > STARTS_KEPT:
            del self.starts[next(iter(self.starts))]

    def arrived(self, peer: PeerId, position: Position, now: float) -> None:
        """A neighbour's message for a position is there, early, in time or late; each position counts once."""
        if self.counted.get(peer, (-1, 0)) >= position:
            return
        began = self.starts.get(position)
        if began is None and self.starts and position > max(self.starts):
            began = now  # it is ahead of us: nobody waits for it
        if began is None:
            return
        self.counted[peer] = position
        self.estimates.setdefault((peer, position[1]), Estimate()).take(now - began)

    def word(self, peer: PeerId, round_: int, now: float) -> None:
        """Word of a round is there, from one that does not mix with us in it; each round counts once."""
        began = min((start for (begun, _), start in self.starts.items() if begun == round_), default=None)
        if began is None and self.starts and round_ > max(self.starts)[0]:
            began = now  # it is ahead of us: nobody waits for it
        if began is None or self.heard.get(peer, -1) >= round_:
            return
        self.heard[peer] = round_
        self.estimates.setdefault((peer, WORD), Estimate()).take(now - began)

    def due(self, peer: PeerId, position: Position, now: float, upper: float, *, word: bool = False) -> float:
        """When the wait for this neighbour at this position ends; ``upper`` seconds from ``now`` at most.

        ``word``: the wait for word of the round alone.
        """
        kind = WORD if word else position[1]
        own = self.estimates.get((peer, kind))
        if own is None or own.count < LEARNT:
            return now + upper
        usual = max(item.mean for (_, step), item in self.estimates.items() if word or step == kind)
        # word is late by what contents of the round before took, which are other sites' each time
        least = MOST * usual if word else max(own.mean + 4 * own.deviation, PATIENT * usual)
        limit = min(least, MOST * usual)
        return min(max(self.starts.get(position, now) + limit, now + FLOOR), now + upper)

    def remember(self) -> list[list[Any]]:
        """For a restart: (peer, step, mean, deviation, count). The clock of before means nothing afterwards."""
        return [[peer, step, e.mean, e.deviation, e.count] for (peer, step), e in sorted(self.estimates.items())]

    def recall(self, rows: Iterable[list[Any]]) -> None:
        """What `remember` gave."""
        self.estimates = {(PeerId(row[0]), row[1]): Estimate(*row[2:]) for row in rows}

    def shown(self) -> Mapping[PeerId, float]:
        """Usual seconds per neighbour, for the status."""
        return {peer: round(item.mean, 3) for (peer, step), item in sorted(self.estimates.items()) if step == 0}
