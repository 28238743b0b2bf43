"""Which update rule closes how much of the gap between local and pooled, where sites are unlike? MNIST and heart data.

    python sims/heterogeneity.py --data DIR [--out DIR] [--processes 2]

DIR holds mnist/ (four idx files) and heart/ (processed.*.data). Each rule's learning rate, and mu of FedProx, is the
one of a small grid with the best mean over the sites' models on other seeds and, for MNIST, on other images. Runs that
--out holds already are not made again, so an interrupted study goes on where it was. Writes
sims/studies/heterogeneity.md.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from heterogeneity_runs import HERE, METHODS, SEEDS, TEST, TRAIN, TRIED, VALIDATE, WORLDS, Job, graph_of, rates, stored
from studies import commit

from p2pfl.errors import P2PFLError
from p2pfl.topology import Schedule
from p2pfl.train.rules import RULES
from p2pfl.types import PeerId

PAGE = HERE / "studies" / "heterogeneity.md"
Line = tuple[str, str, str]  # world, method, graph
Chosen = Mapping[Line, tuple[float, int]]


def one_thread() -> None:
    """As in the peers' workers: figures do not depend on the number of cores."""
    torch.set_num_threads(1)


class Runs:
    """Where runs are made and kept."""

    def __init__(self, data: Path, out: Path, pool: ProcessPoolExecutor) -> None:
        self._data, self._out, self._pool = data, out, pool
        self.seconds = 0.0

    def of(self, jobs: Sequence[Job]) -> dict[Job, dict[str, Any]]:
        """The figures of all these runs."""
        waiting = [self._pool.submit(stored, job, self._data, self._out) for job in jobs]
        found = {}
        for number, (job, future) in enumerate(zip(jobs, waiting, strict=True), 1):
            found[job] = future.result()
            self.seconds += found[job]["seconds"]
            print(f"{number} of {len(jobs)}: {job}", file=sys.stderr)
        return found


def lines() -> list[Line]:
    """Every line of the tables; local and pooled have no graph."""
    return [
        (world, name, graph)
        for world in WORLDS
        for name, method in METHODS.items()
        for graph in ([""] if method.alone or method.pooled else WORLDS[world].graphs)
    ]


def tuning_jobs() -> list[Job]:
    """The whole grid."""
    return [
        Job(world, name, graph, rate, choice, seed, True)
        for world, name, graph in lines()
        for rate in rates(name)
        for choice in range(len(METHODS[name].choices))
        for seed in WORLDS[world].tuned_on
    ]


def tuned(found: Mapping[Job, Mapping[str, Any]]) -> dict[Line, tuple[float, int]]:
    """Of each line: the rate and the choice with the best mean over sites and seeds; a run that diverged has none."""
    scores: dict[Line, dict[tuple[float, int], list[float]]] = {}
    for job, result in found.items():
        values = scores.setdefault((job.world, job.method, job.graph), {})
        values.setdefault((job.rate, job.choice), []).append(mean(result.get("sites", [float("-inf")])))
    return {line: max(values, key=lambda one: mean(values[one])) for line, values in scores.items()}


# --- the page

ANSWER = """(written after looking)"""


def page(chosen: Chosen, found: Mapping[Line, Sequence[Any]], seconds: float) -> str:
    """The whole page."""
    text = [f"# {(__doc__ or '').splitlines()[0]}", "", ANSWER, "", *explained()]
    for name, world in WORLDS.items():
        for graph, (_, tree) in world.graphs.items():
            text += ["", f"## {world.title}: {graph}, RelaySGD on the {tree['kind']}", ""]
            text += table(name, graph, chosen, found)
    made = [
        f"Made by `python sims/heterogeneity.py --data DIR` at commit {commit()}; {seconds:.0f} s, all runs one after",
        f"the other, on {os.cpu_count()} cores ({platform.machine()}) shared with other work, one thread each, CPython",
        f"{platform.python_version()}, torch {torch.__version__.split('+')[0]}.",
    ]
    text += ["", *made, ""]
    return "\n".join(text)


def explained() -> list[str]:
    """What the columns are, from the settings themselves."""
    mnist, heart = WORLDS["mnist-1"], WORLDS["heart"]
    return [
        f"Means over seeds {SEEDS[0]} to {SEEDS[-1]}, lowest and highest in brackets. MNIST: {mnist.peers} sites, "
        f"{TRAIN} training images, {mnist.rounds} rounds of {mnist.steps} steps of {mnist.batch}, accuracy on {TEST} "
        f"test images. Heart: {heart.rounds} rounds of {heart.steps} steps of {heart.batch}, AUC on all hospitals' "
        "test patients; each seed is another split. No closing rounds: sites are as training leaves them. "
        '"1 step": one step a round on as many examples as the others\' steps together. Pooled: as many steps on all '
        "training examples in one place, with the batches of all sites together. Sends: in models, per site and round. "
        "Gap closed: (rule - local) / (pooled - local), for the mean over the sites, and for the worst site.",
        "",
        f"Rates (and mu) were tuned for each line: the best mean over sites of {TRIED} rates, factors of about 3, on "
        f"seed {mnist.tuned_on[0]} and {VALIDATE} other images for MNIST, on splits {list(heart.tuned_on)} for heart "
        '(splits of the same patients). "edge": the best one was the least or the largest that was tried.',
    ]


def table(world: str, graph: str, chosen: Chosen, found: Mapping[Line, Sequence[Any]]) -> list[str]:
    """One graph's lines, local and pooled first."""
    head = ["", "rate", "sends", "mean model", "sites, mean", "worst site", "gap closed: sites", "gap closed: worst"]
    rows = [head, ["---"] * len(head)]
    for name, method in METHODS.items():
        line = (world, name, "" if method.alone or method.pooled else graph)
        own = [setting(line, chosen[line]), sends(line), *told(line, found)]
        rows.append([name, *own, *["–"] * (len(head) - 1 - len(own))])
    return [f"| {' | '.join(row)} |" for row in rows]


def setting(line: Line, chosen: tuple[float, int]) -> str:
    """The rate, and the rule's number where some were tried."""
    grid = rates(line[1])
    numbers = METHODS[line[1]].choices[chosen[1]]
    edge = " (edge)" if chosen[0] in (grid[0], grid[-1]) else ""
    return f"{chosen[0]:g}{edge}" + "".join(f", {name} {value:g}" for name, value in numbers.items())


def told(line: Line, found: Mapping[Line, Sequence[Any]]) -> list[str]:
    """The columns with figures."""
    world, method, runs = line[0], METHODS[line[1]], found[line]
    if method.pooled:
        return [spread(run["mean"] for run in runs)]
    own = ["–" if method.alone else spread(run["mean"] for run in runs)]
    own += [spread(over(run["sites"]) for run in runs) for over in (mean, min)]
    if method.alone:
        return own
    local, pooled = found[world, "local only", ""], found[world, "pooled", ""]
    return [*own, *(closed(runs, local, pooled, over) for over in (mean, min))]


def closed(
    runs: Sequence[Any], local: Sequence[Any], pooled: Sequence[Any], over: Callable[[Sequence[float]], float]
) -> str:
    """(rule - local) / (pooled - local), seed by seed, of the mean or the worst site."""
    alone = [over(run["sites"]) for run in local]
    shares = [(over(run["sites"]) - a) / (p["mean"] - a) for run, a, p in zip(runs, alone, pooled, strict=True)]
    return f"{mean(shares):.0%} ({min(shares):.0%} to {max(shares):.0%})"


def spread(values: Iterable[float]) -> str:
    """Mean, lowest and highest."""
    own = list(values)
    return f"{mean(own):.3f} ({min(own):.3f} to {max(own):.3f})"


def sends(line: Line) -> str:
    """What a site sends in a round, in models, mean over the sites."""
    world, name, graph = line
    if not graph:
        return "–"
    nodes = [PeerId(f"{number:02d}") for number in range(WORLDS[world].peers)]
    spec = dict(graph_of(Job(world, name, graph, 0.0, 0, 0, False)))
    edges = Schedule(spec, nodes, dict.fromkeys(nodes, 1.0), 1, 0).graph.number_of_edges()
    return f"{2 * edges / len(nodes) * len(RULES[METHODS[name].rule].channels):.2g}"


def main() -> int:
    """Run the study; exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("P2PFL_DATA", ".")))
    parser.add_argument("--out", type=Path, default=Path("results/studies/heterogeneity"))
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(options.processes, context, one_thread) as pool:
            runs = Runs(options.data, options.out, pool)
            chosen = tuned(runs.of(tuning_jobs()))
            jobs = {line: [Job(*line, *chosen[line], seed=seed, tuning=False) for seed in SEEDS] for line in lines()}
            found = runs.of([job for own in jobs.values() for job in own])
    except P2PFLError as error:
        print(f"heterogeneity: {error}", file=sys.stderr)
        return 1
    PAGE.write_text(page(chosen, {line: [found[job] for job in own] for line, own in jobs.items()}, runs.seconds))
    print(PAGE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
