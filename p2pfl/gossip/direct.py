"""Statements for one neighbour alone: settling, acknowledgement, absence, standing. Owns their payload schemas."""

from __future__ import annotations

from dataclasses import dataclass

from p2pfl.crypto import Envelope, Verify, open_envelope, pack, verify_signature
from p2pfl.errors import MalformedMessage
from p2pfl.gossip.messages import (
    DIRECT_LIMIT,
    MAX_ROUNDS,
    MAX_TEXT,
    STANDING_LIMIT,
    EdgeList,
    Position,
    check_digest,
    decode_edge_list,
    encode_edge_list,
)
from p2pfl.gossip.schema import read_position, read_statement, shown
from p2pfl.types import Digest, PeerId, RunId


@dataclass(frozen=True, slots=True)
class Settle:
    """Direct, after the last round: what the author says about the edge to the reader."""

    run: RunId
    recipient: PeerId
    position: Position
    edges: EdgeList
    question: bool  # whether the author wants the reader's list in return

    def encode(self) -> bytes:
        """The payload to sign."""
        return pack(
            {
                "run": self.run,
                "to": self.recipient,
                "position": list(self.position),
                "edges": encode_edge_list(self.edges),
                "question": self.question,
            }
        )


def open_settle(data: bytes, verify: Verify = verify_signature) -> tuple[Envelope, Settle]:
    """Verify and decode a settle message."""
    envelope = open_envelope(data, kinds=("settle",), limit=DIRECT_LIMIT, verify=verify)
    fields = read_statement(
        envelope,
        "settle",
        {"run": str, "to": str, "position": list, "edges": list, "question": bool},
        DIRECT_LIMIT,
    )
    position = read_position(fields["position"], envelope)
    edges = decode_edge_list(fields["edges"])
    return envelope, Settle(RunId(fields["run"]), PeerId(fields["to"]), position, edges, fields["question"])


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    """Direct: these cores are committed in the author's log."""

    run: RunId
    cores: tuple[Digest, ...]

    def encode(self) -> bytes:
        """The payload to sign."""
        return pack({"run": self.run, "cores": list(self.cores)})


def open_acknowledgement(data: bytes, verify: Verify = verify_signature) -> tuple[Envelope, Acknowledgement]:
    """Verify and decode an acknowledgement."""
    envelope = open_envelope(data, kinds=("acknowledgement",), limit=DIRECT_LIMIT, verify=verify)
    fields = read_statement(envelope, "acknowledgement", {"run": str, "cores": list}, DIRECT_LIMIT)
    if len(fields["cores"]) > 256 or not all(isinstance(core, str) for core in fields["cores"]):
        raise MalformedMessage("acknowledgement: cores are not a short list of digests", peer=envelope.signer)
    for core in fields["cores"]:
        check_digest(core, "acknowledgement")
    return envelope, Acknowledgement(RunId(fields["run"]), tuple(Digest(core) for core in fields["cores"]))


@dataclass(frozen=True, slots=True)
class Away:
    """Direct: the author takes no part from this round on until it is heard again; nobody need wait for it.

    Or, with ``back``, it takes part again from this round on.
    """

    run: RunId
    round: int
    reason: str
    back: bool = False

    def encode(self) -> bytes:
        """The payload to sign."""
        return pack({"run": self.run, "round": self.round, "reason": self.reason, "back": self.back})


def open_away(data: bytes, verify: Verify = verify_signature) -> tuple[Envelope, Away]:
    """Verify and decode a message of absence."""
    envelope = open_envelope(data, kinds=("away",), limit=DIRECT_LIMIT, verify=verify)
    fields = read_statement(envelope, "away", {"run": str, "round": int, "reason": str, "back": bool}, DIRECT_LIMIT)
    if not 0 <= fields["round"] <= 2 * MAX_ROUNDS or len(fields["reason"]) > MAX_TEXT:
        raise MalformedMessage("away: round or reason out of range", peer=envelope.signer)
    return envelope, Away(RunId(fields["run"]), fields["round"], shown(fields["reason"]), fields["back"])


@dataclass(frozen=True, slots=True)
class Standing:
    """Direct, when a link comes up: where the author is, and the reader's newest core that it has (or nothing)."""

    run: RunId
    recipient: PeerId
    position: Position
    newest: bytes  # the core's envelope, signed by the reader
    closing: bytes  # the reader's own closing statement, if the author has it: its envelope, signed by the reader
    closings: Digest  # over the closing statements that the author knows
    directive: bytes = b""  # the newest one that the author knows: its envelope, signed by the proposer

    def encode(self) -> bytes:
        """The payload to sign."""
        return pack(
            {
                "run": self.run,
                "to": self.recipient,
                "position": list(self.position),
                "newest": self.newest,
                "closing": self.closing,
                "closings": self.closings,
                "directive": self.directive,
            }
        )


def open_standing(data: bytes, verify: Verify = verify_signature) -> tuple[Envelope, Standing]:
    """Verify and decode a standing; the core in it is the caller's to verify."""
    envelope = open_envelope(data, kinds=("standing",), limit=STANDING_LIMIT, verify=verify)
    spec: dict[str, type | tuple[type, ...]] = {
        "run": str,
        "to": str,
        "position": list,
        "newest": bytes,
        "closing": bytes,
        "closings": str,
        "directive": bytes,
    }
    fields = read_statement(envelope, "standing", spec, STANDING_LIMIT)
    position = read_position(fields["position"], envelope)
    check_digest(fields["closings"], "standing: closings")
    return envelope, Standing(
        RunId(fields["run"]),
        PeerId(fields["to"]),
        position,
        fields["newest"],
        fields["closing"],
        Digest(fields["closings"]),
        fields["directive"],
    )
