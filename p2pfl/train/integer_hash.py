"""Mixing of 32-bit words, with the same bits on every machine, eager or compiled, on CPU and CUDA.

The finaliser is lowbias32 of Chris Wellons' hash prospector (2018, public domain): shifts 16, 15, 16 and multipliers
0x7feb352d, 0x846ca68b, with a bias of 0.17. Words are int64 tensors of 0 to 2^32 - 1: torch has no arithmetic on
uint32, int32 has no logical shift, and its overflow is undefined in the compiled C++. The second multiplier is taken
modulo 2^32 as a negative number, so that no product leaves 63 bits.

These words decide which examples a simulated site sees. They are no secret and protect nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

MASK = 0xFFFFFFFF
FIRST = 0x7FEB352D
SECOND = 0x846CA68B - (1 << 32)
STEP = 0x9E3779B9 - (1 << 32)  # 2^32 / golden ratio: keeps 0, the finaliser's fixed point, from staying 0


def mix(word: Tensor) -> Tensor:
    """lowbias32 of each word: a permutation of 0 to 2^32 - 1."""
    word = ((word ^ (word >> 16)) * FIRST) & MASK
    word = ((word ^ (word >> 15)) * SECOND) & MASK
    return word ^ (word >> 16)


def combine(key: Tensor, word: Tensor | int) -> Tensor:
    """The key of ``word`` (0 to 2^32 - 1) under ``key``; both broadcast."""
    spread = mix((word + STEP) & MASK) if isinstance(word, Tensor) else mix_number((word + STEP) & MASK)
    return mix(key ^ spread)


def mix_number(word: int) -> int:
    """lowbias32 of one number."""
    word = ((word ^ (word >> 16)) * FIRST) & MASK
    word = ((word ^ (word >> 15)) * SECOND) & MASK
    return word ^ (word >> 16)


def key_of(seed: int, *place: int) -> int:
    """One key of a seed (any whole number from 0; its words of 32 bits one after the other) and a place."""
    key = 0
    numbers = [seed & MASK]
    while seed := seed >> 32:
        numbers.append(seed & MASK)
    for number in (len(numbers), *numbers, *place):
        key = mix_number(key ^ mix_number((number + STEP) & MASK))
    return key


def words(shape: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """0, 1, 2, ... in this shape."""
    count = 1
    for size in shape:
        count *= size
    return torch.arange(count, dtype=torch.int64, device=device).reshape(tuple(shape))
