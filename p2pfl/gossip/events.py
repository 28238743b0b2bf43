"""What the world tells the machine. Every event carries ``now``: seconds on the shell's own monotonic clock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from p2pfl.crypto import Manifest
from p2pfl.types import Digest, PeerId


@dataclass(frozen=True, slots=True)
class Event:
    """Anything that happens."""

    now: float


@dataclass(frozen=True, slots=True)
class Proposed(Event):
    """The proposal this machine was made for is known here and checked by the shell; comes first."""

    waited: float = 0.0  # seconds since it came, before a restart


@dataclass(frozen=True, slots=True)
class Resumed(Event):
    """This machine was made from a stored state after a restart; comes first then."""


@dataclass(frozen=True, slots=True)
class AnnouncementReceived(Event):
    """An announcement came in over the link to ``peer`` (bytes, unverified)."""

    peer: PeerId
    data: bytes


@dataclass(frozen=True, slots=True)
class StatementReceived(Event):
    """A signed envelope came in: a flooded statement from anybody, or a direct one (bytes, unverified)."""

    peer: PeerId
    data: bytes


@dataclass(frozen=True, slots=True)
class OfferReceived(Event):
    """An answer to a question for states came in over the link to ``peer`` (bytes, unverified)."""

    peer: PeerId
    data: bytes


@dataclass(frozen=True, slots=True)
class LinkUp(Event):
    """A link to ``peer`` is up, after its hello in both directions."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class LinkDown(Event):
    """The last link to ``peer`` is gone."""

    peer: PeerId
    reason: str


@dataclass(frozen=True, slots=True)
class TimerFired(Event):
    """A timer set by the machine is due. A timer that was replaced or cancelled must not fire."""

    name: str


@dataclass(frozen=True, slots=True)
class Trained(Event):
    """The local steps of ``round`` are done; ``loss`` is their mean training loss."""

    round: int
    loss: float


@dataclass(frozen=True, slots=True)
class TrainingFailed(Event):
    """The plan's code or the worker failed in ``round``; the model is as before."""

    round: int
    reason: str


@dataclass(frozen=True, slots=True)
class Parcel:
    """One channel's message, encoded and sealed by the shell and waiting there."""

    channel: str
    manifest: Manifest
    result: Digest


@dataclass(frozen=True, slots=True)
class Encoded(Event):
    """The messages of (round, step) are encoded and sealed."""

    round: int
    step: int
    parcels: tuple[Parcel, ...]


@dataclass(frozen=True, slots=True)
class Received(Event):
    """The content of ``core`` was fetched, opened and rebuilt (``problem`` None), or is refused.

    ``again`` true: the world failed, not the sender; the machine may ask once more after the next link up.
    ``altered`` true: the bytes are not those that the origin signed; whoever served them is to blame.
    """

    core: Digest
    problem: str | None = None
    again: bool = False
    altered: bool = False


@dataclass(frozen=True, slots=True)
class Mixed(Event):
    """The mixing of (round, step) is done; ``digest`` is that of the own model afterwards."""

    round: int
    step: int
    digest: Digest
    distance: float  # root mean square distance to the mixed neighbours, in parameter units
    shared: Digest | None = None  # of what travels of it, between two mixings of a round as mixed so far; None: digest


@dataclass(frozen=True, slots=True)
class Adopted(Event):
    """The own parameters took the neighbours' states in before ``round``; ``digest`` is theirs afterwards."""

    round: int
    digest: Digest
    distance: float  # Euclidean norm of what they moved by, in parameter units


@dataclass(frozen=True, slots=True)
class Committed(Event):
    """The commit named ``token`` is durable; ``cores`` are the digests of its cores, in their order."""

    token: str
    cores: tuple[Digest, ...] = ()


@dataclass(frozen=True, slots=True)
class Approve(Event):
    """The user approves this run with a prekey (public half) and a number of training examples."""

    samples: int
    prekey: bytes


@dataclass(frozen=True, slots=True)
class Pause(Event):
    """The user wants to stop before the next round."""


@dataclass(frozen=True, slots=True)
class Resume(Event):
    """The user wants to go on."""


@dataclass(frozen=True, slots=True)
class Direct(Event):
    """The proposer's user directs the whole run: "pause", "resume", "stop" or "change" (of arguments).

    It holds from ``from_round``; None: from the earliest round that everybody can be told of in time.
    """

    word: Literal["pause", "resume", "stop", "change"]
    arguments: Mapping[str, int | float] = field(default_factory=dict)
    from_round: int | None = None


@dataclass(frozen=True, slots=True)
class Leave(Event):
    """The user takes no further part in this run."""

    reason: str
