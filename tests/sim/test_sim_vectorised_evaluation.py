"""Evaluation of simulated runs: mean model, sites, sample, consensus distance."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from vector_worlds import PLAN, engine, finished, settings_of, tables

from p2pfl.errors import ConfigError
from p2pfl.sim.evaluation import Evaluator, consensus, mean_model
from p2pfl.train.oracle import put
from p2pfl.train.plan_code import PlanCode

PLAIN = PLAN[: PLAN.index("def metrics")]


def trained(plan: str = PLAIN):
    run = engine(tables(6), {"kind": "ring"}, rounds=5, plan=plan)
    for _ in range(5):
        run.step()
    return run


def by_hand(run, plan: str, test, vector: torch.Tensor) -> tuple[float, float]:
    code = PlanCode(plan.encode())
    module = code.model().double()
    put(vector, module, run.layout)
    with torch.no_grad():
        right = module(test[0]).argmax(-1) == test[1]
        return float(code.loss(module, test).mean()), float(right.double().mean())


@pytest.mark.parametrize("plan", [PLAIN, PLAN], ids=["the loss alone", "metrics"])
def test_figures_are_those_of_each_model_by_itself(plan: str) -> None:
    run, test = trained(plan), tables(7)[6]
    found = Evaluator(PlanCode(plan.encode()), run, test, sample=None).evaluate()
    assert found.rounds == 5 and found.sites.tolist() == list(range(6))
    for site in range(6):
        loss, accuracy = by_hand(run, plan, test, run.x[site])
        assert found.figures["loss"][site] == pytest.approx(loss, abs=1e-12)
        if plan is PLAN:
            assert found.figures["accuracy"][site] == pytest.approx(accuracy, abs=1e-12)
    shares = run.shares.numpy()
    assert torch.allclose(mean_model(run), torch.from_numpy(shares @ run.x.numpy()))
    assert found.mean["loss"] == pytest.approx(by_hand(run, plan, test, mean_model(run))[0], abs=1e-12)
    assert set(found.figures) == set(found.mean) == ({"loss", "accuracy"} if plan is PLAN else {"loss"})
    if plan is PLAN:
        assert found.worst("accuracy")[1] == min(found.figures["accuracy"])
    assert found.worst("loss") == (int(np.argmax(found.figures["loss"])), max(found.figures["loss"]))
    assert set(found.seconds) == {"mean", "sites", "consensus"}


@pytest.mark.parametrize(("figure", "line"), [("brier", ""), ("misses", 'LOWER_IS_BETTER = {"misses"}\n')])
def test_the_worst_site_of_a_figure_that_is_better_when_lower(figure: str, line: str) -> None:
    plan = line + PLAN.replace('"accuracy": (', f'"{figure}": 1 - (')
    run = trained(plan)
    found = Evaluator(PlanCode(plan.encode()), run, tables(7)[6], sample=None).evaluate()
    values = found.figures[figure]
    assert found.worst(figure) == (int(np.argmax(values)), max(values)) and min(values) < max(values)


def test_buffers_of_the_mean_model_are_weighted_as_its_parameters_are() -> None:
    plan = PLAIN.replace("nn.Tanh()", "nn.BatchNorm1d(7)")
    settings = settings_of(batch_norm="private", batch_size=5)
    run, test = finished(engine(tables(6), {"kind": "ring"}, rounds=3, plan=plan, settings=settings)), tables(7)[6]
    code = PlanCode(plan.encode())
    module = code.model().double().eval()
    put(mean_model(run), module, run.layout)
    for name, value in run.population.private.items():
        if value.is_floating_point():
            module.get_buffer(name).copy_(sum(p * v for p, v in zip(run.shares, value, strict=True)))
    wanted = float(code.loss(module, test).detach().mean())
    assert Evaluator(code, run, test, sample=0).evaluate().mean["loss"] == pytest.approx(wanted, rel=1e-12)


def test_consensus_distance_by_its_definition() -> None:
    run = trained()
    x, shares = run.x.numpy(), run.shares.numpy()
    mean = shares @ x
    distance = (shares * ((x - mean) ** 2).sum(1)).sum() ** 0.5
    assert consensus(run).distance == pytest.approx(distance, rel=1e-12)
    assert consensus(run).relative == pytest.approx(distance / np.linalg.norm(mean), rel=1e-12)


def test_a_sample_is_a_function_of_seed_and_round() -> None:
    run, test, plan = trained(), tables(7)[6], PlanCode(PLAIN.encode())
    one, again, other = (Evaluator(plan, run, test, sample=3, seed=seed).evaluate() for seed in (1, 1, 2))
    assert len(set(one.sites.tolist())) == 3 and one.sites.tolist() == again.sites.tolist()
    assert one.sites.tolist() != other.sites.tolist()
    everyone = Evaluator(plan, run, test, sample=None).evaluate()
    assert np.allclose(one.figures["loss"], everyone.figures["loss"][one.sites], atol=1e-12)
    nobody = Evaluator(plan, run, test, sample=0).evaluate()
    assert not len(nobody.sites) and "loss" in nobody.mean


def test_nothing_to_evaluate_on_is_refused() -> None:
    run, plan = trained(), PlanCode(PLAIN.encode())
    with pytest.raises(ConfigError, match="no test examples"):
        Evaluator(plan, run, (torch.empty(0, 6), torch.empty(0, dtype=torch.int64)))
    with pytest.raises(ConfigError, match="a sample of -1"):
        Evaluator(plan, run, tables(7)[6], sample=-1)
