"""The folder of a sweep: who may write into it, what is there already, and reading it again."""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from p2pfl.errors import ConfigError, StoreError
from p2pfl.sim.checkpoints import Checkpoints
from p2pfl.sim.results import FACTS, SimResult

if TYPE_CHECKING:
    from p2pfl.sim.sweeps import Cell

SWEEP, REPORT, CELLS, LOCK = "sweep.json", "report.html", "cells", "sweep.lock"
BEGUN = "begun"  # beside a run's result: it was begun, and has not ended
CHECKPOINT = "checkpoint.npz"  # beside it, too
_KEY = re.compile("[0-9a-f]{16}")

Groups = dict[str, list[SimResult]]


def check_usable(folder: Path) -> None:
    """ConfigError for a file, and for a folder that holds something else than a sweep."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file; give a folder with --out")
    if not folder.is_dir() or (folder / SWEEP).exists() or any(folder.glob(f"{CELLS}/*/{FACTS}")):
        return
    if any(place.name != LOCK for place in folder.iterdir()):
        raise ConfigError(f"{folder} holds something else; give an empty or a new folder with --out")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One sweep per folder, which is made: an flock on its lock file, held to the end, or to that of the process.

    Raises ConfigError while another sweep holds it, StoreError where the disk refuses.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise StoreError(f"couldn't write into {folder}: {error.strerror}; give another --out") from error
    try:
        _lock(file, folder)
        yield
    finally:
        os.close(file)


def _lock(file: int, folder: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConfigError(
            f"another p2pfl sim is at work in {folder}; wait until it has ended, or give another --out"
        ) from None
    except OSError:
        pass  # file systems of some clusters know no locks; a sweep is better than none


def stored(cells: Sequence[Cell], folder: Path, resume: bool) -> dict[str, SimResult]:
    """The whole results of these cells that are there. ConfigError for those of others, or without ``resume``."""
    there = {place.parent.name for name in (FACTS, CHECKPOINT) for place in folder.glob(f"{CELLS}/*/{name}")}
    if there and not resume:
        raise ConfigError(
            f"{folder} holds {len(there)} results or parts of them already; go on with --resume, or give another --out"
        )
    others = there - {cell.key for cell in cells}
    if others:
        raise ConfigError(
            f"{folder} holds {len(others)} results of other runs (another scenario, plan, data, other values or fewer "
            "seeds now); give another --out"
        )
    found = {}
    for key in there:
        try:
            result = SimResult.load(folder / CELLS / key)
        except ConfigError:
            continue  # cut or damaged: it is made again
        if not result.interrupted:
            found[key] = result
            checkpoints_of(folder, key).remove()  # cut off between the result and its removal
    return found


def longer(folder: Path, key: str, result: SimResult) -> SimResult:
    """The longer part of one run: this one, or what an earlier interrupted attempt left there."""
    try:
        before = SimResult.load(folder / CELLS / key)
    except ConfigError:
        return result
    return before if before.interrupted and before.rounds["round"][-1] > result.rounds["round"][-1] else result


def mark_begun(folder: Path, key: str) -> None:
    """A run begins: whoever finds the mark later without a whole result knows that it was cut off. StoreError."""
    try:
        (folder / CELLS / key).mkdir(parents=True, exist_ok=True)
        (folder / CELLS / key / BEGUN).touch()
    except OSError as error:
        raise StoreError(f"couldn't write into {folder}: {error.strerror}; check space and rights") from error


def mark_ended(folder: Path, key: str) -> None:
    """Its outcome is known."""
    (folder / CELLS / key / BEGUN).unlink(missing_ok=True)


def checkpoints_of(folder: Path, key: str) -> Checkpoints:
    """Where a run was when it was cut off."""
    return Checkpoints(folder / CELLS / key / CHECKPOINT)


def was_begun(folder: Path, key: str) -> bool:
    """Whether there are traces of a run: of one that was killed, interrupted, or whose result is damaged."""
    return any((folder / CELLS / key / name).exists() for name in (BEGUN, FACTS))


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
        failed = load_failed(folder)
        for which, why in failed.items():
            raise ConfigError(f"no run in {folder} is complete, {len(failed)} failed, as {which}: {why}")
        raise ConfigError(f"no run in {folder} is complete; go on with --resume")
    return groups


def load_failed(folder: Path) -> dict[str, str]:
    """Why runs of a sweep in a folder ended with an error, by setting and seed. Raises ConfigError."""
    rows = _rows(folder) if os.path.isfile(folder / SWEEP) else []
    return {f"{row['setting']}, seed {row['seed']}": row["why"] for row in rows if row["why"]}


def load_waiting(folder: Path) -> list[str]:
    """The runs of a sweep in a folder that have no whole result, and did not fail, by setting and seed. ConfigError."""
    rows = _rows(folder) if os.path.isfile(folder / SWEEP) else []
    left = [row for row in rows if not row["why"] and not _whole(folder, row["key"])]
    return [f"{row['setting']}, seed {row['seed']}" for row in left]


def _whole(folder: Path, key: str) -> bool:
    try:
        return bool(_KEY.fullmatch(key)) and not json.loads((folder / CELLS / key / FACTS).read_bytes())["interrupted"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _rows(folder: Path) -> list[dict[str, str]]:
    try:
        cells = json.loads((folder / SWEEP).read_bytes())["cells"]
        names = ("setting", "seed", "key", "why")
        return [{name: str(({"why": ""} | row)[name]) for name in names} for row in cells]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{folder / SWEEP} cannot be read ({error}); simulate again with --resume") from error
