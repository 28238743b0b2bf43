"""Owns the wrapping of content keys for one recipient: libsodium's sealed box (X25519, XSalsa20-Poly1305).

A prekey lives for one run and is deleted afterwards, so recorded traffic stays closed when an identity key is
stolen later. A sealed box names no sender; the signed message around it does.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import NoReturn

from nacl.exceptions import CryptoError
from nacl.public import PrivateKey, PublicKey, SealedBox

from p2pfl.crypto.uvarint import frame
from p2pfl.errors import ConfigError, IllegalStep, MalformedMessage, SignatureRefused

PREKEY_BYTES = 32
"""Length of an X25519 public or secret key (RFC 7748 section 5)."""

CONTENT_KEY_BYTES = 32
"""Length of a content key."""

WRAPPED_BYTES = 112
"""Length of a wrapped key: 32 ephemeral public key, 16 tag, 32 context hash, 32 content key."""

_LABEL = b"p2pfl/1/wrap"


class Prekey:
    """One run's X25519 key pair. Only ``public`` leaves the peer; ``secret`` is for sealed storage."""

    __slots__ = ("_box", "_key", "public")

    def __init__(self, key: PrivateKey) -> None:
        self._key = key
        self._box = SealedBox(key)
        self.public: bytes = key.public_key.encode()

    @classmethod
    def generate(cls) -> Prekey:
        """A new prekey from the operating system's randomness."""
        return cls(PrivateKey.generate())

    @classmethod
    def from_secret(cls, secret: bytes) -> Prekey:
        """The prekey of 32 stored secret bytes. Raises ConfigError for another length."""
        if len(secret) != PREKEY_BYTES:
            raise ConfigError(f"a prekey has {PREKEY_BYTES} bytes, not {len(secret)}; restore it from the store")
        return cls(PrivateKey(secret))

    @property
    def secret(self) -> bytes:
        """The 32 secret bytes, for sealed storage only."""
        return self._key.encode()

    def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        """The 32-byte content key that was wrapped for us under this very ``context``.

        Raises SignatureRefused for a wrong length, another recipient, any changed byte, or another context.
        """
        if len(wrapped) != WRAPPED_BYTES:
            raise SignatureRefused(f"a wrapped key has {len(wrapped)} bytes, not {WRAPPED_BYTES}; ask for it again")
        try:
            content = self._box.decrypt(wrapped)
        except CryptoError:
            raise SignatureRefused("a wrapped key does not open with our prekey; ask for it again") from None
        bound, key = content[:-CONTENT_KEY_BYTES], content[-CONTENT_KEY_BYTES:]
        if not hmac.compare_digest(bound, _context_hash(self.public, context)):
            raise SignatureRefused("a wrapped key belongs to another message; ask the sender for the right one")
        return key

    def __repr__(self) -> str:
        return f"Prekey(public={self.public.hex()})"

    def __reduce__(self) -> NoReturn:
        raise IllegalStep("a prekey is never pickled or copied; store its secret sealed")


def wrap_key(key: bytes, recipient_public: bytes, context: bytes) -> bytes:
    """The 32-byte content ``key``, sealed for the owner of ``recipient_public``: 112 bytes.

    ``context`` names what the key is for; it travels as a hash inside the box, with the recipient's key, so
    that a wrapped key cannot be moved to another message. Raises IllegalStep for a wrong key length and
    MalformedMessage for a recipient key that libsodium refuses (wrong length, or of small order, which would
    give everybody the same shared secret).
    """
    if len(key) != CONTENT_KEY_BYTES:
        raise IllegalStep(f"a content key has {CONTENT_KEY_BYTES} bytes, not {len(key)}; pass the key that seal gave")
    if len(recipient_public) != PREKEY_BYTES:
        raise MalformedMessage(f"a prekey has {len(recipient_public)} bytes, not {PREKEY_BYTES}; ask its owner")
    try:
        box = SealedBox(PublicKey(recipient_public))
        return bytes(box.encrypt(_context_hash(recipient_public, context) + key))
    except CryptoError:
        raise MalformedMessage("a prekey is no usable X25519 key; ask its owner for a new one") from None


def _context_hash(recipient_public: bytes, context: bytes) -> bytes:
    return hashlib.sha256(frame(_LABEL, recipient_public, context)).digest()
