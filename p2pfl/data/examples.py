"""Examples to train and test on, as arrays: what loaders return and what partitions divide."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from p2pfl.errors import ConfigError, DataError
from p2pfl.keyed_stream import KeyedStream

Array = np.ndarray[Any, Any]
MOST_CLASSES = 10_000  # more different labels than this are numbers to predict, not classes


@dataclass(frozen=True, eq=False)
class Examples:
    """Arrays whose first dimension counts examples; the last one of ``train`` and ``test`` holds the labels.

    As a plan's ``load`` returns them: (inputs, labels), or more inputs before the labels. DataError for arrays that do
    not fit together.
    """

    train: tuple[Array, ...]
    test: tuple[Array, ...] = ()
    columns: Mapping[str, Array] = field(default_factory=dict)
    """Further facts for each training example (a hospital's id), which the model does not see."""
    name: str = ""

    def __post_init__(self) -> None:
        if len(self.train) < 2:
            raise DataError("examples need inputs and labels; give two arrays at least")
        _check_equal_lengths("the training arrays", self.train)
        if not len(self.labels):
            raise DataError("there are no training examples; give one at least")
        if self.test:
            _check_equal_lengths("the test arrays", self.test)
            if [array.shape[1:] for array in self.test] != [array.shape[1:] for array in self.train]:
                raise DataError("test and training arrays differ in number or form; load both alike")
        for name, column in self.columns.items():
            if not isinstance(column, np.ndarray) or column.shape != (len(self),) or column.dtype.kind == "O":
                raise DataError(
                    f"the column {name} must be an array of one number or word for each of the {len(self)} examples"
                )

    @property
    def labels(self) -> Array:
        """The labels of the training examples, [examples, ...]."""
        return self.train[-1]

    def __len__(self) -> int:
        """Number of training examples."""
        return len(self.labels)

    def holding_out(self, share: float, seed: int) -> Examples:
        """The same with ``share`` of the training examples moved to ``test``.

        Of each class alike where there are classes; at least one example stays on each side. A pure function of
        seed and labels. ConfigError unless 0 < share < 1 and there are two examples at least; DataError if there
        are test examples already.
        """
        if not 0 < share < 1 or len(self) < 2:
            raise ConfigError(f"couldn't hold out a share of {share} of {len(self)} examples; give one between 0 and 1")
        if self.test:
            raise DataError("there are test examples already; hold out only where there are none")
        order = KeyedStream("p2pfl held out", seed).permutation(len(self))
        if is_classes(self.labels):
            _, codes = classes_of(self.labels)
            order = order[np.argsort(codes[order], kind="stable")]
        # Every 1/share-th example in this order: each class gives its share, rounded up or down.
        marks = np.floor((np.arange(len(self)) + 1) * share + 0.5).astype(np.int64)
        out = np.diff(marks, prepend=0) > 0
        if not out.any() or out.all():
            out[:] = False
            out[0] = True
        kept, held = np.sort(order[~out]), np.sort(order[out])
        return replace(
            self,
            train=tuple(array[kept] for array in self.train),
            test=tuple(array[held] for array in self.train),
            columns={name: column[kept] for name, column in self.columns.items()},
        )


def from_arrays(
    inputs: Any,
    labels: Any,
    test_inputs: Any = None,
    test_labels: Any = None,
    *,
    columns: Mapping[str, Any] | None = None,
    name: str = "arrays",
) -> Examples:
    """Examples of plain arrays, lists or CPU tensors; inputs given as lists become float32."""
    test = () if test_inputs is None else (_inputs(test_inputs), _array(test_labels, "test labels"))
    return Examples(
        (_inputs(inputs), _array(labels, "labels")),
        test,
        {key: _array(column, f"column {key}") for key, column in (columns or {}).items()},
        name,
    )


def is_classes(labels: Array) -> bool:
    """Whether labels name classes: words, truth values or whole numbers, one each, not too many different ones."""
    if np.ndim(labels) != 1:
        return False
    kind = labels.dtype.kind
    if kind == "f" and not (np.isfinite(labels).all() and (labels == np.rint(labels)).all()):
        return False
    return kind in "fbiuUS" and len(np.unique(labels)) <= MOST_CLASSES


def classes_of(labels: Array) -> tuple[Array, Array]:
    """(the classes, sorted; each example's class as its place there, int64). DataError if labels are no classes."""
    if not is_classes(labels):
        raise DataError(
            "these labels are no classes (they are real numbers, vectors, or too many different ones); "
            "divide by size, by a column, or at random instead"
        )
    classes, codes = np.unique(labels, return_inverse=True)
    return classes, codes.astype(np.int64)


def _check_equal_lengths(what: str, arrays: tuple[Array, ...]) -> None:
    if any(not isinstance(array, np.ndarray) or array.ndim == 0 for array in arrays):
        raise DataError(f"{what} must be numpy arrays with one entry per example; convert them")
    lengths = [len(array) for array in arrays]
    if len(set(lengths)) != 1:
        raise DataError(f"{what} have {', '.join(map(str, lengths))} entries; give one of each per example")


def _inputs(values: Any) -> Array:
    array = _array(values, "inputs")
    return array if hasattr(values, "dtype") or array.dtype.kind not in "fiu" else array.astype(np.float32)


def _array(values: Any, what: str) -> Array:
    try:
        array = np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:  # ragged lists; tensors on a GPU or with a gradient
        raise DataError(f"couldn't make one array of the {what} ({str(error)[:120]}); give them one form") from error
    if array.dtype.kind == "O":
        raise DataError(f"the {what} hold mixed types; give numbers, or words")
    return array
