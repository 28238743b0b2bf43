"""What the payloads of all statements about a run have in common: fields, positions, other sites' words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from p2pfl.crypto import Envelope, read_fields, unpack
from p2pfl.errors import MalformedMessage
from p2pfl.gossip.messages import MAX_ROUNDS, Position


def read_position(value: list[Any], envelope: Envelope) -> Position:
    """A round and a step as decoded. Raises MalformedMessage."""
    if [type(part) for part in value] != [int, int] or not 0 <= value[0] <= 2 * MAX_ROUNDS:
        raise MalformedMessage(f"{envelope.kind}: position is not a round and a step", peer=envelope.signer)
    return (value[0], value[1])


def shown(text: str) -> str:
    """Another site's words, as they may reach a terminal: without control characters."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def read_statement(
    envelope: Envelope, what: str, spec: Mapping[str, type | tuple[type, ...]], limit: int
) -> dict[str, Any]:
    """The fields of a verified statement. Raises MalformedMessage, LimitExceeded."""
    return read_fields(unpack(envelope.payload, what=what, limit=limit, max_items=8192), what, spec)
