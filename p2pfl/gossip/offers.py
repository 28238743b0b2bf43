"""Asking for neighbours' states, and the answers. Owns their wire form.

A *state* is an origin's signed core of the model channel with its sealed content: uncompressed, it stands alone. Each
receiver holds the newest one of each neighbour for the other recipients that the origin's cover names. A peer that was
away asks those that may hold one; each answers once per origin, with the origin's own announcement or with nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from p2pfl.crypto import Envelope, Verify, open_envelope, pack, unpack, verify_signature
from p2pfl.errors import LimitExceeded, MalformedMessage
from p2pfl.gossip.messages import ANNOUNCEMENT_LIMIT, DIRECT_LIMIT, MAX_PARTICIPANTS, MAX_ROUNDS
from p2pfl.gossip.schema import read_statement
from p2pfl.types import PeerId, RunId

OFFER_LIMIT = ANNOUNCEMENT_LIMIT + 256  # bytes: one announcement, a run and a peer id
MAX_NAME = 64  # characters of a peer id


@dataclass(frozen=True, slots=True)
class Wanted:
    """Direct: the author wants the states of these origins, of round ``floor`` or later."""

    run: RunId
    recipient: PeerId
    floor: int
    origins: tuple[PeerId, ...]

    def encode(self) -> bytes:
        """The payload to sign."""
        return pack({"run": self.run, "to": self.recipient, "floor": self.floor, "origins": list(self.origins)})


def open_wanted(data: bytes, verify: Verify = verify_signature) -> tuple[Envelope, Wanted]:
    """Verify and decode a question for states. Raises MalformedMessage, LimitExceeded or SignatureRefused."""
    envelope = open_envelope(data, kinds=("wanted",), limit=DIRECT_LIMIT, verify=verify)
    spec: dict[str, type | tuple[type, ...]] = {"run": str, "to": str, "floor": int, "origins": list}
    fields = read_statement(envelope, "wanted", spec, DIRECT_LIMIT)
    origins = fields["origins"]
    if len(origins) > MAX_PARTICIPANTS or not all(isinstance(peer, str) and len(peer) <= MAX_NAME for peer in origins):
        raise MalformedMessage("wanted: origins are not a short list of peer ids", peer=envelope.signer)
    if not 0 <= fields["floor"] <= 2 * MAX_ROUNDS:
        raise MalformedMessage("wanted: floor is no round", peer=envelope.signer)
    peers = tuple(PeerId(peer) for peer in origins)
    return envelope, Wanted(RunId(fields["run"]), PeerId(fields["to"]), fields["floor"], peers)


@dataclass(frozen=True, slots=True)
class Offer:
    """A holder's answer for one origin: the origin's announcement as it signed it, or nothing (empty bytes).

    The frame is not signed: the link says who sent it, and everything that counts in it has its origin's signature.
    """

    run: RunId
    origin: PeerId
    announcement: bytes

    def encode(self) -> bytes:
        """The bytes of protocol /p2pfl/offer/1."""
        return pack([self.run, self.origin, self.announcement])


def decode_offer(data: bytes) -> Offer:
    """Split an offer; nothing in it is verified yet. Raises MalformedMessage or LimitExceeded."""
    value = unpack(data, what="offer", limit=OFFER_LIMIT)
    if not (isinstance(value, list) and [type(part) for part in value] == [str, str, bytes]):
        raise MalformedMessage("offer: not run, origin and announcement")
    if len(value[1]) > MAX_NAME or len(value[2]) > ANNOUNCEMENT_LIMIT:
        raise LimitExceeded("offer: its origin or its announcement is too long")
    return Offer(RunId(value[0]), PeerId(value[1]), value[2])
