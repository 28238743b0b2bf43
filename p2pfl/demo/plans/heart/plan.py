"""Heart disease (yes or no) from what a first visit and an exercise test give: logistic regression.

The file has one row per patient: the 13 attributes of the UCI heart disease data set, an empty cell where a
value is missing, ``label`` (0 healthy, 1 diseased) and ``part`` (train or test).

Three attributes (slope, ca, thal) are not read: outside Cleveland they are mostly missing. No input says
*that* a value is missing: it would tell the model the hospital instead of the patient. All scaling constants
are written here, so nobody has to share a statistic.
"""

from __future__ import annotations

import csv
from pathlib import Path

import torch
from torch import Tensor, nn

# attribute: (centre, scale): round clinical figures, not computed from the patients; a missing value becomes
# the centre, a missing yes or no becomes no.
SCALES = {
    "age": (55.0, 10.0),  # years
    "trestbps": (130.0, 20.0),  # mm Hg, resting
    "chol": (240.0, 50.0),  # mg/dl
    "thalach": (140.0, 25.0),  # beats per minute, the highest of the exercise test
    "oldpeak": (1.0, 1.0),  # mm of ST depression in the exercise test
}
ZERO_IS_MISSING = ("trestbps", "chol")  # nobody has a blood pressure or a cholesterol of 0
YES_OR_NO = ("sex", "fbs", "exang")  # male, fasting sugar above 120 mg/dl, angina in the exercise test
CODES = {
    "cp": ("1", "2", "3", "4"),
    "restecg": ("0", "1", "2"),
}  # chest pain, resting ECG: one input per code
INPUTS = len(SCALES) + len(YES_OR_NO) + sum(map(len, CODES.values()))  # 15


def load(path: Path) -> dict[str, tuple[Tensor, ...]]:
    """Inputs [n, 15] and labels [n] of both parts."""
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
    """The 15 inputs of one patient."""
    values = []
    for name, (centre, scale) in SCALES.items():
        value = float(row[name]) if row[name] else centre
        missing = value == 0 and name in ZERO_IS_MISSING
        values.append(0.0 if missing else (value - centre) / scale)
    values += [float(row[name]) if row[name] else 0.0 for name in YES_OR_NO]
    values += [float(row[name] == code) for name, codes in CODES.items() for code in codes]
    return values


def model() -> nn.Module:
    """One weight per input and a bias, from zero."""
    linear = nn.Linear(INPUTS, 1)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


def loss(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    """Cross entropy [B]."""
    x, label = batch
    logit: Tensor = model(x).squeeze(-1)
    return nn.functional.binary_cross_entropy_with_logits(logit, label, reduction="none")


def metrics(model: nn.Module, batch: tuple[Tensor, ...]) -> dict[str, float]:
    """The AUC: how often a diseased patient is ranked above a healthy one. Empty if one kind is absent."""
    x, label = batch
    score, sick = model(x).squeeze(-1), label > 0.5
    above = score[sick].unsqueeze(1) - score[~sick].unsqueeze(0)
    if above.numel() == 0:
        return {}
    return {"auc": float(((above > 0).double() + 0.5 * (above == 0).double()).mean())}
