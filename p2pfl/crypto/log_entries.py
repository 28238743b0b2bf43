"""Owns the bytes of one entry of an audit log, as its hash covers them: the leaf of the log's tree.

data = u64 position || u64 time || u64 first || u16 len(kind) || kind || u32 len(body) || body || previous hash

All integers are big-endian, the hash of the entry before has 32 bytes. The hash of an entry is its leaf hash,
SHA-256(0x00 || data) (RFC 6962 2.1): one hash binds the entry to the one before it and to the tree. Lengths stand
before the two variable parts, so no two entries have the same data. ``first`` is the position of the first entry of
the same commit: so the tree also says where checkpoints were signed.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass

from p2pfl.crypto.digests import DIGEST_BYTES
from p2pfl.errors import LimitExceeded, MalformedMessage

DATA_LIMIT = 65535
"""Bytes of one entry's data: C2SP tlog-tiles holds no longer ones."""

_HEADER = struct.Struct(">QQQH")
_LEAF_HEADER = struct.Struct(">xQQQH")  # with the 0x00 of a leaf before it
_LENGTH = struct.Struct(">I")

ENTRY_OVERHEAD = _HEADER.size + _LENGTH.size + DIGEST_BYTES
"""Bytes of the data beside kind and body."""


@dataclass(frozen=True, slots=True)
class EntryData:
    """One entry taken apart; ``time`` is Unix milliseconds, ``body`` the stored bytes, ``previous`` 32 bytes."""

    position: int
    time: int
    first: int
    kind: str
    body: bytes
    previous: bytes


def entry_data(position: int, time: int, first: int, kind: str, body: bytes, previous: bytes) -> bytes:
    """The bytes under an entry's hash; the equation is in the module docstring."""
    name = kind.encode()
    return b"".join((_HEADER.pack(position, time, first, len(name)), name, _LENGTH.pack(len(body)), body, previous))


def entry_leaf(position: int, time: int, first: int, kind: str, body: bytes, previous: bytes) -> bytes:
    """The leaf hash of `entry_data`, 32 bytes: the hash of the entry."""
    name = kind.encode()
    header = _LEAF_HEADER.pack(position, time, first, len(name))
    return hashlib.sha256(b"".join((header, name, _LENGTH.pack(len(body)), body, previous))).digest()


def read_entry_data(data: bytes) -> EntryData:
    """Take an entry apart; nothing is verified. Raises MalformedMessage or LimitExceeded."""
    if len(data) > DATA_LIMIT:
        raise LimitExceeded(f"a log entry has {len(data)} bytes, more than {DATA_LIMIT}; drop it")
    if len(data) < ENTRY_OVERHEAD:
        raise MalformedMessage("a log entry is cut off; ask the log's owner for it again")
    position, time, first, length = _HEADER.unpack_from(data)
    body_at = _HEADER.size + length + _LENGTH.size
    if body_at > len(data):
        raise MalformedMessage("a log entry is cut off; ask the log's owner for it again")
    name = data[_HEADER.size : _HEADER.size + length]
    (size,) = _LENGTH.unpack_from(data, _HEADER.size + length)
    if body_at + size + DIGEST_BYTES != len(data) or not name.isascii():
        raise MalformedMessage("a log entry's lengths are not those of its parts; ask the log's owner for it again")
    body, previous = data[body_at : body_at + size], data[body_at + size :]
    return EntryData(position, time, first, name.decode(), body, previous)
