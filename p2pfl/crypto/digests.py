"""Owns the one digest of the project: SHA-256 as 64 lower-case hexadecimal digits."""

from __future__ import annotations

import hashlib
import re

from p2pfl.errors import MalformedMessage
from p2pfl.types import Digest

DIGEST_BYTES = 32
"""Length of a raw SHA-256 digest (FIPS 180-4)."""

_DIGEST_TEXT = re.compile(r"[0-9a-f]{64}")


def sha256(data: bytes | bytearray | memoryview) -> Digest:
    """SHA-256 of the bytes, as hexadecimal text. ``data`` is not copied. Source: FIPS 180-4."""
    return Digest(hashlib.sha256(data).hexdigest())


def parse_digest(value: object, what: str) -> Digest:
    """The value as a digest, if it is one.

    ``what`` names the field in the error. Raises MalformedMessage for anything but 64 lower-case
    hexadecimal digits: upper case is refused so that one digest has one text.
    """
    if not isinstance(value, str) or not _DIGEST_TEXT.fullmatch(value):
        raise MalformedMessage(
            f"{what} is not a SHA-256 digest of 64 lower-case hexadecimal digits; "
            "ask the sender's site to update its software"
        )
    return Digest(value)
