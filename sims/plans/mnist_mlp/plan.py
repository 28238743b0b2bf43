"""Handwritten digits of 28 x 28 pixels (784 inputs of 0 to 1): a network of one hidden layer, 784-32-10."""

from __future__ import annotations

import csv
from pathlib import Path

import torch
from torch import Tensor, nn

PIXELS, HIDDEN, DIGITS = 784, 32, 10


def load(path: Path) -> dict[str, tuple[Tensor, ...]]:
    """A CSV file with 784 columns of pixels and the digit last; every fifth row is a test example."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = [[float(cell) for cell in row] for row in csv.reader(file)]
    table = torch.tensor(rows)
    test = torch.arange(len(table)) % 5 == 4
    return {part: (table[at, :-1], table[at, -1].long()) for part, at in (("train", ~test), ("test", test))}


def model() -> nn.Module:
    """One hidden layer."""
    return nn.Sequential(nn.Linear(PIXELS, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, DIGITS))


def loss(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    """Cross entropy [B]."""
    pixels, digit = batch
    return nn.functional.cross_entropy(model(pixels), digit, reduction="none")


def metrics(model: nn.Module, batch: tuple[Tensor, ...]) -> dict[str, float]:
    """The share of digits that are told right."""
    pixels, digit = batch
    return {"accuracy": float((model(pixels).argmax(-1) == digit).float().mean())}
