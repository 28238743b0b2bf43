"""Many runs: every combination of what is varied, with every seed; each cell is stored as it ends, and never run twice.

A sweep is a folder: ``cells/KEY/`` with one result each, ``sweep.json``, all rounds and sites in ``rounds.parquet`` and
``sites.parquet`` (with columns of what was varied), and ``report.html``. KEY depends on everything that decides a
cell's numbers, so that a cell is known again under ``resume`` exactly if it would come out the same.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from p2pfl.errors import ConfigError, P2PFLError
from p2pfl.files import write_atomic
from p2pfl.sim.checkpoints import Checkpoints
from p2pfl.sim.report import write_report
from p2pfl.sim.results import FORMAT, ROUNDS, SITES, SimResult, parquet_bytes
from p2pfl.sim.scenario import Scenario, placed, varied
from p2pfl.sim.sweep_folder import (
    CELLS,
    REPORT,
    SWEEP,
    Groups,
    check_usable,
    checkpoints_of,
    locked,
    longer,
    mark_begun,
    mark_ended,
    stored,
    was_begun,
)
from p2pfl.sim.sweep_tables import as_read, joined, labelled

MOST_CELLS = 10_000


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

    goes_on: bool
    """Whether a run that was cut off goes on from its checkpoint."""

    def run(
        self, cells: Sequence[Cell], watch: Watch | None, checkpoints: Callable[[Cell], Checkpoints] | None = None
    ) -> Iterator[tuple[Cell, SimResult | P2PFLError]]:
        """Run the cells; from their checkpoints on where ``goes_on``."""


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
        setting = ", ".join(f"{name}={as_read(value)}" for name, value in changes.items()) or scenario.scenario.name
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
    watch: Watch | None = None, tell: Callable[[str], None] | None = None,
) -> Sweep:  # fmt: skip
    """Run what is not there yet; tables and report are written however it ends.

    A run that fails does not keep the others from running. One that was cut off goes on from its checkpoint, or begins
    again from round 0, which ``tell`` is told. ConfigError if the folder holds another sweep, or results without
    ``resume``, or if another sweep is at work in it; StoreError.
    """
    check_usable(folder)
    with locked(folder):
        found = stored(cells, folder, resume)
        state = _State(cells, folder, title, command, found)
        state.write()  # that the folder can be written is known before anything is trained
        waiting = list({cell.key: cell for cell in cells if cell.key not in found}.values())
        if tell is not None:
            for cell in waiting:
                if was_begun(folder, cell.key):
                    tell(f"{cell.setting}, seed {cell.seed}, was cut off: it {_then(folder, cell, backend)}")
        try:
            for cell, outcome in backend.run(
                waiting, _Marking(folder, watch), lambda cell: checkpoints_of(folder, cell.key)
            ):
                state.take(cell, outcome)
        except KeyboardInterrupt:
            pass  # what was made is there; the caller sees what waits
        finally:
            _finish(state, tell)
    left = sum(cell.key not in found for cell in cells) - len(state.failed)
    return Sweep(state.groups(), dict(state.failed), left)


def _finish(state: _State, tell: Callable[[str], None] | None) -> None:
    try:
        state.finish()
    except KeyboardInterrupt:
        if tell is not None:
            tell(
                f"interrupted while tables and report were written into {state.folder}; all runs' own results are "
                "there, and the same command with --resume writes the rest"
            )
        raise


def _then(folder: Path, cell: Cell, backend: Backend) -> str:
    """What becomes of a run that was cut off."""
    before = checkpoints_of(folder, cell.key).load(tensors=False) if backend.goes_on else None
    return "begins again from round 0" if before is None else f"goes on after round {before.round}"


class _Marking:
    """Marks each run that begins, so that one which was killed is known; passes on what the watch is told."""

    def __init__(self, folder: Path, watch: Watch | None) -> None:
        self._folder, self._watch = folder, watch

    def cell(self, cell: Cell, done: int, cells: int) -> None:
        mark_begun(self._folder, cell.key)
        if self._watch is not None:
            self._watch.cell(cell, done, cells)

    def round(self, done: int, rounds: int) -> None:
        if self._watch is not None:
            self._watch.round(done, rounds)


class _State:
    """What there is of a sweep, in memory and on disk."""

    def __init__(
        self, cells: Sequence[Cell], folder: Path, title: str, command: str, found: dict[str, SimResult]
    ) -> None:
        self._cells, self.folder, self._found = cells, folder, found
        self._title, self._command = title, command
        self.failed: dict[str, str] = {}
        self._reasons: dict[str, str] = {}

    def take(self, cell: Cell, outcome: SimResult | P2PFLError) -> None:
        """One run has ended."""
        if isinstance(outcome, P2PFLError):
            self.failed[f"{cell.setting}, seed {cell.seed}"] = self._reasons[cell.key] = str(outcome)
            self._ended(cell)
            return
        outcome.facts["setting"] = cell.setting
        outcome = longer(self.folder, cell.key, outcome) if outcome.interrupted else outcome
        outcome.save(self.folder / CELLS / cell.key)
        self._ended(cell, go_on=outcome.interrupted)
        outcome.parameters = None  # not saved; a sweep of large runs would fill the memory with them
        self._found[cell.key] = outcome

    def _ended(self, cell: Cell, *, go_on: bool = False) -> None:
        """Its outcome is on disk, or its error in memory."""
        mark_ended(self.folder, cell.key)
        if not go_on:
            checkpoints_of(self.folder, cell.key).remove()

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
                write_atomic(self.folder / name, parquet_bytes(joined(parts)), private=False)
            said = {"title": self._title, "command": self._command}
            write_report(groups, self.folder / REPORT, **said, failed=self.failed)

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
        write_atomic(self.folder / SWEEP, json.dumps(facts, indent=1, default=str).encode(), private=False)

    def _of(self, key: str) -> str:
        if key in self._reasons:
            return "failed"
        result = self._found.get(key)
        if result is None:
            return "waiting"
        return "interrupted" if result.interrupted else "done"
