"""Keyed random numbers for data partitions and graphs: the same on every machine and with every version of numpy.

    block i = SHAKE-256(name / i)        read as little-endian 64-bit words, one after the other

numpy promises no stable streams for its distributions (NEP 19), so nothing here uses its generators. What is built from
these numbers is made of integers and of sums, products and quotients of float64, which every processor rounds alike.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

BLOCK = 2**15  # words of one block; a hash can be read only from its beginning, so one long block would cost its square


class KeyedStream:
    """A stream of its own for one purpose; one more draw somewhere changes nothing elsewhere."""

    def __init__(self, *name: object) -> None:
        """``name`` says purpose and key: words and integers. Equal names give equal streams."""
        self._name = "/".join(map(str, name)).encode()
        self._block, self._used = 0, 0  # the block in work, and its words that are drawn
        self._read = np.empty(0, dtype="<u8")  # of that block

    def words(self, count: int) -> np.ndarray[Any, Any]:
        """The next ``count`` words, uint64 [count], uniform over all 64 bits."""
        parts = []
        while count:
            some = min(count, BLOCK - self._used)
            parts.append(self._words_of_block(self._used + some)[self._used :])
            self._used, count = self._used + some, count - some
            if self._used == BLOCK:
                self._block, self._used, self._read = self._block + 1, 0, self._read[:0]
        return np.concatenate(parts).astype(np.uint64) if parts else np.empty(0, dtype=np.uint64)

    def _words_of_block(self, count: int) -> np.ndarray[Any, Any]:
        """The first ``count`` words of the block in work. A few draws hash a few words: a longer hash begins alike."""
        if count > len(self._read):
            length = min(BLOCK, max(2 * len(self._read), count))
            digest = hashlib.shake_256(self._name + b"/" + str(self._block).encode()).digest(8 * length)
            self._read = np.frombuffer(digest, dtype="<u8")
        return self._read[:count]

    def uniforms(self, count: int) -> np.ndarray[Any, Any]:
        """float64 [count] in [0, 1), multiples of 2^-53."""
        return (self.words(count) >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def below(self, limit: int, count: int) -> np.ndarray[Any, Any]:
        """int64 [count] from 0 to ``limit`` - 1; the modulo's bias is limit / 2^64."""
        return (self.words(count) % np.uint64(limit)).astype(np.int64)

    def permutation(self, count: int) -> np.ndarray[Any, Any]:
        """0 to ``count`` - 1 in random order, int64: the order of as many words; equal words keep their places."""
        return np.argsort(self.words(count), kind="stable").astype(np.int64)
