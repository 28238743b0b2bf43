"""Free text that can be erased later: what of it stands in the entry, and what lies beside the log.

The entry holds SHA-256(domain || salt || text) with a random salt of 32 bytes; salt and text are a row beside it. With
the row, anybody checks that the text is the one that was signed. Without it, nothing is left to guess against: the salt
goes with the text. So erasing leaves chain, tree and checkpoints as they are.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from p2pfl.audit.kinds import Kind

SALT_SIZE = 32

MAX_TEXT = 16384
"""Bytes of one text: reasons have at most 400 characters; a longer one is cut by whoever writes it."""

MARK = "salted"
"""The one name in the map that stands in a body where the text was."""

ERASED = "(erased)"
"""What readers of the log itself see in place of a text that is gone; an export may only lack it."""

ERASABLE: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        Kind.PEER_STARTED: ("name",),
        Kind.RECOVERED: ("what",),
        Kind.LINK_DOWN: ("reason",),
        Kind.REFUSED: ("reason",),
        Kind.ABSENT: ("reason",),
        Kind.RUN_CLOSED: ("reason",),
        Kind.HEAD_WITHHELD: ("reason",),  # in the accused member's own words
    }
)
"""Free text by kind: names, what a user typed, and words of plans, partners and libraries that may quote anything."""

_DOMAIN = b"p2pfl erasable text\n"


def salted_digest(salt: bytes, text: str) -> bytes:
    """What stands in the entry, 32 bytes."""
    return hashlib.sha256(_DOMAIN + salt + text.encode("utf-8", "replace")).digest()


def _fits(text: str) -> bool:
    try:
        return len(text.encode()) <= MAX_TEXT
    except UnicodeEncodeError:
        return False  # no UTF-8 has it: the body is refused with it


def set_apart(kind: str, fields: dict[str, Any]) -> tuple[tuple[str, bytes, str], ...]:
    """Replace the erasable texts in ``fields``; returns (field, salt, text) of each, in the order of the names."""
    if kind not in ERASABLE:  # nearly all
        return ()
    found = []
    for name in sorted(ERASABLE[kind]):
        text = fields.get(name)
        if isinstance(text, str) and text and _fits(text):
            salt = secrets.token_bytes(SALT_SIZE)
            fields[name] = {MARK: salted_digest(salt, text)}
            found.append((name, salt, text))
    return tuple(found)


def marks(kind: str, fields: Mapping[str, Any]) -> dict[str, bytes]:
    """The digests that stand in a body in place of texts, by field, in the order of the names."""
    found = {}
    for name in sorted(ERASABLE.get(kind, ())):
        match fields.get(name):
            case {"salted": bytes(digest), **rest} if not rest:
                found[name] = digest
    return found


def put_back(
    kind: str, fields: dict[str, Any], texts: Mapping[str, tuple[bytes, str]], instead: str | None = None
) -> None:
    """Fill (salt, text) in again by field; where one is not there, ``instead``, or else its mark stays."""
    for name in marks(kind, fields):
        if name in texts:
            fields[name] = texts[name][1]
        elif instead is not None:
            fields[name] = instead
