"""Statements about a run as a whole: proposal, approval, start record and its signatures, settling, closing.

Owns their payload schemas. All but ``settle`` and ``acknowledgement`` are flooded: forwarded once by every member.
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
from p2pfl.gossip.contributions import RANGES, Range
from p2pfl.gossip.messages import (
    DIRECT_LIMIT,
    FLOOD_LIMIT,
    MAX_CATCH_UP_ROUNDS,
    MAX_PARTICIPANTS,
    MAX_ROUNDS,
    MAX_TEXT,
    STANDING_LIMIT,
    EdgeList,
    Position,
    check_digest,
    decode_edge_list,
    encode_edge_list,
    run_id,
)
from p2pfl.types import CATCH_UP_ROUNDS, ChannelSpec, Digest, Participant, PeerId, RunId, StartRecord

MAX_BUNDLE = 256 * 1024  # bytes of plan code and settings; a plan is a few hundred lines
MAX_INITIAL = 2**32  # bytes of the initial parameters' file
MAX_CHANNELS = 8
MAX_CORES_TOLD = 64  # in one heartbeat
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
    fields = _fields(envelope, "proposal", _PROPOSAL_FIELDS, FLOOD_LIMIT)
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
    fields = _fields(envelope, "approval", {"run": str, "plan": str, "samples": int, "prekey": bytes}, DIRECT_LIMIT)
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
    """share_i = samples_i / sum of samples; participants in the charter's order."""
    total = sum(approval.samples for approval in approvals.values())
    return tuple(
        Participant(peer, approvals[peer].samples, approvals[peer].samples / total, approvals[peer].prekey)
        for peer in order
        if peer in approvals
    )


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
    fields = _fields(envelope, "start signature", {"run": str, "record": str}, DIRECT_LIMIT)
    check_digest(fields["record"], "start signature: record")
    return envelope, StartSignature(RunId(fields["run"]), Digest(fields["record"]))


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
    fields = _fields(
        envelope,
        "settle",
        {"run": str, "to": str, "position": list, "edges": list, "question": bool},
        DIRECT_LIMIT,
    )
    position = _position(fields["position"], envelope)
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
    fields = _fields(envelope, "acknowledgement", {"run": str, "cores": list}, DIRECT_LIMIT)
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
    fields = _fields(envelope, "away", {"run": str, "round": int, "reason": str, "back": bool}, DIRECT_LIMIT)
    if not 0 <= fields["round"] <= 2 * MAX_ROUNDS or len(fields["reason"]) > MAX_TEXT:
        raise MalformedMessage("away: round or reason out of range", peer=envelope.signer)
    return envelope, Away(RunId(fields["run"]), fields["round"], _shown(fields["reason"]), fields["back"])


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
    fields = _fields(envelope, "standing", spec, STANDING_LIMIT)
    position = _position(fields["position"], envelope)
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


@dataclass(frozen=True, slots=True)
class Closing:
    """One site's closing statement, or its signed absence (``finished`` false)."""

    run: RunId
    finished: bool
    rounds_done: int
    digest: Digest
    missing: tuple[tuple[PeerId, int, str], ...]  # (peer, from round, reason) among the author's neighbours
    unsettled: int  # displacements that stay in the author's model as recorded bias
    samples: int = 0
    distance: float = 0.0  # root mean square distance to the neighbours that were mixed last, in parameter units
    contributed: tuple[tuple[PeerId, tuple[Range, ...]], ...] = ()  # rounds by site, as the author mixed them

    def encode(self) -> bytes:
        """The payload to sign."""
        return pack(
            {
                "run": self.run,
                "finished": self.finished,
                "rounds_done": self.rounds_done,
                "digest": self.digest,
                "missing": [list(row) for row in self.missing],
                "unsettled": self.unsettled,
                "samples": self.samples,
                "distance": self.distance,
                "contributed": [[peer, [list(item) for item in ranges]] for peer, ranges in self.contributed],
            }
        )


def closing_from_entry(run: RunId, body: Mapping[str, Any]) -> Closing:
    """The own closing statement as the log entry "run_closed" vouches for it; for a restart."""
    missing = tuple((PeerId(peer), since, reason) for peer, since, reason in body["missing"])
    contributed = tuple(
        (PeerId(peer), tuple((row[0], row[1]) for row in ranges)) for peer, ranges in body["contributed"]
    )
    return Closing(
        run, body["finished"], body["rounds_done"], Digest(body["digest"]), missing, body["unsettled"],
        body["samples"], body["distance"], contributed,
    )  # fmt: skip


def open_closing(data: bytes, verify: Verify = verify_signature) -> tuple[Envelope, Closing]:
    """Verify and decode a closing statement."""
    envelope = open_envelope(data, kinds=("closing",), limit=DIRECT_LIMIT, verify=verify)
    spec: dict[str, type | tuple[type, ...]] = {
        "run": str,
        "finished": bool,
        "rounds_done": int,
        "digest": str,
        "missing": list,
        "unsettled": int,
        "samples": int,
        "distance": float,
        "contributed": list,
    }
    fields = _fields(envelope, "closing statement", spec, DIRECT_LIMIT)
    rows = fields["missing"]
    if len(rows) > MAX_PARTICIPANTS or not all(
        isinstance(row, list) and [type(part) for part in row] == [str, int, str] and len(row[2]) <= MAX_TEXT
        for row in rows
    ):
        raise MalformedMessage("closing statement: missing is not a short list", peer=envelope.signer)
    check_digest(fields["digest"], "closing statement: digest")
    fields["missing"] = tuple((PeerId(row[0]), row[1], _shown(row[2])) for row in rows)
    if not (math.isfinite(fields["distance"]) and fields["distance"] >= 0 and fields["samples"] >= 0):
        raise MalformedMessage("closing statement: distance or samples out of range", peer=envelope.signer)
    fields["contributed"] = read_contributions(fields["contributed"], envelope.signer)
    return envelope, Closing(**fields)


def read_contributions(value: Any, signer: PeerId) -> tuple[tuple[PeerId, tuple[Range, ...]], ...]:
    """Ranges of rounds by site, from decoded msgpack. Raises MalformedMessage."""
    problem = MalformedMessage("closing statement: contributions are not short lists of ranges", peer=signer)
    if not isinstance(value, list) or len(value) > MAX_PARTICIPANTS:
        raise problem
    found = []
    for row in value:
        if not (isinstance(row, list) and len(row) == 2 and isinstance(row[0], str) and isinstance(row[1], list)):
            raise problem
        ranges = []
        for item in row[1]:
            if not (isinstance(item, list) and [type(part) for part in item] == [int, int]):
                raise problem
            if not 0 <= item[0] <= item[1] <= MAX_ROUNDS or len(row[1]) > RANGES:
                raise problem
            ranges.append((item[0], item[1]))
        found.append((PeerId(row[0]), tuple(ranges)))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """Flooded every few seconds: where the author stands, if it takes part, and the digests of its newest cores."""

    run: RunId
    count: int  # rises with every heartbeat, also over restarts
    position: Position
    taking_part: bool
    cores: tuple[tuple[int, int, str, str, Digest], ...]  # (round, step, channel, recipient, digest)

    def encode(self) -> bytes:
        """The payload to sign."""
        return pack(
            {
                "run": self.run,
                "count": self.count,
                "position": list(self.position),
                "taking_part": self.taking_part,
                "cores": [list(row) for row in self.cores],
            }
        )


def open_heartbeat(data: bytes, verify: Verify = verify_signature) -> tuple[Envelope, Heartbeat]:
    """Verify and decode a heartbeat."""
    envelope = open_envelope(data, kinds=("heartbeat",), limit=DIRECT_LIMIT, verify=verify)
    spec: dict[str, type | tuple[type, ...]] = {
        "run": str, "count": int, "position": list, "taking_part": bool, "cores": list,
    }  # fmt: skip
    fields = _fields(envelope, "heartbeat", spec, DIRECT_LIMIT)
    rows = fields["cores"]
    if not 0 <= fields["count"] < 2**53 or len(rows) > MAX_CORES_TOLD:
        raise MalformedMessage("heartbeat: count or number of cores out of range", peer=envelope.signer)
    for row in rows:
        if not isinstance(row, list) or [type(part) for part in row] != [int, int, str, str, str]:
            raise MalformedMessage("heartbeat: a core is not round, step, channel, recipient, digest")
        check_digest(row[4], "heartbeat: core")
    cores = tuple((row[0], row[1], row[2], row[3], Digest(row[4])) for row in rows)
    position = _position(fields["position"], envelope)
    return envelope, Heartbeat(RunId(fields["run"]), fields["count"], position, fields["taking_part"], cores)


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


def _position(value: list[Any], envelope: Envelope) -> Position:
    if [type(part) for part in value] != [int, int] or not 0 <= value[0] <= 2 * MAX_ROUNDS:
        raise MalformedMessage(f"{envelope.kind}: position is not a round and a step", peer=envelope.signer)
    return (value[0], value[1])


def _shown(text: str) -> str:
    """Another site's words, as they may reach a terminal: without control characters."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _fields(envelope: Envelope, what: str, spec: Mapping[str, type | tuple[type, ...]], limit: int) -> dict[str, Any]:
    return read_fields(unpack(envelope.payload, what=what, limit=limit, max_items=8192), what, spec)
