"""Owns two small encodings that the libp2p formats are built from: unsigned varints and length framing."""

from __future__ import annotations

from p2pfl.errors import IllegalStep, MalformedMessage

MAX_UVARINT_BYTES = 9
"""multiformats/unsigned-varint: "for security, ... restricted to a max of 9 bytes" (63 bits)."""

_SHORT = tuple(bytes([value]) for value in range(0x80))


def encode_uvarint(value: int) -> bytes:
    """Seven bits a byte, lowest first, high bit set on all but the last. IllegalStep outside 0..2^63-1."""
    if 0 <= value < len(_SHORT):
        return _SHORT[value]
    if not 0 <= value < 1 << (7 * MAX_UVARINT_BYTES):
        raise IllegalStep(f"{value} does not fit an unsigned varint; pass 0 to 2^63-1")
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def decode_uvarint(data: bytes, offset: int = 0) -> tuple[int, int]:
    """The value at ``offset`` and the offset behind it.

    Raises MalformedMessage when it is truncated, longer than 9 bytes, or not minimal ("must be minimally
    encoded", multiformats/unsigned-varint).
    """
    value = 0
    for place in range(MAX_UVARINT_BYTES):
        if offset + place >= len(data):
            raise MalformedMessage("an unsigned varint is cut off; ask the sender to send it again")
        byte = data[offset + place]
        value |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            if byte == 0 and place > 0:
                raise MalformedMessage("an unsigned varint is not minimal; ask the sender to update its software")
            return value, offset + place + 1
    raise MalformedMessage("an unsigned varint has more than 9 bytes; ask the sender to update its software")


def frame(*parts: bytes) -> bytes:
    """``uvarint(length) || part`` for each part: two different lists of parts never give the same bytes."""
    return b"".join([encode_uvarint(len(part)) + part for part in parts])
