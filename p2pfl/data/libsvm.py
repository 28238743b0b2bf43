"""LIBSVM text files, plain or .gz: one example per line, ``label index:value index:value ...``.

Indices count from 1 and ascend.
Source: Chang and Lin, "LIBSVM: a library for support vector machines", README, "sparse format".
"""

from __future__ import annotations

from array import array
from pathlib import Path

import numpy as np

from p2pfl.data.examples import Array, Examples
from p2pfl.data.reading import check_size, opened
from p2pfl.errors import ConfigError, DataError

LINE_LIMIT = 2**22  # bytes; 200,000 features of one example
MOST_FEATURES = 2**24  # an index beyond is a damaged line, not a feature


def from_libsvm(train: Path | str, test: Path | str | None = None, *, features: int | None = None) -> Examples:
    """Dense float32 inputs [examples, features] and labels int64 (float32 where they are not whole), as in the files.

    ``features``: at least so many; by default the largest index in either file. Labels of two classes -1 and 1 become
    0 and 1, which losses expect. DataError for a line that is not of the format or files too large for memory (4 GiB).
    """
    if features is not None and not 1 <= features <= MOST_FEATURES:
        raise ConfigError(f"{features} features; give a number from 1 to {MOST_FEATURES}")
    sides = [_Sparse(Path(path)) for path in (train, test) if path is not None]
    largest = max(side.features for side in sides)
    if features is not None and largest > features:
        raise DataError(f"{sides[0].path} has features up to {largest}, more than {features}; ask for more")
    width = features or largest
    if not width:
        raise DataError(f"{sides[0].path} names no feature at all; check the file")
    labels = _labels([np.array(side.labels) for side in sides])
    arrays = [(side.dense(width), found) for side, found in zip(sides, labels, strict=True)]
    return Examples(arrays[0], arrays[1] if len(arrays) > 1 else (), name=Path(train).name.partition(".")[0])


class _Sparse:
    """One file's numbers as they come: positions and values, a few lines at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.labels, self.values = array("d"), array("d")
        self.columns, self.ends = array("q"), array("q")
        self.features = 0
        with opened(path) as file:
            number = 0
            while line := file.readline(LINE_LIMIT + 1):
                number += 1
                if len(line) > LINE_LIMIT:
                    raise DataError(f"{path}: line {number} has more than {LINE_LIMIT} bytes; this is no LIBSVM file")
                self._take(number, line)
        if not self.labels:
            raise DataError(f"{path} holds no examples; check the file")

    def _take(self, number: int, line: bytes) -> None:
        parts = line.partition(b"#")[0].split()
        if not parts:
            return
        try:
            if b"_" in line:  # Python would read 1_0 as ten
                raise ValueError
            self.labels.append(float(parts[0]))
            before = 0
            for part in parts[1:]:
                index, _, value = part.partition(b":")
                column = int(index)
                if not before < column <= MOST_FEATURES:
                    raise ValueError
                self.columns.append(column - 1)
                self.values.append(float(value))
                before = column
        except ValueError:
            raise DataError(
                f"{self.path}: line {number} is not 'label index:value ...' with ascending indices from 1 to "
                f"{MOST_FEATURES}; mend that line"
            ) from None
        self.features = max(self.features, before)
        self.ends.append(len(self.columns))
        check_size(self.path, 1, len(self.columns), 16)

    def dense(self, width: int) -> Array:
        check_size(self.path, len(self.labels), width)
        dense = np.zeros((len(self.labels), width), dtype=np.float32)
        ends = np.array(self.ends, dtype=np.int64)
        places = np.repeat(np.arange(len(ends)), np.diff(ends, prepend=0))
        dense[places, np.array(self.columns, dtype=np.int64)] = np.array(self.values)
        if not np.isfinite(dense).all():
            raise DataError(f"{self.path} holds values that are infinite or not numbers; mend the file")
        return dense


def _labels(sides: list[Array]) -> list[Array]:
    """All files' labels, treated alike."""
    found = np.concatenate(sides)
    if not np.isfinite(found).all():
        raise DataError("a label is infinite or not a number; mend the file")
    if set(np.unique(found).tolist()) == {-1.0, 1.0}:
        return [(side > 0).astype(np.int64) for side in sides]
    whole = (found == np.rint(found)).all() and np.abs(found).max() < 2**53
    return [side.astype(np.int64 if whole else np.float32) for side in sides]
