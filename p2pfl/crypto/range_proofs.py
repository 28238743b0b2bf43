"""Owns the proof that a run of leaves stands in an RFC 6962 tree: the hashes of the subtrees beside it, left to right.

For leaves from ``first`` up to ``last`` of a tree of ``size``, the tree's ranges are walked as RFC 6962 2.1 parts them.
A range wholly outside is one hash, a leaf inside is its own: about 2 log2(size) hashes whatever the run's length, and
whoever checks reads the leaves once, in order, keeping nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

from p2pfl.crypto.digests import DIGEST_BYTES
from p2pfl.crypto.merkle import node_hash
from p2pfl.crypto.proofs import MAX_PROOF, Node, complete_subtrees, join
from p2pfl.errors import IllegalStep, SignatureRefused

MAX_OUTSIDE = 2 * MAX_PROOF
"""Hashes beside a run of leaves: a path to the root on either side."""


def outside_hashes(first: int, last: int, size: int, node: Node) -> tuple[bytes, ...]:
    """The proof for the leaves from ``first`` up to ``last``, not included. Raises IllegalStep outside the tree."""
    if not 0 <= first < last <= size:
        raise IllegalStep(f"a tree of {size} leaves has no leaves from {first} up to {last}; ask for some that it has")
    return tuple(
        join([node(level, place) for level, place in complete_subtrees(start, end)])
        for start, end in _outside(0, size, first, last)
    )


def _outside(start: int, end: int, first: int, last: int) -> Iterator[tuple[int, int]]:
    if end <= first or start >= last:
        yield start, end
    elif start < first or end > last:
        split = _split(start, end)
        yield from _outside(start, split, first, last)
        yield from _outside(split, end, first, last)


def range_root(first: int, last: int, size: int, leaves: Iterator[bytes], outside: tuple[bytes, ...]) -> bytes:
    """The root, 32 bytes, that leaf hashes and proof lead to; ``leaves`` is read up to ``last`` - ``first``.

    Raises SignatureRefused if there are too few or too many of either.
    """
    if not 0 <= first < last <= size:
        raise _refused()
    beside = iter(outside)

    def hashed(start: int, end: int) -> bytes:
        if end <= first or start >= last or end - start == 1:
            found = next(beside if end <= first or start >= last else leaves, None)
            if found is None or len(found) != DIGEST_BYTES:
                raise _refused()
            return found
        split = _split(start, end)
        left = hashed(start, split)
        return node_hash(left, hashed(split, end))

    root = hashed(0, size)
    if next(beside, None) is not None:
        raise _refused()
    return root


def _split(start: int, end: int) -> int:
    return start + (1 << ((end - start - 1).bit_length() - 1))


def _refused() -> SignatureRefused:
    return SignatureRefused("the proof of a run of entries does not hold; ask its log for another")
