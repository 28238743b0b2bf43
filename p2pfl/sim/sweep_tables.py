"""The tables of a sweep: those of its runs below each other, with columns of what was varied."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from p2pfl.sim.results import Columns
from p2pfl.sim.scenario import SHORT

if TYPE_CHECKING:
    from p2pfl.sim.sweeps import Cell


def labelled(cell: Cell, columns: Columns) -> Columns:
    """The columns of one cell with what was varied and the seed before them.

    What is varied under the name of a column ("seconds") is told under its whole one ("time.seconds").
    """
    rows = len(next(iter(columns.values())))
    head: Columns = {
        SHORT.get(name, name) if name in columns else name: np.full(rows, str(value), dtype=object)
        for name, value in cell.changes.items()
    }
    return {"setting": np.full(rows, cell.setting, dtype=object), **head, "seed": np.full(rows, cell.seed), **columns}


def joined(parts: Sequence[Columns]) -> Columns:
    """Tables below each other; columns that one of them lacks are not a number there, or empty."""
    names = list(dict.fromkeys(name for part in parts for name in part))
    table: Columns = {}
    for name in names:
        text = any(name in part and part[name].dtype == object for part in parts)
        pieces = []
        for part in parts:
            rows = len(next(iter(part.values())))
            pieces.append(
                part[name] if name in part else np.full(rows, "" if text else np.nan, object if text else float)
            )
        table[name] = np.concatenate(pieces)
    return table
