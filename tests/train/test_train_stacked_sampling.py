"""Keyed draws for many sites at once: without replacement, uniform, and a function of their place alone."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy import stats

from p2pfl.errors import ConfigError
from p2pfl.train import stacked_sampling
from p2pfl.train.integer_hash import combine, key_of, mix, mix_number
from p2pfl.train.sampling import batch_indices
from p2pfl.train.stacked_sampling import CounterDraws, DeployedKeys


def drawn(sites: int, counts: list[int] | int, *, round: int = 0, steps: int = 1, batch: int = 5, seed: int = 0):
    every = torch.arange(sites)
    each = torch.full((sites,), counts) if isinstance(counts, int) else torch.tensor(counts)
    return CounterDraws(seed).positions(every, each, round, steps, batch)


def test_the_finaliser_is_lowbias32() -> None:
    """Against the C code of hash-prospector, in unsigned 32-bit arithmetic of numpy."""
    with np.errstate(over="ignore"):
        x = np.array([0, 1, 2, 0xDEADBEEF, 0xFFFFFFFF, 12345], dtype=np.uint32)
        y = x ^ (x >> np.uint32(16))
        y *= np.uint32(0x7FEB352D)
        y ^= y >> np.uint32(15)
        y *= np.uint32(0x846CA68B)
        y ^= y >> np.uint32(16)
    assert mix(torch.from_numpy(x.astype(np.int64))).tolist() == y.tolist()
    assert [mix_number(int(word)) for word in x] == y.tolist()


def test_known_draws() -> None:
    """The numbers of this machine, which must be those of every other one."""
    assert key_of(2**40 + 7, 1) == 517377224
    assert drawn(2, 100, round=3, steps=2, seed=9).tolist() == [
        [[63, 88, 83, 65, 60], [37, 72, 90, 95, 7]],
        [[85, 44, 45, 65, 2], [28, 23, 77, 2, 62]],
    ]


def test_without_replacement_and_within_the_site() -> None:
    counts = [3, 5, 6, 40, 1000]
    found = drawn(5, counts, steps=50)
    for site, count in enumerate(counts):
        for row in found[site].tolist():
            own = row[: min(count, 5)]
            assert len(set(own)) == len(own) and all(0 <= place < count for place in own)
            assert row[min(count, 5) :] == [0] * (5 - min(count, 5))
    assert found[0, 0].tolist() == [0, 1, 2, 0, 0] and found[1, 7].tolist() == [0, 1, 2, 3, 4]


def test_every_example_and_every_pair_is_equally_likely() -> None:
    """Chi-square at a fixed seed: 2,000 sites, 10 steps, 3 of 7."""
    found = drawn(2000, 7, steps=10, batch=3).reshape(-1, 3)
    single = np.bincount(found.reshape(-1).numpy(), minlength=7)
    assert stats.chisquare(single).pvalue > 0.01
    pairs = dict.fromkeys(itertools.combinations(range(7), 2), 0)
    for row in found.sort(-1).values.tolist():
        for pair in itertools.combinations(row, 2):
            pairs[pair] += 1
    assert stats.chisquare(list(pairs.values())).pvalue > 0.01
    triples = np.unique(found.sort(-1).values.numpy(), axis=0, return_counts=True)[1]
    assert len(triples) == 35 and stats.chisquare(triples).pvalue > 0.01


def test_neighbouring_places_are_independent() -> None:
    """First draws of neighbouring sites, steps and rounds: no pair of values is more frequent than another."""
    here = drawn(4000, 8, steps=4, batch=1)[..., 0]
    later = drawn(4000, 8, round=1, steps=4, batch=1)[..., 0]
    for one, two in ((here[:-1], here[1:]), (here[:, :-1], here[:, 1:]), (here, later)):
        table = np.zeros((8, 8))
        np.add.at(table, (one.reshape(-1).numpy(), two.reshape(-1).numpy()), 1)
        assert stats.chi2_contingency(table).pvalue > 0.01


def test_chunks_and_order_change_nothing() -> None:
    draws, counts = CounterDraws(4), torch.tensor([9, 30, 4, 17, 5, 6])
    every = torch.arange(6)
    whole = draws.positions(every, counts, 2, 3, 5)
    for part in (every[:2], every[3:], torch.tensor([5, 0, 3])):
        assert torch.equal(draws.positions(part, counts[part], 2, 3, 5), whole[part])
        assert torch.equal(draws.noise(part, 2, 3), draws.noise(every, 2, 3)[part])
    assert torch.equal(draws.positions(every, counts, 2, 2, 5), whole[:, :2]), "further steps change none before"
    assert not torch.equal(CounterDraws(5).positions(every, counts, 2, 3, 5), whole)


def test_deployed_keys_draw_the_batches_of_deployed_sites() -> None:
    keys = [bytes([number]) * 32 for number in range(4)]
    draws, counts = DeployedKeys(keys, b"run"), torch.tensor([9, 30, 4, 17])
    found = draws.positions(torch.tensor([1, 3]), counts[[1, 3]], 2, 3, 8)
    for place, site in enumerate((1, 3)):
        for step in range(3):
            own = batch_indices(keys[site], b"run", 2, step, int(counts[site]), 8)
            assert torch.equal(found[place, step], own)
    with pytest.raises(ConfigError, match="4 keys"):
        draws.positions(torch.tensor([4]), torch.tensor([5]), 0, 1, 2)


def test_keys_of_different_words_differ() -> None:
    keys = combine(torch.tensor(key_of(0, 1)), torch.arange(100_000))
    assert len(keys.unique()) == 100_000, "mix is a permutation"
    assert key_of(1) != key_of(2**32 + 1) != key_of(1, 1)


@pytest.mark.parametrize("batch", [1, 2, 7, 20, 64])
def test_the_kernel_draws_the_same(batch: int) -> None:
    """Sites with fewer, as many and more examples than a batch, up to counts whose products need 63 bits."""
    counts = torch.tensor([1, 2, batch, batch + 1, batch + 2, 100, 2**31])
    sites = torch.arange(len(counts)) * 1001
    plain, quick = CounterDraws(2**40 + 3), CounterDraws(2**40 + 3)
    assert quick.quicken() is None
    for t in (0, 7):
        found = quick.positions(sites, counts, t, 3, batch)
        assert torch.equal(found, plain.positions(sites, counts, t, 3, batch)) and found.dtype == torch.int64
    assert torch.equal(
        quick.positions(sites[::2], counts[::2], 0, 3, batch), plain.positions(sites, counts, 0, 3, batch)[::2]
    )


def test_a_kernel_that_cannot_be_compiled_is_said_and_not_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stacked_sampling, "load", lambda source, what: (None, f"no kernel for {what}"))
    draws, sites = CounterDraws(3), torch.arange(4)
    assert draws.quicken() == "no kernel for drawing batches"
    assert torch.equal(draws.positions(sites, sites + 9, 0, 2, 5), CounterDraws(3).positions(sites, sites + 9, 0, 2, 5))
