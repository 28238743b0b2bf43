"""What the machine wants done. The shell carries effects out in order; none of them may block the machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from p2pfl.gossip.messages import Core, Position
from p2pfl.types import Digest, PeerId, RunId, StartRecord


@dataclass(frozen=True, slots=True)
class Effect:
    """Anything to be done."""


@dataclass(frozen=True, slots=True)
class Flood(Effect):
    """Sign ``payload`` as ``kind``, send it to every linked member, and hand it back as StatementReceived."""

    kind: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class SendStatement(Effect):
    """Sign ``payload`` as ``kind`` and send it to one peer."""

    peer: PeerId
    kind: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class SendAnnouncement(Effect):
    """Send a committed announcement to one peer, with its newest cover."""

    peer: PeerId
    core: Digest


@dataclass(frozen=True, slots=True)
class Begin(Effect):
    """Prepare the worker for a run whose start record is valid: initial parameters, keys, data."""

    start: StartRecord


@dataclass(frozen=True, slots=True)
class Restore(Effect):
    """After a restart: prepare the worker as it was when the state with this digest was stored."""

    start: StartRecord
    digest: Digest


@dataclass(frozen=True, slots=True)
class Train(Effect):
    """Run the local steps of ``round``; answer with Trained or TrainingFailed.

    ``arguments`` are those that the proposer changed; all others are the plan's.
    """

    round: int
    arguments: Mapping[str, int | float] = field(default_factory=dict)


Inertia = tuple[tuple[int, float], ...]
"""Of accelerated closing rounds, in order: (round, part of the round's displacement before that is added once more)."""


@dataclass(frozen=True, slots=True)
class Encode(Effect):
    """Encode and seal the messages of (round, step); answer with Encoded.

    ``inertia`` of all closing rounds before: the worker makes up for those that it missed.
    """

    round: int
    step: int
    closing: bool
    inertia: Inertia = ()


@dataclass(frozen=True, slots=True)
class Fetch(Effect):
    """Get, open and rebuild the content of an announced core; answer with Received."""

    peer: PeerId
    digest: Digest
    core: Core
    wrapped_key: bytes
    inline: bytes
    key: Digest | None = None  # what the worker keeps it under, and Received names, if not the core's digest
    holder: PeerId | None = None  # whom to pull it from, if not its origin ``peer``
    keep: bool = False  # the sealed bytes as well, until Hold or LetGo says what becomes of them
    signed: bytes = b""  # the core's envelope, for a home that keeps what it mixes

    @property
    def name(self) -> Digest:
        """What the worker keeps it under."""
        return self.key or self.digest

    @property
    def source(self) -> PeerId:
        """Whom to pull it from."""
        return self.holder or self.peer


@dataclass(frozen=True, slots=True)
class Edge:
    """One neighbour to mix: its weight w_ij, the core of each channel, and the position both ends' messages are of.

    ``given``: what the own message gives up for it, where the mixing is directed; None: as much as is taken of its.
    """

    peer: PeerId
    weight: float
    cores: Mapping[str, Digest]
    position: Position
    given: float | None = None

    def row(self) -> list[Any]:
        """For the worker, as plain values."""
        amount = () if self.given is None else (self.given,)
        return [self.peer, self.weight, dict(self.cores), *self.position, *amount]

    def noted(self, position: Position) -> list[Any]:
        """For the log entry of the mixing at this position: peer, weight, then its own place if that is another one;
        where it is directed always the place, and what was given up."""
        if self.given is not None:
            return [self.peer, self.weight, *self.position, self.given]
        return [self.peer, self.weight, *(self.position if self.position != position else ())]


@dataclass(frozen=True, slots=True)
class Mix(Effect):
    """Mix the edges (in this order) and take back the corrections; answer with Mixed.

    ``inertia`` of all closing rounds up to this one.
    """

    round: int
    step: int
    edges: tuple[Edge, ...]
    corrections: tuple[tuple[PeerId, Position], ...]
    last: bool
    closing: bool
    inertia: Inertia = ()


@dataclass(frozen=True, slots=True)
class Adopt(Effect):
    """Before ``round``: own parameters times ``own``, plus the rest times the weighted mean; answer with Adopted.

    ``states`` name their worker keys; their weights sum to 1. ``inertia`` as in `Encode`.
    """

    round: int
    own: float
    states: tuple[Edge, ...]
    inertia: Inertia = ()


def with_inertia(effect: Encode | Mix | Adopt) -> dict[str, Any]:
    """The worker's argument of that name as plain values; none where the closing rounds are plain."""
    return {"inertia": [list(row) for row in effect.inertia]} if effect.inertia else {}


@dataclass(frozen=True, slots=True)
class Forget(Effect):
    """These edges are settled, these contents are no longer needed."""

    edges: tuple[tuple[PeerId, Position], ...] = ()
    cores: tuple[Digest, ...] = ()


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One entry for the audit log; ``documents`` are (role, bytes) kept beside it."""

    kind: str
    body: Mapping[str, Any]
    documents: tuple[tuple[str, bytes], ...] = ()


@dataclass(frozen=True, slots=True)
class Commit(Effect):
    """Make entries durable in one transaction, after all earlier commits; answer with Committed.

    ``cores`` are signed, covered for ``recipients`` and stored with an entry each, in the same transaction.
    ``state``, where given, is what the machine remembers: it is stored durably before the transaction, under its
    SHA-256, which one of the entries names, together with the worker's checkpoint: a fresh one if ``checkpoint``, else
    the last one. Older states may go afterwards.
    """

    token: str
    entries: tuple[LogEntry, ...] = ()
    cores: tuple[Core, ...] = ()
    recipients: tuple[PeerId, ...] = ()
    state: bytes = b""
    checkpoint: bool = False


@dataclass(frozen=True, slots=True)
class Release(Effect):
    """The ciphertext of this core is no longer needed by anybody."""

    core: Digest


@dataclass(frozen=True, slots=True)
class Hold(Effect):
    """Hold a content that was fetched with ``keep``, and its origin's announcement, for these recipients.

    It outlives the process. Nothing is served before it was offered.
    """

    core: Digest
    announcement: bytes
    recipients: frozenset[PeerId]


@dataclass(frozen=True, slots=True)
class LetGo(Effect):
    """A content that was kept or held for others is not needed any more."""

    core: Digest


@dataclass(frozen=True, slots=True)
class SendOffer(Effect):
    """Offer a held state of ``origin`` to a peer, which may pull it from now on; None: there is none for it."""

    peer: PeerId
    origin: PeerId
    core: Digest | None


@dataclass(frozen=True, slots=True)
class SetTimer(Effect):
    """Fire ``name`` at ``at`` (the shell's clock); replaces an earlier timer of that name."""

    name: str
    at: float


@dataclass(frozen=True, slots=True)
class CancelTimer(Effect):
    """The timer is no longer needed."""

    name: str


@dataclass(frozen=True, slots=True)
class Tell(Effect):
    """Something the user wants to see."""

    topic: str
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ShareClosings(Effect):
    """Send all closing statements of this run that are kept to one peer, which has others than we have."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class StoreStatement(Effect):
    """Keep a verified statement of this run, so that a neighbour that missed it can have it later."""

    run: RunId
    data: bytes
