"""Push-sum on the engine by what machines decided without learning: both sums hold whatever was lost or away."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from vector_worlds import PLAN, engine, finished, joined, settings_of, tables, write

from p2pfl.errors import ConfigError
from p2pfl.sim import At, Loss, VirtualConsortium
from p2pfl.sim.recording import record
from p2pfl.sim.vector_faults import Absent
from p2pfl.sim.vectorised import VectorisedRun
from p2pfl.topology import Schedule
from p2pfl.train import deltas
from p2pfl.train.plan_code import PlanCode
from p2pfl.train.rules import WEIGHT
from p2pfl.train.session import Session
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


def read_off(schedule: Schedule, first: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What push-sum reads after all rounds without a step, and the weights: x <- W x, w <- W w from w = 1, x / w."""
    x, weight = first, torch.ones(len(first), 1, dtype=torch.float64)
    for t in range(schedule.total):
        matrix = torch.from_numpy(schedule.round(t).mixings[0].matrix.toarray())
        x, weight = matrix @ x, matrix @ weight
    return x / weight, weight


@pytest.mark.parametrize("seed", range(3))
def test_no_site_ends_with_an_old_model_because_it_is_light(seed: int) -> None:
    """With one neighbour light weights are ordinary, without any loss; of each seed one is light at the end, or was."""
    sites, topology = 64, {"kind": "epidemic", "degree": 1, "seed": seed, "choice": "local"}
    data = [(torch.zeros(1, 6, dtype=torch.float64), torch.zeros(1, dtype=torch.int64)) for _ in range(sites)]

    def played(rate: float, **more: Any) -> tuple[VectorisedRun, int]:
        settings, held = settings_of("sgp", learning_rate=rate, local_steps=1), 0
        run = engine(data, topology, rounds=29, closing=1, settings=settings, **more)
        while not run.done:
            run.step()
            held += bool(run.state["rest"].any())
        return run, held

    ended, held = played(0.05)
    assert held > 3 and not bool(ended.state["rest"].any()), "what light sites learnt is in their models at the end"
    start = torch.randn(sites, ended.layout.size, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    ended, _ = played(STILL, initial=start)
    read, weight = read_off(ended.schedule, start)
    assert float((ended.x - read).abs().max()) < 1e-12 and float((ended.state["weight"] - weight).abs().max()) < 1e-13
    assert seed or float(weight.min()) < 1 / 64


def test_a_weight_below_0_goes_through_two_mixings() -> None:
    """Between the mixings in the cluster and between heads nothing is divided by 0; both sums are kept."""
    run = engine(
        tables(SITES), {"kind": "hierarchical", "clusters": 2}, rounds=6, closing=2,
        settings=settings_of("sgp", learning_rate=STILL),
    )  # fmt: skip
    run.population.x[:] = first(run)
    law = run.shares.unsqueeze(-1)
    run.state["weight"][:, 0] = torch.tensor([-1.0, 0.0, 0.0, 2.0, 1.5, 1.0], dtype=torch.float64)
    before = [(law * run.state["weight"]).sum(0), (law * run.state["weight"] * run.x).sum(0)]
    finished(run)
    after = [(law * run.state["weight"]).sum(0), (law * (run.state["weight"] * run.x + run.state["rest"])).sum(0)]
    assert bool(torch.isfinite(run.x).all())
    assert all(float((one - other).abs().max()) < 1e-13 for one, other in zip(before, after, strict=True))


class Liar(Session):
    """Tells another weight than it has."""

    lie = 0.0

    def encode(self, *args: Any, **named: Any) -> Any:
        answers = super().encode(*args, **named)
        for answer in answers:
            if answer["channel"] == WEIGHT and self.lie:
                payload, _, digest = deltas.encode(torch.tensor([self.lie], dtype=torch.float64), None)
                answer.update(payload=payload, result=digest)
        return answers


@pytest.mark.parametrize("lie", [-50.0, 1e6, 1e308])
def test_a_lie_about_a_weight_names_its_sender_and_the_others_finish(tmp_path: Path, lie: float) -> None:
    data = tables(SITES)
    files = write(tmp_path, data)

    def trainer(number: int) -> Session:
        session = Liar(PLAN.encode(), settings_of("sgp"))
        session.load_data(str(files[number]))
        session.lie = lie if number == 2 else 0.0
        return session

    world = VirtualConsortium(
        SITES, topology=ONE, rounds=8, closing_rounds=2, training=trainer, local_steps=3, seed=4, deadline=10.0,
        samples=[len(label) for _, label in data], folder=tmp_path,
    )  # fmt: skip
    world.begin()
    assert world.run(world.done, limit_seconds=1e5)
    honest = [site for site in world.sites if site.number != 2]
    refused = [set(site.running.context.refusals) for site in honest]
    assert world.peers[2] in set.union(*refused) <= {world.peers[2]}
    models = torch.stack([site.trainer.vector for site in honest])  # type: ignore[attr-defined]
    weights = torch.stack([site.trainer.state["weight"] for site in honest])  # type: ignore[attr-defined]
    assert float(models.abs().max()) < 5.0 and float(weights.abs().max()) < 10.0


def test_other_rules_and_private_parameters_are_refused() -> None:
    for rule in ("dpsgd", "kgt"):
        with pytest.raises(ConfigError, match=f"rule {rule} does not go with a directed topology: .* or the rule sgp"):
            engine(tables(SITES), ONE, settings=settings_of(rule))
    normed = PLAN.replace("nn.Tanh()", "nn.BatchNorm1d(7)")
    with pytest.raises(ConfigError, match="rule sgp shares all parameters"):
        engine(tables(SITES), ONE, plan=normed, settings=settings_of("sgp", batch_norm="private"))
