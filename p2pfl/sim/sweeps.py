"""Many runs: every combination of what is varied, with every seed; each cell is stored as it ends, and never run twice.

A sweep is a folder: ``cells/KEY/`` with one result each, ``sweep.json``, all rounds and sites in ``rounds.parquet`` and
``sites.parquet`` (with columns of what was varied), and ``report.html``. KEY depends on everything that decides a
cell's numbers, so that a cell is known again under ``resume`` exactly if it would come out the same.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from p2pfl.errors import ConfigError
from p2pfl.files import write_atomic
from p2pfl.sim.report import write_report
from p2pfl.sim.results import FACTS, FORMAT, ROUNDS, SITES, Columns, SimResult, parquet_bytes
from p2pfl.sim.scenario import Scenario, placed, varied

MOST_CELLS = 10_000
SWEEP, REPORT, CELLS = "sweep.json", "report.html", "cells"
_KEY = re.compile("[0-9a-f]{16}")

Groups = dict[str, list[SimResult]]


@dataclass(frozen=True)
class Cell:
    """One run of a sweep: a setting and a seed. ``inputs`` is the digest of the plan and the data."""

    setting: str  # what was varied, as a person reads it; the scenario's name where nothing was
    changes: Mapping[str, Any]
    scenario: Scenario
    seed: int
    inputs: str

    @property
    def key(self) -> str:
        """16 hexadecimal digits that depend on everything that decides the numbers."""
        values = self.scenario.model_dump()
        # where the plan and the data lie, and what a scenario is called, decide nothing
        for name in ("name", "description", "seeds", "plan"):
            del values["scenario"][name]
        for name in ("path", "test_path"):
            values["data"].pop(name, None)
        text = json.dumps([FORMAT, values, self.seed, self.inputs], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


class Watch(Protocol):
    """Who is told how far things are."""

    def cell(self, cell: Cell, done: int, cells: int) -> None:
        """A cell begins, after ``done`` of ``cells``."""

    def round(self, done: int, rounds: int) -> None:
        """``done`` of ``rounds`` of the present cell are over."""


class Backend(Protocol):
    """Where cells run. Yields them in any order as they end; stops by itself after an interrupted one."""

    def run(self, cells: Sequence[Cell], watch: Watch | None) -> Iterator[tuple[Cell, SimResult]]:
        """Run the cells."""


def cells_of(
    scenario: Scenario, variations: Mapping[str, Sequence[Any]], seeds: Sequence[int],
    inputs: Callable[[Scenario], str], *, then: Mapping[str, Mapping[str, Any]] | None = None,
    beside: Path | None = None,
) -> list[Cell]:  # fmt: skip
    """All combinations with all seeds, in the order given. ConfigError for one that is no scenario, or too many.

    ``beside``: the folder from which paths that are varied count; None: the working folder.
    ``then``: what else changes along with a value, such as the degree with topology "regular".
    """
    many = len(seeds) * int(np.prod([len(values) for values in variations.values()], dtype=np.int64))
    if many > MOST_CELLS:
        raise ConfigError(f"{many} runs are more than {MOST_CELLS}; vary less, or split the sweep")
    cells = []
    for values in itertools.product(*variations.values()):
        changes = dict(zip(variations, values, strict=True))
        setting = ", ".join(f"{name}={value}" for name, value in changes.items()) or scenario.scenario.name
        more = {name: value for one in changes.values() for name, value in (then or {}).get(str(one), {}).items()}
        changed = varied(scenario, changes | more) if changes else scenario
        changed = changed if beside is None else placed(changed, beside)
        digest = inputs(changed)
        cells += [Cell(setting, changes, changed, seed, digest) for seed in seeds]
    return cells


def sweep(
    cells: Sequence[Cell], folder: Path, backend: Backend, *, resume: bool, command: str = "", title: str = "",
    watch: Watch | None = None,
) -> Groups:  # fmt: skip
    """Run what is not there yet, write tables and report; the results by setting.

    After an interrupted cell the tables hold what there is. ConfigError if the folder holds another sweep, or results
    without ``resume``; StoreError.
    """
    known = _known(cells, folder, resume)
    found = {cell.key: SimResult.load(folder / CELLS / cell.key) for cell in cells if cell.key in known}
    waiting = list({cell.key: cell for cell in cells if cell.key not in found}.values())
    for cell, result in backend.run(waiting, watch):
        result.facts["setting"] = cell.setting
        if not result.interrupted:
            result.save(folder / CELLS / cell.key)
        found[cell.key] = result
    groups: Groups = {}
    for cell in cells:
        if cell.key in found:
            groups.setdefault(cell.setting, []).append(found[cell.key])
    if groups:
        write_tables(cells, found, folder, title=title, command=command)
        write_report(groups, folder / REPORT, title=title, command=command)
    return groups


def _known(cells: Sequence[Cell], folder: Path, resume: bool) -> set[str]:
    """The keys of the cells that are there, after checking that the folder may be used."""
    stored = {place.parent.name for place in folder.glob(f"{CELLS}/*/{FACTS}")}
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file; give a folder with --out")
    if not stored and folder.is_dir() and any(folder.iterdir()) and not (folder / SWEEP).exists():
        raise ConfigError(f"{folder} holds something else; give an empty or a new folder with --out")
    if stored and not resume:
        raise ConfigError(f"{folder} holds {len(stored)} results already; go on with --resume, or give another --out")
    return stored & {cell.key for cell in cells}


def write_tables(
    cells: Sequence[Cell], found: Mapping[str, SimResult], folder: Path, *, title: str, command: str
) -> None:
    """``sweep.json`` and the joined tables of all cells that there are."""
    there = [cell for cell in cells if cell.key in found]
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in ((ROUNDS, "rounds"), (SITES, "sites")):
        parts = [labelled(cell, getattr(found[cell.key], table)) for cell in there]
        write_atomic(folder / name, parquet_bytes(joined(parts)), private=False)
    rows = [
        {"setting": cell.setting, "changes": dict(cell.changes), "seed": cell.seed, "key": cell.key, "state": state}
        for cell in cells
        for state in (_state(found.get(cell.key)),)
    ]
    facts = {"format": FORMAT, "title": title, "command": command, "cells": rows}
    write_atomic(folder / SWEEP, json.dumps(facts, indent=1, default=str).encode(), private=False)


def _state(result: SimResult | None) -> str:
    if result is None:
        return "waiting"
    return "interrupted" if result.interrupted else "done"


def labelled(cell: Cell, columns: Columns) -> Columns:
    """The columns of one cell with what was varied and the seed before them."""
    rows = len(next(iter(columns.values())))
    head: Columns = {name: np.full(rows, str(value), dtype=object) for name, value in cell.changes.items()}
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


def load_groups(folder: Path) -> Groups:
    """The results in a folder that a sweep, or `SimResult.save`, has written, by setting. Raises ConfigError."""
    if os.path.isfile(folder / FACTS):  # unlike Path.is_file, no error for a name too long
        result = SimResult.load(folder)
        return {str(result.facts.get("setting") or result.facts.get("name") or folder.name): [result]}
    if not os.path.isfile(folder / SWEEP):
        raise ConfigError(f"{folder} holds no results of simulations; give a folder that p2pfl sim has written")
    try:
        rows = [(str(row["setting"]), str(row["key"])) for row in json.loads((folder / SWEEP).read_bytes())["cells"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{folder / SWEEP} cannot be read ({error}); simulate again with --resume") from error
    groups: Groups = {}
    for setting, key in rows:
        if _KEY.fullmatch(key) and (folder / CELLS / key / FACTS).is_file():
            groups.setdefault(setting, []).append(SimResult.load(folder / CELLS / key))
    if not groups:
        raise ConfigError(f"no run in {folder} is complete; go on with --resume")
    return groups
