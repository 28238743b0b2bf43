"""Owns the protobuf form of libp2p keys (libp2p/specs peer-ids.md, "Keys").

``PublicKey`` and ``PrivateKey`` are ``08 type 12 uvarint(length) data``. The specification asks for the
deterministic form: fields in tag order, minimal lengths, nothing else. We therefore accept exactly that.
"""

from __future__ import annotations

import hmac

from nacl.signing import SigningKey

from p2pfl.crypto.uvarint import decode_uvarint, encode_uvarint
from p2pfl.errors import ConfigError, MalformedMessage

ED25519 = 1
"""KeyType number (peer-ids.md: RSA 0, Ed25519 1, Secp256k1 2, ECDSA 3)."""

KEY_BYTES = 32
"""Length of an Ed25519 seed and of an Ed25519 public key (RFC 8032 5.1.5)."""

KEY_ENCODING_LIMIT = 8192
"""Largest protobuf read. An RSA-4096 private key, the longest published vector, has 2,355 bytes."""

_TYPE_TAG = 0x08
_DATA_TAG = 0x12


def encode_key(key_type: int, data: bytes) -> bytes:
    """The protobuf form of a public or private key."""
    return bytes([_TYPE_TAG]) + encode_uvarint(key_type) + bytes([_DATA_TAG]) + encode_uvarint(len(data)) + data


def decode_key(encoded: bytes) -> tuple[int, bytes]:
    """Key type number and key data. Raises MalformedMessage for any byte outside the deterministic form."""
    if len(encoded) > KEY_ENCODING_LIMIT:
        raise MalformedMessage(f"an encoded key exceeds {KEY_ENCODING_LIMIT} bytes; ask for an Ed25519 key")
    if encoded[:1] != bytes([_TYPE_TAG]):
        raise MalformedMessage("an encoded key does not begin with its type; ask the sender for a libp2p key")
    key_type, offset = decode_uvarint(encoded, 1)
    if encoded[offset : offset + 1] != bytes([_DATA_TAG]):
        raise MalformedMessage("an encoded key has no data after its type; ask the sender for a libp2p key")
    length, offset = decode_uvarint(encoded, offset + 1)
    if len(encoded) != offset + length:
        raise MalformedMessage("an encoded key is cut off or has extra bytes; ask the sender to send it again")
    return key_type, encoded[offset:]


def encode_private_key(seed: bytes) -> bytes:
    """``08 01 12 40 || seed || public key``, 68 bytes, for the 32-byte Ed25519 ``seed``."""
    return encode_key(ED25519, seed + SigningKey(seed).verify_key.encode())


def decode_private_key(encoded: bytes) -> bytes:
    """The 32-byte Ed25519 seed of a libp2p private key.

    Takes the 64-byte form (seed, public key) and the old 96-byte form (seed, public key, public key), the
    latter only if both public halves agree, as peer-ids.md demands. Raises ConfigError: private keys only
    ever come from our own disk. The message never repeats key bytes.
    """
    try:
        key_type, data = decode_key(encoded)
    except MalformedMessage as error:
        raise ConfigError(f"the private key cannot be read: {error}") from None
    if key_type != ED25519:
        raise ConfigError(f"the private key is of libp2p type {key_type}; make an Ed25519 key (type 1)")
    if len(data) not in (2 * KEY_BYTES, 3 * KEY_BYTES):
        raise ConfigError(f"the private key holds {len(data)} bytes, not 64 or 96; export it again")
    seed, public, again = data[:KEY_BYTES], data[KEY_BYTES : 2 * KEY_BYTES], data[2 * KEY_BYTES :]
    derived = SigningKey(seed).verify_key.encode()
    if not hmac.compare_digest(derived, public) or (again and not hmac.compare_digest(public, again)):
        # a wrong public half makes signatures that leak the seed (double public key attack on Ed25519)
        raise ConfigError("the private key's halves do not belong together; export it again")
    return seed
