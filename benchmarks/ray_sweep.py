"""What spreading a sweep over a Ray cluster costs: the same runs here and on two local workers, numbers compared.

.venv/bin/python benchmarks/ray_sweep.py SCENARIO [--seeds N] [--workers N] [--json]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from figures import machine, show, table

from p2pfl.sim import Inputs, backend_named, cells_of, read_scenario, sweep, varied


def timed(backend: str, scenario: Any, seeds: int, workers: int, folder: Path) -> tuple[float, dict[str, Any]]:
    """Seconds of the whole sweep, and its results."""
    inputs = Inputs()
    cells = cells_of(scenario, {}, range(seeds), inputs.digest)
    began = time.perf_counter()
    done = sweep(cells, folder / backend, backend_named(backend, inputs, address=None, workers=workers), resume=False)
    return time.perf_counter() - began, done.groups


def measure(path: Path, seeds: int, workers: int) -> dict[str, Any]:
    """Both ways, one after the other."""
    scenario = varied(read_scenario(path), {"execution": "eager"})
    with tempfile.TemporaryDirectory() as folder:
        here, one = timed("here", scenario, seeds, workers, Path(folder))
        there, other = timed("ray", scenario, seeds, workers, Path(folder))
    runs = [pair for name in one for pair in zip(one[name], other[name], strict=True)]
    same = all(
        np.array_equal(a.rounds[column], b.rounds[column], equal_nan=True) for a, b in runs for column in a.rounds
    )
    work = sum(sum(result.cost.values()) for result, _ in runs)
    return {
        "machine": machine(), "runs": len(runs), "workers": workers, "same numbers": same, "seconds here": here,
        "seconds on ray": there, "work": work, "ratio": there / here,
    }  # fmt: skip


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("scenario", type=Path)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    result = measure(chosen.scenario, chosen.seeds, chosen.workers)
    names = ["runs", "workers", "same numbers", "seconds here", "seconds on ray", "ratio"]
    rows = [[result[name] if not isinstance(result[name], bool) else str(result[name]) for name in names]]
    show(result, table("a sweep here and on Ray (its start included)", names, rows), chosen.json)


if __name__ == "__main__":
    main()
