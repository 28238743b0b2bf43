"""Handwritten digits of 8 x 8 pixels (64 inputs of 0 to 16): a network of one hidden layer, 64-64-10."""

from __future__ import annotations

import csv
from pathlib import Path

import torch
from torch import Tensor, nn

LARGEST = 16.0  # of a pixel


def load(path: Path) -> dict[str, tuple[Tensor, ...]]:
    """A CSV file with 64 columns of pixels and the digit last; every fifth row is a test example."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = [[float(cell) for cell in row] for row in csv.reader(file)]
    table = torch.tensor(rows)
    test = torch.arange(len(table)) % 5 == 4
    return {part: (table[at, :-1], table[at, -1].long()) for part, at in (("train", ~test), ("test", test))}


def model() -> nn.Module:
    """One hidden layer of 64."""
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def loss(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    """Cross entropy [B]."""
    pixels, digit = batch
    return nn.functional.cross_entropy(model(pixels / LARGEST), digit, reduction="none")


def metrics(model: nn.Module, batch: tuple[Tensor, ...]) -> dict[str, float]:
    """The share of digits that are told right."""
    pixels, digit = batch
    return {"accuracy": float((model(pixels / LARGEST).argmax(-1) == digit).float().mean())}
