"""Signatures and seals of a simulation: real ones, or cheap ones. FOR SIMULATION ALONE.

The cheap ones protect nothing. A tag is BLAKE2b keyed with the signer's *public* key, so anybody can make anybody's;
a sealed payload is not encrypted. They keep the shape of the real ones (64 bytes, a manifest with a root, a wrapped
key), so that machines and messages are the same, and they cost 2 microseconds where Ed25519 costs 100. A hostile
member of a simulation signs with its own name only because its code in `p2pfl.sim.members` does so.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

from p2pfl.crypto import (
    CHUNK,
    CONTENT_KEY_BYTES,
    Identity,
    Manifest,
    Prekey,
    Sealed,
    Signer,
    Verify,
    expected_chunks,
    open_all,
    peer_id_from_public_key,
    public_key_from_peer_id,
    seal,
    sha256,
    verify_signature,
    wrap_key,
)
from p2pfl.errors import SignatureRefused
from p2pfl.sim.draws import raw
from p2pfl.types import PeerId


@dataclass(frozen=True, slots=True)
class TagIdentity:
    """Signs with tags that anybody could make. For simulation alone."""

    public_key: bytes
    peer_id: PeerId

    @classmethod
    def from_seed(cls, seed: bytes) -> TagIdentity:
        """The identity of a seed; its public key is the seed's BLAKE2b, which is no point on any curve."""
        public_key = hashlib.blake2b(seed, digest_size=32, person=b"p2pfl sim key").digest()
        return cls(public_key, peer_id_from_public_key(public_key))

    def sign(self, message: bytes) -> bytes:
        """A tag of 64 bytes. It proves nothing."""
        return hashlib.blake2b(message, key=self.public_key).digest()


@lru_cache(maxsize=4096)
def _key_of(peer_id: str) -> bytes:
    return public_key_from_peer_id(peer_id)


def verify_tag(peer_id: str, message: bytes, signature: bytes) -> None:
    """Return if the tag belongs to this name and message, else raise SignatureRefused. For simulation alone."""
    if hashlib.blake2b(message, key=_key_of(peer_id)).digest() != signature:
        raise SignatureRefused(f"a tag in the name of {peer_id} does not hold; drop the message")


class Kit(Protocol):
    """How the sites of one world sign and seal."""

    repeatable: bool  # whether the same seed gives the same bytes

    @property
    def verify(self) -> Verify:
        """What a machine checks signatures with."""
        ...

    def identity(self, seed: int, number: int) -> Signer:
        """The signing key of one site."""
        ...

    def prekey(self, seed: int, number: int) -> tuple[bytes, bytes]:
        """Secret and public half of one site's key for the run."""
        ...

    def seal(self, payload: bytes, context: bytes) -> Sealed:
        """What to sign, to wrap and to serve."""
        ...

    def wrap(self, key: bytes, public: bytes, context: bytes) -> bytes:
        """The content key for one recipient."""
        ...

    def open(self, manifest: Manifest, wrapped: bytes, secret: bytes, context: bytes, chunks: Sequence[bytes]) -> bytes:
        """The payload. Raises RemoteError for anything that is not what its sender signed."""
        ...


class CheapKit:
    """Tags and open payloads. For simulation alone."""

    repeatable = True
    verify = staticmethod(verify_tag)

    def identity(self, seed: int, number: int) -> Signer:
        """A tag identity."""
        return TagIdentity.from_seed(raw(32, seed, "identity", number))

    def prekey(self, seed: int, number: int) -> tuple[bytes, bytes]:
        """Two names of the site; nothing is encrypted to them."""
        return raw(32, seed, "prekey", number), raw(32, seed, "public prekey", number)

    def seal(self, payload: bytes, context: bytes) -> Sealed:
        """The payload as it is, cut into chunks; root = SHA-256(payload), commitment = SHA-256(context)."""
        manifest = Manifest(len(payload), expected_chunks(len(payload)), sha256(payload), sha256(context))
        chunks = [payload[start : start + CHUNK] for start in range(0, max(1, len(payload)), CHUNK)]
        return Sealed(manifest, bytes(CONTENT_KEY_BYTES), chunks)

    def wrap(self, key: bytes, public: bytes, context: bytes) -> bytes:
        """The key as it is."""
        return key

    def open(self, manifest: Manifest, wrapped: bytes, secret: bytes, context: bytes, chunks: Sequence[bytes]) -> bytes:
        """The payload, if it has the root and belongs to this context."""
        payload = b"".join(chunks)
        if sha256(context) != manifest.commitment:
            raise SignatureRefused("a payload was sealed for another place; drop it")
        if len(payload) != manifest.size or sha256(payload) != manifest.root:
            raise SignatureRefused("the chunks are not those the sender signed; fetch them from the sender itself")
        return payload


class RealKit:
    """Ed25519, XChaCha20-Poly1305 and sealed boxes, as deployed. Content keys are random: bytes differ every time."""

    repeatable = False
    verify = staticmethod(verify_signature)

    def identity(self, seed: int, number: int) -> Signer:
        """A real identity."""
        return Identity.from_seed(raw(32, seed, "identity", number))

    def prekey(self, seed: int, number: int) -> tuple[bytes, bytes]:
        """A real X25519 pair."""
        secret = raw(32, seed, "prekey", number)
        return secret, Prekey.from_secret(secret).public

    def seal(self, payload: bytes, context: bytes) -> Sealed:
        """See `p2pfl.crypto.seal`."""
        return seal(payload, context)

    def wrap(self, key: bytes, public: bytes, context: bytes) -> bytes:
        """See `p2pfl.crypto.wrap_key`."""
        return wrap_key(key, public, context)

    def open(self, manifest: Manifest, wrapped: bytes, secret: bytes, context: bytes, chunks: Sequence[bytes]) -> bytes:
        """See `p2pfl.crypto.Opener`."""
        return open_all(manifest, Prekey.from_secret(secret).unwrap(wrapped, context), context, chunks)
