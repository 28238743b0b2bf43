"""Owns peer ids: libp2p's names for public keys, in both text forms (libp2p/specs peer-ids.md).

A peer id is a multihash of the key's protobuf form: the identity multihash ``00 24 ...`` where that form has
at most 42 bytes (Ed25519), ``12 20 || SHA-256`` for longer keys. First text form: base58btc, ``12D3KooW...``.
Second: CIDv1 with codec libp2p-key (0x72) in base32, ``bafzaa...``. We read both and print the first.
"""

from __future__ import annotations

import base64
import functools
import hashlib

from p2pfl.crypto.key_encodings import ED25519, KEY_BYTES, decode_key, encode_key
from p2pfl.crypto.uvarint import decode_uvarint, encode_uvarint
from p2pfl.errors import ConfigError, IllegalStep, MalformedMessage
from p2pfl.types import PeerId

INLINE_KEY_LIMIT = 42
"""peer-ids.md: keys whose protobuf form is at most 42 bytes are inlined, longer ones hashed."""

TEXT_LIMIT = 128
"""Characters of a peer id read at most: the longest form in use has 65, and base58 costs quadratic time."""

KEPT = 1024  # peer ids and keys remembered: base58 costs more than a signature, and a peer meets the same few

_IDENTITY = 0x00
_SHA2_256 = 0x12
_CID_PREFIX = b"\x01\x72"  # CIDv1, libp2p-key
_ALPHABET = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_VALUES = {character: value for value, character in enumerate(_ALPHABET)}


@functools.lru_cache(maxsize=KEPT)
def peer_id_from_public_key(public_key: bytes) -> PeerId:
    """The peer id of a 32-byte Ed25519 public key. Raises IllegalStep for another length."""
    if len(public_key) != KEY_BYTES:
        raise IllegalStep(f"an Ed25519 public key has {KEY_BYTES} bytes, not {len(public_key)}; pass the raw key")
    return PeerId(multihash_to_text(multihash_of_key(encode_key(ED25519, public_key))))


@functools.lru_cache(maxsize=KEPT)
def public_key_from_peer_id(peer_id: str) -> bytes:
    """The 32-byte Ed25519 public key inside a peer id in its base58btc form.

    Raises MalformedMessage for anything else, the CID form included: on the wire a peer has one name.
    """
    if peer_id[:1] in ("b", "B"):
        raise MalformedMessage("a peer id is written as CID; messages name peers in base58 (12D3KooW...)")
    return _key_in_multihash(text_to_multihash(peer_id))


def parse_peer_id(text: str) -> PeerId:
    """The canonical form of a peer id that a person wrote in either text form.

    Surrounding blanks are dropped. Raises ConfigError for anything that does not hold an Ed25519 key.
    """
    try:
        return peer_id_from_public_key(_key_in_multihash(text_to_multihash(text.strip())))
    except MalformedMessage as error:
        raise ConfigError(
            f"{text[:TEXT_LIMIT]!r} is not a peer id: {error}; copy it again, it begins with 12D3KooW"
        ) from None


def peer_id_to_cid(peer_id: PeerId) -> str:
    """The second text form, ``bafzaa...``. Raises MalformedMessage if ``peer_id`` is none."""
    return multihash_to_cid(text_to_multihash(peer_id))


def multihash_of_key(encoded_key: bytes) -> bytes:
    """The multihash that names a key of any type, from its protobuf form (peer-ids.md, "Peer Ids")."""
    if len(encoded_key) <= INLINE_KEY_LIMIT:
        return encode_uvarint(_IDENTITY) + encode_uvarint(len(encoded_key)) + encoded_key
    digest = hashlib.sha256(encoded_key).digest()
    return encode_uvarint(_SHA2_256) + encode_uvarint(len(digest)) + digest


def multihash_to_text(multihash: bytes) -> str:
    """base58btc: leading zero bytes as ``1``, the rest as one big number in base 58."""
    zeros = len(multihash) - len(multihash.lstrip(b"\0"))
    number = int.from_bytes(multihash, "big")
    digits = ""
    while number:
        number, rest = divmod(number, 58)
        digits = _ALPHABET[rest] + digits
    return "1" * zeros + digits


def multihash_to_cid(multihash: bytes) -> str:
    """CIDv1 with codec 0x72 in lower-case base32 without padding, multibase prefix ``b``."""
    return "b" + base64.b32encode(_CID_PREFIX + multihash).decode("ascii").rstrip("=").lower()


def text_to_multihash(text: str) -> bytes:
    """The multihash in either text form. peer-ids.md: ``1`` or ``Qm`` begins base58btc, anything else a CID.

    Raises MalformedMessage unless the text is the one canonical spelling of an identity or SHA-256 multihash.
    """
    if not text or len(text) > TEXT_LIMIT:
        raise MalformedMessage(f"a peer id has 1 to {TEXT_LIMIT} characters, not {len(text)}; check its source")
    multihash = _from_base58(text) if text.startswith(("1", "Qm")) else _from_cid(text)
    _split_multihash(multihash)
    return multihash


def _from_base58(text: str) -> bytes:
    number = 0
    for character in text:
        if character not in _VALUES:
            raise MalformedMessage(f"a peer id holds {character!r}, which base58 does not use; check its source")
        number = number * 58 + _VALUES[character]
    zeros = len(text) - len(text.lstrip("1"))
    return b"\0" * zeros + number.to_bytes((number.bit_length() + 7) // 8, "big")


def _from_cid(text: str) -> bytes:
    if text[0] != "b":
        raise MalformedMessage("a peer id is neither base58 nor a base32 CID; check its source")
    try:
        content = base64.b32decode(text[1:].upper() + "=" * (-len(text[1:]) % 8))
    except ValueError:
        raise MalformedMessage("a peer id is not valid base32; check its source") from None
    if content[:2] != _CID_PREFIX:
        raise MalformedMessage("a CID is not of kind libp2p-key (0x72), so it names no peer; check its source")
    # unused bits and letter case could otherwise spell one peer in several ways
    if multihash_to_cid(content[2:]) != text:
        raise MalformedMessage("a peer id is not written in its canonical base32 form; check its source")
    return content[2:]


def _split_multihash(multihash: bytes) -> tuple[int, bytes]:
    code, offset = decode_uvarint(multihash)
    length, offset = decode_uvarint(multihash, offset)
    content = multihash[offset:]
    known = (code == _IDENTITY and length <= INLINE_KEY_LIMIT) or (code == _SHA2_256 and length == 32)
    if len(content) != length or not known:
        raise MalformedMessage("a peer id is no multihash of a key; check its source")
    return code, content


def _key_in_multihash(multihash: bytes) -> bytes:
    code, content = _split_multihash(multihash)
    if code != _IDENTITY:
        raise MalformedMessage("a peer id holds only the hash of a key; members use Ed25519 keys (12D3KooW...)")
    key_type, key = decode_key(content)
    if key_type != ED25519 or len(key) != KEY_BYTES:
        raise MalformedMessage("a peer id names a key of another type; members use Ed25519 keys (12D3KooW...)")
    return key
