"""Who is linked with whom now, and what becomes of a message on its way.

A link is one connection of a pair of sites. While a wire of it is cut, what is on its way waits, as TCP's own
repetition would have it, and comes after the heal; once silence is noticed the link ends and all of it is lost. Then
the link comes back as soon as both processes run and both directions are open.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable

from p2pfl.sim.clock import Clock
from p2pfl.sim.draws import stream
from p2pfl.sim.links import LinkModel, Uplink
from p2pfl.sim.pairs import Endpoint, Lane, Pair, Way


class Network:
    """All links of one world. ``counters``: sent, arrived, lost, duplicated, reordered, dropped (with their link)."""

    def __init__(self, clock: Clock, model: LinkModel, seed: int) -> None:
        self.model = model
        self.loss, self.duplicate, self.reorder = model.loss, model.duplicate, model.reorder
        self.counters: Counter[str] = Counter()
        self.sent_bytes: Counter[tuple[int, str]] = Counter()  # by site and kind; "content" is what others pulled
        self._clock = clock
        self._seed = seed
        self._ends: dict[int, Endpoint] = {}
        self._uplinks: dict[int, Uplink] = {}
        self._pairs: dict[Way, Pair] = {}
        self._around: dict[int, list[Pair]] = {}  # by site
        self._draws: dict[tuple[str, int, int], random.Random] = {}
        self._pulled = 0

    def add(self, end: Endpoint) -> None:
        """A site that can be linked."""
        self._ends[end.number] = end
        self._uplinks[end.number] = Uplink(self._clock, self.model.rate(end.number))

    def want(self, pairs: Iterable[Way]) -> None:
        """These pairs keep a link whenever they can."""
        for one, other in pairs:
            self._pair(one, other).wanted = True

    def linked(self, site: int) -> list[int]:
        """To whom this site holds a link, as far as it knows."""
        return sorted(pair.other(site) for pair in self._around.get(site, ()) if site in pair.sees)

    # --- messages

    def send(self, source: int, target: int, kind: str, data: bytes) -> bool:
        """Send a message; False if the sender knows of no link. True promises nothing, as on a real network."""
        pair = self._known(source, target)
        if pair is None or source not in pair.sees:
            return False
        self.counters["sent"] += 1
        self.sent_bytes[source, kind] += len(data)
        if self.loss and self._chance("loss", source, target) < self.loss:
            self.counters["lost"] += 1
        elif not pair.up:
            self.counters["dropped"] += 1
        else:
            pair.lanes[source, target].waiting.append((kind, data))
            self._pump(pair, (source, target))
        return True

    def _pump(self, pair: Pair, way: Way) -> None:
        lane, uplink = pair.lanes[way], self._uplinks[way[0]]
        while lane.waiting and lane.flow is None:
            kind, data = lane.waiting.popleft()
            if uplink.unlimited:
                self._travel(pair, way, kind, data)
            else:
                lane.flow = uplink.start(len(data), self._ended(pair, way, kind, data))

    def _ended(self, pair: Pair, way: Way, kind: str, data: bytes) -> Callable[[], None]:
        def ended() -> None:
            pair.lanes[way].flow = None
            self._travel(pair, way, kind, data)
            self._pump(pair, way)

        return ended

    def _travel(self, pair: Pair, way: Way, kind: str, data: bytes) -> None:
        model, lane, now = self.model, pair.lanes[way], self._clock.now
        delay = model.latency
        if model.jitter:
            delay += model.jitter * self._chance("jitter", *way)
        if self.reorder and self._chance("reorder", *way) < self.reorder:
            self.counters["reordered"] += 1
            self._arrive_at(now + delay + model.reorder_by * self._chance("reorder by", *way), pair, way, kind, data)
        else:
            lane.newest = max(lane.newest, now + delay)
            self._arrive_at(lane.newest, pair, way, kind, data)
        if self.duplicate and self._chance("duplicate", *way) < self.duplicate:
            self.counters["duplicated"] += 1
            self._arrive_at(now + delay + model.reorder_by * self._chance("again", *way), pair, way, kind, data)

    def _arrive_at(self, time: float, pair: Pair, way: Way, kind: str, data: bytes) -> None:
        epoch = pair.epoch

        def arrive() -> None:
            if pair.epoch != epoch or not pair.up:
                self.counters["dropped"] += 1
            elif pair.cuts[way]:
                pair.lanes[way].held.append((kind, data))
            else:
                self.counters["arrived"] += 1
                self._ends[way[1]].receive(way[0], kind, data)

        self._clock.at(time, arrive)

    def pull(self, asker: int, origin: int, read: Callable[[], int | None], done: Callable[[str | None], None]) -> None:
        """Fetch content: after one latency the origin reads its size (None: it does not hold it), then it travels.

        ``done`` gets None when all of it is here, else what went wrong. Bulk does not hold up messages.
        """
        pair = self._known(asker, origin)
        if pair is None or asker not in pair.sees or not pair.up:
            self._clock.after(0.0, lambda: done("no link is up"))
            return
        self._pulled += 1
        number, latency = self._pulled, self.model.latency

        def finish(problem: str | None) -> None:
            if pair.pulls.pop(number, None) is not None:
                done(problem)

        def serve() -> None:
            if self._ends[origin].frozen and number in pair.pulls:
                self._clock.after(1.0, serve)  # its kernel holds the question until the process goes on
                return
            size = read() if number in pair.pulls else None
            if size is None:
                self._clock.after(latency, lambda: finish("the other side does not hold it"))
            else:
                self.sent_bytes[origin, "content"] += size
                self._uplinks[origin].start(size, left)

        def left() -> None:
            self._clock.after(latency, lambda: finish(None))

        pair.pulls[number] = finish
        self._clock.after(latency, serve)

    # --- links that come and go

    def started(self, site: int) -> None:
        """The site's process runs, or runs again: its links come up in a while."""
        for pair in self._pairs_of(site):
            self._try(pair)

    def stopped(self, site: int, *, silently: bool = False) -> None:
        """The site's process has ended: its kernel closes the links, unless the whole machine went silently."""
        for pair in self._pairs_of(site):
            pair.sees.discard(site)
            self._clock.cancel(pair.attempt)
            pair.attempt = None
            if pair.up:
                other = pair.other(site)
                silent = silently or pair.cuts[site, other] > 0
                seconds = self.model.silent_after if silent else self.model.closed_after
                self._break(pair)
                self._notice(pair, other, seconds, "silent" if silent else "the other side closed it")

    def froze(self, site: int) -> None:
        """The site's process is stopped; the others notice when they have heard nothing for long enough."""
        since = self._clock.now
        for pair in self._pairs_of(site):
            if pair.up:
                self._clock.after(self.model.silent_after, self._silence(pair, site, since))

    def _silence(self, pair: Pair, site: int, since: float) -> Callable[[], None]:
        epoch = pair.epoch

        def check() -> None:
            end = self._ends[site]
            if pair.up and pair.epoch == epoch and end.frozen and end.frozen_since == since:
                self._break(pair)
                self._notice(pair, pair.other(site), 0.0, "silent")
                self._notice(pair, site, 0.0, "the other side closed it")  # it learns when it goes on

        return check

    def thawed(self, site: int) -> None:
        """The process goes on."""
        self.started(site)

    def cut(self, source: int, target: int) -> None:
        """From now on nothing passes from ``source`` to ``target``."""
        pair, way = self._pair(source, target), (source, target)
        pair.cuts[way] += 1
        if pair.cuts[way] > 1:
            return
        since = pair.cut_since[way] = self._clock.now
        epoch = pair.epoch

        def check() -> None:
            if pair.up and pair.epoch == epoch and pair.cut_since.get(way) == since:
                self._break(pair)
                self._notice(pair, target, 0.0, "silent")
                back = pair.cut_since.get((target, source))
                closed = self.model.closed_after
                later = closed if back is None else max(0.0, back + self.model.silent_after - self._clock.now)
                self._notice(pair, source, later, "the other side closed it" if back is None else "silent")

        self._clock.after(self.model.silent_after, check)

    def heal(self, source: int, target: int) -> None:
        """One cut of this direction is mended; the last one lets through what waited."""
        pair, way = self._pair(source, target), (source, target)
        pair.cuts[way] -= 1
        if pair.cuts[way] > 0:
            return
        pair.cut_since.pop(way, None)
        lane = pair.lanes.get(way)
        if pair.up and lane is not None:
            held, lane.held = lane.held, []
            lane.newest = max(lane.newest, self._clock.now + self.model.latency)
            for kind, data in held:
                self._arrive_at(lane.newest, pair, way, kind, data)
        self._try(pair)

    def _break(self, pair: Pair) -> None:
        pair.up = False
        pair.epoch += 1
        for way, lane in pair.lanes.items():
            self.counters["dropped"] += len(lane.waiting) + len(lane.held)
            self._uplinks[way[0]].cancel(lane.flow)
        pair.lanes = {}
        for number in list(pair.pulls):
            pair.pulls[number]("the link ended")

    def _notice(self, pair: Pair, site: int, seconds: float, reason: str) -> None:
        """This end learns of it after a while; then the pair may link again."""
        epoch = pair.epoch

        def learn() -> None:
            if site in pair.sees and pair.epoch == epoch:
                pair.sees.discard(site)
                self._ends[site].link_down(pair.other(site), reason)
            self._try(pair)

        if site in pair.sees:
            self._clock.after(seconds, learn)

    def _try(self, pair: Pair) -> None:
        if pair.attempt is None and self._can(pair):
            pair.attempt = self._clock.after(self.model.connect_after, lambda: self._connect(pair))

    def _can(self, pair: Pair) -> bool:
        ready = all(self._ends[site].alive and not self._ends[site].frozen for site in pair.sites)
        return pair.wanted and ready and not pair.up and not pair.sees and not any(pair.cuts.values())

    def _connect(self, pair: Pair) -> None:
        pair.attempt = None
        if not self._can(pair):
            return  # whatever stands in the way tries again when it is gone
        one, other = pair.sites
        pair.up, pair.sees = True, {one, other}
        pair.epoch += 1
        pair.lanes = {(one, other): Lane(), (other, one): Lane()}
        self._ends[one].link_up(other)
        self._ends[other].link_up(one)

    # --- look-up

    def _pair(self, one: int, other: int) -> Pair:
        sites = (min(one, other), max(one, other))
        pair = self._pairs.get(sites)
        if pair is None:
            pair = self._pairs[sites] = Pair(sites)
            for site in sites:
                self._around.setdefault(site, []).append(pair)
        return pair

    def _known(self, one: int, other: int) -> Pair | None:
        return self._pairs.get((one, other) if one < other else (other, one))

    def _pairs_of(self, site: int) -> list[Pair]:
        return [pair for sites, pair in sorted(self._pairs.items()) if site in sites]

    def _chance(self, purpose: str, source: int, target: int) -> float:
        key = (purpose, source, target)
        draws = self._draws.get(key)
        if draws is None:
            draws = self._draws[key] = stream(self._seed, *key)
        return float(draws.random())
