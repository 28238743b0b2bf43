"""Frames between a peer and its worker: a 4-byte big-endian length, then one msgpack map. Loads no torch."""

from __future__ import annotations

from typing import Any, BinaryIO

import msgpack

from p2pfl.errors import LimitExceeded, MalformedMessage

FRAME_LIMIT = 1 << 30  # 1 GiB: a model of 128 million parameters in float64, in one message
LENGTH_SIZE = 4


def encode_frame(value: Any) -> bytes:
    """Length and msgpack of ``value``; LimitExceeded over FRAME_LIMIT."""
    body: bytes = msgpack.packb(value, use_bin_type=True)
    if len(body) > FRAME_LIMIT:
        raise LimitExceeded(
            f"a frame of {len(body)} bytes to the worker; {FRAME_LIMIT} is the most, use a smaller model"
        )
    return len(body).to_bytes(LENGTH_SIZE, "big") + body


def frame_length(header: bytes) -> int:
    """The body's length from the 4 bytes before it; LimitExceeded over FRAME_LIMIT."""
    length = int.from_bytes(header, "big")
    if length > FRAME_LIMIT:
        raise LimitExceeded(
            f"a frame of {length} bytes from the worker; {FRAME_LIMIT} is the most, use a smaller model"
        )
    return length


def decode_body(body: bytes) -> Any:
    """The value of one frame; MalformedMessage if it is not msgpack."""
    try:
        return msgpack.unpackb(body, raw=False, strict_map_key=True, max_bin_len=FRAME_LIMIT)
    except (ValueError, msgpack.UnpackException) as error:
        raise MalformedMessage(f"a frame that is not msgpack ({type(error).__name__}); stop the worker") from error


def read_frame(stream: BinaryIO) -> Any | None:
    """The next value of a blocking stream, None at its end; MalformedMessage for a cut frame."""
    header = stream.read(LENGTH_SIZE)
    if not header:
        return None
    body = stream.read(frame_length(header)) if len(header) == LENGTH_SIZE else b""
    if len(header) < LENGTH_SIZE or len(body) < frame_length(header):
        raise MalformedMessage("the stream ended inside a frame; stop the worker")
    return decode_body(body)


def write_frame(stream: BinaryIO, value: Any) -> None:
    """Write one value and flush."""
    stream.write(encode_frame(value))
    stream.flush()
