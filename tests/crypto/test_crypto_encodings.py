"""Peer ids, key encodings and varints against the published libp2p and multiformats vectors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from nacl.signing import SigningKey

from p2pfl.crypto import (
    Identity,
    parse_peer_id,
    peer_id_from_public_key,
    peer_id_to_cid,
    public_key_from_peer_id,
    verify_signature,
)
from p2pfl.crypto.key_encodings import (
    KEY_ENCODING_LIMIT,
    decode_key,
    decode_private_key,
    encode_key,
    encode_private_key,
)
from p2pfl.crypto.peer_ids import (
    multihash_of_key,
    multihash_to_cid,
    multihash_to_text,
    text_to_multihash,
)
from p2pfl.crypto.uvarint import decode_uvarint, encode_uvarint, frame
from p2pfl.errors import ConfigError, IllegalStep, MalformedMessage

VECTORS = Path(__file__).parents[1] / "vectors"
LIBP2P: dict[str, Any] = json.loads((VECTORS / "libp2p_peer_id.json").read_text())
MULTISTREAM: dict[str, Any] = json.loads((VECTORS / "multistream.json").read_text())
ED25519_KEY = next(key for key in LIBP2P["keys"] if key["key_type"] == "Ed25519")
PEER_ID: str = ED25519_KEY["derived"]["peer_id_base58btc"]


@pytest.mark.parametrize("key", LIBP2P["keys"], ids=lambda key: key["key_type"])
def test_public_key_encoding_and_peer_id_of_every_key_type(key: dict[str, Any]) -> None:
    encoded = bytes.fromhex(key["public_key_protobuf_hex"])
    number, data = decode_key(encoded)
    assert number == key["key_type_number"]
    assert encode_key(number, data) == encoded
    multihash = multihash_of_key(encoded)
    derived = key["derived"]
    assert multihash.hex() == derived["peer_id_multihash_hex"]
    assert multihash_to_text(multihash) == derived["peer_id_base58btc"]
    assert multihash_to_cid(multihash) == derived["peer_id_cid_base32"]
    assert text_to_multihash(derived["peer_id_base58btc"]) == multihash
    assert text_to_multihash(derived["peer_id_cid_base32"]) == multihash


@pytest.mark.parametrize("form", LIBP2P["text_forms"], ids=lambda form: form["base58btc"][:8])
def test_published_text_forms(form: dict[str, str]) -> None:
    multihash = bytes.fromhex(form["multihash_hex"])
    assert text_to_multihash(form["base58btc"]) == multihash
    assert text_to_multihash(form.get("cid") or form["derived_cid"]) == multihash


def test_both_text_forms_of_an_ed25519_peer_id_parse_to_the_canonical_one() -> None:
    cid = ED25519_KEY["derived"]["peer_id_cid_base32"]
    assert parse_peer_id(PEER_ID) == PEER_ID
    assert parse_peer_id(f" {cid}\n") == PEER_ID
    assert peer_id_to_cid(parse_peer_id(PEER_ID)) == cid
    public = bytes.fromhex(ED25519_KEY["public_key_protobuf_hex"])[4:]
    assert public_key_from_peer_id(PEER_ID) == public
    assert peer_id_from_public_key(public) == PEER_ID


@pytest.mark.parametrize("case", LIBP2P["ed25519_signatures"], ids=lambda case: case["name"])
def test_private_key_forms_and_signatures(case: dict[str, str]) -> None:
    seed = decode_private_key(bytes.fromhex(case["private_key_protobuf_hex"]))
    identity = Identity.from_seed(seed)
    assert identity.peer_id == case["derived_peer_id"]
    message, signature = bytes.fromhex(case["data_hex"]), bytes.fromhex(case["signature_hex"])
    assert identity.sign(message) == signature
    verify_signature(identity.peer_id, message, signature)


def test_private_key_encoding_matches_the_published_one() -> None:
    encoded = bytes.fromhex(ED25519_KEY["private_key_protobuf_hex"])
    assert encode_private_key(decode_private_key(encoded)) == encoded


def test_published_bad_values_are_refused() -> None:
    for case in LIBP2P["must_reject"]:
        with pytest.raises(ConfigError):
            if "text" in case:
                parse_peer_id(case["text"])
            else:
                decode_private_key(bytes.fromhex(case["private_key_protobuf_hex"]))


@pytest.mark.parametrize("form", ["64 bytes", "96 bytes"])
def test_every_bit_of_a_private_key_matters(form: str) -> None:
    seed = bytes(range(32))
    public = SigningKey(seed).verify_key.encode()
    encoded = encode_private_key(seed) if form == "64 bytes" else encode_key(1, seed + public + public)
    assert decode_private_key(encoded) == seed
    for place in range(8 * len(encoded)):
        with pytest.raises(ConfigError) as caught:
            decode_private_key(_flipped(encoded, place))
        assert seed.hex() not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "encoded"),
    [
        ("empty", b""),
        ("fields in the wrong order", bytes.fromhex("1202aabb0801")),
        ("no data", bytes.fromhex("0801")),
        ("cut off", bytes.fromhex("08011203aabb")),
        ("trailing byte", bytes.fromhex("08011202aabbcc")),
        ("type not minimal", bytes.fromhex("0881001202aabb")),
        ("length not minimal", bytes.fromhex("0801128200aabb")),
        ("extra field", bytes.fromhex("08011202aabb1a00")),
        ("too long", encode_key(1, bytes(KEY_ENCODING_LIMIT))),
    ],
)
def test_key_encodings_outside_the_deterministic_form_are_refused(name: str, encoded: bytes) -> None:
    with pytest.raises(MalformedMessage):
        decode_key(encoded)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("empty", ""),
        ("one digit more", PEER_ID + "1"),
        ("one digit less", PEER_ID[:-1]),
        ("extra leading zero", "1" + PEER_ID),
        ("zero is not base58", PEER_ID[:-1] + "0"),
        ("capital O is not base58", PEER_ID[:-1] + "O"),
        ("RSA key by hash", LIBP2P["text_forms"][0]["base58btc"]),
        ("RSA key by hash as CID", LIBP2P["text_forms"][0]["cid"]),
        (
            "secp256k1",
            next(k for k in LIBP2P["keys"] if k["key_type"] == "Secp256k1")["derived"]["peer_id_base58btc"],
        ),
        ("CID in capitals", peer_id_to_cid(parse_peer_id(PEER_ID)).upper()),
        ("CID with a capital inside", "b" + peer_id_to_cid(parse_peer_id(PEER_ID))[1:].capitalize()),
        ("CID padded", peer_id_to_cid(parse_peer_id(PEER_ID)) + "="),
        ("another multibase", "z" + PEER_ID),
        ("not base32", "b1"),
        ("huge", "1" * 100_000),
        ("short key", multihash_to_text(multihash_of_key(encode_key(1, bytes(31))))),
        ("length does not fit", multihash_to_text(bytes.fromhex("0003aabb"))),
        ("unknown hash function", multihash_to_text(bytes.fromhex("1620" + "aa" * 32))),
        ("a name", "lille"),
        ("not ASCII", "12D3KooWé"),
    ],
)
def test_texts_that_are_no_peer_id_of_ours(name: str, text: str) -> None:
    with pytest.raises(ConfigError, match="12D3KooW") as caught:
        parse_peer_id(text)
    assert len(str(caught.value)) < 500
    with pytest.raises(MalformedMessage):
        public_key_from_peer_id(text)


def test_a_cid_with_unused_bits_set_is_refused() -> None:
    # 36 bytes are 57.6 base32 digits: the last digit of an RSA peer id has two bits that decode to nothing
    cid = next(key for key in LIBP2P["keys"] if key["key_type"] == "RSA")["derived"]["peer_id_cid_base32"]
    assert text_to_multihash(cid)
    assert cid.endswith("u")
    for last in "vwx":
        with pytest.raises(MalformedMessage, match="canonical"):
            text_to_multihash(cid[:-1] + last)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (multihash_to_cid(bytes.fromhex("1220" + "aa" * 31)), "no multihash"),
        (multihash_to_cid(bytes.fromhex("1220" + "aa" * 33)), "no multihash"),
        (multihash_to_cid(bytes.fromhex("0002aa")), "no multihash"),
        (LIBP2P["must_reject"][1]["text"], "libp2p-key"),
        ("Qm" + "1" * 127, "1 to 128 characters"),
    ],
)
def test_why_a_text_is_refused(text: str, reason: str) -> None:
    with pytest.raises(MalformedMessage, match=reason):
        text_to_multihash(text)


def test_on_the_wire_the_cid_form_is_no_name() -> None:
    with pytest.raises(MalformedMessage, match="base58"):
        public_key_from_peer_id(ED25519_KEY["derived"]["peer_id_cid_base32"])


def test_every_changed_character_gives_another_peer_id_or_none() -> None:
    for place in range(len(PEER_ID)):
        for character in "1Az":
            if character == PEER_ID[place]:
                continue
            changed = PEER_ID[:place] + character + PEER_ID[place + 1 :]
            try:
                assert parse_peer_id(changed) == changed != PEER_ID
            except ConfigError:
                pass


@pytest.mark.parametrize("length", [0, 31, 33, 64])
def test_public_keys_of_another_length(length: int) -> None:
    with pytest.raises(IllegalStep):
        peer_id_from_public_key(bytes(length))


def test_varint_vectors() -> None:
    for case in MULTISTREAM["unsigned_varint"]:
        encoded = bytes.fromhex(case["hex"])
        assert encode_uvarint(case["value"]) == encoded
        assert decode_uvarint(b"\xff" + encoded + b"\x00", 1) == (case["value"], 1 + len(encoded))
    for case in MULTISTREAM["unsigned_varint_must_reject"]:
        with pytest.raises(MalformedMessage):
            decode_uvarint(bytes.fromhex(case["hex"]))


def test_framing_reproduces_the_multistream_messages() -> None:
    for case in MULTISTREAM["messages"]:
        assert frame(f"{case['text']}\n".encode()).hex() == case["hex"]


@pytest.mark.parametrize("value", [0, 1, 127, 128, 2**14 - 1, 2**14, 2**56, 2**63 - 1])
def test_varints_round_trip_and_cut_ones_are_refused(value: int) -> None:
    encoded = encode_uvarint(value)
    assert decode_uvarint(encoded) == (value, len(encoded))
    for length in range(len(encoded)):
        with pytest.raises(MalformedMessage):
            decode_uvarint(encoded[:length])


@pytest.mark.parametrize("value", [-1, 2**63])
def test_values_that_do_not_fit_nine_bytes(value: int) -> None:
    with pytest.raises(IllegalStep):
        encode_uvarint(value)


def test_framing_separates_parts() -> None:
    lists = [(b"", b"ab"), (b"a", b"b"), (b"ab", b""), (b"ab",), (b"a", b"b", b"")]
    assert len({frame(*parts) for parts in lists}) == len(lists)


def _flipped(data: bytes, place: int) -> bytes:
    changed = bytearray(data)
    changed[place // 8] ^= 1 << place % 8
    return bytes(changed)
