"""One checked simulation from its first round to its result: train, time, evaluate, and keep the columns."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from p2pfl.errors import ConfigError
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
from p2pfl.sim.vectorised import VectorisedRun

if TYPE_CHECKING:
    from p2pfl.sim.preparing import Simulation

MOST_EDGES_KEPT = 2_000_000  # of the graph, in a result


def conduct(simulation: Simulation, progress: Progress | None) -> SimResult:
    """Run it. An interrupt ends it after the round that has begun, with what there is; before that it is raised."""
    lap = stopwatch()
    pace = pace_of(simulation)
    run = engine(simulation, pace)
    judge = Judge(simulation, run)
    cost = {"set-up": lap(), "training": 0.0, "mixing": 0.0}
    rows: list[dict[str, Any]] = []
    interrupted = False
    with Interrupts() as interrupts:
        try:
            with interrupts.held():
                rows.append({"round": 0, "training": False, **pace.start(), **judge.row()})
            while not run.done:
                with interrupts.held():
                    _round(run, pace, judge, rows, cost)
                if progress is not None:
                    progress(min(run.round, pace.schedule.total), pace.schedule.total)
        except KeyboardInterrupt:
            if not rows:
                raise
            interrupted = True
            if not judge.is_judged(rows[-1]):
                rows[-1].update(judge.row())
    sites = _sites(simulation, judge, pace)
    facts = _facts(simulation, run, judge, pace)
    x = run.x.detach().cpu().numpy()
    columns, edges = _columns(rows), _edges(simulation)
    return SimResult(facts, columns, sites, edges, {**cost, "evaluation": judge.seconds}, interrupted, x)


def _round(run: VectorisedRun, pace: Pace, judge: Judge, rows: list[dict[str, Any]], cost: dict[str, float]) -> None:
    """One round and its row. What is settled after the last round of the schedule belongs to that one."""
    t = run.round
    facts = run.step()
    cost["training"] += facts.seconds["local"]
    cost["mixing"] += facts.seconds["mixing"]
    if t < pace.schedule.total:
        rows.append({"round": t + 1, "training": facts.training, "train_loss": facts.loss, **pace.advance(t)})
    else:
        rows[-1].update(pace.advance(t))
    if judge.is_due(t) or run.done:
        rows[-1].update(judge.row())


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
        return f"mean_model_{self.metric}" in row

    def row(self) -> dict[str, float]:
        """The columns of one evaluated round."""
        found = self._some.evaluate()
        self.seconds += sum(found.seconds.values())
        self.at_end = found
        self.metric = next((name for name in found.mean if name != "loss"), "loss")
        row = {"distance": found.consensus.distance, "relative_distance": found.consensus.relative}
        row |= {f"mean_model_{name}": value for name, value in found.mean.items()}
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


def engine(simulation: Simulation, pace: Pace) -> VectorisedRun:
    """The vectorised engine for this simulation."""
    train, rows = _inputs(simulation)
    return VectorisedRun(
        simulation.code, simulation.settings, train, rows, pace.schedule, seed=simulation.seed,
        execution=simulation.execution, device=simulation.device, decisions=pace.decisions,
        steps=simulation.each.tolist(),
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


def _facts(simulation: Simulation, run: VectorisedRun, judge: Judge, pace: Pace) -> dict[str, Any]:
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
        "edges_mixed": pace.mixed_share, "remarks": list(simulation.remarks),
        "machine": machine(),
    }  # fmt: skip


def _short(spec: dict[str, Any]) -> dict[str, Any]:
    """Without lists of edges, which are in the result's own table, and of their weights."""
    return {name: f"{len(value)} edges" if _of_edges(name, value) else value for name, value in spec.items()}


def _of_edges(name: str, value: Any) -> bool:
    return name == "edges" or (name == "weights" and not isinstance(value, str))
