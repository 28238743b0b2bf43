"""Merkle proofs against the published cases, against every small tree, and against every flipped bit."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pfl.crypto.merkle import leaf_hash, node_hash, root_of_hashes
from p2pfl.crypto.proofs import (
    MAX_PROOF,
    Node,
    check_consistency,
    check_inclusion,
    complete_subtrees,
    consistency_proof,
    grow,
    inclusion_proof,
    join,
    tree_root,
)
from p2pfl.errors import IllegalStep, SignatureRefused

VECTORS: dict[str, Any] = json.loads((Path(__file__).parents[1] / "vectors" / "merkle_rfc6962.json").read_text())
SIZES = 64
LEAVES = [leaf_hash(bytes([number])) for number in range(SIZES)]
ROOTS = [root_of_hashes(LEAVES[:size]) for size in range(SIZES + 1)]


def node(level: int, place: int) -> bytes:
    """Straight from the leaves: the slow, plain way."""
    return root_of_hashes(LEAVES[place << level : (place + 1) << level])


def holds(check: Callable[..., None], *arguments: Any) -> bool:
    try:
        check(*arguments)
    except SignatureRefused:
        return False
    return True


def decoded(text: str | None) -> bytes:
    return base64.b64decode(text or "")


def test_all_published_inclusion_cases_get_their_verdict() -> None:
    cases = VECTORS["inclusion"]
    for case in cases:
        proof = [decoded(item) for item in case["proof"] or ()]
        arguments = decoded(case["leafHash"]), case["leafIdx"], case["treeSize"], proof, decoded(case["root"])
        assert holds(check_inclusion, *arguments) is not case["wantErr"], case["file"]
    assert len(cases) == 98 and 0 < sum(case["wantErr"] for case in cases) < 98


def test_all_published_consistency_cases_get_their_verdict() -> None:
    cases = VECTORS["consistency"]
    for case in cases:
        proof = [decoded(item) for item in case["proof"] or ()]
        roots = decoded(case["root1"]), decoded(case["root2"])
        assert holds(check_consistency, case["size1"], case["size2"], proof, *roots) is not case["wantErr"], case[
            "file"
        ]
    assert len(cases) == 98 and 0 < sum(case["wantErr"] for case in cases) < 98


def test_inclusion_in_every_tree_up_to_64_leaves_and_of_no_other_leaf_place_or_size() -> None:
    for size in range(1, SIZES + 1):
        for index in range(size):
            proof = inclusion_proof(index, size, node)
            assert len(proof) <= (size - 1).bit_length()
            assert holds(check_inclusion, LEAVES[index], index, size, proof, ROOTS[size])
            assert not holds(check_inclusion, LEAVES[index - 1], index, size, proof, ROOTS[size]) or size == 1
            others = {(index - 1, size), (index + 1, size)}
            assert not any(holds(check_inclusion, LEAVES[index], *other, proof, ROOTS[size]) for other in others)
            assert not holds(check_inclusion, LEAVES[index], index, size, proof, ROOTS[size - 1])
            assert not holds(check_inclusion, LEAVES[index], index, size, (*proof, LEAVES[0]), ROOTS[size])
            assert not proof or not holds(check_inclusion, LEAVES[index], index, size, proof[1:], ROOTS[size])


def test_consistency_between_all_sizes_up_to_64_and_with_no_other_root() -> None:
    for new in range(1, SIZES + 1):
        for old in range(1, new + 1):
            proof = consistency_proof(old, new, node)
            assert holds(check_consistency, old, new, proof, ROOTS[old], ROOTS[new])
            assert not holds(check_consistency, old, new, proof, ROOTS[old - 1], ROOTS[new])
            assert not holds(check_consistency, old, new, proof, ROOTS[old], ROOTS[new - 1])
            assert not holds(check_consistency, old, new, (*proof, LEAVES[0]), ROOTS[old], ROOTS[new])
            assert not proof or not holds(check_consistency, old, new, proof[:-1], ROOTS[old], ROOTS[new])
            assert old == new or not holds(check_consistency, new, old, proof, ROOTS[new], ROOTS[old])


def flips(data: bytes) -> list[bytes]:
    return [bytes([*data[:at], data[at] ^ (1 << bit), *data[at + 1 :]]) for at in range(len(data)) for bit in range(8)]


@pytest.mark.parametrize(("index", "size"), [(0, 2), (4, 7), (63, 64), (32, 33)])
def test_no_flipped_bit_of_an_inclusion_proof_passes(index: int, size: int) -> None:
    proof = list(inclusion_proof(index, size, node))
    for place, item in enumerate(proof):
        for changed in flips(item):
            altered = [*proof[:place], changed, *proof[place + 1 :]]
            assert not holds(check_inclusion, LEAVES[index], index, size, altered, ROOTS[size])
    assert not any(holds(check_inclusion, changed, index, size, proof, ROOTS[size]) for changed in flips(LEAVES[index]))
    assert not any(holds(check_inclusion, LEAVES[index], index, size, proof, root) for root in flips(ROOTS[size]))


@pytest.mark.parametrize(("old", "new"), [(1, 2), (3, 7), (32, 64), (33, 34)])
def test_no_flipped_bit_of_a_consistency_proof_passes(old: int, new: int) -> None:
    proof = list(consistency_proof(old, new, node))
    for place, item in enumerate(proof):
        for changed in flips(item):
            altered = [*proof[:place], changed, *proof[place + 1 :]]
            assert not holds(check_consistency, old, new, altered, ROOTS[old], ROOTS[new])
    assert not any(holds(check_consistency, old, new, proof, root, ROOTS[new]) for root in flips(ROOTS[old]))
    assert not any(holds(check_consistency, old, new, proof, ROOTS[old], root) for root in flips(ROOTS[new]))


def test_a_tree_that_grows_leaf_by_leaf_has_the_recursions_roots_and_subtrees() -> None:
    edge: list[bytes] = []
    stored: dict[tuple[int, int], bytes] = {}
    for size, leaf in enumerate(LEAVES):
        stored[0, size] = leaf
        for level, found in enumerate(grow(edge, size, leaf), start=1):
            stored[level, size >> level] = found
        assert join(edge) == ROOTS[size + 1]
        assert edge == [stored[place] for place in complete_subtrees(0, size + 1)]
    assert join([]) == ROOTS[0]
    assert all(found == node(*place) for place, found in stored.items())
    assert len(stored) == 2 * SIZES - 1, "one inner hash for each leaf"


@given(st.integers(1, 2**62), st.data())
def test_proofs_of_huge_trees_read_few_hashes(size: int, data: st.DataObject) -> None:
    """Leaves that are all alike: each level has one hash, so a tree of any size is there without its leaves."""
    levels = [LEAVES[0]]
    for _ in range(63):
        levels.append(node_hash(levels[-1], levels[-1]))
    asked: list[tuple[int, int]] = []

    def alike(level: int, place: int) -> bytes:
        asked.append((level, place))
        assert (place + 1) << level <= size
        return levels[level]

    get: Node = alike
    root = tree_root(size, get)
    index, old = data.draw(st.integers(0, size - 1)), data.draw(st.integers(1, size))
    asked.clear()
    inclusion, consistency = inclusion_proof(index, size, get), consistency_proof(old, size, get)
    assert max(len(inclusion), len(consistency)) <= MAX_PROOF
    assert len(asked) <= 4 * MAX_PROOF
    check_inclusion(LEAVES[0], index, size, inclusion, root)
    check_consistency(old, size, consistency, tree_root(old, get), root)


def test_what_no_tree_has_cannot_be_asked_for() -> None:
    for index, size in ((0, 0), (-1, 4), (4, 4)):
        with pytest.raises(IllegalStep):
            inclusion_proof(index, size, node)
    for old, new in ((0, 4), (5, 4), (-1, 4)):
        with pytest.raises(IllegalStep):
            consistency_proof(old, new, node)
    for hashes in ([b"short"], [bytes(32)] * (MAX_PROOF + 1)):
        assert not holds(check_inclusion, LEAVES[0], 0, 2, hashes, ROOTS[2])
