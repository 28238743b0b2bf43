"""Made-up patients for the examples: age, blood pressure, readmitted or not."""

from __future__ import annotations

import csv
import random
from pathlib import Path


def write_patients(path: Path, count: int, seed: int) -> Path:
    """A CSV file with ``count`` patients; the old and the hypertensive come back more often."""
    draw = random.Random(seed)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["age", "pressure", "readmitted"])
        for _ in range(count):
            age, pressure = draw.gauss(62, 14), draw.gauss(128, 18)
            risk = (age - 62) / 14 + (pressure - 128) / 18 + draw.gauss(0, 0.7)
            writer.writerow([f"{age:.1f}", f"{pressure:.1f}", int(risk > 0)])
    return path
