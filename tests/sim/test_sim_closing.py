"""Accelerated closing rounds in runs: the same at peers, on the virtual clock and on the engine; sums kept by settling."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sim_worlds import blobs, write_plan
from test_sim_directives import direct
from test_sim_vectorised_replay import deployed, signs
from test_sim_weights import with_late
from vector_worlds import engine, finished, in_memory, settings_of, tables, vectorised, virtual_clock

from p2pfl.gossip import State
from p2pfl.sim import At, ComputeModel, Crash, InState, Loss, Pause, VirtualConsortium, simulate
from p2pfl.topology import chebyshev_factors, spectral_gap
from p2pfl.train.rules import RULES

FAST = {"closing": "chebyshev"}
RING = {"kind": "ring", **FAST}
SLOW = ComputeModel(commit=0.3)  # closing rounds that take as long as a restart


def played(sites: int, topology: dict[str, Any], *faults: Any, rounds: int = 6, closing: int = 12, **more: Any) -> Any:
    world = VirtualConsortium(sites, topology=topology, rounds=rounds, closing_rounds=closing, **more)
    for fault, when in faults:
        world.inject(fault, when)
    world.begin()
    assert world.run(world.done, limit_seconds=4000)
    world.run(limit_seconds=10_000.0)
    return world


def left(world: Any, sites: int) -> float:
    """Of the root of sum_i pi_i |x_i - mean|^2, what the closing rounds left; stub trainings add what is known."""
    law = torch.tensor([world.machines[0].context.law[peer] for peer in world.peers], dtype=torch.float64)
    x = torch.stack([world.sites[number].result.vector for number in range(sites)])
    mean = law @ x
    return float((law @ (x - mean).square().sum(-1)).sqrt())


# --- without faults: three worlds


@pytest.mark.parametrize(
    ("rule", "topology", "sites"),
    [("dpsgd", RING, 8), ("kgt", {"kind": "star", "weights": "metropolis", **FAST}, 5), ("quasi_global", RING, 5),
     ("relaysgd", {"kind": "chain", **FAST}, 5), ("dpsgd", {"kind": "full", **FAST}, 4)],
    ids=["ring", "kgt on a star", "quasi-global", "relays", "full"],
)  # fmt: skip
def test_three_worlds_close_alike(tmp_path: Path, rule: str, topology: dict[str, Any], sites: int) -> None:
    data, settings = tables(sites), settings_of(rule)
    (tmp_path / "memory").mkdir()
    (tmp_path / "clock").mkdir()
    memory = in_memory(tmp_path / "memory", data, settings, topology, 3, 7)
    clock = virtual_clock(tmp_path / "clock", data, settings, topology, 3, 7)
    for world in (memory, clock):
        assert world.schedule.accelerated
        run = finished(vectorised(world, data, settings))
        assert float((run.x - world.x).abs().max()) < 1e-12
    plain = virtual_clock(tmp_path / "clock", data, settings, {**topology, "closing": "plain"}, 3, 7)
    assert (float((plain.x - clock.x).abs().max()) > 1e-6) == (topology["kind"] != "full"), "full graphs mix exactly"


def test_the_disagreement_that_is_left_is_at_most_that_of_the_schedule() -> None:
    sites, closing = 12, 20
    apart = left(played(sites, RING, closing=0), sites)
    fast, plain = played(sites, RING, closing=closing), played(sites, {"kind": "ring"}, closing=closing)
    context = fast.machines[0].context
    schedule = context.running_schedule
    rho = 1 - spectral_gap(schedule.round(0).mixings[0].matrix, schedule.law)
    factor = chebyshev_factors(rho, closing)[-1]
    assert fast.machines[0].closing.agreement()["contraction"] == pytest.approx(factor, rel=1e-4)
    assert left(fast, sites) <= factor * (1 + 1e-4) * apart
    assert left(plain, sites) > 10 * left(fast, sites)
    assert fast.imbalance() < 1e-13


# --- with faults: what mixing keeps


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("spec", [RING, {"kind": "torus", "rows": 2, "columns": 4, **FAST}], ids=["ring", "torus"])
def test_lost_messages_in_closing_rounds_keep_the_mean(spec: dict[str, Any], seed: int) -> None:
    world = played(8, spec, (Loss(0.05), At(1.0)), seed=seed, deadline=10.0)
    assert world.settled() and world.imbalance() < 1e-12
    back = [body for number in range(8) for body in world.entries(number, "mixed") if body["taken_back"]]
    assert back or seed, "or this shows little"


MOMENTS = [
    pytest.param(state, round_, after, marks=[pytest.mark.slow] if after else [])
    for state in (State.ANNOUNCING, State.COLLECTING, State.MIXING)
    for round_ in (6, 9)
    for after in (0.0, 0.02)
]


@pytest.mark.parametrize(("state", "round_", "after"), MOMENTS)
def test_a_kill_in_the_closing_rounds_keeps_the_mean(state: State, round_: int, after: float) -> None:
    for back_after in (0.1, 3.0):
        kill = Crash(2, back_after=back_after), InState(2, state, round=round_, after=after)
        world = played(5, RING, kill, (Loss(0.05), At(1.0)), closing=20, seed=1, compute=SLOW)
        assert world.settled() and world.imbalance() < 1e-12


@pytest.mark.parametrize("catch_up", [2, 16])
def test_kills_losses_and_a_pause_at_once_keep_the_mean(catch_up: int) -> None:
    """But for the measured jumps of a site that takes its neighbours' states in."""
    jumped = 0
    for seed in range(2):
        world = played(
            6, RING, (Loss(0.1), At(1.0)), (Crash(1, back_after=6.0), InState(1, State.COLLECTING, round=8)),
            (Pause(4, 3.0), InState(4, State.COLLECTING, round=10)), (Crash(3, back_after=2.0), At(9.0)),
            closing=25, seed=seed, deadline=10.0, compute=SLOW, catch_up_rounds=catch_up,
        )  # fmt: skip
        jumped += sum(len(world.entries(number, "caught_up")) for number in range(6))
        assert world.settled() and world.imbalance() < 1e-12

    assert (jumped > 0) == (catch_up == 2)


@pytest.mark.parametrize("again", [False, True], ids=["once", "and killed once more while it closes"])
def test_whoever_misses_the_last_rounds_still_moves_by_what_it_had_begun(again: bool) -> None:
    """Its neighbours go on without it, to the end; its own last mixing has no edge and nothing to take back."""
    kills = [(Crash(2, back_after=20.0), InState(2, State.COLLECTING, round=9))]
    kills += [(Crash(2, back_after=1.0), InState(2, State.CLOSING, after=0.002))] if again else []
    world = played(5, RING, *kills, closing=6, seed=3)
    last = world.entries(2, "mixed")[-1]
    assert last["round"] == 12 and not last["edges"] and not last["taken_back"]
    assert world.imbalance() < 1e-12
    trainer = world.sites[2].result
    flow = trainer._exchange.inertia.flow["model"]
    assert trainer._exchange.inertia.until == 11 and float(flow.abs().max()) > 1e-6, "it had something to move by"


def test_machines_remember_inertia_where_there_is_some() -> None:
    """States of plain runs are what they were, and so are their digests in the log."""
    fast, plain = played(3, RING), played(3, {"kind": "ring"})
    assert "moved_until" in fast.machines[0].rounds.remember()
    assert "moved_until" not in plain.machines[0].rounds.remember()


def test_a_stop_by_the_proposer_brings_the_accelerated_rounds_forward() -> None:
    world = VirtualConsortium(5, topology=RING, rounds=40, closing_rounds=8, seed=1)
    world.inject(Loss(0.05), At(1.0))
    direct(world, 12.0, "stop")
    world.begin()
    assert world.run(world.done, limit_seconds=4000)
    world.run(limit_seconds=10_000.0)
    schedule = world.machines[0].context.running_schedule
    assert schedule.rounds < 40 and schedule.accelerated
    assert world.settled() and world.imbalance() < 1e-12


def test_whoever_joined_late_closes_with_the_others() -> None:
    """The matrix is another one then, and so are the weights: at all sites alike."""
    world = with_late(RING, 6, 4)
    assert list(world.machines[0].context.joined) == [world.peers[4]]
    inertias = {machine.context.running_schedule.inertias(40) for machine in world.machines}
    before = world.machines[0].context.schedules[0]
    assert len(inertias) == 1 and inertias.pop()[2] != before.inertias(40)[2]
    assert world.settled() and world.imbalance() < 1e-12


def test_a_scenario_with_real_machines_learns_what_they_decided(tmp_path: Path) -> None:
    plan = write_plan(tmp_path / "plan")
    asked: dict[str, Any] = {"peers": 6, "rounds": 3, "closing_rounds": 8, "execution": "eager"}
    fast, plain = (simulate(plan, blobs(), topology=spec, **asked) for spec in (RING, {"kind": "ring"}))
    timed = simulate(plan, blobs(), topology=RING, time={"clock": "machines"}, **asked)
    assert fast.parameters is not None and plain.parameters is not None and timed.parameters is not None
    spread = [float(np.ptp(found.parameters, axis=0).max()) for found in (plain, fast)]
    assert spread[1] < spread[0] / 3
    np.testing.assert_allclose(timed.parameters, fast.parameters, atol=1e-5)


# --- recorded, then learnt


@pytest.mark.parametrize("rule", ["dpsgd", "kgt"])
@pytest.mark.parametrize(
    "faults",
    [[(Loss(0.15), At(1.5))], [(Pause(1, 2.0), InState(1, State.COLLECTING, round=6)), (Loss(0.1), At(1.5))]],
    ids=["loss", "loss and a pause"],
)  # fmt: skip
def test_recorded_decisions_give_what_the_machines_ended_with(tmp_path: Path, rule: str, faults: Any) -> None:
    settings = settings_of(rule, local_steps=RULES[rule].needs.most_steps or 3)
    world, found = deployed(tmp_path, settings, RING, faults=faults, rounds=4, closing=16, compute=SLOW)
    rows = signs(found)
    assert ((rows["sign"] < 0) & (rows["round"] >= 4)).sum() >= 2, "or this shows little"
    run = finished(vectorised(world, tables(5), settings, decisions=found))
    assert float((run.x - world.x).abs().max()) < 1e-12


# --- the engine alone


def test_the_engine_closes_by_the_textbook_recurrence() -> None:
    topology = {"kind": "erdos_renyi", "probability": 0.4, "seed": 3, **FAST}
    apart = finished(engine(tables(9), topology, rounds=2, closing=0)).x
    closed = finished(engine(tables(9), topology, rounds=2, closing=15, settings=settings_of()))
    w = closed.schedule.round(0).mixings[0].matrix.toarray()
    before, now = apart.numpy(), w @ apart.numpy()
    for _, beta in closed.schedule.inertias(closed.schedule.total)[1:]:
        before, now = now, (1 + beta) * (w @ now - before) + before
    np.testing.assert_allclose(closed.x.numpy(), now, atol=1e-12, rtol=0)
