"""Datasets that other libraries hold: those shipped inside scikit-learn, and any torch dataset (no torch needed)."""

from __future__ import annotations

from typing import Any

import numpy as np

from p2pfl.data.examples import Array, Examples, is_classes
from p2pfl.data.reading import MOST_BYTES
from p2pfl.errors import ConfigError, DataError
from p2pfl.extras import optional

SHIPPED = ("breast_cancer", "diabetes", "digits", "iris", "linnerud", "wine")
MOST_EXAMPLES = 10_000_000


def from_scikit_learn(name: str) -> Examples:
    """A set that ships inside scikit-learn, by name: breast_cancer, diabetes, digits, iris, linnerud, wine.

    Inputs float32, labels int64 (classes) or float32. Nothing is ever downloaded. All examples are training examples:
    see ``Examples.holding_out``. ConfigError for another name.
    """
    if name not in SHIPPED:
        raise ConfigError(f"scikit-learn ships no set {str(name)[:40]!r}; choose one of {', '.join(SHIPPED)}")
    inputs, labels = getattr(optional("sklearn.datasets", "sim"), f"load_{name}")(return_X_y=True)
    return Examples((np.asarray(inputs, dtype=np.float32), _labels(np.asarray(labels))), name=name)


def from_torch(train: Any, test: Any = None, *, name: str = "torch") -> Examples:
    """Examples of map-style datasets: anything with ``len(d)`` and ``d[i]`` -> (inputs, ..., label) of one form each.

    Tensors, arrays and numbers alike; float64 inputs become float32. Each example is read once, in order, so random
    augmentation is frozen as it falls. DataError for datasets that do not fit or take more than 4 GiB.
    """
    return Examples(_read(train), () if test is None else _read(test), name=name)


def _read(dataset: Any) -> tuple[Array, ...]:
    try:
        count = len(dataset)
    except TypeError as error:
        raise DataError("the dataset has no length; pass a map-style dataset, not a stream") from error
    if not 0 < count <= MOST_EXAMPLES:
        raise DataError(f"the dataset has {count} examples; give one with 1 to {MOST_EXAMPLES}")
    first = _parts(dataset, 0)
    if count * sum(part.nbytes for part in first) > MOST_BYTES:
        raise DataError(f"the dataset would take more than {MOST_BYTES // 2**30} GiB; take a part of it")
    arrays = [np.empty((count, *part.shape), dtype=part.dtype) for part in first]
    for place in range(count):
        parts = first if place == 0 else _parts(dataset, place)
        if [part.shape for part in parts] != [part.shape for part in first]:
            raise DataError(f"example {place} of the dataset has another form than the first; make all alike")
        for array, part in zip(arrays, parts, strict=True):
            if not np.can_cast(part.dtype, array.dtype, "same_kind"):
                raise DataError(f"example {place} of the dataset has another type than the first; make all alike")
            array[place] = part
    inputs = [array.astype(np.float32) if array.dtype == np.float64 else array for array in arrays[:-1]]
    return (*inputs, _labels(arrays[-1]))


def _parts(dataset: Any, place: int) -> list[Array]:
    try:
        example = dataset[place]
    except (IndexError, KeyError) as error:
        raise DataError(f"the dataset has no example {place}; its length is wrong") from error
    if not isinstance(example, (tuple, list)) or len(example) < 2:
        raise DataError(f"example {place} of the dataset is no pair (inputs, label); return both")
    try:
        parts = [np.asarray(part) for part in example]
    except (TypeError, ValueError, RuntimeError) as error:  # pictures without a transform, tensors on a GPU
        raise DataError(f"example {place} of the dataset is no array ({str(error)[:120]}); convert it") from error
    if any(part.dtype.kind not in "biuf" for part in parts):
        raise DataError(f"example {place} of the dataset holds something else than numbers; convert it to tensors")
    return parts


def _labels(labels: Array) -> Array:
    return labels.astype(np.int64 if labels.dtype.kind in "biu" and is_classes(labels) else np.float32)
