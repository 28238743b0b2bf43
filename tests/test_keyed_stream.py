"""Keyed random numbers: as documented, in any portions, even over their range."""

from __future__ import annotations

import hashlib

import numpy as np

from p2pfl.keyed_stream import BLOCK, KeyedStream


def test_words_are_the_hash_of_the_name_and_the_block() -> None:
    stream = KeyedStream("purpose", 7, 3)
    found = stream.words(BLOCK + 2)
    for block, places in ((0, slice(0, 2)), (1, slice(BLOCK, BLOCK + 2))):
        digest = hashlib.shake_256(f"purpose/7/3/{block}".encode()).digest(16)
        assert found[places].tolist() == [int.from_bytes(digest[at : at + 8], "little") for at in (0, 8)]


def test_portions_do_not_matter() -> None:
    whole = KeyedStream("a").words(2 * BLOCK + 10)
    parts = KeyedStream("a")
    sizes = (0, 1, BLOCK - 2, 5, BLOCK + 6)
    assert np.array_equal(np.concatenate([parts.words(size) for size in sizes]), whole)


def test_uniforms_limits_and_permutations() -> None:
    uniforms = KeyedStream("u").uniforms(100_000)
    assert uniforms.min() >= 0 and uniforms.max() < 1
    assert abs(uniforms.mean() - 0.5) < 0.005 and abs(uniforms.var() - 1 / 12) < 0.002
    draws = KeyedStream("d").below(3, 30_000)
    assert np.abs(np.bincount(draws, minlength=3) - 10_000).max() < 300 and draws.max() == 2
    order = KeyedStream("p").permutation(1000)
    assert sorted(order.tolist()) == list(range(1000)) and order.tolist() != list(range(1000))
