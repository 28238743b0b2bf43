"""Does training together help each hospital, and does it reach pooling? UCI heart disease, many test splits.

Four real hospitals on the default ring, the demo's own plan, through the update rules alone (no peers, no
ports). For each split seed: the hospitals together, each alone with the same steps, and the yardstick with
all training patients in one place.

    python sims/heart_splits.py --data DIR [--splits 100] [--json]

DIR is the folder with processed.cleveland.data and the other three; without --data: P2PFL_DATA/heart. Writes
sims/heart_splits.md (not with --json, which prints every split's figures instead).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from p2pfl.demo.evaluation import Evaluation
from p2pfl.demo.hospitals import heart_hospitals
from p2pfl.demo.in_memory import PLANS, run_in_memory
from p2pfl.errors import P2PFLError
from p2pfl.governance import read_plan

TABLE = Path(__file__).with_suffix(".md")
CLOSE = 0.01  # the claim: together within this of pooled

Figures = NDArray[np.float64]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study; exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of the UCI heart disease files")
    parser.add_argument("--splits", type=int, default=100, help="split seeds 0 to this, less one (100)")
    parser.add_argument("--json", action="store_true", help="print all figures as JSON and write no table")
    options = parser.parse_args(arguments)
    folder = options.data or Path(os.environ.get("P2PFL_DATA", "")) / "heart"
    if options.splits < 2:
        parser.error("--splits must be 2 or more")
    torch.set_num_threads(1)  # as in the peers' workers: figures do not depend on the number of cores
    try:
        found = [split(folder, seed, quiet=options.json) for seed in range(options.splits)]
    except P2PFLError as error:
        print(f"heart_splits: {error}", file=sys.stderr)
        return 1
    if options.json:
        print(json.dumps([{"seed": seed, **item.as_dict()} for seed, item in enumerate(found)]))
        return 0
    text = report(found)
    print(text)
    TABLE.write_text(text, encoding="utf-8")
    return 0


def split(folder: Path, seed: int, *, quiet: bool) -> Evaluation:
    """One split: its seed also gives initial parameters and sampling keys."""
    found = run_in_memory(PLANS / "heart", heart_hospitals(folder, seed), seed).evaluation
    if not quiet:
        print(f"split {seed}: together {found.together:.4f}, pooled {found.pooled:.4f}", file=sys.stderr)
    return found


def report(found: Sequence[Evaluation]) -> str:
    """The page: claims first, then the tables they come from."""
    names = [row.name for row in found[0].rows]
    pooled_home = np.array([[item.pooled_home[name] for name in names] for item in found])
    lines = [
        "# Heart disease at four hospitals: alone, together, pooled",
        "",
        *setting(len(found)),
        "",
        *claims(found),
        "",
        "## On everybody's test patients",
        "",
        *gains(names, column(found, "alone"), column(found, "together")),
        "",
        "## At home",
        "",
        *gains(names, column(found, "alone_home"), column(found, "together_home"), pooled_home),
        "",
        "## Trained alone at (row), tested at (column)",
        "",
        *matrix(found, names),
        "",
        "## How to get it again",
        "",
        f"`python sims/heart_splits.py --data DIR --splits {len(found)}` with the four processed.*.data",
        "files of the UCI heart disease data set (CC BY 4.0) in DIR. Made on a machine with",
        f"{os.cpu_count()} cores ({platform.machine()}, {platform.system()}), CPython",
        f"{platform.python_version()}, torch {torch.__version__.split('+')[0]}, one thread.",
        "",
    ]
    return "\n".join(lines)


def setting(splits: int) -> list[str]:
    """What was run, in words."""
    training = read_plan(PLANS / "heart").settings.training
    return [
        f"{splits} splits (seeds 0 to {splits - 1}); 25 % of each hospital's patients of each label are for",
        "testing.",
        f"Logistic regression with 15 inputs; {training.rounds} rounds of {training.local_steps} steps,",
        f"batch {training.batch_size}, learning rate {training.learning_rate}; D-PSGD on the ring,",
        f"sample shares, {training.closing_rounds} closing rounds. AUC: mean ± standard deviation",
        "over splits.",
    ]


def claims(found: Sequence[Evaluation]) -> list[str]:
    """Together against pooled."""
    together, pooled = np.array([[item.together, item.pooled] for item in found]).T
    difference = together - pooled
    close = int((np.abs(difference) <= CLOSE).sum())
    return [
        f"- Together (mean over the hospitals) is within {CLOSE} of pooled in {close} of {len(found)}",
        f"  splits; mean difference {difference.mean():+.4f}, least {difference.min():+.4f}, greatest",
        f"  {difference.max():+.4f}.",
        f"- On everybody's test patients: together {spread(together)}, pooled {spread(pooled)}.",
    ]


def gains(names: Sequence[str], alone: Figures, together: Figures, pooled: Figures | None = None) -> list[str]:
    """One row per hospital; columns are [splits, hospitals]."""
    header = ["hospital", "alone", "together", "gain", "splits with a gain"]
    rows = []
    for place, name in enumerate(names):
        gain = together[:, place] - alone[:, place]
        rows.append(
            [
                name,
                spread(alone[:, place]),
                spread(together[:, place]),
                f"{gain.mean():+.3f}",
                f"{int((gain > 0).sum())} of {len(gain)}",
            ]
        )
        if pooled is not None:
            rows[-1].append(spread(pooled[:, place]))
    return table(header if pooled is None else [*header, "pooled"], rows)


def column(found: Sequence[Evaluation], name: str) -> Figures:
    """One figure of every hospital in every split: [splits, hospitals]."""
    return np.array([[getattr(row, name) for row in item.rows] for item in found], dtype=np.float64)


def matrix(found: Sequence[Evaluation], names: Sequence[str]) -> list[str]:
    """Mean AUC of each hospital's own model at each hospital."""
    places = list(found[0].matrix[names[0]])
    rows = [
        [name, *(f"{np.mean([item.matrix[name][place] for item in found]):.3f}" for place in places)] for name in names
    ]
    return table(["", *places], rows)


def spread(values: Figures) -> str:
    """Mean and standard deviation."""
    return f"{values.mean():.3f} ± {values.std(ddof=1):.3f}"


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    """A Markdown table."""
    return [f"| {' | '.join(map(str, row))} |" for row in (header, ["---"] * len(header), *rows)]


if __name__ == "__main__":
    sys.exit(main())
