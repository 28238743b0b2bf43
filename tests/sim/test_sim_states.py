"""Sites that were away for long or join late, under the virtual clock: neighbours' states, and what that moves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from matrix import Case, play

from p2pfl.gossip import State
from p2pfl.gossip.adopting import PATIENCE
from p2pfl.sim import At, ComputeModel, Crash, InState, LinkModel, Loss, Partition, Pause, UserPause, VirtualConsortium
from p2pfl.sim.training import StubTraining
from p2pfl.sim.triggers import When

ROUNDS, VICTIM = 60, 2
TOPOLOGIES = ["ring", "full", {"kind": "hierarchical", "clusters": 2}]
NAMES = ["ring", "full", "hierarchical"]


def consortium(topology: Any, seed: int, **options: Any) -> VirtualConsortium:
    """Four sites, rounds of some 10 s."""
    compute = ComputeModel(seconds=10.0)
    return VirtualConsortium(
        4, topology=topology, rounds=ROUNDS, closing_rounds=4, seed=seed, compute=compute, **options
    )


def played(world: VirtualConsortium, fault: Crash | Pause | Partition, when: When) -> VirtualConsortium:
    world.inject(fault, when)
    world.begin()
    assert world.run(world.done, limit_seconds=3000.0)
    world.run(limit_seconds=200.0)
    return world


def round_at(world: VirtualConsortium, number: int, time: float) -> int:
    """The round a site was in at this time."""
    return max(round_ for when, round_ in world.sites[number].round_times if when <= time)


def mixed_by_others(world: VirtualConsortium) -> set[int]:
    """Rounds in which some neighbour mixed the victim's message."""
    others = (number for number in range(4) if number != VICTIM)
    bodies = (body for number in others for body in world.entries(number, "mixed"))
    return {body["round"] for body in bodies if world.peers[VICTIM] in [edge[0] for edge in body["edges"]]}


def moved(world: VirtualConsortium) -> np.ndarray:
    """sum_i share_i (x_i - x_0 - own displacements_i): zero, but for the jumps."""
    total = np.zeros(4)
    for peer, share in world.machines[0].context.running.shares.items():
        trainer = world.site_of(peer).result
        assert isinstance(trainer, StubTraining)
        total += share * (trainer.vector - trainer.start - sum(trainer.displacements.values())).numpy()
    return total


def jumps(world: VirtualConsortium, number: int = VICTIM) -> np.ndarray:
    trainer = world.sites[number].result
    assert isinstance(trainer, StubTraining)
    return trainer.jumped.numpy()


def check_return(world: VirtualConsortium, back_at: float) -> None:
    """It contributes within two rounds, once; the sum moved by its measured jump and by nothing else."""
    first = min(round_ for round_ in mixed_by_others(world) if round_ > 20)
    assert first - max(round_at(world, number, back_at) for number in (1, 3)) <= 2
    (body,) = world.entries(VICTIM, "caught_up")
    share = world.machines[0].context.running.shares[world.peers[VICTIM]]
    assert body["distance"] == pytest.approx(float(np.linalg.norm(jumps(world))), rel=1e-12)
    assert body["moved"] == pytest.approx(share * body["distance"], rel=1e-12)
    assert np.abs(share * jumps(world)).max() > 0.01, "or this test shows nothing"
    np.testing.assert_allclose(moved(world), share * jumps(world), rtol=0, atol=1e-6)
    records = [machine.closing.record() for machine in world.machines]
    assert all(record == records[0] for record in records)
    assert world.contradictions() == []


@pytest.mark.parametrize("topology", TOPOLOGIES, ids=NAMES)
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
def test_a_site_that_was_off_for_forty_of_sixty_rounds(topology: Any, seed: int) -> None:
    world = consortium(topology, seed)
    played(world, Crash(VICTIM, back_after=400.0), InState(VICTIM, State.TRAINING, round=8, after=3.0))
    check_return(world, world.triggers.struck[0][0] + 400.0)
    (body,) = world.entries(VICTIM, "caught_up")
    assert 30 < body["away"] < 45
    assert body["own"] == 16 / body["away"]
    assert body["round"] - body["away"] == 8, "it was killed while it trained in round 8"
    assert sum(state[1] for state in body["states"]) == pytest.approx(1.0, abs=1e-12)
    assert all(body["round"] - 3 <= state[2] <= body["round"] for state in body["states"])


@pytest.mark.parametrize("topology", TOPOLOGIES, ids=NAMES)
@pytest.mark.parametrize("moment", [1.03, 1.04, 1.1], ids=["approved", "run started", "state stored"])
def test_a_site_that_is_switched_on_when_the_others_are_in_round_thirty(topology: Any, moment: float) -> None:
    """It approved the run, and was off from then on: before, while or after it learnt that the run had begun."""
    world = played(consortium(topology, 1), Crash(VICTIM, back_after=320.0), At(moment))
    assert 27 <= round_at(world, 1, moment + 320.0) <= 33
    check_return(world, moment + 320.0)
    (body,) = world.entries(VICTIM, "caught_up")
    assert body["own"] == 0.0
    assert min(world.sites[VICTIM].result.displacements) >= body["round"], "it trained nothing from the run's start"  # type: ignore[union-attr]


@pytest.mark.parametrize("topology", TOPOLOGIES, ids=NAMES)
def test_a_site_that_is_cut_off_but_trains_on_keeps_all_it_has(topology: Any) -> None:
    """It took part in each round with its own data: nothing that it holds is old, and the sum holds all of it."""
    world = consortium(topology, 1)
    played(world, Partition(((VICTIM,),), heal_after=400.0), InState(VICTIM, State.TRAINING, round=8, after=3.0))
    assert all(world.entries(number, "caught_up") == [] for number in range(4))
    assert {59, 60} <= mixed_by_others(world)
    np.testing.assert_allclose(moved(world), 0.0, rtol=0, atol=1e-6)


@pytest.mark.parametrize("topology", TOPOLOGIES, ids=NAMES)
def test_within_the_plan_s_rounds_a_site_keeps_all_it_has(topology: Any) -> None:
    world = consortium(topology, 1)
    played(world, Crash(VICTIM, back_after=120.0), InState(VICTIM, State.TRAINING, round=20, after=3.0))
    assert world.entries(VICTIM, "caught_up") == []
    assert any(body["until"] - body["round"] > 6 for body in world.entries(VICTIM, "absent") if "until" in body)
    assert world.imbalance() < 1e-9


def test_the_plan_says_how_long_a_site_keeps_all_it_has() -> None:
    world = consortium("ring", 1, catch_up_rounds=1000)
    played(world, Crash(VICTIM, back_after=400.0), InState(VICTIM, State.TRAINING, round=8, after=3.0))
    assert world.entries(VICTIM, "caught_up") == []
    world = consortium("ring", 1, catch_up_rounds=3)
    played(world, Crash(VICTIM, back_after=120.0), InState(VICTIM, State.TRAINING, round=20, after=3.0))
    (body,) = world.entries(VICTIM, "caught_up")
    assert body["own"] == 3 / body["away"] and body["away"] >= 6


def test_without_any_state_it_goes_on_with_its_own_and_says_so() -> None:
    """Announcements of its neighbours and holders' offers never reach it: standings and heartbeats do."""
    world = consortium("ring", 1)

    def deaf(source: int, kind: str) -> bool:
        return kind in ("announcement", "offer")

    world.inject(Crash(VICTIM, back_after=400.0), InState(VICTIM, State.TRAINING, round=8, after=3.0))
    world.begin()
    assert world.run(lambda: world.sites[VICTIM].coming_back == 1, limit_seconds=3000.0)
    whole = world.sites[VICTIM].receive
    world.sites[VICTIM].receive = (  # type: ignore[method-assign]
        lambda source, kind, data: None if deaf(source, kind) else whole(source, kind, data)
    )
    assert world.run(lambda: bool(world.entries(VICTIM, "caught_up")), limit_seconds=800.0)
    (body,) = world.entries(VICTIM, "caught_up")
    assert (body["own"], body["states"], body["distance"], body["moved"]) == (1.0, [], 0.0, 0.0)
    told = [facts for topic, facts in world.sites[VICTIM].told if topic == "caught up"]
    assert [facts["with_peers"] for facts in told] == [[]]
    assert world.run(world.done, limit_seconds=3000.0)


@pytest.mark.parametrize(
    "after",
    [*(0.0, 0.004, 0.008, 0.02), *(pytest.param(after, marks=pytest.mark.slow) for after in (0.002, 0.006, 0.01))],
)
@pytest.mark.parametrize("late", [False, True], ids=["returning", "late"])
def test_killed_while_it_takes_states_it_takes_them_once(after: float, late: bool) -> None:
    """At any instant of catching up: its stored state has either none of the jump or all of it."""
    world = consortium("ring", 3)
    world.inject(Crash(VICTIM, back_after=3.0), InState(VICTIM, State.CATCHING_UP, count=2, after=after))
    when = At(1.1) if late else InState(VICTIM, State.TRAINING, round=8, after=3.0)
    played(world, Crash(VICTIM, back_after=400.0), when)
    assert not world.triggers.waiting, "the kill must have struck"
    check_return(world, min(time for time, _ in world.sites[VICTIM].round_times if time > 300.0))


@pytest.mark.parametrize("seed", range(2))
def test_two_sites_return_while_messages_are_lost(seed: int) -> None:
    """Each may take the other's state; the wait is bounded, and the sum moves by both jumps alone."""
    world = consortium("full", seed)
    for victim, round_ in ((VICTIM, 8), (3, 9)):
        world.inject(Crash(victim, back_after=400.0), InState(victim, State.TRAINING, round=round_, after=3.0))
    world.inject(Loss(0.15, seconds=60.0), At(480.0))
    world.begin()
    assert world.run(world.done, limit_seconds=3000.0)
    world.run(limit_seconds=200.0)
    for victim in (VICTIM, 3):
        bodies = world.entries(victim, "caught_up")
        assert bodies and bodies[0]["states"]
        began = [time for time, round_ in world.sites[victim].round_times if round_ >= bodies[0]["round"]]
        assert min(began) - world.triggers.struck[0][0] < 400.0 + 3 * PATIENCE + 40.0
    shares = world.machines[0].context.running.shares
    expected = sum(shares[world.peers[number]] * jumps(world, number) for number in range(4))
    np.testing.assert_allclose(moved(world), expected, rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_fault_matrix_where_every_skipped_round_counts() -> None:
    """With ``catch_up_rounds`` 1 nearly every return takes states: the invariants of the matrix hold as well."""
    faults = ("crash", "crash-backup", "pause", "one-way-cut", "slow-site", "withhold", "lie-about-edges")
    states = (State.PROPOSING, State.TRAINING, State.COLLECTING, State.CATCHING_UP, State.ABSENT)
    bad = []
    for place, (fault, state) in enumerate((fault, state) for fault in faults for state in states):
        result = play(Case(fault, state, NAMES[place % 3], 300), catch_up_rounds=1)
        bad += [f"{result.case}: {problem}" for problem in result.problems]
    assert bad == []


def test_a_silent_neighbour_is_waited_for_once_and_not_at_each_taking() -> None:
    """Rounds of a second, ten of patience: waiting anew each time, the returning site would chase the run to its end."""
    world = VirtualConsortium(4, topology="full", rounds=80, closing_rounds=1, seed=1, catch_up_rounds=1)
    world.inject(UserPause(2, None), At(5.0))
    world.inject(Crash(1, back_after=25.0), At(12.0))
    world.begin()
    assert world.run(lambda: all(world.sites[number].finished for number in (0, 1, 3)), limit_seconds=600.0)
    assert len(world.entries(1, "caught_up")) <= 2
    after = [row["round"] for row in world.entries(1, "mixed") if row["edges"] and row["round"] > 12]
    assert len(after) >= 30, "it contributes to the rest of the run"


@pytest.mark.parametrize("seed", [2, 4])
def test_a_late_answer_to_an_older_fetch_throws_nobody_out(seed: int) -> None:
    """A state is fetched, given up, and fetched again; both answers come."""
    world = VirtualConsortium(
        6, topology="full", rounds=30, closing_rounds=1, seed=seed, deadline=6.0, catch_up_rounds=1,
        content_bytes=200_000, links=LinkModel(bandwidth=50_000.0),
    )  # fmt: skip
    world.inject(Crash(4, back_after=8.0), At(8.0))
    world.inject(Loss(0.25, 20.0), At(16.0))
    world.inject(Partition(((4,),), heal_after=4.0), At(19.0))
    world.begin()
    assert world.run(world.done, limit_seconds=2000.0), world.states()
    assert not any(site.problems for site in world.sites), [site.problems for site in world.sites]
    assert [machine.context.away_for_good for machine in world.machines] == 6 * [None]
