"""For how long sites wait for each neighbour, for all edges at once: `p2pfl.gossip.pace` as arrays.

It says of a round without faults whether somebody's patience would have ended in it, and who was asked again meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from p2pfl.gossip.pace import FLOOR, LEARNT, MOST, PATIENT

Array = Any  # float64 or int64, one number per site [n] or per edge [E]


class Patience:
    """What every site has learnt of each of its neighbours, by mixing step. ``deadline``: the plan's, in seconds, which
    alone holds where sites do not learn."""

    def __init__(self, deadline: float, *, learns: bool = True) -> None:
        self._deadline, self._least = deadline, LEARNT if learns else np.inf
        self._places: dict[tuple[int, int, int], int] = {}  # (receiver, sender, step) -> place in the arrays
        self._mean, self._deviation, self._count = np.zeros(0), np.zeros(0), np.zeros(0)

    def places(self, receivers: Array, senders: Array, step: int) -> Array | slice:
        """Where the estimates of these edges stand; new ones begin."""
        keys = zip(receivers.tolist(), senders.tolist(), strict=True)
        found = [self._places.setdefault((one, other, step), len(self._places)) for one, other in keys]
        more = len(self._places) - len(self._mean)
        self._mean = np.concatenate([self._mean, np.zeros(more)])
        self._deviation = np.concatenate([self._deviation, np.zeros(more)])
        self._count = np.concatenate([self._count, np.zeros(more)])
        together = found == list(range(found[0], found[0] + len(found))) if found else False
        return slice(found[0], found[0] + len(found)) if together else np.array(found, dtype=np.int64)

    def waited(
        self, places: Array | slice, receivers: Array, arrived: Array, times: Mapping[str, Array]
    ) -> tuple[Array, Array]:
        """Of one mixing: which neighbours came too late, and which were sent their messages again; both bool [E].

        ``arrived`` [E]: when each neighbour's message was there. ``times`` [n]: "started", when the position began at a
        site, and "sent", when it began to wait.
        """
        mean, deviation, count = self._mean[places], self._deviation[places], self._count[places]
        started, sent = times["started"][receivers], times["sent"][receivers]
        usual = np.zeros(len(times["sent"]))
        np.maximum.at(usual, receivers, mean)
        limit = np.minimum(np.maximum(mean + 4 * deviation, PATIENT * usual[receivers]), MOST * usual[receivers])
        upper = sent + self._deadline
        due = np.where(count < self._least, upper, np.minimum(np.maximum(started + limit, sent + FLOOR), upper))
        awaited = arrived > sent
        first = np.full(len(times["sent"]), np.inf)
        np.minimum.at(first, receivers[awaited], due[awaited])
        again = awaited & (arrived > sent + (first[receivers] - sent) / 3)
        self._learn(places, np.where(arrived > started, arrived - started, 0.0))
        return awaited & (arrived > due), again

    def _learn(self, places: Array | slice, seconds: Array) -> None:
        mean, deviation, first = self._mean[places], self._deviation[places], self._count[places] == 0
        self._deviation[places] = np.where(first, seconds / 2, deviation + (np.abs(mean - seconds) - deviation) / 4)
        self._mean[places] = np.where(first, seconds, mean + (seconds - mean) / 8)
        self._count[places] += 1
