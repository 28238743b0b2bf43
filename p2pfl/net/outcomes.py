"""How a hello can end besides success or refusal, and words about other peers."""

from __future__ import annotations

from p2pfl.errors import LinkError, RemoteError
from p2pfl.net.limits import REASON_LIMIT
from p2pfl.types import Member, PeerId

DUPLICATE = "already linked"
"""The text of a REFUSED that is no refusal: another connection of the two peers stands."""


class AlreadyLinkedError(LinkError):
    """The connection is needless: a good link to ``peer`` stands. Internal to this room."""

    def __init__(self, peer: PeerId) -> None:
        super().__init__(f"{DUPLICATE} with {peer}; nothing to do")
        self.peer = peer


class SelfConnectionError(RemoteError):
    """The address dialled is our own. Internal to this room."""


class SecondInstanceError(RemoteError):
    """Another process with the peer's key is linked and answers. Internal to this room."""


def name_of(member: Member) -> str:
    """A member for people: its name and id."""
    return f"{member.name} ({member.peer_id})"


def shortened(text: str, limit: int) -> str:
    """At most ``limit`` characters of a text for people."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def printable(text: bytes) -> str:
    """Another peer's words, shortened, on one line and without control characters."""
    shown = text.decode("utf-8", "replace")[:REASON_LIMIT]
    return "".join(letter if letter.isprintable() else "?" for letter in shown)
