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
from heterogeneity_runs import (
    HERE,
    METHODS,
    SEEDS,
    TEST,
    TRAIN,
    TRIED,
    VALIDATE,
    WORLDS,
    Job,
    graph_of,
    rates,
    rounds_of,
    stored,
)
from studies import commit

from p2pfl.errors import P2PFLError
from p2pfl.topology import Schedule
from p2pfl.train.rules import RULES
from p2pfl.train.rules.interface import WEIGHT
from p2pfl.types import PeerId

PAGE = HERE / "studies" / "heterogeneity.md"
Line = tuple[str, str, str]  # world, method, graph
Chosen = Mapping[Line, tuple[float, int]]
Scores = Mapping[Line, Mapping[tuple[float, int], float]]


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
    """Every line of the tables; local, pooled and one model that walks have no graph of the world's."""
    return [
        (world, name, graph)
        for world in WORLDS
        for name, method in METHODS.items()
        for graph in (WORLDS[world].graphs if method.has_graph else [""])
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


def scored(found: Mapping[Job, Mapping[str, Any]]) -> Scores:
    """Of each line, rate and choice: the mean over sites and seeds; no figure for a run that diverged."""
    values: dict[Line, dict[tuple[float, int], list[float]]] = {}
    for job, result in found.items():
        own = values.setdefault((job.world, job.method, job.graph), {})
        own.setdefault((job.rate, job.choice), []).append(mean(result.get("sites", [float("-inf")])))
    return {line: {one: mean(figures) for one, figures in own.items()} for line, own in values.items()}


def tuned(scores: Scores) -> dict[Line, tuple[float, int]]:
    """The rate and the choice with the best score, of each line."""
    return {line: max(own, key=lambda one: own[one]) for line, own in scores.items()}


# --- the page

ANSWER = """\
K-GT, on a graph with four neighbours each: it closes 95 % of the gap with one digit per site and 97 % with two (worst
site 94 % and 96 %); D-PSGD closes 61 % and 84 % there (worst site 57 % and 77 %). For the same bytes as D-PSGD with
four neighbours, K-GT on the ring closes 76 % and 92 %, exact diffusion with four neighbours 86 % and 89 %.

- Only a chain or a tree: RelaySGD. With one digit per site it closes 84 % on the chain (worst site 81 %), ahead of K-GT
  on the ring (76 %, 68 %) for slightly fewer bytes; with two digits K-GT is ahead again.
- No more traffic than D-PSGD: exact diffusion, one step a round (one digit: 78 % on the ring, 86 % with four
  neighbours; D-PSGD with one step 27 % and 63 %), or quasi-global momentum (50 % and 81 %), which takes many steps.
- As few models sent, and ten times as long: cyclic transfer. The one model that walks closes 94 % with one digit per
  site (worst site 92 %) and 99 % with two (96 %), and sites send as many models as with D-PSGD on the ring (what they
  announce to all at each visit is not counted here); but the ten sites train one after the other, and visits must be
  short: with 50 steps in place of 5, as many in all, it closes 50 % and 55 %.
- FedProx gains little or nothing: 26 % where D-PSGD closes 22 % (ring, one digit), no more than D-PSGD elsewhere.
- The graph is worth as much as the rule: four neighbours in place of two lift D-PSGD from 22 % to 61 %.
- The mean model hides this: on the ring with one digit D-PSGD's reaches 0.65, while its sites have 0.28.
- The four heart hospitals: every rule reaches pooled on both graphs (mean over the sites 0.865 to 0.867, pooled 0.864,
  local 0.832; worst site 0.864 or more, from 0.783), but for a model that walks in long visits (worst site 0.857).
  Rules differ far less than splits do, and the shares divide by a gap of 0.03: take the simplest.

A small network, 60 rounds, rates tuned on one seed: where two rules are within each other's range, read no order."""


def page(scores: Scores, found: Mapping[Line, Sequence[Any]], seconds: float) -> str:
    """The whole page."""
    chosen = tuned(scores)
    text = [f"# {(__doc__ or '').splitlines()[0]}", "", ANSWER, "", *explained()]
    for name, world in WORLDS.items():
        for graph, (_, tree) in world.graphs.items():
            text += ["", f"## {world.title}: {graph}, RelaySGD on the {tree['kind']}", ""]
            text += table(name, graph, chosen, found)
    text += ["", "## The rules' own numbers", "", *numbers_tried(scores)]
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
        "Cyclic: one model walks, on a graph of its own, so both tables of a world have the same line. One site trains "
        f"at a time: {rounds_of(mnist, METHODS['cyclic'])} rounds for MNIST and {rounds_of(heart, METHODS['cyclic'])} "
        "for heart, so that all sites together take as many steps as with the other rules, parted by their shares. "
        '"50 steps": a tenth of the visits, ten times as long. Sends: per round of the other rules. "Mean model" is '
        "the model that walks; each site has it as it was there last, and one closing round, which the other rules do "
        "not have either, would bring it to all. It takes more steps in a row than pooled, each on fewer examples, so "
        "it may end beyond.",
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
        line = (world, name, graph if method.has_graph else "")
        own = [setting(line, chosen[line]), sends(line), *told(line, found)]
        rows.append([name, *own, *["–"] * (len(head) - 1 - len(own))])
    return [f"| {' | '.join(row)} |" for row in rows]


def numbers_tried(scores: Scores) -> list[str]:
    """What tuning found of each choice, at its own best rate."""
    graphs = [(world, graph) for world in WORLDS for graph in WORLDS[world].graphs]
    head = ["at its best rate, while tuning: sites, mean", *(f"{world}, {graph}" for world, graph in graphs)]
    rows = [head, ["---"] * len(head)]
    for name, method in METHODS.items():
        for choice in range(len(method.choices)) if len(method.choices) > 1 else ():
            tried = [scores[world, name, graph] for world, graph in graphs]
            best = [max(value for one, value in own.items() if one[1] == choice) for own in tried]
            rows.append([f"{name}: {numbers_of(name, choice)}", *(f"{value:.3f}" for value in best)])
    return [f"| {' | '.join(row)} |" for row in rows]


def numbers_of(name: str, choice: int) -> str:
    """The rule's own numbers, defaults included."""
    method = METHODS[name]
    defaults = {key: one.default for key, one in RULES[method.rule].settings.items()}
    return ", ".join(f"{key} {value:g}" for key, value in (defaults | dict(method.choices[choice])).items())


def setting(line: Line, chosen: tuple[float, int]) -> str:
    """The rate, and the rule's own numbers where it has some."""
    grid, numbers = rates(line[1]), numbers_of(line[1], chosen[1])
    edge = " (edge)" if chosen[0] in (grid[0], grid[-1]) else ""
    return f"{chosen[0]:g}{edge}" + (f"; {numbers}" if numbers else "")


def told(line: Line, found: Mapping[Line, Sequence[Any]]) -> list[str]:
    """The columns with figures."""
    world, method, runs = line[0], METHODS[line[1]], found[line]
    diverged = sum("sites" not in run for run in runs)
    if diverged:
        return [f"{diverged} of {len(runs)} seeds diverged"]
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
    """What a site sends in a round, in models, mean over the sites; of all lines in as many rounds."""
    world, name, graph = line
    method, rounds = METHODS[name], rounds_of(WORLDS[world], METHODS[name])
    if method.alone or method.pooled:
        return "–"
    nodes = [PeerId(f"{number:02d}") for number in range(WORLDS[world].peers)]
    spec = dict(graph_of(Job(world, name, graph, 0.0, 0, 0, False)))
    schedule = Schedule(spec, nodes, dict.fromkeys(nodes, 1.0), rounds, 0)
    messages = sum(len(mixing.entries[0]) for t in range(rounds) for mixing in schedule.round(t).mixings)
    models = sum(channel.name != WEIGHT for channel in RULES[method.rule].channels)
    return f"{messages * models / len(nodes) / WORLDS[world].rounds:.2g}"


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
            scores = scored(runs.of(tuning_jobs()))
            chosen = tuned(scores)
            jobs = {line: [Job(*line, *chosen[line], seed=seed, tuning=False) for seed in SEEDS] for line in lines()}
            found = runs.of([job for own in jobs.values() for job in own])
    except P2PFLError as error:
        print(f"heterogeneity: {error}", file=sys.stderr)
        return 1
    PAGE.write_text(page(scores, {line: [found[job] for job in own] for line, own in jobs.items()}, runs.seconds))
    print(PAGE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
