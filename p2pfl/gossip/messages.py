"""What peers say to each other during a run: payload schemas, size caps, encoding and decoding.

Owns the wire form of every run message. A payload is a msgpack map; it travels inside a signed envelope
(`p2pfl.crypto.envelope`), is decoded only after length and signature hold, and is never re-encoded to be verified.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from p2pfl.crypto import (
    Envelope,
    Manifest,
    Verify,
    expected_chunks,
    open_envelope,
    pack,
    read_fields,
    sha256,
    unpack,
    verify_signature,
)
from p2pfl.errors import LimitExceeded, MalformedMessage
from p2pfl.types import WEIGHT, Digest, PeerId, RunId

Position = tuple[int, int]
"""(round, step): step counts the mixings inside one round, from 0."""


def position_of(value: Sequence[int]) -> Position:
    """A (round, step) that went through msgpack as a list."""
    round_, step = value
    return (round_, step)


ANNOUNCEMENT_LIMIT = 64 * 1024  # DESIGN "Messages and deltas": an announcement is at most 64 KiB
INLINE_LIMIT = 32 * 1024  # plaintext bytes of a delta that rides inside its announcement
FLOOD_LIMIT = 512 * 1024  # a proposal carries the plan's code (256 KiB at most) and little else
DIRECT_LIMIT = 64 * 1024
STANDING_LIMIT = 4 * DIRECT_LIMIT  # it carries a core and a closing statement of the reader, and a directive
DIRECTIVE_LIMIT = 64 * 1024  # all changes with the longest names take 37 KiB, the approvals of all participants 25
MAX_DIRECTIVES = 256  # per run; a pause and a resume on each day of four months
MAX_CHANGES = 32  # of arguments, per run
MAX_ROUNDS = 1_000_000
MAX_STEPS = 16  # mixings inside one round; hierarchical schedules need 2
MAX_PARTICIPANTS = 64  # DESIGN: consortia of some 2 to 50 hospitals
MAX_ARGUMENT_VERSION = MAX_CHANGES + MAX_PARTICIPANTS + 1  # each change, each admission and a stop count once
SETTLING_WINDOW = 16  # rounds an edge stays listed (DESIGN "Flows settle")
MAX_CATCH_UP_ROUNDS = 1000  # of a plan's `catch_up_rounds`; at that, a peer keeps its own parameters whole
MAX_TEXT = 400

TO_ALL = "all"


@dataclass(frozen=True, slots=True)
class EdgeList:
    """What one end says about the rounds of one edge that are not settled yet.

    ``items`` are (round, step, mixed, seen): whether the author mixed the reader's message of that position, and
    whether it has seen the reader's own verdict on it. Positions from ``floor`` on that are not listed are settled.
    In asynchronous runs that holds below ``until`` only: from there on the author may have left some undecided.
    """

    floor: Position
    items: tuple[tuple[int, int, bool, bool], ...]
    until: Position | None = None


@dataclass(frozen=True, slots=True)
class Core:
    """The signed heart of an announcement. Two different ones for one ``key`` are equivocation."""

    run: RunId
    sequence: int
    round: int
    step: int
    channel: str
    recipient: str  # "all", or one peer id
    base: Digest
    result: Digest
    codec: str
    manifest: Manifest
    arguments: int
    lists: Mapping[PeerId, EdgeList]

    @property
    def position(self) -> Position:
        """(round, step)."""
        return (self.round, self.step)

    @property
    def key(self) -> tuple[int, int, str, str]:
        """What may be signed only once per origin and run."""
        return (self.round, self.step, self.channel, self.recipient)

    def encode(self) -> bytes:
        """The payload to sign."""
        return pack(
            {
                "run": self.run,
                "sequence": self.sequence,
                "round": self.round,
                "step": self.step,
                "channel": self.channel,
                "to": self.recipient,
                "base": self.base,
                "result": self.result,
                "codec": self.codec,
                "size": self.manifest.size,
                "chunks": self.manifest.chunks,
                "root": self.manifest.root,
                "commitment": self.manifest.commitment,
                "arguments": self.arguments,
                "lists": {peer: encode_edge_list(item) for peer, item in self.lists.items()},
            }
        )


_CORE_FIELDS: dict[str, type | tuple[type, ...]] = {
    "run": str,
    "sequence": int,
    "round": int,
    "step": int,
    "channel": str,
    "to": str,
    "base": str,
    "result": str,
    "codec": str,
    "size": int,
    "chunks": int,
    "root": str,
    "commitment": str,
    "arguments": int,
    "lists": dict,
}


def decode_core(payload: bytes) -> Core:
    """Decode a core whose signature holds. Raises MalformedMessage."""
    fields = read_fields(unpack(payload, what="core", limit=ANNOUNCEMENT_LIMIT, max_items=8192), "core", _CORE_FIELDS)
    _check_position(fields["round"], fields["step"], "core")
    _check_range(fields["sequence"], 0, 2**53, "core: sequence")
    _check_range(fields["arguments"], 0, 2**31, "core: arguments")
    _check_range(fields["size"], 0, 2**40, "core: size")
    if fields["chunks"] != expected_chunks(fields["size"]):
        raise MalformedMessage("core: the number of chunks does not fit its size; the sender must encode it anew")
    for name in ("base", "result", "root", "commitment"):
        check_digest(fields[name], f"core: {name}")
    if len(fields["channel"]) > 32 or len(fields["codec"]) > 32 or len(fields["to"]) > 64:
        raise MalformedMessage("core: a name is too long")
    lists = {PeerId(str(peer)): decode_edge_list(value) for peer, value in fields["lists"].items()}
    if len(lists) > MAX_PARTICIPANTS:
        raise MalformedMessage("core: lists for more peers than a consortium has")
    manifest = Manifest(fields["size"], fields["chunks"], Digest(fields["root"]), Digest(fields["commitment"]))
    return Core(
        RunId(fields["run"]), fields["sequence"], fields["round"], fields["step"], fields["channel"], fields["to"],
        Digest(fields["base"]), Digest(fields["result"]), fields["codec"], manifest, fields["arguments"], lists,
    )  # fmt: skip


def encode_edge_list(edges: EdgeList) -> list[Any]:
    """As plain values: floor, rows, and ``until`` where there is one."""
    value: list[Any] = [list(edges.floor), [list(row) for row in edges.items]]
    return value if edges.until is None else [*value, list(edges.until)]


def decode_edge_list(value: Any) -> EdgeList:
    """Check and build an edge list from decoded msgpack. Raises MalformedMessage."""
    if not (isinstance(value, list) and len(value) in (2, 3) and all(isinstance(part, list) for part in value)):
        raise MalformedMessage("edge list: not floor and items, with or without the position they are decided until")
    floor, rows, until = value[0], value[1], value[2] if len(value) == 3 else None
    if until is not None:
        if len(until) != 2:
            raise MalformedMessage("edge list: decided until no position")
        _check_position(until[0], until[1], "edge list")
    if len(floor) != 2 or len(rows) > (SETTLING_WINDOW + 1) * MAX_STEPS:
        raise MalformedMessage("edge list: wrong floor or too many rows")
    _check_position(floor[0], floor[1], "edge list")
    items = []
    for row in rows:
        if not (isinstance(row, list) and len(row) == 4):
            raise MalformedMessage("edge list: a row is not (round, step, mixed, seen)")
        _check_position(row[0], row[1], "edge list")
        if not (isinstance(row[2], bool) and isinstance(row[3], bool)):
            raise MalformedMessage("edge list: a verdict is not true or false")
        items.append((row[0], row[1], row[2], row[3]))
    return EdgeList((floor[0], floor[1]), tuple(items), None if until is None else (until[0], until[1]))


@dataclass(frozen=True, slots=True)
class Cover:
    """The part of an announcement that may be renewed: wrapped keys, and the core's entry in the origin's log.

    ``proof`` is a C2SP tlog-proof: that entry, its way to the root, and the log's newest checkpoint. ``witnessed`` is
    the newest checkpoint that neighbours have cosigned, with their lines, or empty: for the receiver's own witness.
    """

    core: Digest
    keys: Mapping[PeerId, bytes]
    proof: bytes
    witnessed: bytes = b""

    def encode(self) -> bytes:
        """The payload to sign."""
        fields: dict[str, object] = {
            "core": self.core, "keys": dict(self.keys), "proof": self.proof, "witnessed": self.witnessed
        }  # fmt: skip
        return pack(fields)


def decode_cover(payload: bytes) -> Cover:
    """Decode a cover whose signature holds. Raises MalformedMessage."""
    fields = read_fields(
        unpack(payload, what="cover", limit=ANNOUNCEMENT_LIMIT),
        "cover",
        {"core": str, "keys": dict, "proof": bytes, "witnessed": bytes},
    )
    check_keys(fields["keys"], "cover")
    check_digest(fields["core"], "cover: core")
    return Cover(Digest(fields["core"]), fields["keys"], fields["proof"], fields["witnessed"])


def check_keys(keys: dict[Any, Any], what: str) -> None:
    """Raise MalformedMessage unless these are the wrapped keys of at most MAX_PARTICIPANTS peers."""
    if len(keys) > MAX_PARTICIPANTS or not all(
        isinstance(peer, str) and isinstance(key, bytes) and len(key) <= 256 for peer, key in keys.items()
    ):
        raise MalformedMessage(f"{what}: wrapped keys are not a short map of peer ids to bytes")


@dataclass(frozen=True, slots=True)
class Announcement:
    """Core envelope, cover envelope, and the ciphertext chunk of a small delta (else empty)."""

    run: RunId
    core: bytes
    cover: bytes
    inline: bytes

    def encode(self) -> bytes:
        """The bytes of protocol /p2pfl/announce/1."""
        return pack([self.run, self.core, self.cover, self.inline])

    def encode_with(self, chunk: bytes) -> bytes:
        """The bytes with a delta's first sealed chunk inside; without it where it is long, or all would be too long."""
        data = pack([self.run, self.core, self.cover, chunk if len(chunk) <= INLINE_LIMIT + 16 else b""])
        return data if len(data) <= ANNOUNCEMENT_LIMIT else pack([self.run, self.core, self.cover, b""])


def decode_announcement(data: bytes) -> Announcement:
    """Split an announcement; nothing is verified yet. Raises MalformedMessage or LimitExceeded."""
    value = unpack(data, what="announcement", limit=ANNOUNCEMENT_LIMIT)
    if not (isinstance(value, list) and len(value) == 4 and isinstance(value[0], str)):
        raise MalformedMessage("announcement: not run, core, cover and inline chunk")
    if not all(isinstance(part, bytes) for part in value[1:]):
        raise MalformedMessage("announcement: core, cover and inline chunk must be bytes")
    return Announcement(RunId(value[0]), value[1], value[2], value[3])


def open_core(data: bytes, verify: Verify = verify_signature) -> tuple[Envelope, Core]:
    """Verify and decode a core envelope."""
    envelope = open_envelope(data, kinds=("core",), limit=ANNOUNCEMENT_LIMIT, verify=verify)
    return envelope, decode_core(envelope.payload)


def open_cover(data: bytes, verify: Verify = verify_signature) -> tuple[Envelope, Cover]:
    """Verify and decode a cover envelope."""
    envelope = open_envelope(data, kinds=("cover",), limit=ANNOUNCEMENT_LIMIT, verify=verify)
    return envelope, decode_cover(envelope.payload)


def closing_channels(names: Sequence[str]) -> tuple[str, ...]:
    """Those of a rule's channels, the model's first, that travel in closing rounds: the model's and its weight's."""
    return (*names[:1], *(name for name in names[1:] if name == WEIGHT))


def sealing_context(run: str, origin: str, position: Position, channel: str, recipient: str) -> bytes:
    """What a sealed delta is bound to: moving it to another place in the run makes it unreadable."""
    return pack([run, origin, position[0], position[1], channel, recipient])


def envelope_frame(run: str, envelope: bytes) -> bytes:
    """A signed envelope with the run it belongs to in front, so that a peer can route it unread."""
    return pack([run, envelope])


def open_frame(data: bytes, limit: int) -> tuple[RunId, bytes]:
    """Split an envelope frame; nothing is verified yet."""
    value = unpack(data, what="frame", limit=limit + 128)
    if not (isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], bytes)):
        raise MalformedMessage("frame: not a run and an envelope")
    return RunId(value[0]), value[1]


def run_id(charter: str, plan: str, proposer: str, nonce: bytes) -> RunId:
    """run = SHA-256 over charter, plan, proposer and nonce."""
    return RunId(sha256(pack(["p2pfl run", charter, plan, proposer, nonce])))


def check_digest(value: str, what: str) -> None:
    """Refuse what is not 64 lower-case hexadecimal digits."""
    if len(value) != 64 or any(letter not in "0123456789abcdef" for letter in value):
        raise MalformedMessage(f"{what}: not a SHA-256 digest in hexadecimal")


def _check_range(value: int, low: int, high: int, what: str) -> None:
    if not low <= value <= high:
        raise LimitExceeded(f"{what}: {value} is outside {low} to {high}")


def _check_position(round_: Any, step: Any, what: str) -> None:
    if type(round_) is not int or type(step) is not int:
        raise MalformedMessage(f"{what}: round and step must be whole numbers")
    _check_range(round_, 0, MAX_ROUNDS + MAX_ROUNDS, f"{what}: round")
    _check_range(step, 0, MAX_STEPS, f"{what}: step")
