"""Who is away when, for whatever tells the time of a run, and how machines come to the same: users' pauses."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from p2pfl.errors import ConfigError
from p2pfl.sim.decisions import Decisions
from p2pfl.sim.fault_sites import sites_of_fault
from p2pfl.sim.faults import Fault, Leave, UserPause, UserResume
from p2pfl.sim.scenario import FaultTable, TimeTable
from p2pfl.sim.triggers import Begun, When
from p2pfl.topology import Schedule


@dataclass(frozen=True)
class Span:
    """Some sites are away from round ``first`` on, and back in round ``until``; None: never again."""

    sites: tuple[int, ...]
    first: int
    until: int | None = None


class Absences:
    """All spans of a run; sites may be in several."""

    def __init__(self, spans: Sequence[Span] = ()) -> None:
        self._spans = tuple(spans)
        self._known: dict[tuple[Span, ...], np.ndarray] = {}

    def __bool__(self) -> bool:
        """Whether anybody is ever away."""
        return bool(self._spans)

    def of(self, round: int) -> np.ndarray:
        """The sites that are away in a round, int64, rising."""
        spans = tuple(s for s in self._spans if s.first <= round and (s.until is None or round < s.until))
        if spans not in self._known:
            self._known = {spans: np.array(sorted({site for span in spans for site in span.sites}), dtype=np.int64)}
        return self._known[spans]

    def changes(self, rounds: int) -> list[int]:
        """The rounds up to ``rounds`` in which others are away than in the one before; the first is one."""
        ends = {when for span in self._spans for when in (span.first, span.until) if when is not None}
        return sorted({0} | {when for when in ends if when < rounds})

    def back(self, round: int) -> list[int]:
        """The sites that were away in the round before and are there again in this one."""
        return sorted({*self.of(round - 1).tolist()} - {*self.of(round).tolist()}) if round else []

    def periods(self, total: int) -> list[tuple[int, int, int]]:
        """(site, first round, round after the last) in a run of ``total`` rounds, as long as each absence lasts."""
        found: list[tuple[int, int, int]] = []
        since: dict[int, int] = {}
        for t in range(total + 1):
            away = set(self.of(t).tolist()) if t < total else set()
            found += [(site, since.pop(site), t) for site in sorted(since.keys() - away)]
            since |= dict.fromkeys(away - since.keys(), t)
        return found


def absences_of(faults: Sequence[FaultTable], peers: int, seed: int) -> Absences:
    """What a scenario's faults say of it. ConfigError for sites that do not exist."""
    return Absences(
        [
            Span(sites_of_fault(fault, place, peers, seed), fault.first, None if fault.last is None else fault.last + 1)
            for place, fault in enumerate(faults)
            if fault.kind == "absent"
        ]
    )


def check_trained(absences: Absences, training: np.ndarray, rounds: int) -> tuple[str, ...]:
    """Remarks on a run of so many training rounds; ``training`` bool [n]: which sites have any local steps.

    ConfigError where none of these is there in any training round.
    """
    train, changes = set(np.flatnonzero(training).tolist()), absences.changes(rounds)
    empty = [when for when in changes if train <= set(absences.of(when).tolist())]
    who = "all sites" if len(train) == len(training) else "all sites that have local steps"
    if len(empty) == len(changes):
        raise ConfigError(f"{who} are absent in every training round, so nobody trains; leave some")
    return (f"{who} are absent in round {empty[0]}: nobody trains in it",) if empty else ()


class Nearest:
    """Who is nearest to a site on the schedule's graph."""

    def __init__(self, schedule: Schedule) -> None:
        self._nodes, self._graph = schedule.nodes, schedule.graph
        self._places = {node: place for place, node in enumerate(schedule.nodes)}

    def there(self, site: int, away: Collection[int]) -> list[int]:
        """Who is there at the fewest hops from ``site``: its neighbours, or theirs; nobody if all are away."""
        seen, ring = {site}, [site]
        while ring:
            ring = sorted({self._places[peer] for one in ring for peer in self._graph[self._nodes[one]]} - seen)
            seen |= {*ring}
            there = [one for one in ring if one not in away]
            if there:
                return there
        return []


def begins_of_round(absences: Absences, schedule: Schedule, round: int, ended: np.ndarray) -> np.ndarray:
    """When each site begins a round, float64 [n] seconds; ``ended`` [n]: when it ended its last one.

    Who comes back begins when the last of the nearest sites that were there in the round before has ended that one.
    """
    back = absences.back(round)
    if not back:
        return ended
    begins, away, nearest = ended.copy(), set(absences.of(round - 1).tolist()), Nearest(schedule)
    for site in back:
        begins[site] = max([ended[site], *ended[nearest.there(site, away)]])
    return begins


def check_absences(absences: Absences, time: TimeTable | None, peers: int, total: int) -> None:
    """ConfigError for absences that the machines of so many sites cannot be made to have in so many rounds."""
    if time is None or time.clock == "model" or not absences:
        return
    if time.staleness:
        raise ConfigError(
            "in asynchronous rounds nobody can say which round a site comes back in: leave the absence out, write "
            "staleness = 0, or make the site slow in its profiles"
        )
    if len(absences.of(0)):
        raise ConfigError(
            'with clock = "machines" an absence is a user\'s pause, which a site can begin after round 0: let it begin '
            'in round 1 or later, or write clock = "model"'
        )
    empty = [t for t in range(total) if len(absences.of(t)) == peers]
    if empty:
        raise ConfigError(
            f"all sites are absent in round {empty[0]}, so nobody's machine would end it; leave one of them, or write "
            'clock = "model"'
        )


def pauses(absences: Absences, schedule: Schedule) -> list[tuple[Fault, When]]:
    """What the users do for it: they pause, and resume when the nearest sites that are there have begun the round.

    A site that never comes back is paused, too, and leaves at once.
    """
    found: list[tuple[Fault, When]] = []
    nearest = Nearest(schedule)
    for site, first, until in absences.periods(schedule.total):
        found.append((UserPause(site, None), Begun(((site, first - 1),))))
        if until == schedule.total:
            found.append((Leave(site), Begun(((site, first),))))
            continue
        others = nearest.there(site, set(absences.of(until - 1).tolist()))
        # not before it was paused: a site that was left behind would pause afterwards, for ever
        found.append((UserResume(site), Begun(((site, first - 1), *((other, until) for other in others)))))
    return found


def check_kept(absences: Absences, decisions: Decisions, total: int) -> None:
    """ConfigError if somebody who should have been away trained, or mixed messages of that round, at the machines.

    A pause is heard of, not known: sites that were left behind, or skipped rounds, come to other rounds than was meant.
    """
    for t, recorded in enumerate(decisions.rounds[:total]):
        took_part = set(np.flatnonzero(recorded.active).tolist())
        for rows in recorded.edges:
            took_part |= {int(site) for site in rows[rows["round"] == t]["receiver"]}
        wrong = sorted(took_part & {*absences.of(t).tolist()})
        if wrong:
            raise ConfigError(
                f"the machines did not keep to the absences: site {wrong[0]} took part in round {t}, since "
                'users\' pauses reach others late; write clock = "model", or longer local work'
            )
