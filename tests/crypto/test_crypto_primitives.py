"""The primitives we build on give the published answers, through the calls that we use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from nacl.bindings import (
    crypto_aead_xchacha20poly1305_ietf_decrypt,
    crypto_aead_xchacha20poly1305_ietf_encrypt,
    crypto_scalarmult,
)
from nacl.exceptions import CryptoError
from nacl.public import PrivateKey, SealedBox

from p2pfl.crypto import merkle_root, peer_id_from_public_key, verify_signature, wrap_key
from p2pfl.crypto.derivation import hkdf_sha256
from p2pfl.crypto.merkle import leaf_hash, node_hash, root_of_hashes
from p2pfl.errors import MalformedMessage, SignatureRefused

VECTORS = Path(__file__).parents[1] / "vectors"


def load(name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((VECTORS / name).read_text())
    return document


def wycheproof(name: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Group and case, and as many as the file says it has."""
    document = load(f"wycheproof_{name}_test.json")
    cases = [(group, case) for group in document["testGroups"] for case in group["tests"]]
    assert len(cases) == document["numberOfTests"]
    return cases


def accepts(public_key: str, message: bytes, signature: str) -> bool:
    peer_id = peer_id_from_public_key(bytes.fromhex(public_key))
    try:
        verify_signature(peer_id, message, bytes.fromhex(signature))
    except SignatureRefused:
        return False
    return True


def test_ed25519_edge_cases_get_the_verdict_that_every_peer_must_share() -> None:
    vectors = load("cctv_ed25519.json")["vectors"]
    wrong = [
        case["number"]
        for case in vectors
        if accepts(case["key"], case["msg"].encode(), case["sig"]) != case["pynacl_accepts"]
    ]
    assert wrong == []
    assert (len(vectors), sum(case["pynacl_accepts"] for case in vectors)) == (914, 43)


def test_ed25519_wycheproof() -> None:
    wrong = [
        case["tcId"]
        for group, case in wycheproof("ed25519")
        if accepts(group["publicKey"]["pk"], bytes.fromhex(case["msg"]), case["sig"]) != (case["result"] == "valid")
    ]
    assert wrong == []


def test_xchacha20_poly1305_wycheproof() -> None:
    for _, case in wycheproof("xchacha20_poly1305"):
        key, nonce, extra, message = (bytes.fromhex(case[name]) for name in ("key", "iv", "aad", "msg"))
        sealed = bytes.fromhex(case["ct"] + case["tag"])
        if case["result"] == "valid":
            assert crypto_aead_xchacha20poly1305_ietf_encrypt(message, extra, nonce, key) == sealed, case["tcId"]
            assert crypto_aead_xchacha20poly1305_ietf_decrypt(sealed, extra, nonce, key) == message, case["tcId"]
        else:
            with pytest.raises((CryptoError, ValueError, TypeError)):
                crypto_aead_xchacha20poly1305_ietf_decrypt(sealed, extra, nonce, key)


def test_hkdf_wycheproof() -> None:
    for _, case in wycheproof("hkdf_sha256"):
        key, salt, info = (bytes.fromhex(case[name]) for name in ("ikm", "salt", "info"))
        if case["result"] == "valid":
            derived = hkdf_sha256(key, info=info, length=case["size"], salt=salt)
            assert derived.hex() == case["okm"], case["tcId"]
        else:
            with pytest.raises(ValueError):
                hkdf_sha256(key, info=info, length=case["size"], salt=salt)


def test_x25519_wycheproof_and_keys_of_small_order_get_no_content_key() -> None:
    refused = 0
    for _, case in wycheproof("x25519"):
        secret, public = bytes.fromhex(case["private"]), bytes.fromhex(case["public"])
        if int(case["shared"], 16) == 0:
            refused += 1
            with pytest.raises(CryptoError):
                crypto_scalarmult(secret, public)
            with pytest.raises(MalformedMessage):
                wrap_key(bytes(32), public, b"context")
        else:
            assert crypto_scalarmult(secret, public).hex() == case["shared"], case["tcId"]
    assert refused > 10


def test_sealed_box_reference_vectors() -> None:
    cases = load("libsodium_streams.json")["sealed_box"]
    for case in cases:
        box = SealedBox(PrivateKey(bytes.fromhex(case["secret_key"])))
        assert box.decrypt(bytes.fromhex(case["ciphertext"])).hex() == case["message"]
    assert cases


def test_merkle_hash_vectors() -> None:
    vectors = load("merkle_rfc6962.json")
    empty, empty_leaf, leaf, node = vectors["hash_vectors"]
    assert merkle_root([]) == empty["hash"]
    assert leaf_hash(b"").hex() == empty_leaf["hash"]
    assert leaf_hash(leaf["leaf_utf8"].encode()).hex() == leaf["hash"]
    assert node_hash(node["left_utf8"].encode(), node["right_utf8"].encode()).hex() == node["hash"]
    leaves = [bytes.fromhex(text) for text in vectors["leaves_hex"]]
    for size, root in enumerate(vectors["roots_by_size"]):
        assert merkle_root(leaves[:size]) == root


def test_merkle_root_is_the_recursion_of_the_rfc_for_every_small_size() -> None:
    def recursion(leaves: list[bytes]) -> bytes:
        if len(leaves) == 1:
            return leaf_hash(leaves[0])
        split = 1 << (len(leaves) - 1).bit_length() - 1  # the largest power of two below n
        return node_hash(recursion(leaves[:split]), recursion(leaves[split:]))

    leaves = [bytes([number]) for number in range(70)]
    for size in range(1, len(leaves) + 1):
        assert merkle_root(leaves[:size]) == recursion(leaves[:size]).hex()


def test_merkle_root_changes_with_every_change_of_the_leaves() -> None:
    leaves = [b"a", b"b", b"c", b"d", b"e"]
    variants = [leaves, leaves[:-1], [*leaves, b"e"], leaves[::-1], [*leaves[:4], b"f"], [b"ab", *leaves[2:]]]
    # a node's content offered as a leaf: the prefixes keep it apart
    variants.append([leaf_hash(b"a") + leaf_hash(b"b"), b"c", b"d", b"e"])
    assert len({merkle_root(variant) for variant in variants}) == len(variants)
    assert root_of_hashes([leaf_hash(leaf) for leaf in leaves]).hex() == merkle_root(leaves)
