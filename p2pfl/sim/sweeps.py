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

from p2pfl.errors import ConfigError, P2PFLError, StoreError
from p2pfl.files import write_atomic
from p2pfl.sim.report import write_report
from p2pfl.sim.results import FACTS, FORMAT, ROUNDS, SITES, Columns, SimResult, parquet_bytes
from p2pfl.sim.scenario import SHORT, Scenario, placed, varied

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
    """Where cells run. Yields them as they end, or the error that ended one; stops after an interrupted one."""

    def run(self, cells: Sequence[Cell], watch: Watch | None) -> Iterator[tuple[Cell, SimResult | P2PFLError]]:
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
    _check_different(cells)
    return cells


def _check_different(cells: Sequence[Cell]) -> None:
    """ConfigError for settings that are the same run: what was varied has no effect. Copies of files may be."""
    known: dict[tuple[str, str, str], str] = {}
    for cell in cells:
        other = known.setdefault((cell.key, cell.scenario.scenario.plan, repr(cell.scenario.data)), cell.setting)
        if other != cell.setting:
            raise ConfigError(
                f"{other} and {cell.setting} are the same run: what differs between them changes nothing in this "
                "scenario; vary something else, or add the table that it belongs to"
            )


@dataclass
class Sweep:
    """What a sweep came to."""

    groups: Groups
    """The results by setting: whole ones, and one that was interrupted."""
    failed: dict[str, str]
    """Why a run ended with an error (training diverged), by setting and seed."""
    waiting: int
    """Runs that have no result yet."""


def sweep(
    cells: Sequence[Cell], folder: Path, backend: Backend, *, resume: bool, command: str = "", title: str = "",
    watch: Watch | None = None,
) -> Sweep:  # fmt: skip
    """Run what is not there yet; tables and report are written however it ends.

    A run that fails does not keep the others from running. ConfigError if the folder holds another sweep, or results
    without ``resume``; StoreError.
    """
    found = _stored(cells, folder, resume)
    state = _State(cells, folder, title, command, found)
    state.write()  # that the folder can be written is known before anything is trained
    waiting = list({cell.key: cell for cell in cells if cell.key not in found}.values())
    try:
        for cell, outcome in backend.run(waiting, watch):
            state.take(cell, outcome)
    except KeyboardInterrupt:
        pass  # what was made is there; the caller sees what waits
    finally:
        state.finish()
    return Sweep(state.groups(), dict(state.failed), sum(cell.key not in found for cell in cells) - len(state.failed))


class _State:
    """What there is of a sweep, in memory and on disk."""

    def __init__(
        self, cells: Sequence[Cell], folder: Path, title: str, command: str, found: dict[str, SimResult]
    ) -> None:
        self._cells, self._folder, self._found = cells, folder, found
        self._title, self._command = title, command
        self.failed: dict[str, str] = {}
        self._reasons: dict[str, str] = {}

    def take(self, cell: Cell, outcome: SimResult | P2PFLError) -> None:
        """One run has ended."""
        if isinstance(outcome, P2PFLError):
            self.failed[f"{cell.setting}, seed {cell.seed}"] = self._reasons[cell.key] = str(outcome)
            return
        outcome.facts["setting"] = cell.setting
        outcome.save(self._folder / CELLS / cell.key)
        outcome.parameters = None  # not saved; a sweep of large runs would fill the memory with them
        self._found[cell.key] = outcome

    def groups(self) -> Groups:
        """Results by setting, in the order of the cells."""
        groups: Groups = {}
        for cell in self._cells:
            if cell.key in self._found:
                groups.setdefault(cell.setting, []).append(self._found[cell.key])
        return groups

    def finish(self) -> None:
        """State, tables and report."""
        self.write()
        groups = self.groups()
        if groups:
            there = [cell for cell in self._cells if cell.key in self._found]
            for name, table in ((ROUNDS, "rounds"), (SITES, "sites")):
                parts = [labelled(cell, getattr(self._found[cell.key], table)) for cell in there]
                write_atomic(self._folder / name, parquet_bytes(joined(parts)), private=False)
            said = {"title": self._title, "command": self._command}
            write_report(groups, self._folder / REPORT, **said, failed=self.failed)

    def write(self) -> None:
        """``sweep.json``."""
        rows = [
            {
                "setting": cell.setting, "changes": dict(cell.changes), "seed": cell.seed, "key": cell.key,
                "state": self._of(cell.key), **({"why": why} if (why := self._reasons.get(cell.key)) else {}),
            }
            for cell in self._cells
        ]  # fmt: skip
        facts = {"format": FORMAT, "title": self._title, "command": self._command, "cells": rows}
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"couldn't make {self._folder}: {error.strerror}; give another --out") from error
        write_atomic(self._folder / SWEEP, json.dumps(facts, indent=1, default=str).encode(), private=False)

    def _of(self, key: str) -> str:
        if key in self._reasons:
            return "failed"
        result = self._found.get(key)
        if result is None:
            return "waiting"
        return "interrupted" if result.interrupted else "done"


def _stored(cells: Sequence[Cell], folder: Path, resume: bool) -> dict[str, SimResult]:
    """The whole results of these cells that are there, after checking that the folder may be used."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file; give a folder with --out")
    stored = {place.parent.name for place in folder.glob(f"{CELLS}/*/{FACTS}")}
    if not stored and folder.is_dir() and any(folder.iterdir()) and not (folder / SWEEP).exists():
        raise ConfigError(f"{folder} holds something else; give an empty or a new folder with --out")
    if stored and not resume:
        raise ConfigError(f"{folder} holds {len(stored)} results already; go on with --resume, or give another --out")
    others = stored - {cell.key for cell in cells}
    if others:
        raise ConfigError(
            f"{folder} holds {len(others)} results of other runs (another scenario, plan, data or fewer seeds now); "
            "give another --out"
        )
    found = {}
    for key in stored:
        try:
            result = SimResult.load(folder / CELLS / key)
        except ConfigError:
            continue  # cut or damaged: it is made again
        if not result.interrupted:
            found[key] = result
    return found


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


def load_groups(folder: Path) -> Groups:
    """The results in a folder that a sweep, or `SimResult.save`, has written, by setting. Raises ConfigError."""
    if os.path.isfile(folder / FACTS):  # unlike Path.is_file, no error for a name too long
        result = SimResult.load(folder)
        return {str(result.facts.get("setting") or result.facts.get("name") or folder.name): [result]}
    if not os.path.isfile(folder / SWEEP):
        raise ConfigError(f"{folder} holds no results of simulations; give a folder that p2pfl sim has written")
    groups: Groups = {}
    for setting, key in ((row["setting"], row["key"]) for row in _rows(folder)):
        if _KEY.fullmatch(key) and (folder / CELLS / key / FACTS).is_file():
            groups.setdefault(setting, []).append(SimResult.load(folder / CELLS / key))
    if not groups:
        raise ConfigError(f"no run in {folder} is complete; go on with --resume")
    return groups


def load_failed(folder: Path) -> dict[str, str]:
    """Why runs of a sweep in a folder ended with an error, by setting and seed. Raises ConfigError."""
    rows = _rows(folder) if os.path.isfile(folder / SWEEP) else []
    return {f"{row['setting']}, seed {row['seed']}": row["why"] for row in rows if row["why"]}


def _rows(folder: Path) -> list[dict[str, str]]:
    try:
        cells = json.loads((folder / SWEEP).read_bytes())["cells"]
        names = ("setting", "seed", "key", "why")
        return [{name: str(({"why": ""} | row)[name]) for name in names} for row in cells]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{folder / SWEEP} cannot be read ({error}); simulate again with --resume") from error
