"""A small plan and small examples for simulations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from p2pfl.data import Examples
from p2pfl.keyed_stream import KeyedStream

PLAN_TOML = """[plan]
name = "blobs"

[data]
tag = "blobs"

[training]
rule = "dpsgd"
learning_rate = 0.2
local_steps = 3
batch_size = 8
rounds = 6
closing_rounds = 1
"""

PLAN_PY = '''"""Three clouds of points in the plane."""

import csv

import torch
from torch import nn


def load(path):
    with path.open(newline="") as file:
        rows = [[float(cell) for cell in row] for row in csv.reader(file)]
    table = torch.tensor(rows)
    return {"train": (table[:, :2], table[:, 2].long())}


def model():
    return nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 3))


def loss(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def metrics(model, batch):
    return {"accuracy": float((model(batch[0]).argmax(-1) == batch[1]).float().mean())}
'''

SCENARIO = """[scenario]
name = "blobs"
plan = "plan"
peers = 6
rounds = 6
seeds = 2

[data]
kind = "csv"
path = "blobs.csv"
label = "cloud"
test_share = 0.2

[partition]
kind = "dirichlet"
alpha = 0.5

[topology]
kind = "ring"
"""


def blobs(many: int = 240) -> Examples:
    """Three clouds of points around the corners of a triangle."""
    stream = KeyedStream("blobs", 7)
    labels = np.arange(many) % 3
    centres = np.array([[0.0, 2.0], [2.0, -1.0], [-2.0, -1.0]])
    noise = np.stack([sum(stream.uniforms(many) for _ in range(6)) - 3.0 for _ in range(2)], axis=1)
    inputs = (centres[labels] + noise).astype(np.float32)
    return Examples(
        (inputs[: many - 60], labels[: many - 60]), (inputs[many - 60 :], labels[many - 60 :]), name="blobs"
    )


def write_plan(folder: Path, **training: Any) -> Path:
    """The plan's folder."""
    folder.mkdir()
    (folder / "plan.py").write_text(PLAN_PY)
    more = "".join(f"{name} = {value}\n" for name, value in training.items())
    (folder / "plan.toml").write_text(PLAN_TOML + more)
    return folder


def write_scenario(folder: Path, text: str = SCENARIO) -> Path:
    """A folder with a scenario, its plan and its data; returns the scenario."""
    write_plan(folder / "plan")
    examples = blobs()
    rows = [f"{x[0]:.6f},{x[1]:.6f},{label}" for x, label in zip(*examples.train, strict=True)]
    (folder / "blobs.csv").write_text("x,y,cloud\n" + "\n".join(rows) + "\n")
    (folder / "blobs.toml").write_text(text)
    return folder / "blobs.toml"
