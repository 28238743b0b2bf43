"""Sealing in chunks and wrapping of content keys: round trips, the documented format, and every mutation."""

from __future__ import annotations

import copy
import hmac
import threading
from dataclasses import replace
from typing import Any

import pytest
from nacl.bindings import crypto_aead_xchacha20poly1305_ietf_decrypt
from nacl.public import PrivateKey, SealedBox

from p2pfl.crypto import (
    CHUNK,
    SIZE_LIMIT,
    WRAPPED_BYTES,
    Manifest,
    Opener,
    Prekey,
    Sealed,
    ciphertext_size,
    expected_chunks,
    merkle_root,
    open_all,
    open_all_off_loop,
    pack,
    seal,
    seal_off_loop,
    sealing,
    unpack,
    wrap_key,
)
from p2pfl.crypto.sealing import CONTEXT_LIMIT, OFF_LOOP_BYTES
from p2pfl.crypto.uvarint import frame
from p2pfl.errors import (
    ConfigError,
    IllegalStep,
    LimitExceeded,
    MalformedMessage,
    RemoteError,
    SignatureRefused,
)
from p2pfl.types import Digest

CONTEXT = b"run 1, lille, round 3, x"
PLAINTEXT = bytes(range(256)) * (2 * CHUNK // 256) + b"the end"  # two whole chunks and a short one
SEALED = seal(PLAINTEXT, CONTEXT)


def flipped(data: bytes, place: int) -> bytes:
    changed = bytearray(data)
    changed[place // 8] ^= 1 << place % 8
    return bytes(changed)


def opened(sealed: Sealed, chunks: list[bytes], manifest: Manifest | None = None, context: bytes = CONTEXT) -> bytes:
    return open_all(manifest or sealed.manifest, sealed.key, context, chunks)


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 2 * CHUNK + 7])
def test_round_trip_and_sizes(size: int) -> None:
    plaintext = PLAINTEXT[:size]
    sealed = seal(memoryview(plaintext), CONTEXT)
    assert sealed.manifest.size == size
    assert sealed.manifest.chunks == len(sealed.chunks) == expected_chunks(size)
    assert sum(map(len, sealed.chunks)) == ciphertext_size(size)
    assert opened(sealed, sealed.chunks) == plaintext


def test_a_view_of_numbers_is_sealed_as_its_bytes() -> None:
    numbers = memoryview(bytes(16)).cast("d")
    sealed = seal(numbers, CONTEXT)
    assert sealed.manifest.size == 16
    assert opened(sealed, sealed.chunks) == bytes(16)


def test_the_format_is_the_documented_one() -> None:
    """Rebuilt from the equations of the module with nothing but HMAC and the cipher."""
    extracted = hmac.digest(bytes(32), SEALED.key, "sha256")

    def expand(label: bytes) -> bytes:
        return hmac.digest(extracted, frame(label, CONTEXT) + b"\x01", "sha256")

    base = int.from_bytes(expand(b"p2pfl/1/chunk nonce")[:24], "big")
    parts = []
    for index, chunk in enumerate(SEALED.chunks):
        extra = index.to_bytes(8, "big") + (b"\x01" if index == 2 else b"\x00") + CONTEXT
        nonce = (base ^ index).to_bytes(24, "big")
        key = expand(b"p2pfl/1/chunk key")
        parts.append(crypto_aead_xchacha20poly1305_ietf_decrypt(chunk, extra, nonce, key))
    assert b"".join(parts) == PLAINTEXT
    assert expand(b"p2pfl/1/key commitment").hex() == SEALED.manifest.commitment
    assert merkle_root(SEALED.chunks) == SEALED.manifest.root


def test_two_sealings_of_one_payload_share_nothing() -> None:
    again = seal(PLAINTEXT, CONTEXT)
    assert again.key != SEALED.key
    assert not set(again.chunks) & set(SEALED.chunks)
    assert (again.manifest.root, again.manifest.commitment) != (
        SEALED.manifest.root,
        SEALED.manifest.commitment,
    )


def test_nothing_shows_the_key() -> None:
    assert SEALED.key.hex() not in repr(SEALED)
    assert repr(SEALED.key) not in repr(SEALED)


def test_chunks_open_in_any_order_and_a_bad_one_can_be_fetched_again() -> None:
    opener = Opener(SEALED.manifest, SEALED.key, CONTEXT)
    parts = {}
    for index in (2, 0, 1):
        with pytest.raises(SignatureRefused):
            opener.open(index, flipped(SEALED.chunks[index], 5))
        with pytest.raises(SignatureRefused, match="missing"):
            opener.finish()
        parts[index] = opener.open(index, SEALED.chunks[index])
    opener.finish()
    assert b"".join(parts[index] for index in range(3)) == PLAINTEXT


@pytest.mark.parametrize("index", [-1, 3, 0])
def test_a_chunk_that_is_not_awaited_is_a_callers_bug(index: int) -> None:
    opener = Opener(SEALED.manifest, SEALED.key, CONTEXT)
    opener.open(0, SEALED.chunks[0])
    with pytest.raises(IllegalStep):
        opener.open(index, SEALED.chunks[0])


def test_every_changed_bit_of_a_short_chunk_is_refused() -> None:
    for place in range(8 * len(SEALED.chunks[2])):
        opener = Opener(SEALED.manifest, SEALED.key, CONTEXT)
        with pytest.raises(SignatureRefused):
            opener.open(2, flipped(SEALED.chunks[2], place))


def test_changed_bits_all_over_a_whole_chunk_are_refused() -> None:
    opener = Opener(SEALED.manifest, SEALED.key, CONTEXT)
    bits = 8 * len(SEALED.chunks[0])
    for place in [
        *range(0, bits, 997),
        bits - 1,
    ]:  # 997 is prime: every bit of a byte, every place in a block
        with pytest.raises(SignatureRefused):
            opener.open(0, flipped(SEALED.chunks[0], place))


FIRST, SECOND, LAST = SEALED.chunks


@pytest.mark.parametrize(
    ("name", "chunks"),
    [
        ("swapped", [SECOND, FIRST, LAST]),
        ("first dropped", [SECOND, LAST]),
        ("last dropped", [FIRST, SECOND]),
        ("all dropped", []),
        ("duplicated", [FIRST, FIRST, LAST]),
        ("one too many", [FIRST, SECOND, LAST, LAST]),
        ("last one first", [LAST, FIRST, SECOND]),
        ("truncated inside", [FIRST, SECOND[:-1], LAST]),
        ("truncated at the end", [FIRST, SECOND, LAST[:-1]]),
        ("longer", [FIRST, SECOND, LAST + b"\x00"]),
        ("empty chunk", [FIRST, SECOND, b""]),
        ("chunk of another payload", [FIRST, seal(PLAINTEXT, CONTEXT).chunks[1], LAST]),
    ],
)
def test_rearranged_chunks_are_refused(name: str, chunks: list[bytes]) -> None:
    with pytest.raises(SignatureRefused):
        opened(SEALED, chunks)


def test_every_changed_bit_of_a_manifest_is_refused() -> None:
    sealed = seal(b"a small delta", CONTEXT)
    packed = pack(sealed.manifest.fields())
    assert Manifest.from_fields(unpack(packed, what="a manifest", limit=1000)) == sealed.manifest
    for place in range(8 * len(packed)):
        with pytest.raises(RemoteError):
            changed = Manifest.from_fields(unpack(flipped(packed, place), what="a manifest", limit=1000))
            opened(sealed, sealed.chunks, changed)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"size": -1}, MalformedMessage),
        ({"size": -1, "chunks": 1}, MalformedMessage),
        ({"size": SIZE_LIMIT + 1}, LimitExceeded),
        ({"size": 2**63, "chunks": 2**47}, LimitExceeded),
        ({"chunks": 0}, MalformedMessage),
        ({"chunks": 2}, MalformedMessage),
        ({"size": 0}, MalformedMessage),
        ({"root": "ab"}, MalformedMessage),
        ({"root": SEALED.manifest.root.upper()}, MalformedMessage),
        ({"commitment": ""}, MalformedMessage),
        ({"commitment": SEALED.manifest.root}, SignatureRefused),
    ],
)
def test_manifests_that_contradict_themselves(changes: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        Opener(replace(SEALED.manifest, **changes), SEALED.key, CONTEXT)


def test_a_truncated_payload_under_a_truncated_manifest_is_refused() -> None:
    """The last flag: the first two chunks alone are no payload, even if somebody signs for them."""
    shorter = Manifest(2 * CHUNK, 2, merkle_root([FIRST, SECOND]), SEALED.manifest.commitment)
    with pytest.raises(SignatureRefused):
        opened(SEALED, [FIRST, SECOND], shorter)


def test_a_recipient_cannot_replace_chunks_for_others() -> None:
    """Whoever holds the content key can make chunks that open; the signed root refuses them."""
    forged = sealing._ChunkCipher(SEALED.key, CONTEXT, 3).encrypt(2, b"the END")
    opener = Opener(SEALED.manifest, SEALED.key, CONTEXT)
    for index, chunk in enumerate([FIRST, SECOND, forged]):
        opener.open(index, chunk)
    with pytest.raises(SignatureRefused, match="not those the sender signed"):
        opener.finish()


@pytest.mark.parametrize("context", [b"", CONTEXT[:-1], CONTEXT + b"\x00", b"run 1, lille, round 4, x"])
def test_another_context_is_refused_before_any_chunk_is_fetched(context: bytes) -> None:
    with pytest.raises(SignatureRefused, match="committed"):
        Opener(SEALED.manifest, SEALED.key, context)


def test_the_context_is_in_key_and_associated_data_too() -> None:
    """Even a commitment that fits the wrong context opens nothing."""
    other = CONTEXT + b"!"
    commitment = sealing._ChunkCipher(SEALED.key, other, 3).commitment
    with pytest.raises(SignatureRefused, match="chunk 0"):
        opened(SEALED, SEALED.chunks, replace(SEALED.manifest, commitment=commitment), other)


@pytest.mark.parametrize("key", [b"", bytes(32), SEALED.key[:-1], SEALED.key + b"\x00", flipped(SEALED.key, 255)])
def test_another_key_is_refused_by_the_commitment(key: bytes) -> None:
    with pytest.raises(SignatureRefused):
        Opener(SEALED.manifest, key, CONTEXT)


def test_our_own_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    seal(b"", bytes(CONTEXT_LIMIT))
    with pytest.raises(IllegalStep, match="context"):
        seal(b"", bytes(CONTEXT_LIMIT + 1))
    monkeypatch.setattr(sealing, "SIZE_LIMIT", 100)
    with pytest.raises(IllegalStep, match="exceeds 100"):
        seal(bytes(101), CONTEXT)


@pytest.mark.parametrize(("size", "moves"), [(OFF_LOOP_BYTES - 1, False), (OFF_LOOP_BYTES, True)])
async def test_blocks_of_64_kib_leave_the_event_loop(size: int, moves: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []
    original = sealing._ChunkCipher._place

    def watched(self: Any, index: int) -> tuple[bytes, bytes]:
        threads.append(threading.get_ident())
        return original(self, index)

    monkeypatch.setattr(sealing._ChunkCipher, "_place", watched)
    sealed = await seal_off_loop(bytes(size), CONTEXT)
    assert await open_all_off_loop(sealed.manifest, sealed.key, CONTEXT, sealed.chunks) == bytes(size)
    assert len(threads) == 2 * expected_chunks(size)
    assert all((thread != threading.get_ident()) == moves for thread in threads)


ALICE, BOB = Prekey.from_secret(b"\x01" * 32), Prekey.from_secret(b"\x02" * 32)


def test_a_wrapped_key_opens_for_its_recipient_only() -> None:
    wrapped = {who: wrap_key(SEALED.key, who.public, CONTEXT) for who in (ALICE, BOB)}
    assert {len(one) for one in wrapped.values()} == {WRAPPED_BYTES}
    assert ALICE.unwrap(wrapped[ALICE], CONTEXT) == BOB.unwrap(wrapped[BOB], CONTEXT) == SEALED.key
    with pytest.raises(SignatureRefused):
        BOB.unwrap(wrapped[ALICE], CONTEXT)


def test_every_changed_bit_and_every_other_length_of_a_wrapped_key_is_refused() -> None:
    wrapped = wrap_key(SEALED.key, ALICE.public, CONTEXT)
    for place in range(8 * len(wrapped)):
        # bit 255 too, which X25519 ignores (RFC 7748 section 5): the nonce is a hash over the key as sent
        with pytest.raises(SignatureRefused):
            ALICE.unwrap(flipped(wrapped, place), CONTEXT)
    for other in [*(wrapped[:length] for length in range(len(wrapped))), wrapped + b"\x00"]:
        with pytest.raises(SignatureRefused):
            ALICE.unwrap(other, CONTEXT)


@pytest.mark.parametrize("context", [b"", CONTEXT + b"!", CONTEXT[1:]])
def test_a_wrapped_key_cannot_be_moved_to_another_context(context: bytes) -> None:
    with pytest.raises(SignatureRefused, match="another message"):
        ALICE.unwrap(wrap_key(SEALED.key, ALICE.public, CONTEXT), context)


def test_a_wrapped_key_of_another_make_is_refused() -> None:
    foreign = SealedBox(PrivateKey(ALICE.secret).public_key).encrypt(bytes(64))
    with pytest.raises(SignatureRefused, match="another message"):
        ALICE.unwrap(bytes(foreign), CONTEXT)


def test_bad_arguments_of_wrapping() -> None:
    with pytest.raises(IllegalStep):
        wrap_key(bytes(31), ALICE.public, CONTEXT)
    for public in (b"", bytes(31), bytes(33), bytes(32)):
        with pytest.raises(MalformedMessage):
            wrap_key(bytes(32), public, CONTEXT)
    with pytest.raises(ConfigError):
        Prekey.from_secret(bytes(31))


def test_prekeys_come_back_from_their_secret_and_hide_it() -> None:
    prekey = Prekey.generate()
    assert Prekey.from_secret(prekey.secret).public == prekey.public != Prekey.generate().public
    assert repr(prekey) == f"Prekey(public={prekey.public.hex()})"
    with pytest.raises(IllegalStep):
        copy.deepcopy(prekey)


def test_manifest_fields_are_plain_values() -> None:
    assert SEALED.manifest.fields() == {
        "size": len(PLAINTEXT),
        "chunks": 3,
        "root": Digest(SEALED.manifest.root),
        "commitment": SEALED.manifest.commitment,
    }
