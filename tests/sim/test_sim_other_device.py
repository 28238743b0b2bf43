"""The engine on a device that is not the CPU: the same numbers, nothing mixed between devices, nothing read in inner loops."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from other_device import DEVICE, elsewhere
from test_sim_checkpoints import CASES, cell_of, cut_at, same
from torch._subclasses.fake_tensor import FakeTensorMode
from vector_worlds import PLAN, engine, finished, settings_of, tables

from p2pfl.sim import SimResult
from p2pfl.sim.checkpoints import Checkpoints
from p2pfl.sim.study import prepared
from p2pfl.train import traced_paths
from p2pfl.train.plan_code import PlanCode
from p2pfl.train.rules import Context
from p2pfl.train.traced_paths import TracedPath

NORMED = PLAN.replace("nn.Tanh()", "nn.BatchNorm1d(7), nn.Tanh()")
ROUNDING = 1e-12  # Adam's powers are rounded otherwise there (`p2pfl.train.optimisers`)
DROPOUT = PLAN.replace("nn.Tanh()", "nn.Tanh(), nn.Dropout(0.3)")


def test_the_device_refuses_what_cuda_refuses() -> None:
    with elsewhere() as seen:
        x = torch.zeros(3, 4, device=DEVICE)
        x[:, 1] = 2.0
        x += torch.tensor(1.0)
        assert x.device == torch.device(DEVICE) and x.cpu().tolist() == [[1.0, 3.0, 1.0, 1.0]] * 3
        for wrong in (
            lambda: x + torch.ones(4),
            lambda: torch.ones(4) * x,
            lambda: x.index_select(0, torch.tensor([1])),
        ):
            with pytest.raises(RuntimeError, match="same device"):
                wrong()
        with pytest.raises(RuntimeError):
            x.numpy()
        assert (seen["read"], seen["indices"]) == (0, 0)
        assert x[torch.tensor([0, 2])].sum().item() == 12.0
        assert (seen["read"], seen["indices"]) == (1, 1)


def there(simulation: Any, *more: Any) -> SimResult:
    """The simulation on the other device; the check that there is a CUDA device is before this."""
    with elsewhere():
        result = dataclasses.replace(simulation, device=DEVICE).run(*more)
    assert result.facts["device"] == DEVICE
    return result


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("execution", ["eager", pytest.param("loop", marks=pytest.mark.slow)])
def test_simulations_are_the_same_on_another_device(tmp_path: Path, case: str, execution: str) -> None:
    cell, inputs = cell_of(tmp_path, *CASES[case], execution=execution)
    simulation = prepared(cell, inputs)
    same(simulation.run(), there(simulation), ROUNDING)


def test_checkpoints_are_the_same_on_another_device(tmp_path: Path) -> None:
    """Written there, read here, and the other way round."""
    cell, inputs = cell_of(tmp_path, *CASES["machines, absent"])
    simulation = prepared(cell, inputs)
    whole, file = simulation.run(), Checkpoints(tmp_path / "checkpoint")
    there(simulation, cut_at(3), file)
    simulation.run(cut_at(5), file)
    same(whole, there(simulation, None, file), ROUNDING)


ENGINES: dict[str, dict[str, Any]] = {
    "unequal steps and dropout": {"plan": DROPOUT, "steps": [3, 1, 0, 2, 3]},
    "private batch norm": {"plan": NORMED, "settings": settings_of(batch_size=4, batch_norm="private")},
    "shared batch norm": {"plan": NORMED, "settings": settings_of(batch_size=4, batch_norm="shared")},
    "proximal, adam": {"settings": settings_of("fedprox", optimiser={"name": "adam"})},
    "exact diffusion": {"settings": settings_of("exact_diffusion", local_steps=1)},
    "chunks": {"chunk": 2, "plan": DROPOUT},
}


@pytest.mark.parametrize("case", ENGINES)
@pytest.mark.parametrize("execution", ["eager", "loop"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_engine_is_the_same_on_another_device(case: str, execution: str, dtype: str) -> None:
    options = {"settings": settings_of(), **ENGINES[case], "execution": execution, "rounds": 4, "closing": 1}
    options["settings"] = {**options["settings"], "dtype": dtype}
    here = finished(engine(tables(5), {"kind": "ring"}, **options))
    with elsewhere():
        other = finished(engine(tables(5), {"kind": "ring"}, **options, device=DEVICE))
        assert other.x.device == torch.device(DEVICE) and other.execution.chosen == execution
        assert other.execution.fell_back == ()
        assert float((other.x.cpu() - here.x).abs().max()) <= (1e-15 if dtype == "float64" else 1e-6)


@pytest.mark.parametrize(
    "settings",
    [settings_of("kgt"), settings_of(optimiser={"name": "adam"}), settings_of(optimiser={"name": "momentum"})],
    ids=["kgt", "adam", "momentum"],
)
def test_what_is_recorded_stays_on_the_device(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Recording sees through a pretended device; torch's fake tensors have no numbers, but know where they are."""
    options = {"rounds": 2, "plan": DROPOUT, "steps": [3, 1, 2, 2, 3], "settings": {**settings, "dtype": "float32"}}
    run = engine(tables(5), {"kind": "ring"}, **options)
    run.step()
    chunk, mode = run.population.take(torch.arange(5)), FakeTensorMode()
    monkeypatch.setattr(traced_paths, "_same", lambda one, other: True)  # constants without numbers cannot be compared

    def moved(tensor: torch.Tensor) -> torch.Tensor:
        return mode.from_tensor(tensor).to(DEVICE)

    with mode, torch.device(DEVICE):
        code = PlanCode(DROPOUT.encode())
        path = TracedPath(code, code.model(), run.layout, run.settings.rule, keyed=True, size=6, kernel=False)
        data = tuple(moved(tensor) for tensor in run.data)
        for _ in range(2):  # recorded, and as it was recorded
            done = path.compute(chunk._each(moved), data, Context(1, 0.1, 3, None, False))
            found = [done.x, done.losses, *done.state.values()]
            assert {tensor.device for tensor in found} == {torch.device(DEVICE)} and done.x.shape == run.x.shape


def test_little_is_read_from_the_device() -> None:
    """Whatever is read waits for all that was begun: a few numbers a round, none for each step or chunk."""
    reads = []
    for rounds in (4, 8):
        with elsewhere() as seen:
            finished(engine(tables(5), {"kind": "ring"}, rounds=rounds, chunk=2, device=DEVICE))
        assert seen["indices"] == 0
        reads.append(seen["read"])
    assert reads[1] - reads[0] == 4 * 2, "a round's loss, and whether it is a number"
