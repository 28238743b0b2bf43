"""Joining while other things go wrong: kills at each stage, loss, cuts, the proposer's other words, and lies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from test_sim_joining import PROPOSER, joined, same_end, world_with

from p2pfl.crypto import sha256, sign_envelope
from p2pfl.errors import P2PFLError
from p2pfl.gossip import State, events
from p2pfl.gossip.directives import Change, Directive
from p2pfl.gossip.statements import Approval
from p2pfl.sim import At, Crash, Duplicate, Fault, FullDisk, Loss, Partition, Pause, VirtualConsortium

TOPOLOGIES: dict[str, tuple[Any, int]] = {
    "ring": ("ring", 5),
    "full": ("full", 5),
    "two": ({"kind": "hierarchical", "clusters": 2}, 6),
}
STEP = 0.3  # seconds between two moments of a table; a round takes about one


class Case:
    """One run with a late member: who is who, and when it approves."""

    def __init__(self, topology: str, seed: int) -> None:
        spec, sites = TOPOLOGIES[topology]
        self.newcomer = sites - 1 if seed % 2 else 1
        self.neighbour = self.newcomer - 1 if self.newcomer > 1 else 2
        self.at = 75.0 + 0.137 * seed
        self.world = world_with([self.newcomer], self.at, sites, topology=spec, seed=seed, deadline=20.0)
        self.site = {"newcomer": self.newcomer, "proposer": PROPOSER, "neighbour": self.neighbour}

    def inject(self, fault: Fault, after: float) -> None:
        self.world.inject(fault, At(self.at + after))

    def direct(self, word: Any, after: float, **more: Any) -> None:
        proposer = self.world.sites[PROPOSER]

        def speak() -> None:
            try:
                proposer.post(events.Direct(proposer.now, word, **more))
            except P2PFLError:
                self.unsaid.append(word)  # its peer does not know, just then, where the run is

        self.unsaid: list[str] = []
        self.world.clock.at(self.at + after, speak)

    def ended(self) -> VirtualConsortium:
        """It ran to its end, all know the same of it, nobody was wronged, and what settled kept the sum."""
        world = self.world
        world.begin()
        assert world.run(world.done, limit_seconds=4000), world.states()
        assert world.run(limit_seconds=200_000.0)
        same_end(world)
        for kind in ("refused", "equivocation"):
            assert not [row for site in world.sites for row in site.disk.rows(kind)], kind
        assert not world.refused
        return world

    def kept(self) -> None:
        world = self.ended()
        assert world.imbalance() < 1e-6 or not world.settled()


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("who", ["newcomer", "proposer", "neighbour"])
@pytest.mark.parametrize(
    "moment", [pytest.param(number, marks=pytest.mark.slow if number % 12 else ()) for number in range(20)]
)
def test_killed_at_any_moment(topology: str, who: str, moment: int) -> None:
    """From before the approval to some rounds after it came in; back after 3 to 11 seconds."""
    case = Case(topology, seed=moment)
    case.inject(Crash(case.site[who], back_after=3.0 + moment % 3 * 4), STEP * moment - 0.2)
    case.kept()
    if who != "newcomer" or moment > 0:
        assert joined(case.world, case.newcomer)
        trainer = case.world.sites[case.newcomer].result
        assert trainer is not None and trainer.displacements  # type: ignore[attr-defined]  # a stub's


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize(
    "moment", [pytest.param(number, marks=pytest.mark.slow if number % 6 else ()) for number in range(1, 13)]
)
def test_cut_in_two(topology: str, moment: int) -> None:
    """The half without the proposer hears of the newcomer only when it has healed; the newcomer may be on either."""
    case = Case(topology, seed=moment)
    sites = range(len(case.world.sites))
    halves = tuple(number for number in sites if number % 2), tuple(number for number in sites if not number % 2)
    case.inject(Partition(halves, heal_after=20.0), 0.7 * moment - 1.0)
    case.kept()


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 6))])
@pytest.mark.parametrize("fault", [Loss(0.25, 60.0), Duplicate(0.5, 60.0)], ids=["loss", "duplication"])
def test_messages_are_lost_or_doubled(topology: str, seed: int, fault: Fault) -> None:
    case = Case(topology, seed)
    case.inject(fault, -10.0)
    case.kept()
    assert joined(case.world, case.newcomer)


@pytest.mark.parametrize("who", ["newcomer", "proposer", "neighbour"])
@pytest.mark.parametrize("moment", [0, *(pytest.param(m, marks=pytest.mark.slow) for m in range(1, 8))])
def test_stopped_for_a_while_and_gone_on(who: str, moment: int) -> None:
    case = Case("ring", seed=moment)
    case.inject(Pause(case.site[who], 9.0), STEP * 2 * moment - 0.2)
    case.kept()


@pytest.mark.parametrize("word", ["stop", "pause", "change"])
@pytest.mark.parametrize(
    "moment", [pytest.param(number, marks=pytest.mark.slow if number not in (0, 7) else ()) for number in range(15)]
)
def test_the_proposer_has_more_to_say(word: str, moment: int) -> None:
    """At the very time of the approval, and before and after the newcomer has come in."""
    for topology in ("ring", "full"):
        case = Case(topology, seed=moment)
        case.direct(word, 0.2 * moment - 0.4, **({"arguments": {"learning_rate": 0.5}} if word == "change" else {}))
        if word == "pause":
            case.direct("resume", 60.0)
        case.kept()


def test_a_stop_before_its_round_takes_the_admission_back() -> None:
    case = Case("full", seed=3)
    case.direct("stop", 0.3, from_round=None)
    world = case.world
    said: list[int] = []
    proposer = world.sites[PROPOSER]

    def stop_first() -> None:
        since = proposer.running.context.joined[world.peers[case.newcomer]]
        said.append(since)
        proposer.post(events.Direct(proposer.now, "stop", from_round=since))

    world.clock.at(case.at + 0.25, stop_first)
    case.kept()
    assert said, "it had been admitted"
    for number, machine in enumerate(world.machines):
        assert machine.context.joined == {} and world.peers[case.newcomer] not in machine.closing.record()
        if number != case.newcomer:
            assert (machine.closing.outcome() or "").startswith(f"stopped by the proposer after {said[0]} of 40 rounds")
    late = world.machines[case.newcomer]
    assert late.state is State.DONE and "stopped before it took part" in (late.context.away_for_good or "")
    assert not world.cores(case.newcomer) and world.sites[case.newcomer].result is None


@pytest.mark.parametrize(
    "moment", [0, pytest.param(3, marks=pytest.mark.slow), 6, pytest.param(9, marks=pytest.mark.slow)]
)
def test_a_newcomer_from_a_backup_signs_nothing_twice(moment: int) -> None:
    """Its disk is that of just after its approval; what it signed since, it learns from its neighbours."""
    case = Case("full", seed=moment)
    case.inject(
        Crash(case.newcomer, back_after=3.0, disk="backup", backup_at=case.at + 0.15 * (1 + moment % 4)), 2.0 + moment
    )
    case.ended()


def test_a_newcomer_whose_disk_is_lost_is_missing_from_then_on() -> None:
    case = Case("full", seed=5)
    case.inject(Crash(case.newcomer, back_after=3.0, disk="lost"), 8.0)
    world = case.ended()
    row = world.machines[PROPOSER].closing.record()[world.peers[case.newcomer]]
    assert row["finished"] is False and row["contributed"] and row["missed"]


def test_a_full_disk_at_the_proposer_delays_the_admission() -> None:
    case = Case("ring", seed=2)
    case.inject(FullDisk(PROPOSER, free_after=5.0), 0.0)
    case.kept()
    assert joined(case.world, case.newcomer)


def test_without_the_proposer_it_stays_outside() -> None:
    case = Case("full", seed=1)
    case.inject(Crash(PROPOSER), -2.0)
    world = case.world
    world.begin()
    assert world.run(lambda: all(world.sites[number].finished for number in (1, 2, 3)), limit_seconds=4000)
    late = world.machines[case.newcomer]
    assert late.joining.outside and late.starting.approvals.keys() >= {late.context.me}
    assert late.state is State.ABSENT or late.closing.complete
    said = late.status()["joining"]
    assert said["approved"] and said["from_round"] is None


# --- lies


def word_of(world: VirtualConsortium, *changes: Change, version: int = 1, **more: Any) -> bytes:
    """Signed by the proposer, whatever its own machine thinks of it."""
    directive = Directive(world.proposal.run, version, changes=changes, **more)
    return sign_envelope(world.sites[PROPOSER].identity, "directive", directive.encode()).encode()


def approval_of(world: VirtualConsortium, number: int, **changes: Any) -> bytes:
    site = world.sites[number]
    approval = Approval(world.proposal.run, world.proposal.plan, site.samples, site.prekey[1])
    return sign_envelope(site.identity, "approval", replace(approval, **changes).encode()).encode()


Lie = Callable[[VirtualConsortium], bytes]
LIES: dict[str, Lie] = {
    "forged": lambda world: word_of(world, Change(20, approval=approval_of(world, 4)[:-1] + b"x")),
    "another run": lambda world: word_of(world, Change(20, approval=approval_of(world, 4, run=sha256(b"x")))),
    "another plan": lambda world: word_of(world, Change(20, approval=approval_of(world, 4, plan=sha256(b"x")))),
    "useless prekey": lambda world: word_of(world, Change(20, approval=approval_of(world, 4, prekey=bytes(32)))),
    "a stranger": lambda world: word_of(world, Change(20, approval=stranger(world))),
    "takes part already": lambda world: word_of(world, Change(20, approval=approval_of(world, 2))),
    "twice": lambda world: word_of(world, *2 * (Change(20, approval=approval_of(world, 4)),)),
    "out of order": lambda world: word_of(
        world, Change(20, approval=approval_of(world, 4)), Change(19, (("learning_rate", 0.5),))
    ),
    "no approval": lambda world: word_of(world, Change(20)),
    "both": lambda world: word_of(world, Change(20, (("learning_rate", 0.5),), approval_of(world, 4))),
    "while all close": lambda world: word_of(world, Change(32, approval=approval_of(world, 4))),
    "something else": lambda world: word_of(world, Change(20, approval=b"approved!")),
}


def stranger(world: VirtualConsortium) -> bytes:
    identity = world.kit.identity(world.seed + 1, 9)
    approval = Approval(world.proposal.run, world.proposal.plan, 9, world.sites[4].prekey[1])
    return sign_envelope(identity, "approval", approval.encode()).encode()


@pytest.mark.parametrize("lie", LIES)
def test_a_word_that_admits_wrongly_is_the_proposers_fault_and_changes_nothing(lie: str) -> None:
    closing = "chebyshev" if lie == "while all close" else "plain"
    world = world_with(
        at=10_000.0, signatures="real", rounds=30, closing_rounds=6, topology={"kind": "ring", "closing": closing}
    )
    world.clock.at(70.0, lambda: world.sites[1].receive(PROPOSER, "flood", LIES[lie](world)))
    world.begin()
    assert world.run(lambda: all(world.sites[number].finished for number in range(4)), limit_seconds=4000)
    blamed = [row["peer"] for row in world.entries(1, "refused")] or [
        why for number, why in world.refused if number == 1
    ]
    assert blamed and set(blamed) <= {world.peers[PROPOSER]}
    for machine in world.machines[:4]:
        assert machine.directives.newest is None and not machine.context.joined
    assert world.settled() and world.imbalance() < 1e-9


def test_a_proposer_that_admits_two_different_ones_is_caught_and_stops_nobody() -> None:
    """Each half hears another word of version 1 first; all keep both, heed the same one, and close alike."""
    for seed in range(3):
        world = VirtualConsortium(6, topology="full", rounds=30, closing_rounds=3, seed=seed)
        world.approving = range(4)

        def lie(world: VirtualConsortium = world) -> None:
            for number in range(1, 6):
                data = word_of(world, Change(12, approval=approval_of(world, 4 + number % 2)))
                world.sites[number].receive(PROPOSER, "flood", data)

        for number in (4, 5):
            world.sites[number].armed = True  # both have approved, and only the liar has heard of it
        world.clock.at(63.9, lie)
        world.begin()
        assert world.run(world.done, limit_seconds=4000), world.states()
        assert world.run(limit_seconds=200_000.0)
        assert not world.contradictions()
        records = [machine.closing.record() for machine in world.machines]
        assert all(row == records[0] for row in records)
        caught = [number for number in range(1, 6) if world.entries(number, "equivocation")]
        assert caught
