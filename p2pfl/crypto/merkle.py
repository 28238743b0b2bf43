"""Owns the Merkle tree hash of RFC 6962 section 2.1.

MTH({}) = SHA-256(""); MTH({d}) = SHA-256(0x00 || d);
MTH(D[n]) = SHA-256(0x01 || MTH(D[0:k]) || MTH(D[k:n])), k the largest power of two below n.
The two prefixes keep a leaf from being passed off as a node.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from p2pfl.types import Digest

_LEAF = b"\x00"
_NODE = b"\x01"


def leaf_hash(data: bytes) -> bytes:
    """SHA-256(0x00 || data), 32 bytes; ``data`` is not copied."""
    hasher = hashlib.sha256(_LEAF)
    hasher.update(data)
    return hasher.digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """SHA-256(0x01 || left || right), 32 bytes."""
    return hashlib.sha256(_NODE + left + right).digest()


def root_of_hashes(hashes: Sequence[bytes]) -> bytes:
    """The root, 32 bytes, over leaf hashes.

    Pairs are joined level by level and an odd last one moves up unchanged, which gives RFC 6962's split at
    the largest power of two: everything left of the split is a perfect tree.
    """
    if not hashes:
        return hashlib.sha256(b"").digest()
    level = list(hashes)
    while len(level) > 1:
        paired = [node_hash(level[place], level[place + 1]) for place in range(0, len(level) - 1, 2)]
        level = paired + level[2 * len(paired) :]
    return level[0]


def merkle_root(leaves: Sequence[bytes]) -> Digest:
    """The root over the leaves' contents, as hexadecimal text."""
    return Digest(root_of_hashes([leaf_hash(leaf) for leaf in leaves]).hex())
