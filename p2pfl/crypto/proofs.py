"""Owns the proofs of an RFC 6962 tree: that a leaf is in it, that it grew out of a smaller one.

``node(level, place)`` is the hash of the complete subtree over the leaves ``place << level`` up to
``(place + 1) << level``; level 0 are the leaf hashes. A tree of any size is made of complete subtrees alone, so whoever
keeps their hashes answers for every size the tree ever had, with about log2(size) of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from p2pfl.crypto.digests import DIGEST_BYTES
from p2pfl.crypto.merkle import node_hash, root_of_hashes
from p2pfl.errors import IllegalStep, SignatureRefused

Node = Callable[[int, int], bytes]
"""(level, place) -> 32 bytes."""

MAX_PROOF = 63
"""Hashes of one proof: a tree of 2^63 leaves needs no more; also the limit of C2SP tlog-witness."""


def complete_subtrees(start: int, end: int) -> Iterator[tuple[int, int]]:
    """(level, place) of the fewest complete subtrees that make up the leaves from ``start`` up to ``end``.

    Left to right; ``start`` is a multiple of the largest power of two that fits, as all ranges of RFC 6962 are.
    """
    while start < end:
        level = (end - start).bit_length() - 1
        yield level, start >> level
        start += 1 << level


def join(hashes: Sequence[bytes]) -> bytes:
    """The root over neighbouring complete subtrees of falling size; of none the empty tree's."""
    if not hashes:
        return root_of_hashes(())
    root = hashes[-1]
    for left in reversed(hashes[:-1]):
        root = node_hash(left, root)
    return root


def grow(edge: list[bytes], size: int, leaf: bytes) -> list[bytes]:
    """Append a leaf hash to a tree of ``size`` leaves; ``edge`` are its complete subtrees' hashes and is changed.

    Returns the hashes of the subtrees that the leaf completes, level 1 first: one on average, log2(size) at most.
    """
    completed, node = [], leaf
    while size & 1:
        node = node_hash(edge.pop(), node)
        completed.append(node)
        size >>= 1
    edge.append(node)
    return completed


def tree_root(size: int, node: Node) -> bytes:
    """The root, 32 bytes, of the first ``size`` leaves."""
    return _range_root(0, size, node)


def inclusion_proof(index: int, size: int, node: Node) -> tuple[bytes, ...]:
    """PATH(index, D[size]) of RFC 6962 2.1.1, from the leaf's sibling upwards. Raises IllegalStep outside the tree."""
    if not 0 <= index < size:
        raise IllegalStep(f"a tree of {size} leaves has no leaf {index}; ask for a number below its size")
    start, end, proof = 0, size, []
    while end - start > 1:
        split = _split(start, end)
        if index < split:
            proof.append(_range_root(split, end, node))
            end = split
        else:
            proof.append(_range_root(start, split, node))
            start = split
    return tuple(reversed(proof))


def consistency_proof(old: int, new: int, node: Node) -> tuple[bytes, ...]:
    """PROOF(old, D[new]) of RFC 6962 2.1.2. Raises IllegalStep unless 0 < old <= new."""
    if not 0 < old <= new:
        raise IllegalStep(
            f"no proof leads from a tree of {old} leaves to one of {new}; name a smaller one first, not 0"
        )
    start, end, proof = 0, new, []
    while old < end:
        split = _split(start, end)
        if old <= split:
            proof.append(_range_root(split, end, node))
            end = split
        else:
            proof.append(_range_root(start, split, node))
            start = split
    if start:
        proof.append(_range_root(start, end, node))  # the old tree's own subtree: its reader cannot know it
    return tuple(reversed(proof))


def check_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> None:
    """Return if the leaf hash stands at ``index`` of the tree with ``size`` leaves and this root (RFC 9162 2.1.3.2).

    Raises SignatureRefused otherwise, whatever the numbers and hashes are.
    """
    _check_hashes((leaf, root, *proof))
    if not 0 <= index < size:
        raise _refused("inclusion")
    first, last, found = index, size - 1, leaf
    for sibling in proof:
        if last == 0:
            raise _refused("inclusion")
        if first & 1 or first == last:
            found = node_hash(sibling, found)
            first, last = _past_missing(first, last)
        else:
            found = node_hash(found, sibling)
        first, last = first >> 1, last >> 1
    if last != 0 or found != root:
        raise _refused("inclusion")


def check_consistency(old: int, new: int, proof: Sequence[bytes], old_root: bytes, new_root: bytes) -> None:
    """Return if the tree of ``new`` leaves begins with that of ``old`` leaves (RFC 9162 2.1.4.2).

    Raises SignatureRefused otherwise; also for ``old`` 0, which proves nothing.
    """
    if not 0 < old <= new or (old == new) != (not proof):
        raise _refused("consistency")
    if old == new:
        if old_root != new_root:
            raise _refused("consistency")
        return
    _check_hashes((old_root, new_root, *proof))
    hashes = [old_root, *proof] if old & (old - 1) == 0 else list(proof)
    first, last = old - 1, new - 1
    while first & 1:
        first, last = first >> 1, last >> 1
    found_old = found_new = hashes[0]
    for sibling in hashes[1:]:
        if last == 0:
            raise _refused("consistency")
        if first & 1 or first == last:
            found_old, found_new = node_hash(sibling, found_old), node_hash(sibling, found_new)
            first, last = _past_missing(first, last)
        else:
            found_new = node_hash(found_new, sibling)
        first, last = first >> 1, last >> 1
    if last != 0 or found_old != old_root or found_new != new_root:
        raise _refused("consistency")


def _past_missing(first: int, last: int) -> tuple[int, int]:
    """Up the right edge past the levels where the last node has no sibling."""
    while first and not first & 1:
        first, last = first >> 1, last >> 1
    return first, last


def _split(start: int, end: int) -> int:
    """Where RFC 6962 parts the range: the largest power of two below its length."""
    return start + (1 << ((end - start - 1).bit_length() - 1))


def _range_root(start: int, end: int, node: Node) -> bytes:
    return join([node(level, place) for level, place in complete_subtrees(start, end)])


def _check_hashes(hashes: Sequence[bytes]) -> None:
    if len(hashes) > MAX_PROOF + 2 or any(type(item) is not bytes or len(item) != DIGEST_BYTES for item in hashes):
        raise SignatureRefused(
            "a Merkle proof has an item that is no SHA-256 hash, or too many; ask its log for another"
        )


def _refused(kind: str) -> SignatureRefused:
    return SignatureRefused(f"the Merkle {kind} proof does not hold; keep both roots and ask the log's owner about it")
