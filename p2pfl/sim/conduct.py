"""One checked simulation from its first round to its result: train, time, evaluate, and keep the columns."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from p2pfl.errors import ConfigError, StoreError
from p2pfl.sim.checkpoints import Checkpoint, Checkpoints, CheckpointWarning, arrays_of
from p2pfl.sim.directions import lower_is_better
from p2pfl.sim.evaluation import Evaluation, Evaluator
from p2pfl.sim.fault_sites import sites_of_fault
from p2pfl.sim.interrupts import Interrupts
from p2pfl.sim.pace import Pace, pace_of
from p2pfl.sim.preparing import EVALUATIONS, machine, stopwatch
from p2pfl.sim.results import Columns, SimResult
from p2pfl.sim.scenario import FaultTable
from p2pfl.sim.simulation import Progress
from p2pfl.sim.tensors import tensors
from p2pfl.sim.vector_faults import Absent, Noise, Scaled, VectorFault
from p2pfl.sim.vector_state import go_on, held
from p2pfl.sim.vectorised import VectorisedRun

if TYPE_CHECKING:
    from p2pfl.sim.preparing import Simulation

MOST_EDGES_KEPT = 2_000_000  # of the graph, in a result
MEAN_MODEL = "mean_model_"  # columns of the mean model's figures


def conduct(
    simulation: Simulation, progress: Progress | None, checkpoints: Checkpoints | None = None
) -> SimResult:  # fmt: skip
    """Run it, on from a checkpoint if there is one.

    An interrupt ends it after the round that has begun, with what there is; before that it is raised.
    """
    course = _Course(simulation, None if checkpoints is None else checkpoints.load())
    run, total = course.run, course.pace.schedule.total
    interrupted = False
    with Interrupts() as interrupts:
        try:
            with interrupts.held():
                course.begin()
            while not run.done:
                with interrupts.held():
                    course.round()
                if progress is not None:
                    progress(min(run.round, total), total)
                if checkpoints is not None and checkpoints.due and not run.done:
                    with interrupts.held():
                        course.keep(checkpoints)
        except KeyboardInterrupt:
            if not course.rows:
                raise
            interrupted = True
            if checkpoints is not None and course.whole and run.round > 0:
                course.keep(checkpoints)
            course.end_early()
    return course.result(interrupted)


class _Course:
    """A run on its way: the engine, what it has come to, and what that has cost."""

    def __init__(self, simulation: Simulation, before: Checkpoint | None) -> None:
        lap = stopwatch()
        self._simulation = simulation
        self.pace = pace_of(simulation)
        self.run = run = engine(simulation, self.pace, {} if before is None else before.execution)
        self._judge = Judge(simulation, run)
        self._remarks = simulation.remarks
        self.rows: list[dict[str, Any]] = []
        self.whole = True
        """Whether no round is half done: a second interrupt may end one anywhere."""
        self._cost = {"set-up": 0.0, "training": 0.0, "mixing": 0.0}
        if before is not None:
            self._go_on(before)
        self._cost["set-up"] += lap()

    def _go_on(self, before: Checkpoint) -> None:
        """To where an earlier attempt was; simulated time is a function of the rounds."""
        go_on(self.run, before.round, before.tensors)
        for t in range(before.round):
            self.pace.advance(t)
        self.rows, self._cost = _rows(before.rows), before.cost
        self._judge.seconds = self._cost.pop("evaluation")
        self._judge.metric = _metric(name.removeprefix(MEAN_MODEL) for name in self.rows[0] if MEAN_MODEL in name)
        said = f"cut off after round {before.round}, and gone on with from there"
        self._remarks = (*self._remarks, said)

    def keep(self, checkpoints: Checkpoints) -> None:
        """Write down where it is, between two rounds; a disk that refuses ends no run, which is said."""
        try:
            checkpoints.save(self._checkpoint())
        except StoreError as error:
            said = f"no checkpoint after round {self.run.round}: {error}"
            warnings.warn(f"{said}; the run goes on", CheckpointWarning, stacklevel=2)
            self._remarks = (*self._remarks, said)

    def _checkpoint(self) -> Checkpoint:
        cost = {**self._cost, "evaluation": self._judge.seconds}
        execution = self.run.execution
        as_now = {"execution": execution.chosen, "chunk": execution.chunk, "kernel": execution.kernel}
        as_now = as_now if execution.chunk else {}  # nobody has trained yet
        return Checkpoint(self.run.round, as_now, cost, _columns(self.rows), arrays_of(held(self.run)))

    def begin(self) -> None:
        """The row before the first round; an earlier attempt has it."""
        if not self.rows:
            self.rows.append({"round": 0, "training": False, **self.pace.start(), **self._judge.row()})

    def round(self) -> None:
        """One round and its row. What is settled after the last round of the schedule belongs to that one."""
        t, self.whole = self.run.round, False
        facts = self.run.step()
        self._cost["training"] += facts.seconds["local"]
        self._cost["mixing"] += facts.seconds["mixing"]
        if t < self.pace.schedule.total:
            row = {"round": t + 1, "training": facts.training, "train_loss": facts.loss, **self.pace.advance(t)}
            self.rows.append(row)
        else:
            self.rows[-1].update(self.pace.advance(t))
        if self._judge.is_due(t) or self.run.done:
            self.rows[-1].update(self._judge.row())
        self.whole = True

    def end_early(self) -> None:
        """The last round is evaluated, unless it is half done: that is a state which never was."""
        if self.whole and (self._judge.at_end is None or not self._judge.is_judged(self.rows[-1])):
            self.rows[-1].update(self._judge.row())

    def result(self, interrupted: bool) -> SimResult:
        """What came of it."""
        simulation, run = self._simulation, self.run
        if self._judge.at_end is None:  # gone on with after the last round
            self.rows[-1].update(self._judge.row())
        sites = _sites(simulation, self._judge, self.pace)
        facts = _facts(simulation, run, self._judge, self.pace, self._remarks)
        x = run.x.detach().cpu().numpy() if self.whole else None
        cost = {**self._cost, "evaluation": self._judge.seconds}
        return SimResult(facts, _columns(self.rows), sites, _edges(simulation), cost, interrupted, x)


class Judge:
    """Evaluates a run now and then: the mean model, and the worst, best and mean of some sites."""

    def __init__(self, simulation: Simulation, run: VectorisedRun) -> None:
        self._run, wanted = run, simulation.evaluate.sites
        arrays = simulation.examples.test or simulation.examples.train
        self._every = simulation.evaluate.every or max(1, simulation.schedule.total // EVALUATIONS)
        sample = {"all": None, "none": 0}[wanted] if isinstance(wanted, str) else wanted
        test = tensors(arrays, simulation.settings.dtype)
        self._some = Evaluator(simulation.code, run, test, sample=sample, seed=simulation.seed)
        self.seconds = 0.0
        self.metric = ""
        self.at_end: Evaluation | None = None

    def is_due(self, t: int) -> bool:
        """Whether round ``t`` is one of those that are evaluated; the last one always is."""
        return (t + 1) % self._every == 0

    def is_judged(self, row: dict[str, Any]) -> bool:
        """Whether a round was evaluated."""
        return MEAN_MODEL + self.metric in row

    def row(self) -> dict[str, float]:
        """The columns of one evaluated round."""
        found = self._some.evaluate()
        self.seconds += sum(found.seconds.values())
        self.at_end = found
        self.metric = _metric(found.mean)
        row = {"distance": found.consensus.distance, "relative_distance": found.consensus.relative}
        row |= {MEAN_MODEL + name: value for name, value in found.mean.items()}
        for name, values in found.figures.items():
            if len(values) and np.isfinite(values).any():
                low, high = float(np.nanmin(values)), float(np.nanmax(values))
                worst, best = (high, low) if lower_is_better(name, found.lower_is_better) else (low, high)
                row |= {f"worst_site_{name}": worst, f"best_site_{name}": best}
                row[f"sites_{name}"] = float(np.nanmean(values))
        return row

    def of_sites(self, sites: int) -> Columns:
        """The figures of the sites that were evaluated last; not a number for the others."""
        table: Columns = {}
        if self.at_end is None or not len(self.at_end.sites):
            return table
        for name, values in self.at_end.figures.items():
            table[name] = np.full(sites, np.nan)
            table[name][self.at_end.sites] = values
        return table


def _metric(names: Iterable[str]) -> str:
    """The plan's first figure of those that an evaluation has."""
    return next((name for name in names if name != "loss"), "loss")


def engine(simulation: Simulation, pace: Pace, as_before: Mapping[str, Any] | None = None) -> VectorisedRun:
    """The vectorised engine for this simulation; ``as_before``: how another part of the run was computed."""
    train, rows = _inputs(simulation)
    return VectorisedRun(
        simulation.code, simulation.settings, train, rows, pace.schedule, seed=simulation.seed,
        device=simulation.device, decisions=pace.decisions, steps=simulation.each.tolist(),
        **{"execution": simulation.execution, **(as_before or {})},
        faults=[
            vector_fault(fault, simulation, place)
            for place, fault in enumerate(simulation.faults)
            if fault.kind != "absent" or pace.decisions is None  # recorded decisions have their absences in them
        ],
    )  # fmt: skip


def _inputs(simulation: Simulation) -> tuple[tuple[torch.Tensor, ...], list[np.ndarray]]:
    """The training tensors and each site's rows; where sites see their inputs otherwise, each has rows of its own."""
    parts, arrays = simulation.parts, simulation.examples.train
    if parts.shift is None:
        return tensors(arrays, simulation.settings.dtype), list(parts.rows)
    first = np.concatenate([parts.shift.apply(peer, arrays[0][rows]) for peer, rows in enumerate(parts.rows)])
    order = np.concatenate(parts.rows)
    ends = np.cumsum([len(rows) for rows in parts.rows])
    own = [np.arange(end - len(rows), end) for end, rows in zip(ends, parts.rows, strict=True)]
    return tensors((first, *(array[order] for array in arrays[1:])), simulation.settings.dtype), own


def vector_fault(fault: FaultTable, simulation: Simulation, place: int) -> VectorFault:
    """The engine's form of a scenario's fault; sites that are only counted are drawn by the seed and its place."""
    sites = sites_of_fault(fault, place, simulation.parts.peers, simulation.seed)
    until = None if fault.last is None else fault.last + 1
    if until is not None and until <= fault.first:
        raise ConfigError(f"a fault ends in round {fault.last}, before it begins in {fault.first}; mend it")
    if fault.kind == "absent":
        return Absent(sites, fault.first, until)
    if fault.how == "noise":
        return Noise(sites, fault.size, simulation.seed, fault.first, until)
    return Scaled(sites, fault.size if fault.how == "scale" else -fault.size, fault.first, until)


def _columns(rows: list[dict[str, Any]]) -> Columns:
    names = list(dict.fromkeys(name for row in rows for name in row))
    table: Columns = {}
    for name in names:
        kind = {"round": np.int64, "training": np.bool_}.get(name, np.float64)
        table[name] = np.array([row.get(name, np.nan) for row in rows], dtype=kind)
    return table


def _rows(columns: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What `_columns` made columns of: what is not a number was not there, but for the order of the names."""
    names, values = list(columns), zip(*(column.tolist() for column in columns.values()), strict=True)
    first, *others = [dict(zip(names, row, strict=True)) for row in values]
    return [first, *({name: value for name, value in row.items() if value == value} for row in others)]


def _sites(simulation: Simulation, judge: Judge, pace: Pace) -> Columns:
    nodes = simulation.schedule.nodes
    return {
        "site": np.arange(len(nodes)),
        "examples": np.array([len(rows) for rows in simulation.parts.rows]),
        "share": simulation.shares,
        **({} if simulation.schedule.by_shares else {"law": np.array(simulation.schedule.law)}),
        "neighbours": simulation.schedule.degrees,
        "local_steps": simulation.each,
        **pace.of_sites(),
        **judge.of_sites(len(nodes)),
    }


def _edges(simulation: Simulation) -> np.ndarray:
    edges: np.ndarray = simulation.schedule.edges
    return edges if len(edges) <= MOST_EDGES_KEPT else np.empty((0, 2), dtype=np.int64)


def _facts(
    simulation: Simulation, run: VectorisedRun, judge: Judge, pace: Pace, remarks: Sequence[str]
) -> dict[str, Any]:  # fmt: skip
    settings, examples = simulation.settings, simulation.examples
    execution = json.loads(json.dumps(asdict(run.execution)))  # as it is read back
    return {
        "name": simulation.name, "plan": simulation.plan.digest, "rule": settings.rule.name,
        "optimiser": settings.optimiser.name, "learning_rate": settings.learning_rate,
        "local_steps": settings.local_steps, "batch_size": settings.batch_size,
        "dtype": str(settings.dtype).removeprefix("torch."), "peers": simulation.parts.peers,
        "parameters": run.layout.size, "topology": _short(simulation.spec), "data": examples.name,
        "examples": len(examples), "test_examples": len(examples.test[0]) if examples.test else 0,
        "rounds": simulation.schedule.rounds, "closing_rounds": simulation.schedule.closing_rounds,
        "weights": simulation.weights, "seed": simulation.seed,
        "time": None if simulation.time is None else simulation.time.model_dump(),
        "faults": [fault.model_dump() for fault in simulation.faults], "evaluate": simulation.evaluate.model_dump(),
        "steps": [table.model_dump() for table in simulation.steps],
        "metric": judge.metric, "lower_is_better": sorted(simulation.code.lower_is_better),
        "evaluated_on": "test" if examples.test else "training examples",
        "execution": str(run.execution), "execution_facts": execution, "device": simulation.device,
        "threads": torch.get_num_threads(), "clock": pace.name, "patience_ends_in_round": pace.missed,
        "edges_mixed": pace.mixed_share, "remarks": list(remarks),
        "machine": machine(),
    }  # fmt: skip


def _short(spec: dict[str, Any]) -> dict[str, Any]:
    """Without lists of edges, which are in the result's own table, and of their weights."""
    return {name: f"{len(value)} edges" if _of_edges(name, value) else value for name, value in spec.items()}


def _of_edges(name: str, value: Any) -> bool:
    return name == "edges" or (name == "weights" and not isinstance(value, str))
