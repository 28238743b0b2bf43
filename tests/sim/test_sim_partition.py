"""Two halves that cannot see each other: they go on or pause, as the charter says, and come together afterwards."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from p2pfl.gossip import State, rounds
from p2pfl.gossip.contributions import union
from p2pfl.sim import ComputeModel, Crash, InState, Partition, VirtualConsortium

ROUNDS = 12


def halves(topology: Any, seed: int, **options: Any) -> VirtualConsortium:
    """Six sites, rounds of some 10 s; cut into two threes for a minute in round 4."""
    world = VirtualConsortium(
        6, topology=topology, rounds=ROUNDS, closing_rounds=8, seed=seed, compute=ComputeModel(seconds=10.0), **options
    )
    cut = Partition(((0, 1, 2), (3, 4, 5)), heal_after=60.0)
    world.inject(cut, InState(0, State.TRAINING, round=4, after=5.0))
    world.begin()
    return world


def finish(world: VirtualConsortium) -> None:
    assert world.run(world.done, limit_seconds=2000.0)
    world.run(limit_seconds=120.0)


@pytest.mark.parametrize("topology", ["ring", "full", {"kind": "hierarchical", "clusters": 2}], ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_both_halves_go_on_and_neither_half_s_work_is_lost(topology: Any, seed: int) -> None:
    """The mass-weighted mean over all sites holds every site's training, as if nothing had happened."""
    world = halves(topology, seed)
    finish(world)
    assert world.settled()
    assert world.imbalance() < 1e-9
    records = [machine.closing.record() for machine in world.machines]
    assert all(record == records[0] for record in records)
    for row in records[0].values():
        assert row["finished"] and row["rounds"] >= ROUNDS - 2, "each half trained on by itself"
    during = {number: [body["round"] for body in world.entries(number, "mixed")] for number in (0, 5)}
    assert len(during[0]) >= ROUNDS and len(during[5]) >= ROUNDS
    shares = world.machines[0].context.running.shares
    mean = sum(share * world.site_of(peer).result.vector.numpy() for peer, share in shares.items())  # type: ignore[union-attr]
    spread = max(np.abs(site.result.vector.numpy() - mean).max() for site in world.sites)  # type: ignore[union-attr]
    before = max(np.abs(site.result.vector.numpy()).max() for site in world.sites)  # type: ignore[union-attr]
    assert spread < 0.2 * before, "the closing rounds have brought the halves together"


@pytest.mark.parametrize("seed", range(3))
def test_below_the_charter_s_minimum_both_halves_pause_and_say_so(seed: int) -> None:
    world = halves("ring", seed, minimum_contributors=4)
    assert world.run(lambda: all(state is State.PAUSED for state in world.states()), limit_seconds=300.0)
    assert world.now < 60.0 + 40.0 + 60.0, "noticed by the silence of the heartbeats, while the cut lasted"
    for machine in world.machines:
        status = machine.status()
        assert status["paused_because"] == (
            "only 3 of the 4 contributors that the charter asks for are heard (estimate from heartbeats)"
        )
        assert len(status["contributors"]) == 3
    paused_at = [machine.context.position[0] for machine in world.machines]
    finish(world)
    for site, machine in zip(world.sites, world.machines, strict=True):
        assert "enough" in [topic for topic, _ in site.told]
        trained = [row["rounds"] for row in machine.closing.record().values()]
        assert min(trained) >= ROUNDS - 1, "nobody trained on without the others"
    assert max(paused_at) < ROUNDS
    assert world.imbalance() < 1e-9


def test_a_run_that_pauses_for_the_last_time_ends_after_a_week(monkeypatch: pytest.MonkeyPatch) -> None:
    """No wait without a bound: too few for a week (here an hour), and each of the rest closes with what it has."""
    assert rounds.PAUSE_LIMIT == 7 * 24 * 3600.0
    monkeypatch.setattr(rounds, "PAUSE_LIMIT", 3600.0)
    world = VirtualConsortium(4, rounds=ROUNDS, seed=1, minimum_contributors=3, compute=ComputeModel(seconds=10.0))
    for victim in (1, 3):
        world.inject(Crash(victim), InState(victim, State.TRAINING, round=5))
    world.begin()
    assert world.run(world.done, limit_seconds=2 * 3600.0)
    assert world.now > 3600.0
    for number in (0, 2):
        machine = world.machines[number]
        assert "only 2 of the 3 contributors" in str(machine.context.away_for_good)
        assert not machine.closing.statement.finished
        first = union(ranges for _, ranges in machine.closing.statement.contributed)
        assert first and first[-1][1] >= 4, "what was done until then is on the record"


def test_a_restart_while_paused_for_too_few_still_waits() -> None:
    world = halves("ring", 5, minimum_contributors=4)
    assert world.run(lambda: world.states()[2] is State.PAUSED, limit_seconds=300.0)
    Crash(2, back_after=1.0).strike(world)
    finish(world)
    assert world.machines[2].closing.statement.finished
    assert world.contradictions() == []
