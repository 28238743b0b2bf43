"""Malignant or benign, from 30 measurements of cell nuclei in a fine needle aspirate: logistic regression.

The file has one row per patient: the 30 measurements of the Wisconsin breast cancer (diagnostic) data set,
``label`` (0 benign, 1 malignant) and ``part`` (train or test). All scaling constants are written here, so
nobody has to share a statistic.
"""

from __future__ import annotations

import csv
from pathlib import Path

import torch
from torch import Tensor, nn

# measurement: (least, greatest) value in the summary statistics of the data set's published description
RANGES = {
    "mean radius": (6.981, 28.11),
    "mean texture": (9.71, 39.28),
    "mean perimeter": (43.79, 188.5),
    "mean area": (143.5, 2501.0),
    "mean smoothness": (0.053, 0.163),
    "mean compactness": (0.019, 0.345),
    "mean concavity": (0.0, 0.427),
    "mean concave points": (0.0, 0.201),
    "mean symmetry": (0.106, 0.304),
    "mean fractal dimension": (0.05, 0.097),
    "radius error": (0.112, 2.873),
    "texture error": (0.36, 4.885),
    "perimeter error": (0.757, 21.98),
    "area error": (6.802, 542.2),
    "smoothness error": (0.002, 0.031),
    "compactness error": (0.002, 0.135),
    "concavity error": (0.0, 0.396),
    "concave points error": (0.0, 0.053),
    "symmetry error": (0.008, 0.079),
    "fractal dimension error": (0.001, 0.03),
    "worst radius": (7.93, 36.04),
    "worst texture": (12.02, 49.54),
    "worst perimeter": (50.41, 251.2),
    "worst area": (185.2, 4254.0),
    "worst smoothness": (0.071, 0.223),
    "worst compactness": (0.027, 1.058),
    "worst concavity": (0.0, 1.252),
    "worst concave points": (0.0, 0.291),
    "worst symmetry": (0.156, 0.664),
    "worst fractal dimension": (0.055, 0.208),
}


def load(path: Path) -> dict[str, tuple[Tensor, ...]]:
    """Inputs [n, 30], the published range scaled to -1 to 1, and labels [n] of both parts."""
    parts: dict[str, list[tuple[list[float], float]]] = {"train": [], "test": []}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            parts[row["part"]].append((inputs(row), float(row["label"])))
    return {
        part: (torch.tensor([row[0] for row in rows]), torch.tensor([row[1] for row in rows]))
        for part, rows in parts.items()
        if rows
    }


def inputs(row: dict[str, str]) -> list[float]:
    """The 30 inputs of one patient."""
    return [2 * (float(row[name]) - least) / (greatest - least) - 1 for name, (least, greatest) in RANGES.items()]


def model() -> nn.Module:
    """One weight per input and a bias, from zero."""
    linear = nn.Linear(len(RANGES), 1)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


def loss(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    """Cross entropy [B]."""
    x, label = batch
    logit: Tensor = model(x).squeeze(-1)
    return nn.functional.binary_cross_entropy_with_logits(logit, label, reduction="none")


def metrics(model: nn.Module, batch: tuple[Tensor, ...]) -> dict[str, float]:
    """The AUC: how often a malignant case is ranked above a benign one. Nothing where one kind is absent."""
    x, label = batch
    score, bad = model(x).squeeze(-1), label > 0.5
    above = score[bad].unsqueeze(1) - score[~bad].unsqueeze(0)
    if above.numel() == 0:
        return {}
    return {"auc": float(((above > 0).double() + 0.5 * (above == 0).double()).mean())}
