"""What one site's bad day costs the others, under the virtual clock: the figures that are promised."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any

import pytest

from p2pfl.gossip import State
from p2pfl.gossip.attendance import MAX_MISSED
from p2pfl.sim import ComputeModel, Crash, InState, SlowSite, VirtualConsortium, Withhold

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("P2PFL_DATA", ROOT.parent / "shared" / "data")) / "heart"
DEATH = 12  # round; by then everybody knows everybody's pace


def minute_rounds(topology: Any, seed: int, **options: Any) -> VirtualConsortium:
    """Four sites whose local work takes a minute, give or take 5 %; the plan allows ten minutes for a round."""
    compute = ComputeModel(seconds=60.0, spread=0.05)
    return VirtualConsortium(
        4, topology=topology, rounds=25, closing_rounds=1, seed=seed, compute=compute, deadline=600.0, **options
    )


def durations(world: VirtualConsortium, number: int) -> dict[int, float]:
    """Seconds that each training round took at one site."""
    times = {round_: time for time, round_ in world.sites[number].round_times}
    return {round_: times[round_ + 1] - time for round_, time in times.items() if round_ + 1 in times and round_ < 25}


def cost_of_death(world: VirtualConsortium, victim: int) -> tuple[float, float]:
    """(longest round at the death, longest round after it), over the living, in usual rounds."""
    longest, later = 0.0, 0.0
    for number in range(4):
        if number != victim:
            took = durations(world, number)
            usual = median(seconds for round_, seconds in took.items() if round_ < DEATH)
            at_death = [seconds for round_, seconds in took.items() if abs(round_ - DEATH) <= 1]
            longest = max(longest, max(at_death) / usual)
            later = max(later, max(seconds for round_, seconds in took.items() if round_ > DEATH + 1) / usual)
    return longest, later


TOPOLOGIES = ["ring", "full", {"kind": "hierarchical", "clusters": 2}]


@pytest.mark.parametrize("topology", TOPOLOGIES, ids=["ring", "full", "hierarchical"])
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 5))])
@pytest.mark.parametrize("silently", [False, True])
def test_a_dead_peer_costs_one_round_a_little_and_the_later_ones_nothing(
    topology: Any, seed: int, silently: bool
) -> None:
    """Killed (its links end at once) or without power (its links fall silent): at most 3 times, then 1.2 times."""
    world = minute_rounds(topology, seed)
    victim = seed % 4
    world.inject(Crash(victim, silently=silently), InState(victim, State.TRAINING, round=DEATH, after=30.0))
    world.begin()
    world.run(lambda: all(state is State.DONE for number, state in enumerate(world.states()) if number != victim))
    longest, later = cost_of_death(world, victim)
    assert longest <= 3.0
    assert later <= 1.2
    for number in range(4):
        if number != victim:
            assert world.machines[number].rounds.rounds_done == 26


@pytest.mark.parametrize("topology", TOPOLOGIES, ids=["ring", "full", "hierarchical"])
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
def test_one_that_keeps_its_links_and_withholds_is_waited_for_three_times(topology: Any, seed: int) -> None:
    """A liar: no link ends and heartbeats go on, so only the pace ends each wait: far below the plan's ten minutes."""
    world = minute_rounds(topology, seed)
    victim = seed % 4
    others = [number for number in range(4) if number != victim]
    world.begin()
    world.run(lambda: any(round_ == DEATH for _, round_ in world.sites[victim].round_times))
    world.corrupt(victim, Withhold(silent_to=others))
    assert world.run(lambda: all(world.machines[number].state is State.DONE for number in others), limit_seconds=9000)
    waited = []
    for number in others:
        took = durations(world, number)
        usual = median(seconds for round_, seconds in took.items() if round_ < DEATH)
        dear = [seconds / usual for seconds in took.values() if seconds > 1.2 * usual]
        assert len(dear) <= MAX_MISSED
        waited += dear
    assert waited and max(waited) <= 3.0


@pytest.mark.slow
def test_a_site_that_became_slow_is_waited_for_again() -> None:
    """Five times slower from round 8 on: missed at first, then its pace is known and nobody goes on without it."""
    world = minute_rounds("full", 3)
    world.inject(SlowSite(2, 5.0), InState(2, State.TRAINING, round=8))
    world.begin()
    assert world.run(world.done, limit_seconds=40_000)
    mixed = [
        body["round"] for body in world.entries(0, "mixed") if world.peers[2] in [edge[0] for edge in body["edges"]]
    ]
    assert set(range(8)) <= set(mixed)
    assert set(range(20, 25)) <= set(mixed), "in the last rounds it is there"
    for number in range(4):
        assert world.machines[number].closing.statement.missing == ()


def study() -> ModuleType:
    spec = importlib.util.spec_from_file_location("site_cut_off", ROOT / "sims" / "site_cut_off.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def check_cut(seeds: range) -> None:
    module = study()
    for seed in seeds:
        found = module.outcome(DATA, seed)
        assert found.rounds_of_others == module.ROUNDS + module.CLOSING_ROUNDS
        assert found.contributes_in_round - found.back_in_round <= 2
        assert abs(found.cut - found.undisturbed) <= module.CLOSE, found


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason=f"no heart disease data in {DATA}; set P2PFL_DATA")
def test_a_six_minute_cut_costs_hardly_any_auc() -> None:
    check_cut(range(1))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(not DATA.is_dir(), reason=f"no heart disease data in {DATA}; set P2PFL_DATA")
def test_a_six_minute_cut_costs_hardly_any_auc_in_twenty_seeds() -> None:
    check_cut(range(20))
