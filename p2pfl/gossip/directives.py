"""The proposer's signed, versioned word on a run under way: pause, resume, stop, other arguments, later members.

A directive of version v holds everything that holds from then on, so the newest one is all that a peer needs to know;
nothing that an older one changed may be rewritten. A change of arguments, the admission of a member that approved after
the start (`p2pfl.gossip.admissions`), and a stop hold from a round that the directive names. The number of them that
are in force in a round is that round's argument version: every core names it, and deltas of different versions are
never mixed (DESIGN, "Rounds", Arguments). So both ends of an edge have the same participants and weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from p2pfl.crypto import Envelope, Verify, open_envelope, pack, read_fields, unpack, verify_signature
from p2pfl.errors import (
    ConfigError,
    IllegalStep,
    LimitExceeded,
    MalformedMessage,
    PolicyRefusal,
    SignatureRefused,
)
from p2pfl.gossip.admissions import Admissions
from p2pfl.gossip.context import Context
from p2pfl.gossip.deliveries import EVIDENCE_LOGGED
from p2pfl.gossip.effects import Flood
from p2pfl.gossip.events import Direct
from p2pfl.gossip.messages import (
    DIRECTIVE_LIMIT,
    MAX_ARGUMENT_VERSION,
    MAX_CHANGES,
    MAX_DIRECTIVES,
    MAX_ROUNDS,
)
from p2pfl.types import PeerId, RunId

LEAD = 2  # rounds from where the run is: one that is under way, and one for the word to reach everybody
MAX_ARGUMENTS = 16  # in one change
MAX_NAME = 64  # characters of an argument's name
MAX_APPROVAL = 1024  # bytes of an approval's envelope; it has some 360
Value = int | float


@dataclass(frozen=True, slots=True)
class Change:
    """From this round on, these arguments have these values; or the signer of this approval takes part."""

    from_round: int
    arguments: tuple[tuple[str, Value], ...] = ()  # sorted by name
    approval: bytes = b""  # its envelope, as the member signed it; exactly one of the two is there


@dataclass(frozen=True, slots=True)
class Directive:
    """All that the proposer has directed so far. Two different ones of one version are equivocation."""

    run: RunId
    version: int  # 1, 2, ...
    paused_from: int | None = None  # no peer begins this round or a later one; None: the run goes on
    stop_at: int | None = None  # the first closing round; None: as the start record says
    changes: tuple[Change, ...] = ()

    def arguments_version(self, round_: int) -> int:
        """How many changes and stops are in force in a round."""
        stopped = self.stop_at is not None and round_ >= self.stop_at
        return sum(change.from_round <= round_ for change in self.changes) + stopped

    def arguments(self, version: int) -> dict[str, Value]:
        """What differs from the plan at an argument version; a stop, the last one, changes nothing in them."""
        return {name: value for change in self.changes[:version] for name, value in change.arguments}

    def admissions(self) -> tuple[Change, ...]:
        """Those that hold: none that would begin with a stop or after it."""
        rows = [row for row in self.changes if row.approval]
        return tuple(row for row in rows if self.stop_at is None or row.from_round < self.stop_at)

    def admitted(self, round_: int, version: int) -> int:
        """How many admissions are in force in a round of this argument version; also in one begun before a stop."""
        if version > sum(change.from_round <= round_ for change in self.changes):  # it counts the stop
            return len(self.admissions())
        return sum(bool(change.approval) for change in self.changes[:version])

    def holds_back(self, round_: int) -> bool:
        """Whether this round must not begin."""
        return self.paused_from is not None and round_ >= self.paused_from

    def follows(self, older: Directive) -> bool:
        """Whether it takes nothing back that an older one fixed."""
        kept = self.changes[: len(older.changes)] == older.changes
        return self.version > older.version and kept and older.stop_at in (None, self.stop_at)

    def encode(self) -> bytes:
        """The payload to sign."""
        return pack(
            {
                "run": self.run,
                "version": self.version,
                "paused_from": self.paused_from,
                "stop_at": self.stop_at,
                "changes": [
                    [row.from_round, [list(item) for item in row.arguments], row.approval] for row in self.changes
                ],
            }
        )


def open_directive(data: bytes, verify: Verify = verify_signature) -> tuple[Envelope, Directive]:
    """Verify and decode a directive; whether its signer may direct the run, and admit, is the caller's to check."""
    envelope = open_envelope(data, kinds=("directive",), limit=DIRECTIVE_LIMIT, verify=verify)
    spec: dict[str, type | tuple[type, ...]] = {
        "run": str,
        "version": int,
        "paused_from": (int, type(None)),
        "stop_at": (int, type(None)),
        "changes": list,
    }
    value = unpack(envelope.payload, what="directive", limit=DIRECTIVE_LIMIT, max_items=4096)
    fields = read_fields(value, "directive", spec)
    rounds = (fields["paused_from"], fields["stop_at"])
    if not 1 <= fields["version"] <= MAX_DIRECTIVES or len(fields["changes"]) >= MAX_ARGUMENT_VERSION:
        raise MalformedMessage("directive: version or number of changes out of range", peer=envelope.signer)
    if any(round_ is not None and not 0 <= round_ <= MAX_ROUNDS for round_ in rounds) or fields["stop_at"] == 0:
        raise MalformedMessage("directive: round out of range", peer=envelope.signer)
    fields["changes"] = tuple(_read_change(row, envelope) for row in fields["changes"])
    fields["run"] = RunId(fields["run"])
    return envelope, Directive(**fields)


def _read_change(row: Any, envelope: Envelope) -> Change:
    problem = MalformedMessage("directive: a change is not a round and its arguments or approval", peer=envelope.signer)
    if not isinstance(row, list) or [type(part) for part in row] != [int, list, bytes] or not 0 <= row[0] <= MAX_ROUNDS:
        raise problem
    if row[2]:
        if row[1] or len(row[2]) > MAX_APPROVAL:
            raise problem
        return Change(row[0], approval=row[2])
    arguments = []
    for item in row[1]:
        if not isinstance(item, list) or [type(part) for part in item] not in ([str, int], [str, float]):
            raise problem
        if not 0 < len(item[0]) <= MAX_NAME or not item[0].isidentifier() or not math.isfinite(item[1]):
            raise problem
        arguments.append((item[0], item[1]))
    names = [name for name, _ in arguments]
    if not 1 <= len(names) <= MAX_ARGUMENTS or names != sorted(set(names)):
        raise problem
    return Change(row[0], tuple(arguments))


@dataclass(slots=True)
class Directives:
    """What the proposer has directed, and at the proposer what it directs."""

    context: Context
    envelope: bytes = b""  # the newest one as it was signed
    early: bytes = b""  # one that came before the start record was valid here
    waiting: Directive | None = None  # the own one, until its commit
    contradictions: set[bytes] = field(default_factory=set)  # payloads of those that are kept as evidence
    came: list[PeerId] = field(default_factory=list)  # who takes part by the newest one, and did not before
    went: list[PeerId] = field(default_factory=list)  # the reverse: a stop, or a contradiction, took it back
    admissions: Admissions = field(init=False)

    def __post_init__(self) -> None:
        self.admissions = Admissions(self.context)

    @property
    def newest(self) -> Directive | None:
        """The newest one; None before the first."""
        return self.context.directive

    @property
    def version(self) -> int:
        """Of the newest one; 0 before the first."""
        return self.newest.version if self.newest is not None else 0

    # --- the proposer's

    def direct(self, event: Direct, run_round: int) -> None:
        """Sign the next version. ``run_round`` is the round that most of the run is in.

        Raises PolicyRefusal if this site did not propose the run, ConfigError for what is not possible.
        """
        context = self.context
        if context.proposal.proposer != context.me:
            raise PolicyRefusal("only the run's proposer directs it; pause or leave this site's own part, or ask them")
        if self.waiting is not None:
            raise IllegalStep("the last word is just being written down; give the next one in a moment")
        last = self.newest or Directive(context.running.run, 0)
        if last.version >= MAX_DIRECTIVES:
            raise ConfigError(f"a run takes {MAX_DIRECTIVES} directives at most; propose a new one")
        round_ = run_round + LEAD if event.from_round is None else event.from_round
        self._sign(self._changed(last, event, round_, run_round))

    def admit(self, approvals: Sequence[bytes], from_round: int) -> None:
        """Sign the next version: the members that signed these approvals take part from this round on."""
        last = self.newest or Directive(self.context.running.run, 0)
        rows = tuple(Change(from_round, approval=data) for data in approvals)
        self._sign(replace(last, changes=(*last.changes, *rows)))

    def earliest(self, run_round: int) -> int:
        """The round that the next change can hold from: never before an earlier one's, versions count them in order."""
        changes = self.newest.changes if self.newest is not None else ()
        return max([run_round + LEAD, *(change.from_round for change in changes)])

    def _sign(self, directive: Directive) -> None:
        context = self.context
        self.waiting = replace(directive, version=self.version + 1)
        facts = {"version": self.waiting.version, **self.facts(self.waiting)}
        context.log("directive_signed", facts, ("directive", self.waiting.encode()))
        context.commit(f"directive:{self.waiting.version}")

    def _changed(self, last: Directive, event: Direct, round_: int, run_round: int) -> Directive:
        if event.word == "resume":
            if last.paused_from is None:
                raise ConfigError("the run is not paused for everybody; there is nothing to resume")
            return replace(last, paused_from=None)
        if last.stop_at is not None:
            raise ConfigError(f"the run was stopped at round {last.stop_at}; a stop is final")
        rounds = self.context.running.rounds
        if round_ >= rounds:
            raise ConfigError(f"the run ends by itself after round {rounds - 1}; name a round before, or let it end")
        if round_ <= run_round:
            raise ConfigError(f"the run is in round {run_round} already; name a later round, or none")
        if event.word == "pause":
            if last.paused_from is not None:
                raise ConfigError(f"the run is paused for everybody from round {last.paused_from} already")
            return replace(last, paused_from=round_)
        if event.word == "stop":
            return replace(last, stop_at=max(round_, 1), paused_from=None)
        problem = self.context.argument_problem(event.arguments)
        if problem is not None:
            raise ConfigError(problem)
        if sum(bool(change.arguments) for change in last.changes) >= MAX_CHANGES:
            raise ConfigError(f"a run takes {MAX_CHANGES} changes of arguments at most; propose a new one")
        # an argument version counts the changes in force: a later change never holds from an earlier round
        round_ = max([round_, *(change.from_round for change in last.changes)])
        return replace(last, changes=(*last.changes, Change(round_, tuple(sorted(event.arguments.items())))))

    def committed(self) -> None:
        """The own word is durable: tell everybody, this peer included."""
        waiting, self.waiting = self.waiting, None
        assert waiting is not None
        self.context.emit(Flood("directive", waiting.encode()))

    # --- everybody's

    def open(self, data: bytes) -> tuple[Envelope, Directive]:
        """A directive of this run's proposer. Raises RemoteError: whoever passed another thing on is to blame."""
        envelope, directive = open_directive(data, self.context.verify)
        if envelope.signer != self.context.proposal.proposer:
            raise SignatureRefused("directive by another member than the run's proposer", peer=envelope.signer)
        if directive.run != self.context.proposal.run:
            raise SignatureRefused("directive about another run", peer=envelope.signer)
        return envelope, directive

    def hear_early(self, data: bytes) -> None:
        """Before the start record is valid here: the newest one is kept until then. Raises RemoteError."""
        version = self.open(data)[1].version
        if not self.early or version > self.open(self.early)[1].version:
            self.early = data

    def hear(self, data: bytes) -> bool:
        """Somebody brought a directive; whether it is news. Raises RemoteError."""
        context = self.context
        envelope, directive = self.open(data)
        known = self.newest
        if known == directive:
            return False
        if known is not None and not (directive.follows(known) or known.follows(directive)):
            self._keep_evidence(envelope, directive, known, data)
        if known is not None and _rank(directive) < _rank(known):
            return False
        self._check(envelope, directive)
        context.directive, self.envelope = directive, data
        self.came, self.went = self.admissions.follow()
        if context.away_for_good is not None and directive.stop_at is not None:
            context.enter(directive.stop_at)  # it takes part in no round that would do so
        facts = {"version": directive.version, **self.facts(directive)}
        context.log_now("directive_heard", facts, ("directive", data))
        context.tell("directive", **facts)
        return True

    def _check(self, envelope: Envelope, directive: Directive) -> None:
        """What the plan, the charter and the approvals' own signers allow. Raises RemoteError."""
        rounds = [change.from_round for change in directive.changes]
        if rounds != sorted(rounds):
            raise LimitExceeded(f"directive {directive.version}: changes out of order", peer=envelope.signer)
        for change in directive.changes:
            problem = self.context.argument_problem(dict(change.arguments)) if change.arguments else None
            if problem is not None:
                raise LimitExceeded(f"directive {directive.version}: {problem}", peer=envelope.signer)
        schedule = self.context.schedules[0] if self.context.schedules else None
        closing = schedule is not None and schedule.accelerated and rounds and rounds[-1] >= schedule.rounds
        if closing and any(change.approval for change in directive.changes):
            # who is admitted changes W, and accelerated rounds that are under way have no other one
            raise LimitExceeded(f"directive {directive.version}: an admission behind training", peer=envelope.signer)
        problem = self.admissions.problem_of([change.approval for change in directive.changes if change.approval])
        if problem is not None:
            raise LimitExceeded(f"directive {directive.version}: {problem}", peer=envelope.signer)

    def recall(self, data: bytes) -> None:
        """The newest one as the stored state has it: it was checked before it was stored."""
        _, self.context.directive = self.open(data)
        self.envelope = data
        self.admissions.follow()

    def _keep_evidence(self, envelope: Envelope, directive: Directive, known: Directive, data: bytes) -> None:
        """The proposer contradicts itself. All keep both, and heed the same one: whichever ranks higher."""
        context = self.context
        if directive.encode() in self.contradictions or len(self.contradictions) >= EVIDENCE_LOGGED:
            return
        self.contradictions.add(directive.encode())
        context.counters["equivocation"] += 1
        body = {"peer": envelope.signer, "round": context.position[0], "step": 0, "channel": "directive"}
        context.log_now("equivocation", body, ("evidence", self.envelope), ("evidence", data))
        context.tell("equivocation", peer=envelope.signer, round=context.position[0])

    def status(self) -> dict[str, Any] | None:
        """What `p2pfl status` shows."""
        if self.newest is None:
            return None
        now = self.newest.arguments(self.context.arguments)
        return {"version": self.newest.version, **self.facts(self.newest), "in_force": now}

    def facts(self, directive: Directive) -> dict[str, Any]:
        """For log and user, as plain values: of an admission the round, the member and its samples."""
        opened = [(row.from_round, *self.admissions.open(row.approval)) for row in directive.admissions()]
        return {
            "paused_from": directive.paused_from,
            "stop_at": directive.stop_at,
            "changes": [[row.from_round, dict(row.arguments)] for row in directive.changes if row.arguments],
            "joined": [[round_, peer, approval.samples] for round_, peer, approval in opened],
        }


def _rank(directive: Directive) -> tuple[int, bytes]:
    """All peers heed the same one of two that contradict each other."""
    return directive.version, directive.encode()
