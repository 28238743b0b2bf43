"""The same run in three worlds: vectorised, virtual clock with real sessions, real machines joined in memory."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bottle import Bottle
from torch import Tensor

from p2pfl.sim import VirtualConsortium
from p2pfl.sim.vectorised import VectorisedRun
from p2pfl.topology import Schedule
from p2pfl.train.plan_code import PlanCode
from p2pfl.train.session import Session
from p2pfl.train.settings import read_settings
from p2pfl.train.stacked_sampling import DeployedKeys
from p2pfl.types import PeerId

PLAN = """
import csv
import torch
from torch import nn

def load(path):
    with open(path, newline="") as file:
        rows = [[float(value) for value in row] for row in list(csv.reader(file))[1:]]
    table = torch.tensor(rows, dtype=torch.float64)
    return {"train": (table[:, :-1], table[:, -1].long())}

def model():
    return nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 3))

def loss(model, batch):
    x, label = batch
    return nn.functional.cross_entropy(model(x), label, reduction="none")

def metrics(model, batch):
    x, label = batch
    return {"accuracy": (model(x).argmax(-1) == label).double().mean()}
"""
FEATURES = 6


def settings_of(rule: str = "dpsgd", **more: Any) -> dict[str, Any]:
    return {
        "rule": rule, "optimiser": {"name": "sgd"}, "learning_rate": 0.1, "local_steps": 3, "batch_size": 8,
        "dtype": "float64", **more,
    }  # fmt: skip


def tables(sites: int, seed: int = 5) -> list[tuple[Tensor, Tensor]]:
    """Unequal sites: some have fewer examples than a batch."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(sites):
        x = rng.normal(loc=0.3 * number, size=(5 + 9 * number, FEATURES))
        label = (x[:, 0] + x[:, 1] * x[:, 2] > 0.2).astype(int) + (x[:, 3] > 1)
        found.append((torch.from_numpy(x), torch.from_numpy(label)))
    return found


def write(folder: Path, data: Sequence[tuple[Tensor, Tensor]]) -> list[Path]:
    files = []
    for number, (x, label) in enumerate(data):
        path = folder / f"data-{number}.csv"
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow([*(f"x{column}" for column in range(FEATURES)), "label"])
            writer.writerows([*map(repr, row), kind] for row, kind in zip(x.tolist(), label.tolist(), strict=True))
        files.append(path)
    return files


def joined(data: Sequence[tuple[Tensor, Tensor]]) -> tuple[tuple[Tensor, Tensor], list[np.ndarray]]:
    """The common examples, and who has which."""
    stops = np.cumsum([len(label) for _, label in data])
    rows = [np.arange(stop - len(label), stop) for stop, (_, label) in zip(stops, data, strict=True)]
    return (torch.cat([x for x, _ in data]), torch.cat([label for _, label in data])), rows


@dataclass
class Deployed:
    """A run of real sessions that is over."""

    x: Tensor  # [n, P] in the schedule's order
    schedule: Schedule
    initial: bytes
    keys: list[bytes]
    run: bytes
    order: list[int]  # number of the data file of each site of the schedule


def in_memory(folder: Path, data: Any, settings: dict[str, Any], topology: Any, rounds: int, closing: int) -> Deployed:
    """Real machines, sessions, signatures and seals."""
    world = Bottle(write(folder, data), PLAN, settings, topology=topology, rounds=rounds, closing_rounds=closing)
    world.begin()
    world.run()
    assert world.done()
    schedule = world.machine(0).context.running_schedule
    sites = [world.sites[peer] for peer in schedule.nodes]
    return Deployed(
        torch.stack([site.session.vector for site in sites]), schedule, world.initial, [site.key for site in sites],
        bytes.fromhex(world.machine(0).context.running.run), [world.order.index(peer) for peer in schedule.nodes],
    )  # fmt: skip


def virtual_clock(
    folder: Path, data: Any, settings: dict[str, Any], topology: Any, rounds: int, closing: int,
    steps: Sequence[int] | None = None,
) -> Deployed:  # fmt: skip
    """Real machines and sessions under the virtual clock; ``steps`` of each file's site where they differ."""
    files = write(folder, data)

    def trainer(number: int) -> Session:
        session = Session(PLAN.encode(), settings)
        session.load_data(str(files[number]))
        return session

    world = VirtualConsortium(
        len(data), topology=topology, rounds=rounds, closing_rounds=closing, training=trainer,
        samples=[len(label) for _, label in data], local_steps=steps or settings["local_steps"],
        deadline=600.0, folder=folder,
    )  # fmt: skip
    world.begin()
    assert world.run(world.done, limit_seconds=1e6)
    schedule = world.machines[0].context.running_schedule
    numbers = [world.numbers[peer] for peer in schedule.nodes]
    sites = [world.sites[number] for number in numbers]
    vectors: list[Tensor] = [site.trainer.vector for site in sites]  # type: ignore[attr-defined]
    run = bytes.fromhex(world.proposal.run)
    return Deployed(torch.stack(vectors), schedule, world.initial, [site.key for site in sites], run, numbers)


def vectorised(deployed: Deployed, data: Any, settings: dict[str, Any], **more: Any) -> VectorisedRun:
    """The engine on the same data, keys and first parameters; not yet run."""
    train, rows = joined(data)
    return VectorisedRun(
        PlanCode(PLAN.encode()), read_settings(settings), train, [rows[number] for number in deployed.order],
        deployed.schedule, seed=1, initial=deployed.initial, sampling=DeployedKeys(deployed.keys, deployed.run),
        **{"execution": "eager", **more},
    )  # fmt: skip


def finished(run: VectorisedRun) -> VectorisedRun:
    """All rounds."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        while not run.done:
            run.step()
    return run


def schedule_of(
    spec: Any, sites: int, rounds: int, closing: int = 0, shares: Sequence[float] | None = None, staleness: int = 0
) -> Schedule:
    nodes = [PeerId(f"{number:06d}") for number in range(sites)]
    return Schedule(spec, nodes, dict(zip(nodes, shares or [1.0] * sites, strict=True)), rounds, closing, staleness)


def engine(
    data: Any, topology: Any, *, rounds: int = 10, closing: int = 0, plan: str = PLAN, seed: int = 3,
    settings: dict[str, Any] | None = None, **more: Any,
) -> VectorisedRun:  # fmt: skip
    """A run of the engine alone, weighted by the sizes of the sites' data."""
    train, rows = joined(data)
    schedule = schedule_of(topology, len(data), rounds, closing, [float(len(label)) for _, label in data])
    return VectorisedRun(
        PlanCode(plan.encode()), read_settings(settings or settings_of()), train, rows, schedule,
        seed=seed, **{"execution": "eager", **more},
    )  # fmt: skip
