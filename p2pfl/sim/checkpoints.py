"""Where a run is between two rounds, in a file: a run that was cut off goes on from there, to the same numbers.

A file holds the engine's tensors (`p2pfl.sim.vector_state`), and, as its metadata, the rows so far and what they cost.
Who has examples, the schedule, simulated time and all that is drawn are functions of the round.
The file is safetensors: numbers and text, nothing that is run when it is read.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.numpy
from safetensors import SafetensorError, safe_open
from torch import Tensor

from p2pfl.errors import StoreError
from p2pfl.files import write_atomic

FORMAT = "1"
ROWS = "rows/"  # before the names of columns
EVERY_SECONDS = 60.0  # that are lost at most, and a round: less than a run's set-up where writing takes long


@dataclass(frozen=True)
class Checkpoint:
    """One run after ``round`` rounds."""

    round: int
    way: str  # of execution: "auto" might measure and choose another one now, which rounds differently
    cost: dict[str, float]
    rows: Mapping[str, Any]  # columns over the rounds, numpy arrays by name
    tensors: Mapping[str, Any]  # numpy arrays by name


class Checkpoints:
    """The file of one run. Its folder, and that no other run writes into it, are the caller's."""

    def __init__(
        self, path: Path, *, every: float = EVERY_SECONDS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """``every``: seconds between two of them, by ``clock``."""
        self._path, self._every, self._clock = path, every, clock
        self._last = clock()

    @property
    def due(self) -> bool:
        """Whether the last one, or the beginning, is long enough ago."""
        return self._clock() - self._last >= self._every

    def save(self, checkpoint: Checkpoint) -> None:
        """Replace the file. Raises StoreError; the old one then still stands."""
        head = {"round": checkpoint.round, "way": checkpoint.way, "cost": checkpoint.cost, "rows": [*checkpoint.rows]}
        arrays = {**checkpoint.tensors, **{ROWS + name: column for name, column in checkpoint.rows.items()}}
        data = safetensors.numpy.save(arrays, {"format": FORMAT, "p2pfl": json.dumps(head)})
        write_atomic(self._path, data, private=False)
        self._last = self._clock()

    def load(self, *, tensors: bool = True) -> Checkpoint | None:
        """What is there, or its head without any array; None for nothing, a damaged file, or one of another format."""
        if not os.path.isfile(self._path):
            return None
        try:
            with safe_open(self._path, framework="numpy") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != FORMAT:
                    return None
                head = json.loads(metadata["p2pfl"])
                arrays = {name: file.get_tensor(name) for name in file.keys()} if tensors else {}  # noqa: SIM118
                rows = {name: arrays.pop(ROWS + name) for name in (head["rows"] if tensors else ())}
                return Checkpoint(int(head["round"]), str(head["way"]), dict(head["cost"]), rows, arrays)
        except (OSError, SafetensorError, ValueError, KeyError, TypeError):
            return None

    def remove(self) -> None:
        """The run is over: nothing stays, also not what a process wrote that was killed then. Raises StoreError."""
        try:
            for path in (self._path, *self._path.parent.glob(f"{self._path.name}.*.new")):
                path.unlink(missing_ok=True)
        except OSError as error:
            raise StoreError(f"couldn't remove {self._path}: {error.strerror}; check the folder's rights") from error


def arrays_of(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Tensors as arrays on the CPU; views where they lie there already."""
    return {name: value.detach().cpu().contiguous().numpy() for name, value in tensors.items()}
