"""What only the engine, the timing and the disk would refuse: asked before the first of many runs begins."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from p2pfl.data import Examples, Parts
from p2pfl.errors import ConfigError
from p2pfl.extras import optional
from p2pfl.sim.vector_setup import check_run

if TYPE_CHECKING:
    from p2pfl.sim.preparing import Simulation


def check_simulation(simulation: Simulation) -> None:
    """Whether engine and timing take the run. Raises ConfigError or PlanError."""
    # both read checked simulations, which are made by who asks here
    from p2pfl.sim.conduct import vector_fault
    from p2pfl.sim.pace import check_pace

    settings, schedule = simulation.settings, simulation.schedule
    faults = [vector_fault(fault, simulation, place) for place, fault in enumerate(simulation.faults)]
    recorded = simulation.time is not None and simulation.time.clock == "machines"
    most = int(simulation.each.max())
    check_run(settings, simulation.layout, schedule, None, faults, most=most, recorded=recorded)
    check_pace(simulation)


def check_examples(examples: Examples) -> None:
    """Whether all values are finite, and test examples are there if the array for them is. Raises ConfigError."""
    for part, arrays in (("training", examples.train), ("test", examples.test)):
        for array in arrays:
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise ConfigError(f"the {part} examples have missing or infinite values; fill them first")
    if examples.test and not len(examples.test[0]):
        raise ConfigError("there are no test examples in the arrays for them; give some, or leave the arrays out")


def check_parts(parts: Any, peers: int, examples: int) -> None:
    """Whether a partition of the caller's own gives each peer some of the examples, for itself. Raises ConfigError."""
    if not isinstance(parts, Parts) or len(parts.rows) != peers:
        found = len(parts.rows) if isinstance(parts, Parts) else type(parts).__name__
        raise ConfigError(f"the partition gave {found} where {peers} peers' parts are needed; return p2pfl.data.Parts")
    counts = np.array([len(rows) for rows in parts.rows])
    if not counts.all():
        raise ConfigError(f"the partition gives peer {counts.argmin()} no examples; give every peer at least one")
    rows = np.concatenate(parts.rows)
    wrong = np.flatnonzero((rows < 0) | (rows >= examples))
    if len(wrong):
        peer = int(np.searchsorted(np.cumsum(counts), wrong[0], side="right"))
        raise ConfigError(
            f"the partition gives peer {peer} row {rows[wrong[0]]} of {examples} examples; give rows from 0 to "
            f"{examples - 1}"
        )
    _check_apart(rows, np.repeat(np.arange(peers), counts))


def _check_apart(rows: np.ndarray, holders: np.ndarray) -> None:
    """ConfigError where one row is given twice: an example that two peers hold counts twice in the weighted mean."""
    order = np.argsort(rows, kind="stable")
    twice = np.flatnonzero(np.diff(rows[order]) == 0)
    if not len(twice):
        return
    row, (one, other) = int(rows[order[twice[0]]]), holders[order[twice[0] : twice[0] + 2]].tolist()
    who = f"row {row} to peer {one} and to peer {other}" if one != other else f"row {row} twice to peer {one}"
    raise ConfigError(f"the partition gives {who}; give each row once, to one peer")


def check_libraries() -> None:
    """The libraries that write results. Raises ConfigError where one is missing."""
    for name in ("pyarrow", "pyarrow.parquet", "matplotlib", "matplotlib.figure"):
        optional(name, "sim")


def check_folder(folder: Path) -> None:
    """Whether results can be written into a folder that may not be there yet; makes nothing. Raises ConfigError."""
    try:
        folder.stat()
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:  # a name too long, a file among its parents, a NUL
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"{str(folder)[:200]} cannot hold results: {reason}; give another folder") from error
    above = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not os.access(above, os.W_OK | os.X_OK):
        raise ConfigError(f"{folder} cannot hold results: nothing may be written in {above}; give another folder")
