"""One checked simulation from its first round to its result: train, time, evaluate, and keep the columns."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from p2pfl.errors import ConfigError
from p2pfl.sim.draws import stream
from p2pfl.sim.evaluation import Evaluator
from p2pfl.sim.pace import Pace, pace_of
from p2pfl.sim.results import Columns, SimResult
from p2pfl.sim.scenario import FaultTable
from p2pfl.sim.simulate import EVALUATIONS, Progress, machine, stopwatch, tensors
from p2pfl.sim.vector_faults import Absent, Noise, Scaled, VectorFault
from p2pfl.sim.vectorised import VectorisedRun

if TYPE_CHECKING:
    from p2pfl.sim.simulate import Simulation

MOST_EDGES_KEPT = 2_000_000  # of the graph, in a result


def conduct(simulation: Simulation, progress: Progress | None) -> SimResult:
    """Run it. An interrupt ends it with what there is."""
    lap = stopwatch()
    pace = pace_of(simulation)
    run = engine(simulation, pace)
    evaluator = evaluator_of(simulation, run)
    cost = {"set-up": lap(), "training": 0.0, "mixing": 0.0, "evaluation": 0.0}
    rows: list[dict[str, Any]] = []
    interrupted = False
    try:
        rows.append({"round": 0, "training": False, **_state(run), **_judged(evaluator, run, cost)})
        for t in range(simulation.schedule.total):
            facts = run.step()
            cost["training"] += facts.seconds["local"]
            cost["mixing"] += facts.seconds["mixing"]
            row = {"round": t + 1, "training": facts.training, "train_loss": facts.loss, **_state(run)}
            rows.append(row | pace.totals(t))
            if _is_due(simulation, t):
                rows[-1].update(_judged(evaluator, run, cost))
            if progress is not None:
                progress(t + 1, simulation.schedule.total)
    except KeyboardInterrupt:
        interrupted = True
    lap()
    sites = _sites(simulation, run, evaluator, pace, len(rows) - 1, interrupted)
    cost["evaluation"] += lap()
    return SimResult(
        _facts(simulation, run, evaluator, pace), _columns(rows), sites, _edges(simulation), cost, interrupted,
        run.x.detach().cpu().numpy(),
    )  # fmt: skip


def engine(simulation: Simulation, pace: Pace) -> VectorisedRun:
    """The vectorised engine for this simulation."""
    train, rows = _inputs(simulation)
    return VectorisedRun(
        simulation.code, simulation.settings, train, rows, pace.schedule, seed=simulation.seed,
        execution=simulation.execution, device=simulation.device, decisions=pace.decisions,
        faults=[vector_fault(fault, simulation) for fault in simulation.faults],
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


def vector_fault(fault: FaultTable, simulation: Simulation) -> VectorFault:
    """The engine's form of a scenario's fault; sites that are only counted are drawn by the seed."""
    sites = fault.sites
    if isinstance(sites, int):
        drawn = stream(simulation.seed, "faulty sites", fault.kind)
        sites = sorted(drawn.sample(range(simulation.parts.peers), sites))
    until = None if fault.last is None else fault.last + 1
    if until is not None and until <= fault.first:
        raise ConfigError(f"a fault ends in round {fault.last}, before it begins in {fault.first}; mend it")
    if fault.kind == "absent":
        return Absent(sites, fault.first, until)
    if fault.how == "noise":
        return Noise(sites, fault.size, simulation.seed, fault.first, until)
    return Scaled(sites, fault.size if fault.how == "scale" else -fault.size, fault.first, until)


def evaluator_of(simulation: Simulation, run: VectorisedRun) -> Evaluator:
    """The evaluator on the test examples; on the training examples, which is said, where there are none."""
    arrays = simulation.examples.test or simulation.examples.train
    return Evaluator(
        simulation.code, run.layout, tensors(arrays, simulation.settings.dtype), simulation.settings.dtype,
        sites=_sample(simulation), device=simulation.device,
    )  # fmt: skip


def _sample(simulation: Simulation) -> list[int]:
    """The sites that are evaluated besides the mean model."""
    wanted, peers = simulation.evaluate.sites, simulation.parts.peers
    if wanted == "none":
        return []
    if wanted == "all" or wanted >= peers:
        return list(range(peers))
    return sorted(stream(simulation.seed, "evaluated sites").sample(range(peers), wanted))


def _is_due(simulation: Simulation, t: int) -> bool:
    total = simulation.schedule.total
    every = simulation.evaluate.every or max(1, total // EVALUATIONS)
    return (t + 1) % every == 0 or t + 1 == total


def _state(run: VectorisedRun) -> dict[str, float]:
    return {"distance": consensus_distance(run.x, run.shares)}


def consensus_distance(x: torch.Tensor, shares: torch.Tensor) -> float:
    """sqrt(sum_i pi_i |x_i - x_bar|^2) of ``x`` [n, P] in blocks of rows, so that no second matrix is made."""
    weights = shares.to(torch.float64)
    mean = torch.zeros(x.shape[1], dtype=torch.float64, device=x.device)
    for rows in _blocks(len(x)):
        mean += weights[rows] @ x[rows].double()
    total = 0.0
    for rows in _blocks(len(x)):
        total += float((weights[rows] * (x[rows].double() - mean).square().sum(-1)).sum())
    return float(total**0.5)


def _blocks(rows: int, size: int = 256) -> Iterator[slice]:
    for start in range(0, rows, size):
        yield slice(start, min(start + size, rows))


def _judged(evaluator: Evaluator, run: VectorisedRun, cost: dict[str, float]) -> dict[str, float]:
    lap = stopwatch()
    found = evaluator.round(run)
    cost["evaluation"] += lap()
    return found


def _columns(rows: list[dict[str, Any]]) -> Columns:
    names = list(dict.fromkeys(name for row in rows for name in row))
    table: Columns = {}
    for name in names:
        kind = {"round": np.int64, "training": np.bool_}.get(name, np.float64)
        table[name] = np.array([row.get(name, np.nan) for row in rows], dtype=kind)
    return table


def _sites(
    simulation: Simulation, run: VectorisedRun, evaluator: Evaluator, pace: Pace, rounds: int, interrupted: bool
) -> Columns:
    nodes = simulation.schedule.nodes
    table: Columns = {
        "site": np.arange(len(nodes)),
        "examples": np.array([len(rows) for rows in simulation.parts.rows]),
        "share": simulation.shares,
        "neighbours": np.array([simulation.schedule.graph.degree[node] for node in nodes]),
        **pace.of_sites(rounds - 1),
    }
    with contextlib.suppress(KeyboardInterrupt):  # a second one: then without the sites' figures
        if not interrupted and simulation.evaluate.sites != "none":
            table.update(evaluator.sites_at_end(run))
    return table


def _edges(simulation: Simulation) -> np.ndarray:
    graph, places = simulation.schedule.graph, {node: at for at, node in enumerate(simulation.schedule.nodes)}
    if graph.number_of_edges() > MOST_EDGES_KEPT:
        return np.empty((0, 2), dtype=np.int64)
    return np.array([(places[one], places[other]) for one, other in graph.edges], dtype=np.int64).reshape(-1, 2)


def _facts(simulation: Simulation, run: VectorisedRun, evaluator: Evaluator, pace: Pace) -> dict[str, Any]:
    settings, examples = simulation.settings, simulation.examples
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
        "metric": evaluator.metric, "evaluated_on": "test" if examples.test else "training examples",
        "execution": str(run.execution), "execution_facts": asdict(run.execution), "device": simulation.device,
        "threads": torch.get_num_threads(), "clock": pace.name, "machine": machine(),
    }  # fmt: skip


def _short(spec: dict[str, Any]) -> dict[str, Any]:
    """A list of edges is in the result's own table."""
    return {name: value if name != "edges" else f"{len(value)} edges" for name, value in spec.items()}
