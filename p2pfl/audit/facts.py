"""What one log says about each run, in a form that can be compared with other logs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from p2pfl.audit.held import HeldNote
from p2pfl.audit.losses import WINDOW, Loss, LostRounds

Place = tuple[int, int]
"""Round and step of one mixing."""

WEIGHT_TOLERANCE = 1e-9
"""Relative: weights are computed from the same numbers at both ends; only their division rounds."""

RELAY = "relay"
"""The channel of RelaySGD: what came in it stays in, whatever the other end counted."""


@dataclass(frozen=True, slots=True)
class Started:
    """A run's beginning as one log has it; ``participants`` are samples by peer, ``staleness`` 0 where not written.

    ``law``: what each site counts, up to a common factor; the samples where not written.
    """

    entry: int
    record: str
    plan: str
    charter: str
    initial: str
    participants: Mapping[str, int]
    signers: tuple[str, ...]
    staleness: int
    law: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Delta:
    """One core, sent or received; ``peers`` are the recipients, or the one origin."""

    entry: int
    round: int
    step: int
    channel: str
    core: str
    peers: tuple[str, ...]
    sequence: int = -1  # known to the origin alone

    @property
    def place(self) -> Place:
        """Round and step."""
        return self.round, self.step


@dataclass(frozen=True, slots=True)
class Mixed:
    """One edge that went into a mixing."""

    entry: int
    weight: float
    given: float | None = None  # what was given up of the own message, in directed mixings; None: as much as was taken
    most: float = (
        1.0  # that any mixing of its kind has; above 1 in accelerated rounds, of which no directed run has any
    )

    @property
    def directed(self) -> bool:
        """Whether the log says what was given up: it does in directed runs alone, and there of every edge."""
        return self.given is not None

    @property
    def gave(self) -> float:
        """What was given up of the own message."""
        return self.weight if self.given is None else self.given

    def sound(self, heavier: float) -> bool:
        """Whether any mixing has such amounts; the other end counts ``heavier`` times as much as this one.

        In directed mixings pi_i w_ij = pi_j g_ji: what is taken is at most all that the other end has.
        """
        if self.given is None:
            return 0.0 < self.weight <= self.most
        whole = self.most <= 1.0 and 0.0 <= self.given <= 1.0 and self.weight + self.given > 0.0
        return whole and 0.0 <= self.weight <= max(1.0, heavier) * (1.0 + WEIGHT_TOLERANCE)


@dataclass(frozen=True, slots=True)
class Mixing:
    """One mixing as its entry has it; ``digest`` None where the log is older than that field."""

    entry: int
    round: int
    step: int
    edges: tuple[tuple[str, float, Place], ...]  # in the order in which they were added up
    taken_back: tuple[tuple[str, int, int], ...]
    digest: str | None
    inertia: float | None = None  # of an accelerated closing round; None: a plain mixing


@dataclass(slots=True)
class Away:
    """Rounds in which the log's owner took no part: up to ``until``, not included; None while it is not back."""

    first: int
    until: int | None
    reason: str


@dataclass(slots=True)
class RunFacts:
    """Everything of one run in one log that another log can agree with or contradict."""

    proposed: bool = False
    approved: tuple[str, int] | None = None  # plan, samples
    signed: str | None = None
    started: Started | None = None
    sent: dict[str, Delta] = field(default_factory=dict)
    sent_at: dict[tuple[int, int, str], str] = field(default_factory=dict)  # (round, step, channel): core
    sequences: set[int] = field(default_factory=set)
    received: dict[str, Delta] = field(default_factory=dict)
    mixed: dict[tuple[str, int, int], Mixed] = field(default_factory=dict)
    mixings: list[Mixing] = field(default_factory=list)
    taken_back: dict[tuple[str, int, int], int] = field(default_factory=dict)
    unsettled: dict[tuple[str, int, int], int] = field(default_factory=dict)
    ignored: dict[tuple[str, int], str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    away: list[Away] = field(default_factory=list)
    missed: defaultdict[str, list[tuple[int, str]]] = field(default_factory=lambda: defaultdict(list))
    passed: dict[tuple[str, int], str] = field(default_factory=dict)  # (peer, round): why it was mixed without
    acknowledged: dict[tuple[str, str], int] = field(default_factory=dict)  # (peer, core): entry
    data: list[tuple[int, str, str, int]] = field(default_factory=list)  # (entry, tag, fingerprint, rows)
    models: list[tuple[int, str, str]] = field(default_factory=list)  # (entry, digest of the parameters, of the file)
    keeping: list[tuple[int, str]] = field(default_factory=list)  # (entry, "begun", "ended" or "deleted")
    approved_entry: int = -1
    caught_up: list[tuple[int, int, tuple[tuple[str, float, int, str], ...]]] = field(default_factory=list)
    directed: dict[int, tuple[int, Any]] = field(default_factory=dict)  # own words: version: (entry, facts)
    heard: dict[int, tuple[int, Any]] = field(default_factory=dict)
    accused: list[tuple[int, str, int]] = field(default_factory=list)  # (entry, peer, round)
    twice: list[tuple[int, str]] = field(default_factory=list)  # (entry, what the log says two times)
    begun: set[int] = field(default_factory=set)  # rounds
    beginnings: list[tuple[int, int]] = field(default_factory=list)  # (entry, round), in order
    lost: list[LostRounds] = field(default_factory=list)  # what declared losses can have taken of this run
    closings: dict[str, list[tuple[int, Mapping[str, Any]]]] = field(default_factory=dict)  # heard, by their signer
    time: int = field(default=0, compare=False)  # of its first entry, Unix milliseconds
    closed: Mapping[str, Any] | None = None
    closed_entry: int = -1
    contributed: list[tuple[str, list[tuple[int, int]]]] = field(default_factory=list)  # as the closing entry has it

    @property
    def last_round(self) -> int:
        """The last round the log's owner began; -1 before the first."""
        return max(self.begun, default=-1)

    @property
    def finished(self) -> bool:
        """Closed with a model of its own; else what stood open at the end was settled by nobody."""
        return self.closed is not None and self.closed.get("finished") is True

    def loss_of(self, round_: int, slack: int = 0) -> bool:
        """Whether a declared loss can have taken an entry of this round."""
        return any(loss.has(round_, slack) for loss in self.lost)

    def loss_of_received(self, round_: int) -> bool:
        """The same for what came from, or was settled with, a neighbour in another round."""
        return self.loss_of(round_, WINDOW)

    @property
    def loss_of_beginning(self) -> bool:
        """Whether a declared loss can have taken what this site wrote before the run began."""
        return any(self.started is None or self.started.entry >= loss.kept for loss in self.lost)

    @property
    def loss_of_end(self) -> bool:
        """Whether a declared loss can have taken what this site wrote behind its last round."""
        return any(loss.until is None for loss in self.lost)

    @property
    def empty(self) -> bool:
        """Nothing of this run stands in the log."""
        return self == RunFacts()

    @property
    def accelerated(self) -> bool:
        """Whether closing rounds added displacements of the rounds before once more."""
        return any(mixing.inertia for mixing in self.mixings)

    def relayed(self) -> frozenset[tuple[int, int]]:
        """Rounds and steps in which sums were relayed: what was mixed there stays in, whatever is taken back."""
        return frozenset((round_, step) for round_, step, channel in self.sent_at if channel == RELAY)

    def net(self, peer: str, place: Place) -> bool:
        """Whether the displacement over this edge stays in the owner's model."""
        return (peer, *place) in self.mixed and (peer, *place) not in self.taken_back


@dataclass(slots=True)
class LogFacts:
    """One log: whose it is, what it is called, and what it says about each run."""

    peer: str
    name: str = ""
    origin: str = ""  # what its checkpoints are signed under, without the epoch; empty where the caller did not say
    epoch: int | None = None  # of its newest checkpoint; None where the caller did not say
    runs: dict[str, RunFacts] = field(default_factory=dict)
    entries: int = 0
    whole: bool = True  # False: an export of some entries, others are known to be there
    charters: dict[str, int] = field(default_factory=dict)  # accepted ones: entry
    versions: dict[str, int] = field(default_factory=dict)  # of those charters, where the entry says it
    losses: list[Loss] = field(default_factory=list)  # declared ones
    part: tuple[int, int, int] | None = None  # of an export of some entries: first, last (included), of how many
    said: list[tuple[int, str, Mapping[str, Any]]] = field(default_factory=list)  # of other logs: (entry, kind, body)
    unreadable: list[tuple[int, str]] = field(default_factory=list)
    held: list[HeldNote] = field(default_factory=list)  # checkpoints of other logs, as their owners signed them
    damaged: int = 0  # rows of the store of those that could not be read
    shown: list[HeldNote] = field(default_factory=list)  # its own: the newest one, and those that came cosigned with it
    roots: Mapping[int, bytes] = field(default_factory=dict)  # of its own tree, at the sizes that others hold
