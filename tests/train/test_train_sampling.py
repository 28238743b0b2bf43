"""Keyed minibatches: without replacement, uniform, and nobody's but the key's."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from p2pfl.errors import IllegalStep
from p2pfl.train.sampling import batch_indices, noise_seed

KEY = b"k" * 32


@pytest.mark.parametrize(("examples", "batch"), [(1, 1), (5, 5), (5, 9)])
def test_a_large_batch_is_all_examples_in_order(examples: int, batch: int) -> None:
    assert batch_indices(KEY, b"r", 0, 0, examples, batch).tolist() == list(range(examples))


@pytest.mark.parametrize(("examples", "batch"), [(2, 1), (10, 9), (100, 20), (10**9, 512)])
def test_no_example_twice_in_one_step(examples: int, batch: int) -> None:
    for step in range(20):
        drawn = batch_indices(KEY, b"r", 3, step, examples, batch)
        assert drawn.dtype == torch.int64 and len(set(drawn.tolist())) == batch == len(drawn)
        assert int(drawn.min()) >= 0 and int(drawn.max()) < examples


def test_the_draw_is_fixed_for_all_time() -> None:
    """A change of this list changes every recorded run."""
    assert batch_indices(KEY, b"run", 2, 1, 100, 6).tolist() == FIXED


FIXED = [40, 48, 9, 93, 31, 91]


def test_every_pair_is_equally_likely() -> None:
    count = Counter(frozenset(batch_indices(KEY, b"r", number, 0, 4, 2).tolist()) for number in range(6000))
    assert len(count) == 6
    # chi-square with 5 degrees of freedom, 99.99 % quantile
    assert sum((seen - 1000) ** 2 / 1000 for seen in count.values()) < 25.7


@pytest.mark.parametrize(
    "other",
    [
        (b"j" * 32, b"r", 1, 2),
        (KEY, b"s", 1, 2),
        (KEY, b"r", 2, 2),
        (KEY, b"r", 1, 3),
        (KEY, b"r\x00", 1, 2),
    ],
)
def test_key_run_round_and_step_all_matter(other: tuple) -> None:
    assert batch_indices(KEY, b"r", 1, 2, 10**6, 20).tolist() != batch_indices(*other, 10**6, 20).tolist()
    assert noise_seed(KEY, b"r", 1, 2) != noise_seed(*other)


@pytest.mark.parametrize("size", [0, 15, 65])
def test_a_key_of_a_wrong_size_is_refused(size: int) -> None:
    with pytest.raises(IllegalStep, match="derive one"):
        noise_seed(b"k" * size, b"r", 0, 0)
