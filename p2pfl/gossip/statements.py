"""Statements that lead to a run: proposal, approval, start record and its signatures. Owns their payload schemas.

All are flooded: forwarded once by every member. What follows has modules of its own: directives, heartbeats, closing
statements; and what is for one neighbour alone (`p2pfl.gossip.direct`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from p2pfl.crypto import (
    CONTENT_KEY_BYTES,
    Envelope,
    Verify,
    open_envelope,
    pack,
    read_fields,
    sha256,
    unpack,
    verify_signature,
    wrap_key,
)
from p2pfl.errors import LimitExceeded, MalformedMessage, SignatureRefused
from p2pfl.gossip.messages import (
    DIRECT_LIMIT,
    FLOOD_LIMIT,
    MAX_CATCH_UP_ROUNDS,
    MAX_PARTICIPANTS,
    MAX_ROUNDS,
    check_digest,
    run_id,
)
from p2pfl.gossip.schema import read_statement
from p2pfl.types import CATCH_UP_ROUNDS, ChannelSpec, Digest, Participant, PeerId, RunId, StartRecord

MAX_BUNDLE = 256 * 1024  # bytes of plan code and settings; a plan is a few hundred lines
MAX_INITIAL = 2**32  # bytes of the initial parameters' file
MAX_CHANNELS = 8
MAX_DEADLINE = 24 * 3600.0  # seconds; nobody waits longer than a day for one round
MAX_STALENESS = 8  # rounds; the weights shrink with it (p2pfl.topology.delays), so more only slows mixing down


@dataclass(frozen=True, slots=True)
class Proposal:
    """Everything a run fixes before anybody agreed to it, and the plan's code itself."""

    charter: Digest
    plan: Digest
    bundle: bytes
    proposer: PeerId
    nonce: bytes
    initial: Digest
    initial_size: int  # bytes of the file with the initial parameters
    channels: tuple[ChannelSpec, ...]
    seed: int
    topology: Mapping[str, Any]
    rounds: int
    closing_rounds: int
    deadline: float
    patience: float  # seconds the proposer waits for approvals
    staleness: int = 0  # own rounds that an edge may be mixed late; 0: synchronous rounds
    catch_up_rounds: int = CATCH_UP_ROUNDS

    @property
    def run(self) -> RunId:
        """The run's name."""
        return run_id(self.charter, self.plan, self.proposer, self.nonce)

    def encode(self) -> bytes:
        """The payload to sign."""
        return pack(
            {
                "charter": self.charter,
                "plan": self.plan,
                "bundle": self.bundle,
                "proposer": self.proposer,
                "nonce": self.nonce,
                "initial": self.initial,
                "initial_size": self.initial_size,
                "channels": [[channel.name, channel.size, channel.base] for channel in self.channels],
                "seed": self.seed,
                "topology": dict(self.topology),
                "rounds": self.rounds,
                "closing_rounds": self.closing_rounds,
                "deadline": self.deadline,
                "patience": self.patience,
                "staleness": self.staleness,
                "catch_up_rounds": self.catch_up_rounds,
            }
        )

    def start_record(self, participants: Sequence[Participant]) -> StartRecord:
        """The start record this proposal leads to with these participants."""
        return StartRecord(
            run=self.run,
            charter=self.charter,
            plan=self.plan,
            proposer=self.proposer,
            nonce=self.nonce,
            participants=tuple(participants),
            seed=self.seed,
            initial=self.initial,
            channels=self.channels,
            topology=self.topology,
            rounds=self.rounds,
            closing_rounds=self.closing_rounds,
            deadline=self.deadline,
            staleness=self.staleness,
            catch_up_rounds=self.catch_up_rounds,
        )


_PROPOSAL_FIELDS: dict[str, type | tuple[type, ...]] = {
    "charter": str,
    "plan": str,
    "bundle": bytes,
    "proposer": str,
    "nonce": bytes,
    "initial": str,
    "initial_size": int,
    "channels": list,
    "seed": int,
    "topology": dict,
    "rounds": int,
    "closing_rounds": int,
    "deadline": float,
    "patience": float,
    "staleness": int,
    "catch_up_rounds": int,
}


def open_proposal(data: bytes, verify: Verify = verify_signature) -> tuple[Envelope, Proposal]:
    """Verify and decode a proposal; its signer must be the proposer it names."""
    envelope = open_envelope(data, kinds=("proposal",), limit=FLOOD_LIMIT, verify=verify)
    fields = read_statement(envelope, "proposal", _PROPOSAL_FIELDS, FLOOD_LIMIT)
    if fields["proposer"] != envelope.signer:
        raise SignatureRefused(
            "proposal: signed by another peer than its proposer; ask the proposer", peer=envelope.signer
        )
    for name in ("charter", "plan", "initial"):
        check_digest(fields[name], f"proposal: {name}")
    if len(fields["bundle"]) > MAX_BUNDLE or len(fields["nonce"]) != 16:
        raise LimitExceeded("proposal: plan code over 256 KiB or a nonce that is not 16 bytes")
    if not 1 <= fields["initial_size"] <= MAX_INITIAL:
        raise LimitExceeded("proposal: initial parameters over 4 GiB")
    if not (1 <= fields["rounds"] <= MAX_ROUNDS and 0 <= fields["closing_rounds"] <= 1000):
        raise LimitExceeded("proposal: rounds or closing rounds out of range")
    if not 0 <= fields["staleness"] <= MAX_STALENESS:
        raise LimitExceeded(f"proposal: staleness must be 0 (synchronous) to {MAX_STALENESS} rounds")
    if not 1 <= fields["catch_up_rounds"] <= MAX_CATCH_UP_ROUNDS:
        raise LimitExceeded(f"proposal: catch_up_rounds must be between 1 and {MAX_CATCH_UP_ROUNDS}")
    for name, top in (("deadline", MAX_DEADLINE), ("patience", 30 * MAX_DEADLINE)):
        if not (math.isfinite(fields[name]) and 0 < fields[name] <= top):
            raise LimitExceeded(f"proposal: {name} must be between 0 and {top:.0f} seconds")
    fields["channels"] = _decode_channels(fields["channels"])
    fields["proposer"] = PeerId(fields["proposer"])
    return envelope, Proposal(**fields)


def _decode_channels(rows: list[Any]) -> tuple[ChannelSpec, ...]:
    channels = []
    for row in rows:
        if not (isinstance(row, list) and [type(part) for part in row] == [str, int, str]):
            raise MalformedMessage("proposal: a channel is not name, size and base")
        if not (0 < row[1] <= 2**36 and 0 < len(row[0]) <= 32):
            raise LimitExceeded("proposal: a channel's size or name is out of range")
        check_digest(row[2], "proposal: base")
        channels.append(ChannelSpec(row[0], row[1], Digest(row[2])))
    if not 1 <= len(channels) <= MAX_CHANNELS or len({channel.name for channel in channels}) < len(channels):
        raise MalformedMessage("proposal: channels must be 1 to 8 with names of their own")
    return tuple(channels)


@dataclass(frozen=True, slots=True)
class Approval:
    """One site's yes to one run: its sample count and its prekey for this run."""

    run: RunId
    plan: Digest
    samples: int
    prekey: bytes

    def encode(self) -> bytes:
        """The payload to sign."""
        return pack({"run": self.run, "plan": self.plan, "samples": self.samples, "prekey": self.prekey})


def open_approval(data: bytes, verify: Verify = verify_signature) -> tuple[Envelope, Approval]:
    """Verify and decode an approval."""
    envelope = open_envelope(data, kinds=("approval",), limit=DIRECT_LIMIT, verify=verify)
    fields = read_statement(
        envelope, "approval", {"run": str, "plan": str, "samples": int, "prekey": bytes}, DIRECT_LIMIT
    )
    if len(fields["prekey"]) != 32 or not 1 <= fields["samples"] <= 2**40:
        raise MalformedMessage("approval: prekey or sample count out of range", peer=envelope.signer)
    try:
        wrap_key(bytes(CONTENT_KEY_BYTES), fields["prekey"], b"")  # a key of small order would fail in every round
    except MalformedMessage as error:
        raise MalformedMessage(f"approval: {error}", peer=envelope.signer) from error
    return envelope, Approval(RunId(fields["run"]), Digest(fields["plan"]), fields["samples"], fields["prekey"])


@dataclass(frozen=True, slots=True)
class Start:
    """The proposer's start record: the approvals it collected, as the approvers signed them."""

    run: RunId
    approvals: tuple[bytes, ...]

    def encode(self) -> bytes:
        """The payload to sign."""
        return pack({"run": self.run, "approvals": list(self.approvals)})


def open_start(data: bytes, verify: Verify = verify_signature) -> tuple[Envelope, Start]:
    """Verify and decode a start record's envelope."""
    envelope = open_envelope(data, kinds=("start",), limit=FLOOD_LIMIT, verify=verify)
    return envelope, decode_start(envelope.payload)


def decode_start(payload: bytes) -> Start:
    """Decode a start record's payload. Raises MalformedMessage."""
    value = unpack(payload, what="start record", limit=FLOOD_LIMIT, max_items=8192)
    fields = read_fields(value, "start record", {"run": str, "approvals": list})
    approvals = fields["approvals"]
    if not 1 <= len(approvals) <= MAX_PARTICIPANTS or not all(isinstance(item, bytes) for item in approvals):
        raise MalformedMessage("start record: approvals are not a short list of envelopes")
    return Start(RunId(fields["run"]), tuple(approvals))


def participants_of(
    proposal: Proposal, approvals: Mapping[PeerId, Approval], order: Sequence[PeerId]
) -> tuple[Participant, ...]:
    """Those who approved, in the charter's order."""
    return with_shares({peer: (approval.samples, approval.prekey) for peer, approval in approvals.items()}, order)


def with_shares(rows: Mapping[PeerId, tuple[int, bytes]], order: Sequence[PeerId]) -> tuple[Participant, ...]:
    """share_i = samples_i / sum of samples; ``rows`` are samples and prekeys, participants come in ``order``."""
    total = sum(samples for samples, _ in rows.values())
    there = [(peer, *rows[peer]) for peer in order if peer in rows]
    return tuple(Participant(peer, samples, samples / total, prekey) for peer, samples, prekey in there)


@dataclass(frozen=True, slots=True)
class StartSignature:
    """One member's signature under one start record; each member signs at most one per run."""

    run: RunId
    record: Digest

    def encode(self) -> bytes:
        """The payload to sign."""
        return pack({"run": self.run, "record": self.record})


def open_start_signature(data: bytes, verify: Verify = verify_signature) -> tuple[Envelope, StartSignature]:
    """Verify and decode a start signature."""
    envelope = open_envelope(data, kinds=("start-signature",), limit=DIRECT_LIMIT, verify=verify)
    fields = read_statement(envelope, "start signature", {"run": str, "record": str}, DIRECT_LIMIT)
    check_digest(fields["record"], "start signature: record")
    return envelope, StartSignature(RunId(fields["run"]), Digest(fields["record"]))


def run_of(envelope: Envelope) -> RunId:
    """The run that a verified statement is about, whatever its frame says. Raises MalformedMessage."""
    value = unpack(envelope.payload, what=envelope.kind, limit=FLOOD_LIMIT, max_items=8192)
    fields = value if isinstance(value, dict) else {}
    if envelope.kind == "proposal":
        charter, plan, nonce = (fields.get(name) for name in ("charter", "plan", "nonce"))
        if not (isinstance(charter, str) and isinstance(plan, str) and isinstance(nonce, bytes)):
            raise MalformedMessage("proposal: names no charter, plan and nonce", peer=envelope.signer)
        return run_id(charter, plan, envelope.signer, nonce)
    run = fields.get("run")
    if not isinstance(run, str):
        raise MalformedMessage(f"{envelope.kind}: names no run", peer=envelope.signer)
    return RunId(run)


def record_digest(payload: bytes) -> Digest:
    """What start signatures sign: SHA-256 over the exact start record payload."""
    return sha256(b"p2pfl start record\n" + payload)
