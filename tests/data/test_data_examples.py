"""Examples from arrays, libraries and torch datasets; holding out a test set; what is refused."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from p2pfl.data import Examples, from_arrays, from_scikit_learn, from_torch
from p2pfl.errors import ConfigError, DataError

X, Y = np.zeros((4, 2), np.float32), np.array([0, 1, 0, 1])


def test_examples_of_lists_arrays_and_tensors() -> None:
    examples = from_arrays([[1, 2], [3, 4]], torch.tensor([0, 1]), columns={"hospital": ["Lille", "Caen"]})
    assert examples.train[0].dtype == np.float32 and examples.labels.tolist() == [0, 1]
    assert examples.columns["hospital"].tolist() == ["Lille", "Caen"] and len(examples) == 2
    whole = from_arrays(X, Y, X[:1], Y[:1], name="toy")
    assert len(whole.test) == 2 and whole.name == "toy"


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Examples((X,)), "two arrays at least"),
        (lambda: Examples((X[:0], Y[:0])), "no training examples"),
        (lambda: Examples((X, Y[:3])), "have 4, 3 entries"),
        (lambda: Examples((X, Y), (X, Y[:3])), "the test arrays have 4, 3 entries"),
        (lambda: Examples((X, Y), (X[:, :1], Y)), "differ in number or form"),
        (lambda: Examples((X, Y), (X, X, Y)), "differ in number or form"),
        (
            lambda: Examples((X, Y), columns={"id": Y[:2]}),
            "column id must be an array of one number or word for each of the 4",
        ),
        (lambda: Examples((X, Y), columns={"id": np.array([1, "a", 2, 3], object)}), "column id must be an array"),
        (lambda: Examples((X, 3)), "must be numpy arrays"),  # type: ignore[arg-type]
        (lambda: from_arrays([[1], [1, 2]], Y), "couldn't make one array of the inputs"),
        (lambda: from_arrays(X, [None, 1, 2, 3]), "labels hold mixed types"),
        (lambda: from_arrays(torch.zeros(4, 2, requires_grad=True), Y), "couldn't make one array of the inputs"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(make: Any, says: str) -> None:
    with pytest.raises(DataError, match=says):
        make()


@pytest.mark.parametrize("share", [0.25, 0.1, 0.5, 0.001, 0.999])
def test_held_out_examples_are_of_each_class_alike(share: float) -> None:
    labels = np.arange(600) % 3
    before = Examples((np.arange(600.0)[:, None], labels), columns={"place": np.arange(600)})
    after = before.holding_out(share, 5)
    held = after.test[0].ravel()
    assert sorted([*after.train[0].ravel(), *held]) == list(range(600))
    assert np.array_equal(after.columns["place"], after.train[0].ravel())
    assert 1 <= len(held) <= 599 and abs(len(held) - 600 * share) <= 1
    for kind in range(3):
        assert abs((after.test[1] == kind).sum() - 200 * share) <= 1
    assert np.array_equal(before.holding_out(share, 5).test[0], after.test[0])


def test_held_out_of_real_labels_and_misuse() -> None:
    real = Examples((X, np.linspace(0, 1, 4)))
    assert len(real.holding_out(0.5, 0)) == 2
    for share in (0.0, 1.0, float("nan")):
        with pytest.raises(ConfigError, match="between 0 and 1"):
            real.holding_out(share, 0)
    with pytest.raises(DataError, match="already"):
        real.holding_out(0.5, 0).holding_out(0.5, 0)


@pytest.mark.parametrize(
    ("name", "form", "kind"),
    [
        ("digits", (1797, 64), np.int64),
        ("breast_cancer", (569, 30), np.int64),
        ("wine", (178, 13), np.int64),
        ("iris", (150, 4), np.int64),
        ("diabetes", (442, 10), np.float32),
        ("linnerud", (20, 3), np.float32),
    ],
)
def test_sets_inside_scikit_learn(name: str, form: tuple[int, int], kind: type) -> None:
    examples = from_scikit_learn(name)
    assert examples.train[0].shape == form and examples.train[0].dtype == np.float32
    assert examples.labels.dtype == kind


def test_other_sets_are_not_downloaded() -> None:
    with pytest.raises(ConfigError, match="ships no set 'california_housing'; choose one of breast_cancer"):
        from_scikit_learn("california_housing")


def test_torch_datasets() -> None:
    inputs = torch.arange(12, dtype=torch.float64).reshape(4, 3)
    examples = from_torch(TensorDataset(inputs, torch.tensor([0, 1, 1, 0])), [(np.ones(3), 1)])
    assert examples.train[0].dtype == np.float32 and np.array_equal(examples.train[0], inputs.numpy())
    assert examples.labels.dtype == np.int64 and examples.test[1].tolist() == [1]
    real = from_torch([(np.zeros(2), 0.5), (np.ones(2), 1.5)])
    assert real.labels.dtype == np.float32


class Lying:
    def __len__(self) -> int:
        return 5

    def __getitem__(self, place: int) -> Any:
        return [(np.zeros(2), 0), (np.zeros(2), 1)][place]


@pytest.mark.parametrize(
    ("dataset", "says"),
    [
        (iter([]), "no length"),
        ([], "0 examples"),
        ([np.zeros(2)], "no pair"),
        ([(np.zeros(2), 0), (np.zeros(3), 0)], "example 1 of the dataset has another form"),
        ([(np.zeros(2, np.int64), 0), (np.zeros(2), 0)], "example 1 of the dataset has another type"),
        ([("a picture", 0)], "something else than numbers"),
        ([(torch.zeros(2, requires_grad=True), 0)], "is no array"),
        (Lying(), "no example 2; its length is wrong"),
        ([(np.broadcast_to(np.float32(0), (2**20, 2**12)), 0)], "more than 4 GiB"),
    ],
)
def test_datasets_that_do_not_fit_are_refused(dataset: Any, says: str) -> None:
    with pytest.raises(DataError, match=says):
        from_torch(dataset)


def test_a_missing_library_is_named_with_its_extra() -> None:
    """In a process of its own, where the import of pandas and scikit-learn fails as if they were not installed."""
    code = """
import sys
for name in ("sklearn", "pandas", "matplotlib", "pyarrow"):
    sys.modules[name] = None
from p2pfl.data import from_csv, from_scikit_learn, from_parquet
from p2pfl.errors import ConfigError
from p2pfl.figures import new_figure
import pathlib, tempfile
path = pathlib.Path(tempfile.mkdtemp()) / "a.csv"
path.write_text("a,b\\n1,2\\n")
for call in (lambda: from_scikit_learn("iris"), lambda: from_csv(path, "b"), lambda: from_parquet(path, "b"),
             lambda: new_figure(1, 1)):
    try:
        call()
    except ConfigError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    for library, extra in (("sklearn", "sim"), ("pandas", "sim"), ("pyarrow", "sim"), ("matplotlib", "sim")):
        assert f"{library} is not installed; run pip install 'p2pfl-consortium[{extra}]'" in done.stdout
