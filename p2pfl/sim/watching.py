"""Who waits for word of whom where the graph changes from round to round: all who mix with each other at some time."""

from __future__ import annotations

from typing import Any

import numpy as np

from p2pfl.topology import Schedule

Array = Any  # float64 [n], one number per site


class Watch:
    """A round waits for word of all whom a site mixes with at some time (decision 0022)."""

    def __init__(self, schedule: Schedule) -> None:
        sites, edges = len(schedule.nodes), schedule.edges
        self.partners = schedule.degrees  # how many each site tells, int64 [n]
        self._complete = len(edges) == sites * (sites - 1) // 2
        ends = edges[:0] if self._complete else np.concatenate([edges, edges[:, ::-1]])
        self._ends = ends[np.argsort(ends[:, 0], kind="stable")]

    def heard(self, sent: Array) -> Array:
        """When each site has heard of the last of its partners; ``sent`` [n]: when word of each of them is there."""
        if self._complete:
            return np.full(len(sent), sent.max())
        found = np.full(len(sent), -np.inf)
        np.maximum.at(found, self._ends[:, 0], sent[self._ends[:, 1]])
        return found
