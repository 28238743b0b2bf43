"""Where a run is between two rounds, in a file: a run that was cut off goes on from there, to the same numbers.

A file holds the engine's tensors (`p2pfl.sim.vector_state`), the rows so far, what they cost, and how local steps were
computed. Who has examples, the schedule, simulated time and all that is drawn are functions of the round. The file is
numpy's npz, which is written array by array and checked by sums when it is read; of numbers alone, never pickled.
"""

from __future__ import annotations

import json
import os
import time
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from p2pfl.errors import StoreError
from p2pfl.files import replace_atomic

FORMAT = 1
HEAD, ROWS = "head", "rows/"  # names of arrays: the head as JSON; before the names of columns
EVERY_SECONDS = 60.0  # that are lost at most, and a round
SHARE = 20  # and so many times as long as writing took: one twentieth of a run at most is writing


@dataclass(frozen=True)
class Checkpoint:
    """One run after ``round`` rounds."""

    round: int
    execution: Mapping[str, Any]
    """How local steps are computed, as arguments of `VectorisedRun`: measured again, another way could win."""
    cost: dict[str, float]
    rows: Mapping[str, Any]  # columns over the rounds, numpy arrays by name
    tensors: Mapping[str, Any]  # numpy arrays by name


class CheckpointWarning(UserWarning):
    """A checkpoint could not be written; the run goes on."""


class Checkpoints:
    """The file of one run. Its folder, and that no other run writes into it, are the caller's."""

    def __init__(
        self, path: Path, *, every: float = EVERY_SECONDS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """``every``: seconds between two of them, by ``clock``."""
        self._path, self._every, self._clock = path, every, clock
        self._last, self._took = clock(), 0.0

    @property
    def due(self) -> bool:
        """Whether the last one, or the beginning, is long enough ago."""
        return self._clock() - self._last >= max(self._every, SHARE * self._took)

    def save(self, checkpoint: Checkpoint) -> None:
        """Replace the file. Raises StoreError; the old one then still stands."""
        began = self._clock()
        self._last = began  # also where it fails: tried again when the next one is due
        self._remove_unfinished()
        head = {
            "format": FORMAT, "round": checkpoint.round, "execution": dict(checkpoint.execution),
            "cost": checkpoint.cost, "rows": [*checkpoint.rows],
        }  # fmt: skip
        arrays = {**checkpoint.tensors, **{ROWS + name: column for name, column in checkpoint.rows.items()}}
        arrays[HEAD] = np.frombuffer(json.dumps(head).encode(), dtype=np.uint8)
        replace_atomic(self._path, lambda file: np.savez(file, allow_pickle=False, **arrays), private=False)
        self._last = self._clock()
        self._took = self._last - began

    def load(self, *, tensors: bool = True) -> Checkpoint | None:
        """What is there, or its head without any array; None for nothing, a damaged file, or one of another format."""
        if not os.path.isfile(self._path):
            return None
        try:
            with self._path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
                head = json.loads(file[HEAD].tobytes())
                if head["format"] != FORMAT:
                    return None
                arrays = {name: file[name] for name in file.files if name != HEAD} if tensors else {}
                rows = {name: arrays.pop(ROWS + name) for name in (head["rows"] if tensors else ())}
                return Checkpoint(int(head["round"]), dict(head["execution"]), dict(head["cost"]), rows, arrays)
        except (OSError, zipfile.BadZipFile, ValueError, KeyError, TypeError, EOFError):
            return None

    def remove(self) -> None:
        """The run is over: nothing stays. Raises StoreError."""
        self._remove_unfinished()
        _unlink(self._path)

    def _remove_unfinished(self) -> None:
        """What a process wrote that was killed then."""
        for path in self._path.parent.glob(f"{self._path.name}.*.new"):
            _unlink(path)


def _unlink(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise StoreError(f"couldn't remove {path}: {error.strerror}; check the folder's rights") from error


def arrays_of(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Tensors as arrays on the CPU; views where they lie there already."""
    return {name: value.detach().cpu().contiguous().numpy() for name, value in tensors.items()}
