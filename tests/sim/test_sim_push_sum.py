"""Push-sum on the engine by what machines decided without learning: both sums hold whatever was lost or away."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from vector_worlds import PLAN, engine, finished, joined, settings_of, tables

from p2pfl.errors import ConfigError
from p2pfl.sim import At, Loss
from p2pfl.sim.recording import record
from p2pfl.sim.vector_faults import Absent
from p2pfl.sim.vectorised import VectorisedRun
from p2pfl.train.plan_code import PlanCode
from p2pfl.train.settings import read_settings

SITES = 6
ONE = {"kind": "exponential"}
LOCAL = {"kind": "epidemic", "degree": 2, "seed": 1, "choice": "local"}
STILL = 1e-30  # a learning rate with which no parameter moves by a bit


def first(run: VectorisedRun) -> torch.Tensor:
    """Unlike models, or nothing would be mixed."""
    return torch.randn(SITES, run.layout.size, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def off(run: VectorisedRun, start: torch.Tensor) -> tuple[float, float]:
    """By how much the sums of weights and of numerators are not what they were."""
    law, state = run.shares.unsqueeze(-1), run.state
    numerators = law * (state["weight"] * run.x + state["rest"])
    return abs(float((law * state["weight"]).sum()) - 1.0), float(
        (numerators.sum(0) - (law * start).sum(0)).abs().max()
    )


@pytest.mark.parametrize("topology", [ONE, {**ONE, "hops": "all"}, LOCAL], ids=["one peer", "all hops", "local choice"])
@pytest.mark.parametrize("loss", [0.0, 0.05])
def test_both_sums_hold_in_recorded_runs(topology: Any, loss: float) -> None:
    samples = [len(label) for _, label in tables(SITES)]
    recording = record(
        SITES, topology=topology, rounds=30, closing_rounds=3, deadline=10.0, seed=2, samples=samples,
        faults=[(Loss(loss), At(1.5))] if loss else [],
    )  # fmt: skip
    assert recording.world.imbalance() < 1e-12
    rows = np.concatenate([edges for facts in recording.decisions.rounds for edges in facts.edges])
    assert bool((rows["sign"] < 0).any()) == bool(loss) and (rows["weight"] != rows["given"]).any()
    train, parts = joined(tables(SITES))

    def run(**more: Any) -> VectorisedRun:
        return VectorisedRun(
            PlanCode(PLAN.encode()), read_settings(settings_of("sgp", learning_rate=STILL)), train, parts,
            recording.schedule, seed=3, execution="eager", decisions=recording.decisions, **more,
        )  # fmt: skip

    start = first(run())
    ended = finished(run(initial=start))
    sums = off(ended, start)
    assert sums[0] < 1e-14 and sums[1] < 1e-13
    agreed = (ended.shares @ start - ended.x).abs().max()
    assert float(agreed) < 0.05, "and what is read has come to the mean"


@pytest.mark.parametrize("topology", [ONE, LOCAL], ids=["one peer", "local choice"])
def test_who_is_away_keeps_what_it_would_have_given(topology: Any) -> None:
    def run(**more: Any) -> VectorisedRun:
        return engine(
            tables(SITES), topology, rounds=40, closing=0, settings=settings_of("sgp", learning_rate=STILL),
            faults=[Absent([1, 4], 3, 9)], **more,
        )  # fmt: skip

    start = first(run())
    ended = finished(run(initial=start))
    sums = off(ended, start)
    assert sums[0] < 1e-14 and sums[1] < 1e-13
    assert float((ended.shares @ start - ended.x).abs().max()) < 1e-3


def test_other_rules_and_private_parameters_are_refused() -> None:
    for rule in ("dpsgd", "kgt"):
        with pytest.raises(ConfigError, match=f"rule {rule} does not go with a directed topology: .* or the rule sgp"):
            engine(tables(SITES), ONE, settings=settings_of(rule))
    normed = PLAN.replace("nn.Tanh()", "nn.BatchNorm1d(7)")
    with pytest.raises(ConfigError, match="rule sgp shares all parameters"):
        engine(tables(SITES), ONE, plan=normed, settings=settings_of("sgp", batch_norm="private"))
