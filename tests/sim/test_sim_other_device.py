"""The engine on a device that is not the CPU, pretended: the same numbers, and nothing mixed between devices."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from other_device import DEVICE, Elsewhere, other_device
from test_sim_checkpoints import CASES, cell_of, cut_at, same
from test_sim_vectorised_replay import deployed
from vector_worlds import PLAN, engine, finished, settings_of, tables, vectorised

from p2pfl.errors import PlanError
from p2pfl.sim import At, ComputeModel, Loss, Pause
from p2pfl.sim.checkpoints import Checkpoints
from p2pfl.sim.study import prepared
from p2pfl.sim.vector_faults import Absent, Noise, Scaled
from p2pfl.train.rules import RULES

WAYS = ("eager", "loop", "traced")
QUICK = {  # recording takes seconds
    "eager": {"kgt", "quasi_global", "relays", "walk", "push-sum, directed", "adam", "unequal steps", "faults"},
    "loop": {"dropout"},
    "traced": {"kgt"},
}
RING: dict[str, Any] = {"kind": "ring"}
CLOSE = 1e-12  # of numbers that another device computes in another order: Adam's constants
NORMED = PLAN.replace("nn.Tanh()", "nn.BatchNorm1d(7)")
EVEN = [(x[:5].repeat(2, 1), label[:5].repeat(2)) for x, label in tables(5)]  # nobody is padded
FAULTS = (Absent([1], since=1, until=3), Scaled([2], since=1), Noise([0], deviation=0.1, since=2))

RUNS: dict[str, dict[str, Any]] = {
    **{rule: {"rule": rule} for rule in ("dpsgd", "kgt", "fedprox", "quasi_global", "gradient_tracking")},
    "push-sum, directed": {"rule": "sgp", "topology": {"kind": "exponential"}},
    "push-sum, pairs": {"rule": "sgp"},
    "exact diffusion": {"rule": "exact_diffusion"},
    "relays": {"rule": "relaysgd", "topology": {"kind": "chain"}},
    "walk": {"rule": "cyclic", "topology": {"kind": "cyclic"}, "rounds": 6},
    "changing graph": {"rule": "kgt", "topology": {"kind": "epidemic", "degree": 2, "seed": 1}},
    "several mixings": {"topology": {"kind": "hierarchical", "clusters": 2}},
    "accelerated closing": {"topology": {**RING, "closing": "chebyshev"}, "closing": 6},
    "momentum": {"optimiser": {"name": "momentum"}},
    "adam": {"optimiser": {"name": "adam"}},
    "dropout": {"plan": PLAN.replace("nn.Tanh()", "nn.Tanh(), nn.Dropout(0.3)")},
    "private batch norm": {"plan": NORMED, "batch_norm": "private", "data": EVEN},
    "shared batch norm": {"plan": NORMED, "batch_norm": "shared", "data": EVEN},
    "unequal steps": {"rule": "kgt", "steps": [3, 0, 1, 2, 3]},
    "faults": {"faults": FAULTS},
    "faults of weights": {"rule": "sgp", "topology": {"kind": "exponential"}, "faults": FAULTS},
    "small chunks": {"chunk": 2},
}


def a_run(device: str, way: str, row: dict[str, Any]) -> Any:
    """Four rounds and some closing ones, finished."""
    rule = row.get("rule", "dpsgd")
    own = {"local_steps": RULES[rule].needs.most_steps or 3, "learning_rate": 0.05}
    own |= {"rule_settings": {"fedprox": {"proximal": 0.5}, "quasi_global": {"beta": 0.8, "mu": 0.7}}.get(rule, {})}
    own |= {name: row[name] for name in ("optimiser", "batch_norm") if name in row}
    more = {name: row[name] for name in ("plan", "steps", "faults", "chunk") if name in row}
    settings, topology, closing = settings_of(rule, **own), row.get("topology", RING), row.get("closing", 2)
    more |= {"rounds": row.get("rounds", 4), "closing": closing, "settings": settings, "execution": way}
    return finished(engine(row.get("data") or tables(5), topology, device=device, **more))


def numbers(run: Any) -> dict[str, torch.Tensor]:
    """All that a run holds, on the CPU."""
    return {
        "x": run.x.cpu(), "losses": run.population.losses.cpu(),
        **{name: value.cpu() for name, value in {**run.state, **run.population.private}.items()},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "way"),
    [pytest.param(name, way, marks=() if name in QUICK[way] else pytest.mark.slow) for way in WAYS for name in RUNS],
)
def test_same_numbers_as_on_the_cpu(name: str, way: str) -> None:
    expected = numbers(a_run("cpu", way, RUNS[name]))
    with other_device():
        run = a_run(DEVICE, way, RUNS[name])
        assert isinstance(run.x, Elsewhere) and run.execution.chosen == way
        found = numbers(run)
    assert list(found) == list(expected)
    for key, value in found.items():
        if name == "adam":
            assert float((value - expected[key]).abs().max()) < CLOSE, key
        else:
            torch.testing.assert_close(value, expected[key], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=() if case in ("relays", "machines, absent") else pytest.mark.slow) for case in CASES],
)
def test_whole_simulations(tmp_path: Path, case: str) -> None:
    """From a scenario to its result: training, machines' recorded decisions, faults and evaluation with metrics."""
    cell, inputs = cell_of(tmp_path, *CASES[case])
    expected = prepared(cell, inputs).run()
    simulation = dataclasses.replace(prepared(cell, inputs), device=DEVICE)
    with other_device():
        found = simulation.run()
    same(expected, found, CLOSE)


def test_checkpoints_go_from_one_device_to_another(tmp_path: Path) -> None:
    """Written there, read here, and the other way round."""
    cell, inputs = cell_of(tmp_path, *CASES["machines, absent"])
    here, file = prepared(cell, inputs), Checkpoints(tmp_path / "checkpoint")
    there = dataclasses.replace(prepared(cell, inputs), device=DEVICE)
    with other_device():
        there.run(cut_at(3), file)
    here.run(cut_at(5), file)
    with other_device():
        found = there.run(None, file)
    same(here.run(), found, CLOSE)


@pytest.mark.parametrize(
    ("faults", "more"),
    [
        ([(Loss(0.15), At(1.5))], {"rounds": 6}),
        ([(Pause(2, 150.0), At(8.0))], {"rounds": 24, "catch_up_rounds": 5, "compute": ComputeModel(seconds=10.0)}),
    ],
    ids=["lost messages", "states taken in"],
)
@pytest.mark.parametrize("rule", ["sgp", pytest.param("kgt", marks=pytest.mark.slow)])
def test_recorded_decisions(tmp_path: Path, rule: str, faults: Any, more: Any) -> None:
    settings = settings_of(rule)
    world, decisions = deployed(tmp_path, settings, "ring", faults=faults, **more)
    expected = numbers(finished(vectorised(world, tables(5), settings, decisions=decisions)))
    with other_device():
        found = numbers(finished(vectorised(world, tables(5), settings, decisions=decisions, device=DEVICE)))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def waits_of(sites: int) -> dict[str, int]:
    """In the third round, all sites one chunk."""
    run = engine(tables(sites), RING, rounds=4, settings=settings_of("kgt"), device=DEVICE)
    run.step(), run.step()
    assert run.execution.chunk == sites, "other devices take as many as memory allows"
    with other_device() as device:
        run.step()
        return dict(device.waits)


def test_waiting_does_not_grow_with_the_sites() -> None:
    with other_device():
        few, many = waits_of(4), waits_of(8)
    assert few == many and sum(few.values()) <= 4, "the loss, and whether all are finite"


# --- the pretended device itself


@pytest.mark.parametrize(
    "mixed",
    [
        lambda there, here: there + here,
        lambda there, here: here + there,
        lambda there, here: here @ there,
        lambda there, here: torch.cat((there, here)),
        lambda there, here: here[there.long()],
        lambda there, here: here.sum().reshape(()).mul(2).expand(3) + there,
        lambda there, here: here.add_(there),
        lambda there, here: torch.where(there > 0, there, here),
        lambda there, here: there.numpy(),
    ],
)
def test_what_cuda_refuses_is_refused(mixed: Any) -> None:
    with other_device():
        there = torch.ones(3, 3, device=DEVICE)
        with pytest.raises((RuntimeError, TypeError), match=r"same device|can't convert"):
            mixed(there, torch.ones(3, 3))


def test_what_cuda_allows_is_done() -> None:
    with other_device() as device:
        there, part = torch.zeros(3, 2, device=DEVICE), torch.arange(2, device=DEVICE)
        there[:, 1] = 1.0
        there[torch.tensor([0])] += torch.tensor(2.0)
        there[1:].copy_(torch.tensor([4.0, 5.0]))
        assert torch.equal(there.cpu(), torch.tensor([[2.0, 3.0], [4.0, 5.0], [4.0, 5.0]]))
        assert device.waits["_to_copy.default"] == 1 and device.waits["copy_.default"] == 1
        assert int(part[1]) == 1 and device.waits["_local_scalar_dense.default"] == 1
        assert device.waits["index.Tensor"] == 1, "an index on the CPU is copied"


def test_plans_that_mix_devices_fail() -> None:
    plan = PLAN.replace("model(x), label", "model(x) + torch.zeros(3), label")
    with other_device(), pytest.raises(PlanError, match="same device"):
        a_run(DEVICE, "loop", {"plan": plan})
