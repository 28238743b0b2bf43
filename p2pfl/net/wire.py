"""The frames of a live link: one type byte, a fixed binary header, then raw bytes.

Payloads and chunks are opaque here. Bulk chunks carry no encoding of their own: packing and unpacking 64
KiB blobs would cost a tenth of the link's speed.
"""

from __future__ import annotations

import struct

from p2pfl.errors import IllegalStep, MalformedMessage
from p2pfl.net.limits import CONTENT_NAME_LIMIT, FRAME_LIMIT, PROTOCOL_NAME_LIMIT, PULL_RANGE

PING = ord("p")  # empty
REQUEST = ord("q")  # id, length of protocol, protocol, payload
REPLY = ord("a")  # id, payload
ERROR = ord("e")  # id, code, text
NOTIFY = ord("n")  # length of protocol, protocol, payload
PULL = ord("g")  # id, first chunk, count, content name
CHUNK = ord("c")  # id, index, bytes
MISSING = ord("m")  # id, index
BYE = ord("b")  # text

REFUSED, FAILED, UNKNOWN = 0, 1, 2
"""Codes of an ERROR: the handler refused, the handler failed, there is no such handler."""

PAYLOAD_LIMIT = FRAME_LIMIT - PROTOCOL_NAME_LIMIT - 6
"""Largest payload of a request, an answer or a notification."""

_REQUEST = struct.Struct(">BIB")
_REPLY = struct.Struct(">BI")
_ERROR = struct.Struct(">BIB")
_NOTIFY = struct.Struct(">BB")
_PULL = struct.Struct(">BIIH")
_CHUNK = struct.Struct(">BII")

CHUNK_HEADER = _CHUNK.size


def request_head(number: int, protocol: str) -> bytes:
    """Everything of a REQUEST before its payload."""
    name = _name(protocol, PROTOCOL_NAME_LIMIT, "protocol name")
    return _REQUEST.pack(REQUEST, number, len(name)) + name


def reply_head(number: int) -> bytes:
    """Everything of a REPLY before its payload."""
    return _REPLY.pack(REPLY, number)


def error_frame(number: int, code: int, text: str) -> bytes:
    """A whole ERROR."""
    return _ERROR.pack(ERROR, number, code) + text.encode()


def notify_head(protocol: str) -> bytes:
    """Everything of a NOTIFY before its payload."""
    name = _name(protocol, PROTOCOL_NAME_LIMIT, "protocol name")
    return _NOTIFY.pack(NOTIFY, len(name)) + name


def pull_frame(number: int, first: int, count: int, content: str) -> bytes:
    """A whole PULL."""
    return _PULL.pack(PULL, number, first, count) + _name(content, CONTENT_NAME_LIMIT, "content name")


def chunk_head(number: int, index: int) -> bytes:
    """Everything of a CHUNK before its bytes."""
    return _CHUNK.pack(CHUNK, number, index)


def missing_frame(number: int, index: int) -> bytes:
    """A whole MISSING."""
    return _CHUNK.pack(MISSING, number, index)


def read_request(frame: bytes) -> tuple[int, str, bytes]:
    """(id, protocol, payload)."""
    _long_enough(frame, _REQUEST.size)
    _, number, length = _REQUEST.unpack_from(frame)
    protocol, payload = _split_name(frame, _REQUEST.size, length)
    return number, protocol, payload


def read_reply(frame: bytes) -> tuple[int, bytes]:
    """(id, payload)."""
    _long_enough(frame, _REPLY.size)
    return _REPLY.unpack_from(frame)[1], frame[_REPLY.size :]


def read_error(frame: bytes) -> tuple[int, int, bytes]:
    """(id, code, text)."""
    _long_enough(frame, _ERROR.size)
    _, number, code = _ERROR.unpack_from(frame)
    return number, code, frame[_ERROR.size :]


def read_notify(frame: bytes) -> tuple[str, bytes]:
    """(protocol, payload)."""
    _long_enough(frame, _NOTIFY.size)
    return _split_name(frame, _NOTIFY.size, frame[1])


def read_pull(frame: bytes) -> tuple[int, int, int, str]:
    """(id, first, count, content)."""
    _long_enough(frame, _PULL.size)
    _, number, first, count = _PULL.unpack_from(frame)
    name = frame[_PULL.size :]
    if not 1 <= count <= PULL_RANGE or len(name) > CONTENT_NAME_LIMIT:
        raise MalformedMessage("a pull asks for an impossible range or name; closing the link")
    return number, first, count, _text(name)


def read_chunk(frame: bytes) -> tuple[int, int]:
    """(id, index) of a CHUNK or MISSING; the bytes start at CHUNK_HEADER."""
    _long_enough(frame, _CHUNK.size)
    _, number, index = _CHUNK.unpack_from(frame)
    return number, index


def _name(text: str, limit: int, what: str) -> bytes:
    name = text.encode()
    if not 0 < len(name) <= limit:
        raise IllegalStep(f"a {what} of {len(name)} bytes; use 1 to {limit}")
    return name


def _long_enough(frame: bytes, size: int) -> None:
    if len(frame) < size:
        raise MalformedMessage(f"a frame of {len(frame)} bytes is shorter than its header; closing the link")


def _split_name(frame: bytes, start: int, length: int) -> tuple[str, bytes]:
    _long_enough(frame, start + length)
    if length > PROTOCOL_NAME_LIMIT:
        raise MalformedMessage("a protocol name is too long; closing the link")
    return _text(frame[start : start + length]), frame[start + length :]


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise MalformedMessage("a name is not UTF-8; closing the link") from None
