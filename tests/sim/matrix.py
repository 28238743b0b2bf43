"""The fault matrix: every fault, in every state of the round table, on every graph; real machines, virtual clock.

`python tests/sim/matrix.py FAULT STATE TOPOLOGY SEED` plays one run again and says what happened.
"""

from __future__ import annotations

import random
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from p2pfl.gossip import State
from p2pfl.gossip.closing import COMPLETION_PATIENCE
from p2pfl.gossip.contributions import completion_record
from p2pfl.gossip.events import Resume
from p2pfl.sim import (
    ClockSkew,
    Crash,
    Duplicate,
    Equivocate,
    FailTraining,
    Fault,
    FullDisk,
    InState,
    LieAboutEdges,
    Loss,
    OneWayCut,
    Partition,
    Pause,
    Reorder,
    Replay,
    SlowSite,
    UserPause,
    VirtualConsortium,
    Withhold,
)

ROUNDS, CLOSING_ROUNDS = 8, 1
TOPOLOGIES = ("ring", "full", "hierarchical")
LIMIT = 900.0  # virtual seconds: thirty times an undisturbed run; nobody may wait longer than the faults last
QUIET = 90.0 + COMPLETION_PATIENCE  # virtual seconds after everybody is done, for late words to travel


@dataclass(frozen=True)
class Case:
    """One run."""

    fault: str
    state: State
    topology: str
    seed: int

    def __str__(self) -> str:
        return f"{self.fault} {str(self.state).replace(' ', '-')} {self.topology} {self.seed}"


@dataclass
class Played:
    """What came of it; ``problems`` is empty when every invariant held."""

    case: Case
    struck: bool
    settled: bool = False
    logs: int = 0  # audit logs that were verified
    problems: list[str] = field(default_factory=list)


Make = Callable[[VirtualConsortium, int, random.Random], Fault | None]


def _crash(**options: Any) -> Make:
    return lambda world, victim, draw: Crash(victim, back_after=draw.uniform(0.5, 12.0), **options)


def _half(world: VirtualConsortium, victim: int, draw: random.Random) -> Fault:
    others = [number for number in range(len(world.sites)) if number != victim]
    group = [victim, *draw.sample(others, draw.randint(0, len(others) - 2))]
    return Partition((tuple(group),), heal_after=draw.uniform(3.0, 40.0))


def _neighbour(world: VirtualConsortium, victim: int, draw: random.Random) -> int:
    return draw.choice([number for number in range(len(world.sites)) if number != victim])


FAULTS: dict[str, Make] = {
    "crash": _crash(),
    "crash-silent": _crash(silently=True),
    "crash-for-good": lambda world, victim, draw: Crash(victim),
    "crash-disk-lost": _crash(disk="lost"),
    "crash-backup": lambda world, victim, draw: Crash(
        victim, draw.uniform(0.3, 8.0), disk="backup", backup_at=draw.uniform(0.6, 2.5)
    ),
    "pause": lambda world, victim, draw: Pause(victim, draw.uniform(0.5, 40.0)),
    "partition": _half,
    "one-way-cut": lambda world, victim, draw: OneWayCut(
        victim, _neighbour(world, victim, draw), heal_after=draw.uniform(3.0, 40.0)
    ),
    "clock-skew": lambda world, victim, draw: ClockSkew(
        victim, draw.choice([0.2, 0.9, 1.1, 5.0]), draw.uniform(0, 100)
    ),
    "slow-site": lambda world, victim, draw: SlowSite(victim, draw.uniform(3.0, 10.0), draw.choice([None, 6.0])),
    "full-disk": lambda world, victim, draw: FullDisk(victim, free_after=draw.uniform(1.0, 15.0)),
    "loss": lambda world, victim, draw: Loss(draw.uniform(0.05, 0.3), seconds=draw.uniform(2.0, 8.0)),
    "duplicate": lambda world, victim, draw: Duplicate(draw.uniform(0.1, 0.9), seconds=8.0),
    "reorder": lambda world, victim, draw: Reorder(draw.uniform(0.1, 0.9), seconds=8.0),
    "equivocate": lambda world, victim, draw: None,
    "withhold": lambda world, victim, draw: None,
    "replay": lambda world, victim, draw: None,
    "lie-about-edges": lambda world, victim, draw: None,
}
HOSTILE = {"equivocate", "withhold", "replay", "lie-about-edges"}
GONE = {"crash-for-good"}
FORGETFUL = {"crash-disk-lost", "crash-backup"}  # what the site had taken in is gone with its disk


def corrupt(world: VirtualConsortium, fault: str, victim: int, draw: random.Random) -> None:
    """Hostile from the beginning: what it does shows in every state."""
    some = [number for number in range(len(world.sites)) if number != victim and draw.random() < 0.5]
    some = some or [(victim + 1) % len(world.sites)]
    member = {
        "equivocate": lambda: Equivocate(some, both=draw.random() < 0.5),
        "withhold": lambda: Withhold(some) if draw.random() < 0.5 else Withhold(no_content_for=some),
        "replay": lambda: Replay(draw.randint(1, 4)),
        "lie-about-edges": lambda: LieAboutEdges(draw.random() < 0.5),
    }[fault]()
    world.corrupt(victim, member)


def world_of(case: Case, **options: Any) -> tuple[VirtualConsortium, int, random.Random]:
    """The consortium and the victim of a case."""
    draw = random.Random(str(case))
    sites = draw.choice([4, 4, 5, 6, 6, 8, 9, 12] if case.topology != "full" else [4, 4, 5, 6, 7, 8])
    topology: Any = case.topology
    if case.topology == "hierarchical":
        topology = {"kind": "hierarchical", "clusters": draw.choice([2, 2, 3]) if sites >= 6 else 2}
    world = VirtualConsortium(
        sites, topology=topology, rounds=ROUNDS, closing_rounds=CLOSING_ROUNDS, seed=case.seed, patience=20.0, **options
    )
    return world, draw.randrange(sites), draw


def lead_to(world: VirtualConsortium, case: Case, victim: int, draw: random.Random) -> InState:
    """Bring the victim into the state, and say when that is."""
    round_ = draw.randint(1, ROUNDS - 3)
    after = draw.choice([0.0, 0.0, 0.002, 0.004, draw.uniform(0.0, 0.5)])
    match case.state:
        case State.PROPOSING:
            return InState(victim, State.PROPOSING, after=draw.uniform(0.0, 0.7))
        case State.ABSENT:
            world.inject(FailTraining(victim), InState(victim, State.ANNOUNCING, round=round_ - 1))
            return InState(victim, State.ABSENT, after=after)
        case State.CATCHING_UP:
            world.inject(Pause(victim, 20.0), InState(victim, State.TRAINING, round=1))
            return InState(victim, State.CATCHING_UP)
        case State.PAUSED:
            world.inject(
                UserPause(victim, resume_after=draw.uniform(2.0, 6.0)), InState(victim, State.TRAINING, round=round_)
            )
            return InState(victim, State.PAUSED, after=after)
        case State.CLOSING | State.DONE:
            return InState(victim, case.state, after=draw.choice([0.0, 0.002, 0.3]))
        case _:
            return InState(victim, case.state, round=round_, after=after)


def play(case: Case, **options: Any) -> Played:
    """Play one case and check the invariants."""
    try:
        return _play(case, **options)
    except Exception:
        return Played(case, True, problems=[f"raised: {traceback.format_exc(limit=-6)}"])


def under_way(case: Case, **options: Any) -> tuple[VirtualConsortium, int]:
    """The consortium of a case, begun and with its fault in waiting; and the victim."""
    world, victim, draw = world_of(case, **options)
    when = lead_to(world, case, victim, draw)
    if case.fault in HOSTILE:
        corrupt(world, case.fault, victim, draw)
    else:
        fault = FAULTS[case.fault](world, victim, draw)
        assert fault is not None
        world.inject(fault, when)
    world.begin()
    return world, victim


def _play(case: Case, **options: Any) -> Played:
    world, victim = under_way(case, **options)
    ended = world.run(world.done, limit_seconds=LIMIT)
    if not ended and world.states()[victim] is State.PAUSED:
        world.sites[victim].command(Resume(world.sites[victim].now))  # a user who sees that the pause is not over
        ended = world.run(world.done, limit_seconds=LIMIT)
    world.run(limit_seconds=QUIET)
    struck = not world.triggers.waiting
    played = Played(case, struck, world.settled())
    played.problems = list(_problems(world, case, victim, ended))
    for number, verification in enumerate(world.verify_logs()):
        played.logs += 1
        if not verification.ok:
            played.problems.append(f"the log of site {number} does not hold: {verification}")
    world.close()
    return played


def _problems(world: VirtualConsortium, case: Case, victim: int, ended: bool) -> Iterator[str]:
    honest = [site for site in world.sites if case.fault not in HOSTILE or site.number != victim]
    if not ended:
        yield f"an unbounded wait: after {LIMIT} s the states are {[str(state) for state in world.states()]}"
        return
    for number, first, second in world.contradictions():
        yield f"two cores of site {number} for round {first.round}: {first.result[:8]} and {second.result[:8]}"
    started = [site for site in honest if site.machine is not None and site.machine.context.start is not None]
    if started and case.fault not in HOSTILE | FORGETFUL and world.settled() and world.imbalance() > 1e-6:
        yield f"the conserved sum is off by {world.imbalance()}"
    yield from _records(world, case, victim, honest)
    yield from _standing(world, case, victim, honest)


def _records(world: VirtualConsortium, case: Case, victim: int, honest: list[Any]) -> Iterator[str]:
    """All live peers hold the same completion record."""
    if case.fault in HOSTILE | FORGETFUL:
        honest = [site for site in honest if site.number != victim]
    live = [site for site in honest if site.alive and site.machine is not None and site.machine.context.start]
    records = {}
    for site in live:
        machine = site.machine
        shares = machine.context.running.shares
        if not machine.closing.complete:
            yield f"site {site.number} does not know that the run is complete"
        records[site.number] = completion_record(machine.closing.statements, shares, ROUNDS)
    if len({repr(record) for record in records.values()}) > 1:
        yield f"different completion records at sites {sorted(records)}"


def _standing(world: VirtualConsortium, case: Case, victim: int, honest: list[Any]) -> Iterator[str]:
    """No honest peer loses standing: nobody is accused or refused but a liar."""
    liars = {world.peers[victim]} if case.fault in HOSTILE else set()
    for site in honest:
        for kind in ("equivocation", "refused"):
            for body in world.entries(site.number, kind):
                if body.get("peer") not in liars:
                    yield f"site {site.number} wrote {kind} of {world.numbers.get(body.get('peer'))}: {body.get('reason')}"


def cases(seeds: range) -> list[Case]:
    """The whole product, once per seed."""
    return [
        Case(fault, state, topology, seed)
        for seed in seeds
        for fault in FAULTS
        for state in State
        for topology in TOPOLOGIES
    ]


def main() -> None:
    """Play one case again."""
    fault, state, topology, seed = sys.argv[1:5]
    case = Case(fault, State(state.replace("-", " ")), topology, int(seed))
    played = play(case)
    print(f"{case}: struck {played.struck}, settled {played.settled}")
    for problem in played.problems:
        print(f"  {problem}")
    sys.exit(bool(played.problems))


if __name__ == "__main__":
    main()
