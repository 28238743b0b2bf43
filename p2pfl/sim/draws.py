"""Chance in simulations: every draw is keyed, so that one more draw somewhere changes nothing elsewhere."""

from __future__ import annotations

import hashlib
import random


def stream(seed: int, *place: object) -> random.Random:
    """A generator of its own for one purpose; the same in every process and on every machine."""
    return random.Random("/".join(["p2pfl sim", str(seed), *map(str, place)]))


def uniform(seed: int, *place: object) -> float:
    """One number in [0, 1) that depends on seed and place alone."""
    return int.from_bytes(raw(7, seed, *place), "big") / 2**56


def raw(size: int, seed: int, *place: object) -> bytes:
    """Up to 64 bytes that depend on seed and place alone."""
    name = "/".join(["p2pfl sim", str(seed), *map(str, place)])
    return hashlib.blake2b(name.encode(), digest_size=size).digest()
