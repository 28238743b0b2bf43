"""When transfers leave the uplinks of many sites at once, as arrays: the fair sharing of `p2pfl.sim.links.Uplink`.

A site's neighbours all ask for its content of one mixing at the same moment, so the flows of one mixing begin and end
together: a group. All flows have the same size, so groups end in the order in which they began, also when a next one
begins before an earlier one is through. Where closing rounds send less, their first group may begin before a larger one
has left; it is taken to leave no sooner than that.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = Any  # float64 or int64 arrays; one row per group, one column per site
NEVER = -1e18  # seconds: a group that began so long ago that it has ended


def ends(begins: Array, flows: Array, sizes: Array | float, rates: Array) -> Array:
    """Seconds at which each group's last byte has left, [groups, sites].

    ``begins`` [groups, sites] rises along the groups, inf for one that does not come; ``flows`` [groups, sites] counts
    the flows, at least 1, of ``sizes`` bytes each (a number, or [groups, sites]); ``rates`` [sites] are bytes/s.
    """
    groups, sites = begins.shape
    sizes = np.broadcast_to(np.asarray(sizes, dtype=np.float64), begins.shape)
    newest_target = np.zeros(sites)
    columns = np.arange(sites)
    ended = np.full((groups, sites), np.inf)
    targets = np.zeros((groups, sites))  # bytes served to a flow from the beginning on at which a group's flows end
    served, now, active = np.zeros(sites), begins[0].copy(), np.zeros(sites)
    arrived, left = np.zeros(sites, dtype=np.int64), np.zeros(sites, dtype=np.int64)
    for _ in range(2 * groups):
        newest, oldest = np.minimum(arrived, groups - 1), np.minimum(left, groups - 1)
        begin = np.where(arrived < groups, begins[newest, columns], np.inf)
        target = targets[oldest, columns]
        busy = left < arrived
        with np.errstate(invalid="ignore"):  # 0 flows have 0 / 0 seconds to go; they are not busy
            end = np.where(busy, now + (target - served) * active / rates, np.inf)
        joins = (begin <= end) & np.isfinite(begin)
        leaves = ~joins & np.isfinite(end)
        passed = np.where(joins & busy, (begin - now) * rates / np.maximum(active, 1.0), 0.0)
        served = np.where(leaves, target, served + passed)
        now = np.where(joins, begin, np.where(leaves, end, now))
        newest_target = np.where(joins, np.maximum(newest_target, served + sizes[newest, columns]), newest_target)
        targets[newest[joins], columns[joins]] = newest_target[joins]
        ended[oldest[leaves], columns[leaves]] = now[leaves]
        active = active + np.where(joins, flows[newest, columns], 0) - np.where(leaves, flows[oldest, columns], 0)
        arrived, left = arrived + joins, left + leaves
    return ended


class Uplinks:
    """The uplinks of n sites over a run: at most ``kept`` earlier groups of a site may still be leaving."""

    def __init__(self, rates: Array, kept: int) -> None:
        """``rates`` [n]: bytes per second, inf without limit."""
        self.rates = rates
        self._sizes = np.zeros((kept, len(rates)))
        self._begins = np.full((kept, len(rates)), NEVER)
        self._flows = np.ones((kept, len(rates)))
        self._ended = np.full(len(rates), NEVER)  # of the newest group

    def leave(
        self, begins: Array, flows: Array, next_begins: Array, next_flows: Array, size: float, next_size: float
    ) -> Array:
        """Seconds at which this mixing's contents of ``size`` bytes have left, [n], the next ones to begin at
        ``next_begins``."""
        found = np.where(flows > 0, begins + flows * size / self.rates, begins)
        crowded = np.flatnonzero((flows > 0) & ((self._ended > begins) | (next_begins < found)))
        if len(crowded):
            rows = np.vstack([self._begins[:, crowded], begins[crowded], np.maximum(next_begins, begins)[crowded]])
            counts = np.vstack([self._flows[:, crowded], flows[crowded], next_flows[crowded]])
            own = np.full((2, len(crowded)), [[size], [next_size]])
            sizes = np.vstack([self._sizes[:, crowded], own])
            found[crowded] = ends(rows, counts, sizes, self.rates[crowded])[-2]
        return found

    def begun(self, begins: Array, flows: Array, size: float, ended: Array) -> None:
        """This mixing's groups are on their way, or through."""
        for rows, new in ((self._begins, begins), (self._flows, flows), (self._sizes, np.full(len(flows), size))):
            rows[:] = np.where(flows > 0, np.vstack([rows[1:], new]), rows)
        self._ended = np.where(flows > 0, ended, self._ended)
