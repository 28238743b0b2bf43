"""Owns base64 (RFC 4648 section 4) with one spelling for each content, as the transparency formats write it."""

from __future__ import annotations

import base64
import binascii


def to_base64(data: bytes) -> str:
    """With padding, without line ends."""
    return base64.b64encode(data).decode()


def from_base64(text: str) -> bytes | None:
    """The bytes, or None for anything but canonical base64: decoders let stray bits at the end pass."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    return data if to_base64(data) == text else None
