"""Owns the identity of a peer: one Ed25519 key (RFC 8032), its signatures, and keys derived from it.

Verification goes through PyNaCl alone. Ed25519 verifiers disagree on edge cases (PyNaCl and OpenSSL differ on
165 of the 914 C2SP/CCTV vectors), and evidence that one member accepts must hold for all of them.
"""

from __future__ import annotations

from typing import NoReturn

from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

from p2pfl.crypto.derivation import hkdf_sha256
from p2pfl.crypto.key_encodings import KEY_BYTES
from p2pfl.crypto.peer_ids import peer_id_from_public_key, public_key_from_peer_id
from p2pfl.crypto.uvarint import frame
from p2pfl.errors import ConfigError, IllegalStep, MalformedMessage, SignatureRefused
from p2pfl.types import PeerId

SIGNATURE_BYTES = 64
"""Length of an Ed25519 signature (RFC 8032 5.1.6)."""

_DERIVE_LABEL = b"p2pfl/1/derive"


class Identity:
    """One peer's signing key. The seed is the whole secret; everything else follows from it."""

    __slots__ = ("_key", "peer_id", "public_key")

    def __init__(self, key: SigningKey) -> None:
        self._key = key
        self.public_key: bytes = key.verify_key.encode()
        self.peer_id: PeerId = peer_id_from_public_key(self.public_key)

    @classmethod
    def generate(cls) -> Identity:
        """A new identity from the operating system's randomness."""
        return cls(SigningKey.generate())

    @classmethod
    def from_seed(cls, seed: bytes) -> Identity:
        """The identity of a 32-byte seed. Raises ConfigError for another length."""
        if len(seed) != KEY_BYTES:
            raise ConfigError(f"an identity seed has {KEY_BYTES} bytes, not {len(seed)}; restore the key file")
        return cls(SigningKey(seed))

    @property
    def seed(self) -> bytes:
        """The 32 secret bytes, for the key store only."""
        return self._key.encode()

    def sign(self, message: bytes) -> bytes:
        """The 64-byte signature. The message is copied up to three times: sign a digest, never a blob."""
        return self._key.sign(message).signature

    def derive(self, purpose: str, context: bytes = b"") -> bytes:
        """A 32-byte secret of this identity for one ``purpose``: HKDF-SHA256 of the seed.

        info = frame("p2pfl/1/derive", purpose, context), so no two uses share a key. It changes with the
        identity and nothing else: the same purpose and context give the same key after a restart.
        """
        return hkdf_sha256(self.seed, info=frame(_DERIVE_LABEL, purpose.encode(), context))

    def __repr__(self) -> str:
        return f"Identity({self.peer_id})"

    def __reduce__(self) -> NoReturn:
        raise IllegalStep("an identity is never pickled or copied; keep it in a key file (write_key)")


def verify_signature(peer_id: str, message: bytes, signature: bytes) -> None:
    """Return if ``signature`` by the key inside ``peer_id`` holds over exactly ``message``.

    Raises SignatureRefused otherwise. Its ``peer`` stays None: whoever delivers a bad signature need not be
    the one it names, so only the caller, who knows the link, can blame somebody.
    """
    try:
        public_key = public_key_from_peer_id(peer_id)
    except MalformedMessage as error:
        raise SignatureRefused(f"a signature names no usable peer id ({error}); drop the message") from None
    if len(signature) != SIGNATURE_BYTES:
        raise SignatureRefused(
            f"a signature in the name of {peer_id} has {len(signature)} bytes, not {SIGNATURE_BYTES}; drop the message"
        )
    try:
        VerifyKey(public_key).verify(message, signature)
    except BadSignatureError:
        raise SignatureRefused(
            f"a signature in the name of {peer_id} does not hold; drop the message and ask that site about it"
        ) from None
