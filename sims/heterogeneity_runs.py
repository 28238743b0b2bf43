"""What the study of unlike sites runs: its data, its rules and graphs, and one run (sims/heterogeneity.py)."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from p2pfl import simulate
from p2pfl.data import Examples, Partition, by_column, from_mnist, partition_named
from p2pfl.demo.hospitals import HEART, heart_hospitals, write_csv
from p2pfl.demo.in_memory import PLANS
from p2pfl.errors import PlanError
from p2pfl.files import write_atomic
from p2pfl.governance import read_plan
from p2pfl.sim import read_scenario
from p2pfl.sim.preparing import examples_of_plan

HERE = Path(__file__).resolve().parent
SEEDS = range(5)
RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
TRIED = 5  # of them, one after the other, for each line of the tables
TRAIN, VALIDATE, TEST = 10_000, 2_000, 5_000  # images of MNIST; those for validation follow those for training
SCENARIO = read_scenario(HERE / "scenarios" / "mnist_labels.toml")


@dataclass(frozen=True)
class World:
    """Data on unlike sites. ``graphs``: for rules that mix, and the nearest tree for RelaySGD."""

    title: str
    data: str
    labels: int  # per peer; 0: as the data are
    plan: Path
    peers: int
    rounds: int
    steps: int
    batch: int
    metric: str
    graphs: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]]
    tuned_on: Sequence[int]  # seeds


@dataclass(frozen=True)
class Method:
    """A line of the tables. ``one``: one step a round with the examples of all steps; ``choices``: of its numbers."""

    rule: str = "dpsgd"
    one: bool = False
    choices: tuple[Mapping[str, float], ...] = ({},)
    alone: bool = False
    pooled: bool = False
    walks: bool = False  # one model goes from site to site
    longer: int = 1  # its visits: so many times the steps of a round, and so many times fewer

    @property
    def has_graph(self) -> bool:
        """Whether it is another line on another of the world's graphs."""
        return not (self.alone or self.pooled or self.walks)


@dataclass(frozen=True)
class Job:
    """One run."""

    world: str
    method: str
    graph: str
    rate: float
    choice: int
    seed: int
    tuning: bool


_FOUR = {"kind": "regular", "degree": 4, "seed": 1}
_MNIST: dict[str, Any] = {
    "data": "mnist", "plan": Path(SCENARIO.scenario.plan), "peers": SCENARIO.scenario.peers,
    "rounds": SCENARIO.scenario.rounds, "steps": 5, "batch": 20, "metric": "accuracy", "tuned_on": (100,),
    "graphs": {"ring": ({"kind": "ring"}, {"kind": "chain"}), "four neighbours": (_FOUR, {"kind": "tree", "arity": 2})},
}  # fmt: skip
WORLDS: Mapping[str, World] = {
    "mnist-1": World("MNIST, one digit per site", labels=1, **_MNIST),
    "mnist-2": World("MNIST, two digits per site", labels=2, **_MNIST),
    "heart": World(
        "The four heart hospitals", "heart", 0, PLANS / "heart", len(HEART), 40, 5, 32, "auc",
        {"ring": ({"kind": "ring"}, {"kind": "chain"}), "full": ({"kind": "full"}, {"kind": "star"})}, (100, 101, 102),
    ),
}  # fmt: skip
METHODS: Mapping[str, Method] = {
    "local only": Method(alone=True),
    "pooled": Method(pooled=True),
    "dpsgd": Method(),
    "dpsgd, 1 step": Method(one=True),
    "fedprox": Method("fedprox", choices=({"proximal": 0.01}, {"proximal": 1.0}, {"proximal": 0.1})),
    "quasi_global": Method("quasi_global", choices=({}, {"beta": 0.5, "mu": 0.5})),
    "exact_diffusion, 1 step": Method("exact_diffusion", one=True),
    "gradient_tracking, 1 step": Method("gradient_tracking", one=True),
    "kgt": Method("kgt"),
    "relaysgd": Method("relaysgd"),
    "cyclic": Method("cyclic", walks=True),
    "cyclic, 50 steps": Method("cyclic", walks=True, longer=10),
}


def rates(name: str) -> tuple[float, ...]:
    """The grid of a line: one step, or a batch of all sites together, bears a larger rate; long visits need less."""
    method = METHODS[name]
    first = 3 if method.one or method.pooled else 0 if method.longer > 1 else 2
    return RATES[first : first + TRIED]


def rounds_of(world: World, method: Method) -> int:
    """Rounds of a run; where one model walks, and one site trains at a time, each is a cycle of a round per site."""
    return world.rounds * (world.peers if method.walks else 1) // method.longer


# --- one run


@cache
def examples_of(data: Path, kind: str, seed: int, tuning: bool) -> Examples:
    """The examples of a seed. MNIST: the same for all; hospitals: a split of its own."""
    if kind == "mnist":
        found = from_mnist(data / "mnist")
        test = tuple(array[TRAIN : TRAIN + VALIDATE] for array in found.train)
        return Examples(
            tuple(array[:TRAIN] for array in found.train), test if tuning else tuple(a[:TEST] for a in found.test)
        )
    plan = read_plan(PLANS / "heart")
    with TemporaryDirectory(prefix="p2pfl-") as folder:
        parts = []
        for hospital in heart_hospitals(data / "heart", seed):
            write_csv(hospital, Path(folder) / "patients.csv")
            parts.append(examples_of_plan(plan, Path(folder) / "patients.csv"))
    joined = [
        tuple(map(np.concatenate, zip(*(getattr(part, side) for part in parts), strict=True)))
        for side in ("train", "test")
    ]
    hospitals = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    return Examples(joined[0], joined[1], {"hospital": hospitals})


def divided(world: World) -> Partition:
    """Who holds what."""
    return partition_named("labels_per_peer", {"labels": world.labels}) if world.labels else by_column("hospital")


def figures(job: Job, data: Path) -> dict[str, Any]:
    """The mean model's figure and each site's on the common test examples; empty if training diverged."""
    world, method = WORLDS[job.world], METHODS[job.method]
    examples, partition = examples_of(data, world.data, job.seed, job.tuning), divided(world)
    try:
        if method.alone:
            rows = partition(examples, world.peers, job.seed).rows
            own = [Examples(tuple(array[mine] for array in examples.train), examples.test) for mine in rows]
            return {"sites": [value for one in own for value in simulated(job, one, None, 1)["sites"]]}
        if method.pooled:
            return simulated(job, examples, None, 1)
        return simulated(job, examples, partition, world.peers)
    except PlanError:
        return {}


def simulated(job: Job, examples: Examples, partition: Partition | None, peers: int) -> dict[str, Any]:
    """One run of the library."""
    world, method = WORLDS[job.world], METHODS[job.method]
    batch = world.batch * (world.peers if method.pooled else world.steps if method.one else 1)
    training: dict[str, Any] = {
        "rule": method.rule, "learning_rate": job.rate,
        "local_steps": 1 if method.one else world.steps * method.longer, "batch_size": batch,
    }  # fmt: skip
    if method.choices[job.choice]:
        training["rule_settings"] = dict(method.choices[job.choice])
    rounds = rounds_of(world, method)
    result = simulate(
        world.plan, examples, partition=partition, topology=dict(graph_of(job)), peers=peers, rounds=rounds,
        closing_rounds=0, seed=job.seed, training=training, evaluate={"every": rounds, "sites": "all"},
        execution="loop",
    )  # fmt: skip
    return {"mean": result.final()[f"mean_model_{world.metric}"], "sites": result.sites[world.metric].tolist()}


def graph_of(job: Job) -> Mapping[str, Any]:
    """The graph; RelaySGD's is the tree beside it, and one model that walks has its own."""
    if METHODS[job.method].walks:
        return {"kind": "cyclic"}
    if not job.graph:
        return {"kind": "ring"}
    graph, tree = WORLDS[job.world].graphs[job.graph]
    return tree if METHODS[job.method].rule == "relaysgd" else graph


def stored(job: Job, data: Path, out: Path) -> dict[str, Any]:
    """The figures of a run, with its seconds; from ``out`` if they are there."""
    place = out / f"{key_of(job)}.json"
    if place.exists():
        found: dict[str, Any] = json.loads(place.read_bytes())
        return found
    began = time.perf_counter()
    found = figures(job, data)
    found["seconds"] = time.perf_counter() - began
    write_atomic(place, json.dumps(found).encode(), private=False)
    return found


def key_of(job: Job) -> str:
    """24 hexadecimal digits of everything that decides the figures of a run."""
    world, method = WORLDS[job.world], METHODS[job.method]
    steps = world.steps * method.longer
    told = (world.data, world.labels, world.peers, rounds_of(world, method), steps, world.batch, world.metric)
    kind = (method.rule, method.one, method.alone, method.pooled, dict(method.choices[job.choice]))
    own = (dict(graph_of(job)), job.rate, job.seed, job.tuning, TRAIN, VALIDATE, TEST)
    text = json.dumps([told, kind, own, read_plan(world.plan).digest], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:24]
