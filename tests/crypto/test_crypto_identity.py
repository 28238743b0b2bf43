"""Identity, signatures, derived keys, signed envelopes."""

from __future__ import annotations

import copy
import hashlib
import hmac
import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import p2pfl.crypto as room
from p2pfl.crypto import (
    ENVELOPE_OVERHEAD,
    Envelope,
    Identity,
    open_envelope,
    pack,
    public_key_from_peer_id,
    sign_envelope,
    verify_signature,
)
from p2pfl.crypto.uvarint import frame
from p2pfl.errors import (
    ConfigError,
    IllegalStep,
    LimitExceeded,
    MalformedMessage,
    RemoteError,
    SignatureRefused,
)

VECTORS = Path(__file__).parents[1] / "vectors"
ALICE = Identity.from_seed(bytes(range(32)))
BOB = Identity.from_seed(bytes(32))
KINDS = {"round/core", "round/cover"}


def flipped(data: bytes, place: int) -> bytes:
    changed = bytearray(data)
    changed[place // 8] ^= 1 << place % 8
    return bytes(changed)


def test_generated_identities_differ_and_come_back_from_their_seed() -> None:
    first, second = Identity.generate(), Identity.generate()
    assert first.peer_id != second.peer_id
    again = Identity.from_seed(first.seed)
    assert (again.peer_id, again.public_key) == (first.peer_id, first.public_key)
    assert public_key_from_peer_id(first.peer_id) == first.public_key


@pytest.mark.parametrize("length", [0, 31, 33, 64])
def test_seeds_of_another_length(length: int) -> None:
    with pytest.raises(ConfigError):
        Identity.from_seed(bytes(length))


def test_nothing_shows_or_copies_the_secret() -> None:
    assert repr(ALICE) == str(ALICE) == f"Identity({ALICE.peer_id})"
    for way in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(IllegalStep):
            way(ALICE)


def test_derived_keys_follow_rfc_5869_and_differ_by_purpose_and_context() -> None:
    extracted = hmac.digest(bytes(32), ALICE.seed, "sha256")  # no salt: 32 zero bytes
    info = frame(b"p2pfl/1/derive", b"tls", b"2026")
    assert ALICE.derive("tls", b"2026") == hmac.digest(extracted, info + b"\x01", "sha256")
    uses = [("tls", b""), ("tls", b"a"), ("tlsa", b""), ("", b"tlsa"), ("sampling", b"")]
    keys = {who.derive(purpose, context) for who in (ALICE, BOB) for purpose, context in uses}
    assert len(keys) == 2 * len(uses)
    assert ALICE.seed not in keys


def test_every_changed_bit_of_signature_or_message_is_refused() -> None:
    message = b"we take part"
    signature = ALICE.sign(message)
    verify_signature(ALICE.peer_id, message, signature)
    for place in range(8 * len(signature)):
        with pytest.raises(SignatureRefused, match=ALICE.peer_id):
            verify_signature(ALICE.peer_id, message, flipped(signature, place))
    for place in range(8 * len(message)):
        with pytest.raises(SignatureRefused):
            verify_signature(ALICE.peer_id, flipped(message, place), signature)


@pytest.mark.parametrize(
    ("peer_id", "signature"),
    [
        (BOB.peer_id, ALICE.sign(b"m")),
        ("nobody", ALICE.sign(b"m")),
        ("", ALICE.sign(b"m")),
        (ALICE.peer_id, ALICE.sign(b"m")[:-1]),
        (ALICE.peer_id, ALICE.sign(b"m") + b"\x00"),
        (ALICE.peer_id, b""),
    ],
)
def test_other_signers_and_lengths_are_refused_and_nobody_is_blamed(peer_id: str, signature: bytes) -> None:
    with pytest.raises(SignatureRefused) as caught:
        verify_signature(peer_id, b"m", signature)
    assert caught.value.peer is None


def test_the_published_libp2p_envelope_is_framed_as_ours_are() -> None:
    vector = json.loads((VECTORS / "libp2p_peer_id.json").read_text())["signed_envelope"]
    signed = frame(
        vector["domain"].encode(),
        bytes.fromhex(vector["payload_type_hex"]),
        bytes.fromhex(vector["payload_hex"]),
    )
    assert signed.hex() == vector["derived"]["signed_buffer_hex"]
    verify_signature(vector["derived"]["peer_id"], signed, bytes.fromhex(vector["signature_hex"]))


def test_an_envelope_is_what_the_format_page_says() -> None:
    envelope = sign_envelope(ALICE, "round/core", b"payload")
    signed = b"\x07p2pfl/1" + b"\x0around/core" + b"\x07payload"
    assert envelope.signed_bytes == signed
    assert envelope.signature == ALICE.sign(signed)
    assert envelope.digest == hashlib.sha256(ALICE.public_key + signed).hexdigest()
    wire = (
        b"\x94\xc4\x20" + ALICE.public_key + b"\xaaround/core" + b"\xc4\x07payload" + b"\xc4\x40" + envelope.signature
    )
    assert envelope.encode() == wire
    assert open_envelope(wire, kinds=KINDS, limit=len(wire)) == envelope


@pytest.mark.parametrize("size", [0, 1, 255, 256, 65536])
def test_the_overhead_covers_the_longest_kind(size: int) -> None:
    kind = "k" * 64
    data = sign_envelope(ALICE, kind, bytes(size)).encode()
    assert len(data) <= size + ENVELOPE_OVERHEAD
    assert open_envelope(data, kinds=[kind], limit=size + ENVELOPE_OVERHEAD).payload == bytes(size)


def test_every_changed_bit_of_an_envelope_is_refused() -> None:
    data = sign_envelope(ALICE, "round/core", b"\x00\x01payload").encode()
    for place in range(8 * len(data)):
        with pytest.raises(RemoteError) as caught:
            open_envelope(flipped(data, place), kinds=KINDS, limit=1000)
        assert caught.value.peer is None


def test_every_truncation_and_a_longer_envelope_are_refused() -> None:
    data = sign_envelope(ALICE, "round/core", b"payload").encode()
    for length in range(len(data)):
        with pytest.raises(MalformedMessage):
            open_envelope(data[:length], kinds=KINDS, limit=1000)
    with pytest.raises(MalformedMessage):
        open_envelope(data + b"\x00", kinds=KINDS, limit=1000)
    with pytest.raises(LimitExceeded):
        open_envelope(data, kinds=KINDS, limit=len(data) - 1)


def test_a_signature_holds_for_one_signer_kind_and_payload_only() -> None:
    envelope = sign_envelope(ALICE, "round/core", b"payload")
    for changed in (
        Envelope(BOB.peer_id, "round/core", b"payload", envelope.signature),
        Envelope(ALICE.peer_id, "round/cover", b"payload", envelope.signature),
        Envelope(ALICE.peer_id, "round/core", b"Payload", envelope.signature),
        Envelope(ALICE.peer_id, "round/core", b"payload", ALICE.sign(b"payload")),
    ):
        with pytest.raises(SignatureRefused):
            open_envelope(changed.encode(), kinds=KINDS, limit=1000)


def test_kind_and_payload_cannot_lend_each_other_bytes() -> None:
    first = sign_envelope(ALICE, "ab", b"c")
    assert first.signed_bytes != sign_envelope(ALICE, "a", b"bc").signed_bytes


def test_a_valid_envelope_of_an_unexpected_kind_is_refused() -> None:
    data = sign_envelope(ALICE, "charter", b"payload").encode()
    with pytest.raises(MalformedMessage, match="'charter' is not expected"):
        open_envelope(data, kinds=KINDS, limit=1000)


def test_a_second_spelling_of_a_valid_envelope_is_refused() -> None:
    data = sign_envelope(ALICE, "round/core", b"payload").encode()
    longer_header = b"\xdc\x00\x04" + data[1:]
    longer_payload = data.replace(b"\xc4\x07payload", b"\xc5\x00\x07payload")
    for respelled in (longer_header, longer_payload):
        assert respelled != data
        with pytest.raises(SignatureRefused, match="re-encoded"):
            open_envelope(respelled, kinds=KINDS, limit=1000)


@pytest.mark.parametrize(
    "value",
    [
        None,
        {},
        [],
        [ALICE.public_key, "round/core", b"payload"],
        [ALICE.public_key, "round/core", b"payload", bytes(64), 0],
        [ALICE.public_key[:-1], "round/core", b"payload", bytes(64)],
        [ALICE.public_key, "round/core", b"payload", bytes(63)],
        [ALICE.peer_id, "round/core", b"payload", bytes(64)],
        [ALICE.public_key, b"round/core", b"payload", bytes(64)],
        [ALICE.public_key, "round/core", "payload", bytes(64)],
    ],
)
def test_other_shapes_are_malformed(value: object) -> None:
    with pytest.raises(MalformedMessage):
        open_envelope(pack(value), kinds=KINDS, limit=1000)


@pytest.mark.parametrize("kind", ["", "k" * 65, "a b", "é", "a\n"])
def test_kinds_that_cannot_be_signed(kind: str) -> None:
    with pytest.raises(IllegalStep):
        sign_envelope(ALICE, kind, b"")


def test_two_signatures_over_one_statement_are_one_statement() -> None:
    envelope = sign_envelope(ALICE, "round/core", b"payload")
    other = Envelope(ALICE.peer_id, "round/core", b"payload", bytes(64))
    assert other.digest == envelope.digest
    assert sign_envelope(BOB, "round/core", b"payload").digest != envelope.digest
    assert sign_envelope(ALICE, "round/cover", b"payload").digest != envelope.digest


def test_all_names_exist_and_importing_the_room_stays_light() -> None:
    assert all(hasattr(room, name) for name in room.__all__)
    heavy = "import sys, p2pfl.crypto; print([n for n in ('torch', 'numpy', 'networkx') if n in sys.modules])"
    found = subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True, timeout=60, check=True)
    assert found.stdout.strip() == "[]"
