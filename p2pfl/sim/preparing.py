"""One simulated run from a plan and examples: everything is checked here, before anything is trained."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time as clock
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from p2pfl.data import Examples, Partition, Parts, from_arrays
from p2pfl.errors import ConfigError
from p2pfl.governance import Plan
from p2pfl.sim.absences import Absences, absences_of, check_absences, check_trained
from p2pfl.sim.checkpoints import Checkpoints
from p2pfl.sim.checks import check_examples, check_parts, check_simulation
from p2pfl.sim.fault_sites import check_fault_times
from p2pfl.sim.graph_sizes import check_graph_size
from p2pfl.sim.pace import check_time
from p2pfl.sim.padding import without_padding
from p2pfl.sim.results import SimResult
from p2pfl.sim.scenario import EvaluateTable, FaultTable, StepsTable, TimeTable
from p2pfl.sim.simulation import Progress
from p2pfl.sim.tensors import tensors
from p2pfl.sim.trial import check_evaluation, check_smallest
from p2pfl.sim.unequal_steps import steps_of_sites
from p2pfl.sim.vector_setup import check_run, drawn_model
from p2pfl.topology import Schedule
from p2pfl.train.layout import Layout
from p2pfl.train.oracle import ModuleOracle
from p2pfl.train.padding_check import EXAMPLES
from p2pfl.train.plan_code import PlanCode
from p2pfl.train.settings import Settings, read_settings
from p2pfl.train.stacking_check import stacking_problem
from p2pfl.types import PeerId

EVALUATIONS = 20  # in a run, where nothing else is said


@dataclass
class Simulation:
    """A run that has been checked and has not begun."""

    plan: Plan
    code: PlanCode
    settings: Settings
    examples: Examples
    parts: Parts
    schedule: Schedule
    spec: dict[str, Any]
    shares: np.ndarray
    seed: int
    weights: str
    time: TimeTable | None
    faults: Sequence[FaultTable]
    evaluate: EvaluateTable
    device: str
    execution: str
    name: str
    each: np.ndarray
    """Local steps of each site, int64 [n]."""
    steps: Sequence[StepsTable] = ()
    remarks: tuple[str, ...] = ()
    """What somebody should know before it trains: a fall-back, a partition with few examples."""

    @cached_property
    def layout(self) -> Layout:
        """Where the model's tensors lie in the sites' vectors. Raises PlanError for a model that does not fit."""
        return self.settings.layout(drawn_model(self.code, self.settings.dtype, self.seed))

    @cached_property
    def absences(self) -> Absences:
        """Who is away when."""
        return absences_of(self.faults, self.parts.peers, self.seed)

    def run(self, progress: Progress | None = None, checkpoints: Checkpoints | None = None) -> SimResult:
        """Train all rounds, or those after a checkpoint of this very run. ConfigError for another run's, StoreError."""
        from p2pfl.sim.conduct import conduct

        return conduct(self, progress, checkpoints)


def prepare(
    plan: Plan, examples: Examples, *, partition: Partition, topology: Mapping[str, Any] | None, peers: int,
    rounds: int | None, closing_rounds: int | None, seed: int, training: Mapping[str, Any], weights: str,
    time: TimeTable | None, faults: Sequence[FaultTable], evaluate: EvaluateTable, device: str = "cpu",
    execution: str = "auto", name: str = "", steps: Sequence[StepsTable] = (),
) -> Simulation:  # fmt: skip
    """Check everything that can be checked without training. Raises ConfigError, PlanError or DataError."""
    if peers < 1:
        raise ConfigError(f"{peers} peers cannot train; give at least 1")
    if weights not in ("samples", "equal"):
        raise ConfigError(f'weights are {weights!r}; write "samples" or "equal"')
    if not 0 <= seed < 2**63:
        raise ConfigError(f"seed {seed} is not in 0 to 2^63 - 1; choose another")
    _check_device(device)
    staleness = 0 if time is None else time.staleness
    if "staleness" in training:
        raise ConfigError('staleness belongs to [time], beside clock = "machines"; write it there')
    values = {**plan.session_settings(), **training}
    if "rule" in training and "rule_settings" not in training:
        values.pop("rule_settings", None)  # another rule keeps none of the numbers of the plan's
    planned = values.pop("staleness", 0)
    settings = read_settings(values | ({"staleness": staleness} if staleness else {}))
    code = PlanCode(plan.source)
    spec = dict(topology or plan.settings.topology or {"kind": "ring"})
    check_graph_size(spec, peers)
    check_examples(examples)
    parts = partition(examples, peers, seed)
    check_parts(parts, peers, len(examples))
    counts = np.array([len(rows) for rows in parts.rows], dtype=np.float64)
    shares = counts / counts.sum() if weights == "samples" else np.full(peers, 1.0 / peers)
    nodes = [PeerId(f"site-{number:07d}") for number in range(peers)]
    told = plan.settings.training
    schedule = Schedule(
        spec, nodes, dict(zip(nodes, shares.tolist(), strict=True)), told.rounds if rounds is None else rounds,
        told.closing_rounds if closing_rounds is None else closing_rounds, staleness,
    )  # fmt: skip
    each = steps_of_sites(steps, peers, seed, settings.local_steps)
    layout = settings.layout(drawn_model(code, settings.dtype, seed))
    # before advice on ways of execution, which would not help where the rule refuses
    check_run(settings, layout, schedule, None, (), most=int(each.max()))
    check_fault_times(faults, peers, seed, schedule.total)
    absences = absences_of(faults, peers, seed)
    if absences and schedule.walks:
        raise ConfigError(
            "one model walks, and its rounds wait for a site that is away: an absence costs hours there and no rounds; "
            "leave it out"
        )
    alone = check_trained(absences, each > 0, schedule.rounds)
    if time is not None:
        check_time(time, peers, seed)
        check_absences(absences, time, peers, schedule.total)
    check_smallest(code, settings, examples, parts, each > 0)
    remarks = check_plan(code, settings, examples, parts, execution)
    check_evaluation(code, settings.dtype, examples)
    if planned and not staleness:
        remarks += ('the plan is asynchronous, this run is not: write [time] with clock = "machines" and staleness',)
    if not schedule.by_shares:
        remarks += (
            "what a site counts in training is decided by the topology's weights (column law of the sites' table), in "
            "figures of the mean model and means over sites by its share",
        )
    execution, padding = unpadded(code, settings, examples, parts, execution)
    simulation = Simulation(
        plan, code, settings, examples, parts, schedule, spec, shares, seed, weights, time, faults, evaluate,
        device, execution, name or plan.settings.plan.name, each, steps, remarks + padding + alone,
    )  # fmt: skip
    check_simulation(simulation)
    return simulation


def check_plan(code: PlanCode, settings: Settings, examples: Examples, parts: Parts, execution: str) -> tuple[str, ...]:
    """One loss of one batch of the first site, so that a plan that does not fit the data is told now; remarks.

    Raises ConfigError also for a plan that cannot run for many sites at once where that was asked for.
    """
    rows = parts.rows[0][: settings.batch_size]
    batch = tensors([array[rows] for array in examples.train], settings.dtype)
    _ = code.lower_is_better  # PlanError now, not in the first evaluation
    module = code.model().to(settings.dtype)
    if not bool(torch.isfinite(code.loss(module, batch)).all()):
        raise ConfigError("the first loss is not a finite number; check the data's values and the plan's model()")
    layout = settings.layout(module)
    ModuleOracle(code, module, layout, lambda step: batch)(layout.flatten(module), 0)  # that there is a gradient
    remarks = []
    problem = None if execution == "loop" else stacking_problem(code, settings, batch)
    if problem is not None and execution != "auto":
        raise ConfigError(
            f'the plan does not run for many sites at once ({problem}); write execution = "loop", or a loss that '
            "neither reads values (item(), if) nor changes tensors in place"
        )
    if problem is not None:
        remarks.append(f"the plan does not run for many sites at once ({problem}): it trains one after the other")
    few = min(len(rows) for rows in parts.rows)
    if few < settings.batch_size:
        remarks.append(f"the smallest site has {few} examples, fewer than a batch of {settings.batch_size}")
    return tuple(remarks)


def unpadded(
    code: PlanCode, settings: Settings, examples: Examples, parts: Parts, execution: str
) -> tuple[str, tuple[str, ...]]:
    """The way of execution where sites have fewer examples than the batch, and a remark. ConfigError, PlanError."""
    rows = max(parts.rows, key=len)[:EXAMPLES]
    batch = tensors([array[rows] for array in examples.train], settings.dtype)
    return without_padding(code, code.model().to(settings.dtype), parts, batch, settings.batch_size, execution)


def examples_of(data: Any, plan: Plan) -> Examples:
    """The examples in whatever `simulate` takes. Raises ConfigError or DataError."""
    if isinstance(data, Examples):
        return data
    if isinstance(data, str | Path):
        return examples_of_plan(plan, Path(data))
    if isinstance(data, Mapping) and "train" in data and set(data) <= {"train", "test"}:
        return Examples(_arrays(data["train"]), _arrays(data.get("test", ())))
    if isinstance(data, tuple | list) and len(data) in (2, 4):
        return from_arrays(*data)
    raise ConfigError(
        'give data as p2pfl.data.Examples, (inputs, labels), {"train": (...), "test": (...)}, or a file for the plan'
    )


def examples_of_plan(plan: Plan, path: Path) -> Examples:
    """What the plan's own load() reads from a file. Raises PlanError or DataError."""
    if not os.path.exists(path):  # unlike Path.exists, no error for a name too long
        raise ConfigError(f"{path} does not exist; check the name")
    parts = PlanCode(plan.source).load(str(path), torch.float64)
    found = {part: tuple(tensor.numpy() for tensor in batch) for part, batch in parts.items()}
    test = found.get("test", ())
    return Examples(found["train"], test if len(test) and len(test[0]) else (), name=path.name)


def _arrays(value: Any) -> tuple[np.ndarray, ...]:
    return tuple(np.asarray(array) for array in value)


def _check_device(device: str) -> None:
    try:
        kind = torch.device(device).type
    except RuntimeError:
        kind = "unknown"
    if kind not in ("cpu", "cuda"):  # others lack float64, or operations
        raise ConfigError(f"unknown device {device[:40]!r}; write cpu, cuda or cuda:1")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ConfigError('there is no CUDA device here; write device = "cpu", or use a machine with one')


def machine() -> dict[str, str]:
    """What the figures were made on."""
    return {
        "p2pfl": importlib.metadata.version("p2pfl-consortium"), "torch": torch.__version__, "numpy": np.__version__,
        "python": platform.python_version(), "processor": platform.machine(),
    }  # fmt: skip


def stopwatch() -> Callable[[], float]:
    """Seconds on the clock since the call before."""
    last = clock.perf_counter()

    def lap() -> float:
        nonlocal last
        now = clock.perf_counter()
        last, spent = now, now - last
        return spent

    return lap
