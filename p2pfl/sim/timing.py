"""Seconds and bytes of synchronous rounds, for thousands of sites, without machines.

The same link and compute models as the virtual clock, one array operation for all sites at a time. A site trains,
encodes, commits and announces; its neighbours ask for the content, which shares its uplink; who has all it waits for
mixes and goes on. A site that is away neither works nor sends, and nobody waits for it. Checked
against real machines in `tests/sim/test_sim_timing.py` and `test_sim_absences.py`; what is left out says
`docs/simulated-time.md`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from p2pfl.errors import ConfigError
from p2pfl.gossip.heartbeat import MAX_CORES_TOLD
from p2pfl.gossip.messages import INLINE_LIMIT
from p2pfl.gossip.presence import BEAT
from p2pfl.sim.absences import Absences, begins_of_round
from p2pfl.sim.compute import ComputeModel
from p2pfl.sim.links import LinkModel
from p2pfl.sim.patience import Patience
from p2pfl.sim.uplinks import Uplinks
from p2pfl.sim.watching import Watch
from p2pfl.topology import Mixing, Schedule

Array = Any  # float64 [n], one number per site
# Measured on recorded machines, 4 to 16 sites, degrees 2 to 15; within 15 % there. They grow with the logarithm of the
# run's length, which is left out.
ANNOUNCEMENT = (1680.0, 232.0, 95.0)  # bytes of one: these, these per recipient, these per site that it only tells
ACKNOWLEDGEMENT = 290.0  # bytes per message of a neighbour
HEARTBEAT = (270.0, 75.0)  # bytes of one heartbeat: these, and these per core that it tells
CLOSE = 1e-9  # seconds: rounds that overlap on an uplink are computed until nothing moves by more
TURNS = 20
KEPT = 128  # mixings whose edges are remembered


@dataclass(frozen=True)
class RoundTimes:
    """One round of all sites; arrays are float64 [n], in the order of the schedule's nodes."""

    round: int
    seconds: Array  # when each site ended the round; 0 is the beginning of round 0
    waited: Array  # how long it waited for its neighbours once its own message was out, the longest of its mixings
    content: Array  # bytes that neighbours pulled from it, or that travelled inside its announcements
    announcements: Array  # bytes of its announcements and acknowledgements
    floods: Array  # bytes of all heartbeats that it sent on; over all sites they grow with the consortium's square
    missed: int  # edges on which a receiver's patience would have ended: from here on only machines can say

    @property
    def bytes(self) -> Array:
        """All that the site sent."""
        return self.content + self.announcements + self.floods


@dataclass(frozen=True)
class _Edges:
    """One mixing: where each site's neighbours stand in ``senders``."""

    senders: Array
    starts: Array  # of the sites that have any
    sites: Array  # those sites
    receivers: Array  # of each edge
    places: Array  # of each edge in what its receiver has learnt
    degree: Array  # float64 [n]

    def latest(self, left: Array, delays: Array) -> Array:
        """When the last of its neighbours' contents reaches each site; -inf where there are none."""
        found = np.full(len(self.degree), -np.inf)
        if len(self.sites):
            found[self.sites] = np.maximum.reduceat(left[self.senders] + delays, self.starts)
        return found


@dataclass
class Timing:
    """A run's rounds one after the other. ``content_bytes``: of one site's message in one mixing, all channels;
    ``closing_bytes``: the same in closing rounds, where it is less.

    ``linked`` "graph" or "all", as in `VirtualConsortium`. ``heartbeats``: whether they take their part of the uplinks.
    Everybody waits for everybody here; ``deadline`` is what the plan says, so that `RoundTimes.missed` can tell when
    machines would not have. ConfigError for links that lose, repeat or reorder messages (record such a run), and for
    uplinks that heartbeats alone would fill.
    """

    schedule: Schedule
    links: LinkModel
    compute: ComputeModel
    content_bytes: int
    seed: int = 0
    linked: str = "graph"
    deadline: float = np.inf
    heartbeats: bool = True
    absences: Absences = field(default_factory=Absences)
    closing_bytes: int | None = None
    _known: dict[tuple[int, int, bytes], tuple[Mixing, _Edges]] = field(default_factory=dict, repr=False)
    _watch: Watch | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.links.loss or self.links.reorder or self.links.duplicate:
            raise ConfigError("links that lose, repeat or reorder messages need real machines: record the run")
        n, links, compute = len(self.schedule.nodes), self.links, self.compute
        self._rates = np.array([links.rate(site) or np.inf for site in range(n)])
        self._factors = np.array([compute.factors.get(site, 1.0) for site in range(n)])
        self._free = np.zeros(n)  # when each site begins its next position
        self._log = np.zeros(n)  # when its log has nothing more to commit
        self._round, self._cores = 0, 0.0  # messages of a site so far
        if self.schedule.changes:
            self._watch = Watch(self.schedule)
        self._links_of = np.full(n, n - 1.0) if self.linked == "all" else self.schedule.degrees.astype(np.float64)
        mixings = max(len(self.schedule.round(t).mixings) for t in (0, self.schedule.total - 1))
        self._uplinks = Uplinks(self._rates, kept=mixings)
        walks = self.schedule.walks  # where all are waited for as long as their heartbeats come
        self._patience = Patience(np.inf if walks else self.deadline, learns=not walks)
        most = min(MAX_CORES_TOLD, self.schedule.total * mixings)  # told in the last round
        self._slow_down(most)  # ConfigError if that is too much
        self._work = self._seconds_of_work(0)

    def __iter__(self) -> Iterator[RoundTimes]:
        """All rounds that are left."""
        while self._round < self.schedule.total:
            yield self.step()

    def step(self) -> RoundTimes:
        """The next round. IllegalStep after the last one."""
        n, edges, size = len(self._free), self._edges_of_round(self._round), self._content(self._round)
        left_off, here = self._free, ~np.isin(np.arange(n), self.absences.of(self._round))
        present = here
        mixes = [item.degree > 0 for item in edges]
        mixes[0] |= here & ~np.any(mixes, axis=0)  # who has no neighbours commits and mixes alone
        own = float(np.mean(np.sum(mixes, axis=0)))  # messages of a site in this round
        told = min(MAX_CORES_TOLD, self._cores + own / 2)
        self._slow_down(told)
        following = self._seconds_of_work(self._round + 1)
        began = begins_of_round(self.absences, self.schedule, self._round, self._free)
        ready = np.where(here, self._worked(began, self._work), began)
        waited, announced, missed = np.zeros(n), np.zeros(n), 0
        for step, item in enumerate(edges):
            then = self._then(edges[step + 1 :], following)
            next_size = self._content(self._round + 1) if item is edges[-1] else size
            sent, mixed, arrived = self._mix(step, item, ready, then, present, (size, next_size))
            here = mixes[step]
            waited = np.maximum(waited, np.where(here, mixed - self.compute.handling - sent, 0.0))
            times = {"started": ready if step else began, "sent": sent}
            late, again = self._patience.waited(item.places, item.receivers, arrived, times)
            missed += int(late.sum())
            messages = item.degree + np.bincount(item.receivers[again], minlength=n)
            hear = self._told(step, item.degree)
            each = _announcement(item.degree, hear)
            announced += (messages + hear - item.degree) * each + ACKNOWLEDGEMENT * hear
            self._log = np.where(here, np.maximum(mixed, sent) + self.compute.commit, self._log)
            ready = np.where(here, mixed, ready)
        self._free, self._work, self._cores = ready, following, self._cores + own
        self._round += 1
        return RoundTimes(
            round=self._round - 1,
            seconds=ready,
            waited=waited,
            content=sum(item.degree for item in edges) * size,
            announcements=announced,
            floods=(ready - left_off) * self._beats(told),
            missed=missed,
        )

    def _then(self, later: list[_Edges], following: Array | None) -> tuple[Array, Array] | None:
        """What each site does after a mixing: seconds of work, and neighbours to send to; None after the last one."""
        n = len(self._free)
        if following is None and not later:
            return None
        following_edges = [] if following is None else self._edges_of_round(self._round + 1)
        work, degree = np.zeros(n) if following is None else following.copy(), np.zeros(n)
        for item in reversed(following_edges):
            degree = np.where(item.degree > 0, item.degree, degree)
        for item in reversed(later):
            degree = np.where(item.degree > 0, item.degree, degree)
            work[item.degree > 0] = 0.0
        return work, degree

    def _mix(
        self, step: int, edges: _Edges, ready: Array, then: tuple[Array, Array] | None, present: Array,
        sizes: tuple[float, float],
    ) -> tuple[Array, Array, Array]:  # fmt: skip
        """When each message was committed, when a site had mixed those of its neighbours, and when each was there."""
        size, next_size = sizes
        sent, shift = self._sent(step, ready, self._log, edges.degree, size)
        heard = -np.inf  # since when all are known to have come as far who mix with a site in other rounds
        if self._watch is not None and step == 0:
            heard = self._watch.heard(
                np.where(present, sent + shift / 2 + self.links.latency * (size <= INLINE_LIMIT), -np.inf)
            )
        begins, arrive = sent + shift, self._delays(step, edges)
        mixed, next_begins, next_flows = sent, np.full(len(sent), np.inf), edges.degree
        for _ in range(TURNS):
            left = self._uplinks.leave(begins, edges.degree, next_begins, next_flows, size, next_size)
            there = np.maximum(heard, edges.latest(left, arrive))
            before, mixed = mixed, np.maximum(sent, there) + self.compute.handling
            if then is None:
                break
            # who is done before its own content has left may begin to send its next one beside it
            work, next_flows = then
            log = np.maximum(mixed, sent) + self.compute.commit
            after, next_shift = self._sent(0, self._worked(mixed, work), log, next_flows, next_size)
            next_begins = np.where(next_flows > 0, after + next_shift, np.inf)
            if np.abs(mixed - before).max() < CLOSE:
                break
        self._uplinks.begun(begins, edges.degree, size, left)
        there = np.maximum(
            left[edges.senders] + arrive, ready[edges.receivers]
        )  # a worker that trains takes in nothing
        return sent, mixed, there

    def _told(self, step: int, degree: Array) -> Array:
        """To how many others each site announces its message of this mixing."""
        return degree if self._watch is None or step else np.maximum(degree, self._watch.partners)

    def _content(self, round_: int) -> float:
        """Bytes of one site's message in a mixing of this round."""
        if self.closing_bytes is None or round_ < self.schedule.rounds:
            return float(self.content_bytes)
        return float(self.closing_bytes)

    def _sent(self, step: int, ready: Array, log: Array, degree: Array, size: float) -> tuple[Array, Array]:
        """When a message is committed that may be encoded at ``ready``; and how much later its content begins to leave:

        its announcements have left, have come, and the neighbours' questions are back.
        """
        committed = np.maximum(ready + self.compute.handling, log) + self.compute.commit
        if size <= INLINE_LIMIT:
            return committed, np.zeros(len(ready))
        told = self._told(step, degree)
        return committed, told * _announcement(degree, told) / self._uplinks.rates + 2 * self.links.latency

    def _delays(self, step: int, edges: _Edges) -> Array:
        """Seconds from the moment a content has left to the receiver, one number or one per edge."""
        if not self.links.jitter:
            return self.links.latency
        place = np.random.Philox(key=[self.seed, self._round * 16 + step])
        return self.links.latency + self.links.jitter * np.random.Generator(place).random(len(edges.senders))

    # --- work

    def _seconds_of_work(self, round_: int) -> Array | None:
        """Of the local steps of one round, [n]; zero in closing rounds, None after the last one."""
        n, compute = len(self._free), self.compute
        if round_ >= self.schedule.total:
            return None
        if not self.schedule.round(round_).training:
            return np.zeros(n)
        seconds = compute.seconds * self._factors * self._active(round_)
        if not compute.spread:
            return seconds
        return seconds * (1.0 - compute.spread + 2.0 * compute.spread * _shares(self.seed, n, round_))

    def _active(self, round_: int) -> Array | float:
        """1 for sites that train in this round, 0 for others, [n] or one number for all."""
        active, nodes = self.schedule.round(round_).active, self.schedule.nodes
        return 1.0 if len(active) == len(nodes) else np.array([float(node in active) for node in nodes])

    def _worked(self, begins: Array, work: Array) -> Array:
        ended = begins + work
        for site, calendar in self.compute.calendars.items():
            ended[site] = calendar.ends(begins[site], work[site])
        return ended

    # --- who waits for whom, and bytes

    def _edges_of_round(self, round_: int) -> list[_Edges]:
        away = self.absences.of(round_)
        return [self._edges(mixing, step, away) for step, mixing in enumerate(self.schedule.round(round_).mixings)]

    def _edges(self, mixing: Mixing, step: int, away: Array) -> _Edges:
        key = (id(mixing), step, away.tobytes())
        known = self._known.get(key)
        if known is None:
            if len(self._known) > KEPT:
                self._known.clear()
            known = self._known[key] = (mixing, _edges_of(mixing, step, self._patience, away))
        return known[1]

    def _beats(self, told: float) -> Array:
        """Bytes of heartbeats that each site sends per second: its own to all, each other one to all but one."""
        others = (len(self._free) - 1) * np.maximum(self._links_of - 1, 0)
        beats: Array = (others + self._links_of) * (HEARTBEAT[0] + HEARTBEAT[1] * told) / BEAT
        return beats

    def _slow_down(self, told: float) -> None:
        if self.heartbeats:
            self._uplinks.rates = self._rates - self._beats(told)
            if self._uplinks.rates.min() <= 0:
                raise ConfigError(
                    f"heartbeats of {len(self._free)} sites need {self._beats(told).max():.3g} bytes/s of an uplink: "
                    "give more bandwidth or fewer neighbours, or write heartbeats = false in [time] to leave them out"
                )


def _announcement(degree: Array, told: Array) -> Array:
    return ANNOUNCEMENT[0] + ANNOUNCEMENT[1] * degree + ANNOUNCEMENT[2] * (told - degree)


def _edges_of(mixing: Mixing, step: int, patience: Patience, away: Array) -> _Edges:
    receivers, senders, *_ = mixing.entries  # both ends of an edge send, also where one of them gives nothing
    real = ~(np.isin(receivers, away) | np.isin(senders, away))
    receivers, senders = receivers[real], senders[real]
    order = np.argsort(receivers, kind="stable")
    degree = np.bincount(receivers, minlength=len(mixing.nodes))
    sites = np.flatnonzero(degree)
    starts = np.concatenate([[0], np.cumsum(degree[sites])[:-1]]) if len(sites) else sites
    senders, receivers = senders[order], receivers[order]
    places = patience.places(receivers, senders, step)
    return _Edges(senders, starts, sites, receivers, places, degree.astype(np.float64))


def _shares(seed: int, sites: int, round_: int) -> Array:
    """`p2pfl.sim.draws.uniform` of "training time" for all sites, in one go."""
    head = hashlib.blake2b(f"p2pfl sim/{seed}/training time/".encode(), digest_size=7)
    digests = []
    for site in range(sites):
        one = head.copy()
        one.update(b"%d/%d" % (site, round_))
        digests.append(b"\0" + one.digest())
    return np.frombuffer(b"".join(digests), dtype=">u8") / 2.0**56
