"""The demo's hospitals: real patients' data, divided as documented, and the file each hospital is granted.

Built in: Wisconsin breast cancer (diagnostic), which ships in scikit-learn, among four imagined hospitals.
From a folder: UCI heart disease, whose four hospitals are real and keep their names.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from p2pfl.errors import ConfigError, DataError

BUILT_IN = (("Lille", 0.4), ("Rouen", 0.3), ("Caen", 0.2), ("Amiens", 0.1))
"""Name and share of the patients of each built-in hospital."""

RADIUS_NOISE = 7.0  # twice the spread of the mean radius itself (3.52): hospitals differ, and overlap
LEAST_PER_LABEL = 4  # patients at each hospital: one to test, three to train; 1 draw in 60 has fewer
DRAWS_LIMIT = 100  # 1 in 60 to the power of 100 never happens
TEST_SHARE = 0.25  # of the patients of each label at each hospital

HEART = {
    "Cleveland": "processed.cleveland.data",
    "Hungary": "processed.hungarian.data",
    "Switzerland": "processed.switzerland.data",
    "VA": "processed.va.data",
}
HEART_ATTRIBUTES = (
    "age", "sex", "cp", "trestbps", "chol", "fbs", "restecg", "thalach", "exang", "oldpeak", "slope", "ca",
    "thal",
)  # fmt: skip
HEART_ROWS_LIMIT = 10_000  # the four files have 920 rows together; another file by mistake is refused early
MISSING = ("?", "-9", "-9.0")  # both signs of the data set's description

Sampler = np.random.Generator


@dataclass(frozen=True, slots=True)
class Hospital:
    """One hospital's patients. Arrays are never changed."""

    name: str
    features: tuple[str, ...]
    values: NDArray[np.float64]  # [n, features]; not-a-number where missing
    labels: NDArray[np.int64]  # [n]; 1 is diseased (malignant)
    test: NDArray[np.bool_]  # [n]; patients kept for testing

    @property
    def patients(self) -> int:
        """All patients, of both parts."""
        return len(self.labels)

    @property
    def columns(self) -> tuple[str, ...]:
        """The header of the granted file."""
        return (*self.features, "label", "part")

    def rows(self) -> list[list[str]]:
        """The rows of the granted file; a missing value is an empty cell."""
        return [
            [
                *("" if np.isnan(value) else f"{value:.10g}" for value in row),
                str(label),
                "test" if test else "train",
            ]
            for row, label, test in zip(self.values, self.labels, self.test, strict=True)
        ]


def builtin_hospitals(seed: int) -> list[Hospital]:
    """Wisconsin breast cancer among Lille, Rouen, Caen and Amiens (40, 30, 20, 10 %), largest nuclei first.

    Patients are sorted by mean radius + normal noise of standard deviation RADIUS_NOISE, largest first, and
    cut by share. The noise is drawn again while a hospital has fewer than LEAST_PER_LABEL patients of a
    label. 25 % of each hospital's patients of each label are for testing. ``seed`` draws noise and split.
    Raises ConfigError where scikit-learn is missing.
    """
    try:
        from sklearn.datasets import load_breast_cancer
    except ImportError as error:
        raise ConfigError(
            "the built-in data come with scikit-learn, which is not installed; run "
            "pip install 'p2pfl-consortium[demo]', or give real data with --data DIR"
        ) from error
    found = load_breast_cancer()
    features = tuple(str(name) for name in found.feature_names)
    values = np.asarray(found.data, dtype=np.float64)
    labels = 1 - np.asarray(found.target, dtype=np.int64)  # scikit-learn writes 1 for benign
    sampler = _sampler(seed)
    radius = values[:, features.index("mean radius")]
    places = _divided(radius, labels, sampler)
    return [
        _hospital(name, features, values[chosen], labels[chosen], sampler)
        for (name, _), chosen in zip(BUILT_IN, places, strict=True)
    ]


def heart_hospitals(folder: Path, seed: int) -> list[Hospital]:
    """Cleveland, Hungary, Switzerland and VA of the UCI heart disease data in ``folder`` (processed.*.data).

    ``seed`` draws the 25 % test patients of each label at each hospital. Raises ConfigError where the folder
    or a file is missing, DataError where a file is damaged.
    """
    if not folder.is_dir():
        raise ConfigError(f"there is no folder {folder}; give the one with the UCI heart disease files")
    missing = [file for file in HEART.values() if not (folder / file).is_file()]
    if missing:
        raise ConfigError(
            f"{folder} lacks {', '.join(missing)}; put the four processed.*.data files of the UCI "
            "heart disease data set there"
        )
    sampler = _sampler(seed)
    hospitals = []
    for name, file in HEART.items():
        values, labels = _read_heart(folder / file)
        hospitals.append(_hospital(name, HEART_ATTRIBUTES, values, labels, sampler))
    return hospitals


def charter_order(hospitals: Sequence[Hospital]) -> list[Hospital]:
    """The order in the charter: large and small hospitals take turns, as Lille, Caen, Rouen, Amiens."""
    middle = (len(hospitals) + 1) // 2
    pairs = zip_longest(hospitals[:middle], hospitals[middle:])
    return [hospital for pair in pairs for hospital in pair if hospital is not None]


def write_csv(hospital: Hospital, path: Path) -> None:
    """The file the hospital grants: header, one row per patient. ConfigError if it can't be written."""
    _write([hospital], path)


def write_everybody(hospitals: Sequence[Hospital], path: Path) -> None:
    """All hospitals' patients in one file, as no hospital has it: for the evaluator only."""
    _write(hospitals, path)


def _write(hospitals: Sequence[Hospital], path: Path) -> None:
    try:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(hospitals[0].columns)
            for hospital in hospitals:
                writer.writerows(hospital.rows())
    except OSError as error:
        raise ConfigError(f"couldn't write {path}: {error.strerror}; choose a folder that can be written") from error


def _hospital(
    name: str,
    features: tuple[str, ...],
    values: NDArray[np.float64],
    labels: NDArray[np.int64],
    sampler: Sampler,
) -> Hospital:
    test = np.zeros(len(labels), dtype=np.bool_)
    for label in (0, 1):
        places = np.flatnonzero(labels == label)
        test[sampler.permutation(places)[: round(TEST_SHARE * len(places))]] = True
    return Hospital(name, features, values, labels, test)


def _divided(radius: NDArray[np.float64], labels: NDArray[np.int64], sampler: Sampler) -> list[NDArray[np.int64]]:
    """Positions of each built-in hospital's patients."""
    cuts = np.rint(np.cumsum([share for _, share in BUILT_IN][:-1]) * len(radius)).astype(int)
    for _ in range(DRAWS_LIMIT):
        noisy = radius + sampler.normal(0.0, RADIUS_NOISE, len(radius))
        places = np.split(np.argsort(-noisy, kind="stable"), cuts)
        if min(np.bincount(labels[chosen], minlength=2).min() for chosen in places) >= LEAST_PER_LABEL:
            return places
    raise DataError("couldn't divide the patients among the hospitals; install scikit-learn again")


def _sampler(seed: int) -> Sampler:
    if seed < 0:
        raise ConfigError(f"the seed {seed} is negative; give 0 or more")
    return np.random.default_rng(seed)


def _read_heart(path: Path) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    try:
        with path.open(newline="", encoding="ascii") as file:
            rows = [row for _, row in zip(range(HEART_ROWS_LIMIT + 1), filter(None, csv.reader(file)), strict=False)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"couldn't read {path}: {error}; get the file again") from error
    if not 1 <= len(rows) <= HEART_ROWS_LIMIT:
        raise DataError(f"{path} has {'no' if not rows else 'too many'} rows; get the file again")
    numbers = np.array([_heart_row(path, line, row) for line, row in enumerate(rows, start=1)])
    return numbers[:, :-1], (numbers[:, -1] > 0).astype(np.int64)


def _heart_row(path: Path, line: int, row: list[str]) -> list[float]:
    if len(row) != len(HEART_ATTRIBUTES) + 1:
        raise DataError(
            f"{path}, row {line} has {len(row)} values instead of {len(HEART_ATTRIBUTES) + 1}; get the file again"
        )
    try:
        values = [float("nan") if cell.strip() in MISSING else float(cell) for cell in row]
    except ValueError as error:
        raise DataError(f"{path}, row {line}: {error}; get the file again") from error
    if not np.isin(values[-1], range(5)) or np.isinf(values).any():
        raise DataError(f"{path}, row {line}: the diagnosis {row[-1]!r} is not 0 to 4; get the file again")
    return values
