"""Owns the sealing of a large payload: encrypted once, in chunks that open in any order.

K = 32 random bytes, C = context. With HKDF-SHA256 (RFC 5869) and frame() for unambiguous joining:
  chunk key    k = HKDF(K, info = frame("p2pfl/1/chunk key", C)),         32 bytes
  nonce base   b = HKDF(K, info = frame("p2pfl/1/chunk nonce", C)),       24 bytes
  commitment   c = HKDF(K, info = frame("p2pfl/1/key commitment", C)),    32 bytes
  chunk i        = XChaCha20-Poly1305(k, b xor i, chunk i of the plaintext, aad = u64(i) || last || C)
  root           = RFC 6962 Merkle root over the ciphertext chunks.
The model is C2SP chunked-encryption. XChaCha20-Poly1305 does not commit to its key: without c one ciphertext
could open to two different models for two recipients. Both c and root belong in what the sender signs.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from nacl.bindings import (
    crypto_aead_xchacha20poly1305_ietf_decrypt,
    crypto_aead_xchacha20poly1305_ietf_encrypt,
)
from nacl.exceptions import CryptoError
from nacl.utils import random as random_bytes

from p2pfl.crypto.derivation import hkdf_sha256
from p2pfl.crypto.digests import parse_digest
from p2pfl.crypto.merkle import leaf_hash, root_of_hashes
from p2pfl.crypto.packing import read_fields
from p2pfl.crypto.prekeys import CONTENT_KEY_BYTES
from p2pfl.crypto.uvarint import frame
from p2pfl.errors import IllegalStep, LimitExceeded, MalformedMessage, SignatureRefused
from p2pfl.types import Digest

CHUNK = 65536
"""Plaintext bytes per chunk: the unit of pulling. C2SP uses 16 KiB; 64 KiB costs a quarter of the calls and
lets asyncio's TLS write at its fastest."""

TAG = 16
"""Bytes of a Poly1305 tag (RFC 8439 2.5), which each chunk carries."""

SIZE_LIMIT = 1 << 32
"""Plaintext bytes: eight times the 500 MB of the largest models meant here; then a receiver keeps at most
65,536 chunk hashes, 2 MiB."""

CONTEXT_LIMIT = 1024
"""Bytes of a context; it is part of every chunk's associated data."""

OFF_LOOP_BYTES = 65536
"""From here on the work leaves the event loop: one chunk takes about 0.2 ms, a thread switch less."""

_NONCE_BYTES = 24
_KEY_LABEL = b"p2pfl/1/chunk key"
_NONCE_LABEL = b"p2pfl/1/chunk nonce"
_COMMITMENT_LABEL = b"p2pfl/1/key commitment"


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a sender signs about a sealed payload."""

    size: int  # plaintext bytes
    chunks: int  # at least 1: an empty payload is one empty chunk
    root: Digest  # over the ciphertext chunks
    commitment: Digest  # to the content key, bound to the context

    def fields(self) -> dict[str, Any]:
        """The manifest as a map for a message."""
        return asdict(self)

    @classmethod
    def from_fields(cls, value: Any) -> Manifest:
        """The manifest in a decoded map. Raises MalformedMessage or LimitExceeded."""
        spec: Mapping[str, type] = {"size": int, "chunks": int, "root": str, "commitment": str}
        manifest = cls(**read_fields(value, "a manifest", spec))
        manifest.check()
        return manifest

    def check(self) -> None:
        """Return if the fields agree with each other. Raises MalformedMessage or LimitExceeded."""
        if self.size > SIZE_LIMIT:
            raise LimitExceeded(
                f"a payload of {self.size} bytes exceeds {SIZE_LIMIT}; the sender must send it in parts"
            )
        if self.size < 0 or self.chunks != expected_chunks(self.size):
            raise MalformedMessage(
                f"a manifest names {self.chunks} chunks for {self.size} bytes; the sender must seal it again"
            )
        parse_digest(self.root, "a manifest's root")
        parse_digest(self.commitment, "a manifest's commitment")


@dataclass(frozen=True, slots=True)
class Sealed:
    """A sealed payload: what to sign, what to wrap for each recipient, what to serve."""

    manifest: Manifest
    key: bytes = field(repr=False)  # 32 bytes
    chunks: list[bytes] = field(repr=False)  # ciphertext with tag


def expected_chunks(size: int) -> int:
    """How many chunks ``size`` plaintext bytes give; 1 for none, so that an end is always authenticated."""
    return max(1, -(-size // CHUNK))


def ciphertext_size(size: int) -> int:
    """All chunks' bytes together for ``size`` plaintext bytes."""
    return size + TAG * expected_chunks(size)


def seal(plaintext: bytes | memoryview, context: bytes) -> Sealed:
    """Encrypt under a fresh content key.

    ``context`` names what this is (run, origin, round, channel ...), at most 1024 bytes; it opens under no
    other context. Raises IllegalStep for a payload or a context above the limits.
    """
    view = memoryview(plaintext).cast("B")
    if len(view) > SIZE_LIMIT:
        raise IllegalStep(f"a payload of {len(view)} bytes exceeds {SIZE_LIMIT}; send it in parts")
    key = random_bytes(CONTENT_KEY_BYTES)
    cipher = _ChunkCipher(key, context, expected_chunks(len(view)))
    chunks = [cipher.encrypt(index, bytes(view[index * CHUNK : (index + 1) * CHUNK])) for index in cipher.indices]
    root = Digest(root_of_hashes([leaf_hash(chunk) for chunk in chunks]).hex())
    return Sealed(Manifest(len(view), len(chunks), root, cipher.commitment), key, chunks)


async def seal_off_loop(plaintext: bytes | memoryview, context: bytes) -> Sealed:
    """``seal``, in a thread from 64 KiB on; after a cancellation that thread ends on its own, unheard."""
    if memoryview(plaintext).nbytes < OFF_LOOP_BYTES:
        return seal(plaintext, context)
    return await asyncio.to_thread(seal, plaintext, context)


class Opener:
    """Opens the chunks of one payload, in any order, each once; what came out counts only after ``finish``.

    The constructor raises SignatureRefused when ``key`` is not the key that the manifest commits to under
    ``context``, MalformedMessage or LimitExceeded when the manifest contradicts itself.
    """

    __slots__ = ("_cipher", "_hashes", "manifest")

    def __init__(self, manifest: Manifest, key: bytes, context: bytes) -> None:
        manifest.check()
        if len(key) != CONTENT_KEY_BYTES:
            raise SignatureRefused(f"a content key has {CONTENT_KEY_BYTES} bytes, not {len(key)}; ask for it again")
        self.manifest = manifest
        self._cipher = _ChunkCipher(key, context, manifest.chunks)
        if not hmac.compare_digest(self._cipher.commitment, manifest.commitment):
            raise SignatureRefused("a content key is not the one its sender committed to; ask for it again")
        self._hashes: list[bytes | None] = [None] * manifest.chunks

    def open(self, index: int, chunk: bytes) -> bytes:
        """The plaintext of chunk ``index``.

        Raises SignatureRefused when the chunk is of wrong length, altered or of another place; it may then be
        fetched again. Raises IllegalStep, a bug of the caller, for an index outside the manifest or one that
        was opened before. Not for two threads at once.
        """
        if not 0 <= index < self.manifest.chunks or self._hashes[index] is not None:
            raise IllegalStep(f"chunk {index} of {self.manifest.chunks} is not awaited; open each chunk once")
        length = min(CHUNK, self.manifest.size - index * CHUNK) + TAG
        if len(chunk) != length:
            raise SignatureRefused(f"chunk {index} has {len(chunk)} bytes, not {length}; fetch it again")
        plaintext = self._cipher.decrypt(index, chunk)
        self._hashes[index] = leaf_hash(chunk)
        return plaintext

    def finish(self) -> None:
        """Return if all chunks came and are exactly those the sender signed. Raises SignatureRefused.

        Needed although every chunk was authenticated: all recipients know the content key, so any of them
        could make other chunks; only the signed root says which ones are the sender's.
        """
        hashes = [known for known in self._hashes if known is not None]
        if len(hashes) != self.manifest.chunks:
            missing = self._hashes.index(None)
            raise SignatureRefused(f"chunk {missing} of {self.manifest.chunks} is missing; fetch it")
        if root_of_hashes(hashes).hex() != self.manifest.root:
            raise SignatureRefused("the chunks are not those the sender signed; fetch them from the sender itself")


def open_all(manifest: Manifest, key: bytes, context: bytes, chunks: Iterable[bytes]) -> bytes:
    """The whole payload from its chunks in order. Raises what Opener raises, also for chunks too many."""
    opener = Opener(manifest, key, context)
    parts: list[bytes] = []
    for index, chunk in enumerate(chunks):
        if index >= manifest.chunks:
            raise SignatureRefused(f"more than the {manifest.chunks} chunks that were signed; fetch them again")
        parts.append(opener.open(index, chunk))
    opener.finish()
    return b"".join(parts)


async def open_all_off_loop(manifest: Manifest, key: bytes, context: bytes, chunks: Iterable[bytes]) -> bytes:
    """``open_all``, in a thread from 64 KiB on; ``chunks`` is then read in that thread."""
    if manifest.size < OFF_LOOP_BYTES:
        return open_all(manifest, key, context, chunks)
    return await asyncio.to_thread(open_all, manifest, key, context, chunks)


class _ChunkCipher:
    """The keys of one payload and the cipher of its chunks."""

    __slots__ = ("_base", "_context", "_key", "commitment", "indices")

    def __init__(self, key: bytes, context: bytes, chunks: int) -> None:
        if len(context) > CONTEXT_LIMIT:
            raise IllegalStep(f"a sealing context has {len(context)} bytes, more than {CONTEXT_LIMIT}; hash it first")
        self.indices = range(chunks)
        self._context = context
        self._key = hkdf_sha256(key, info=frame(_KEY_LABEL, context))
        base = hkdf_sha256(key, info=frame(_NONCE_LABEL, context), length=_NONCE_BYTES)
        self._base = int.from_bytes(base, "big")
        self.commitment = Digest(hkdf_sha256(key, info=frame(_COMMITMENT_LABEL, context)).hex())

    def encrypt(self, index: int, plaintext: bytes) -> bytes:
        nonce, extra = self._place(index)
        return crypto_aead_xchacha20poly1305_ietf_encrypt(plaintext, extra, nonce, self._key)

    def decrypt(self, index: int, chunk: bytes) -> bytes:
        nonce, extra = self._place(index)
        try:
            return crypto_aead_xchacha20poly1305_ietf_decrypt(chunk, extra, nonce, self._key)
        except CryptoError:
            raise SignatureRefused(f"chunk {index} does not open: altered or misplaced; fetch it again") from None

    def _place(self, index: int) -> tuple[bytes, bytes]:
        last = index == len(self.indices) - 1
        nonce = (self._base ^ index).to_bytes(_NONCE_BYTES, "big")
        return nonce, index.to_bytes(8, "big") + bytes([last]) + self._context
