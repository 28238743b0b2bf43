"""The tables of a sweep: those of its runs below each other, with columns of what was varied."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from p2pfl.sim.results import Columns
from p2pfl.sim.scenario import SHORT

if TYPE_CHECKING:
    from p2pfl.sim.sweeps import Cell


def labelled(cell: Cell, columns: Columns) -> Columns:
    """The columns of one cell with what was varied and the seed before them.

    What is varied under the name of a column ("seconds") is told under its whole one ("time.seconds"). Numbers stay
    numbers; all else is text.
    """
    rows = len(next(iter(columns.values())))
    head = {
        SHORT.get(name, name) if name in columns else name: _repeated(value, rows)
        for name, value in cell.changes.items()
    }
    return {"setting": np.full(rows, cell.setting, dtype=object), **head, "seed": np.full(rows, cell.seed), **columns}


def as_read(value: Any) -> str:
    """A value that was varied, as a person reads it: of a kind with the rest behind, regular (degree=4, seed=0)."""
    if not isinstance(value, Mapping) or "kind" not in value:
        return str(value)
    rest = ", ".join(f"{name}={one}" for name, one in value.items() if name != "kind")
    return f"{value['kind']} ({rest})" if rest else str(value["kind"])


def joined(parts: Sequence[Columns]) -> Columns:
    """Tables below each other; columns that one of them lacks are not a number there, or empty.

    A column with any text is text in all rows.
    """
    names = list(dict.fromkeys(name for part in parts for name in part))
    table: Columns = {}
    for name in names:
        text = any(name in part and part[name].dtype == object for part in parts)
        pieces = []
        for part in parts:
            rows = len(next(iter(part.values())))
            if name not in part:
                pieces.append(np.full(rows, "" if text else np.nan, object if text else float))
            else:
                pieces.append(_as_text(part[name]) if text else part[name])
        table[name] = np.concatenate(pieces)
    return table


def _repeated(value: Any, rows: int) -> np.ndarray:
    number = isinstance(value, float) or (isinstance(value, int) and not isinstance(value, bool) and _is_int64(value))
    return np.full(rows, value) if number else np.full(rows, as_read(value), dtype=object)


def _is_int64(value: int) -> bool:
    return -(2**63) <= value < 2**63


def _as_text(column: np.ndarray) -> np.ndarray:
    return column if column.dtype == object else np.array([str(value) for value in column.tolist()], dtype=object)
