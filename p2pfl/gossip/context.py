"""What the parts of the machine share: who we are, where we stand, and the effects of the event in hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from p2pfl.crypto import Verify, sha256, verify_signature
from p2pfl.gossip.effects import CancelTimer, Commit, Effect, LogEntry, SetTimer, Tell
from p2pfl.gossip.messages import SETTLING_WINDOW, Core, Position
from p2pfl.gossip.statements import Proposal
from p2pfl.gossip.table import State
from p2pfl.topology import Mixing, Schedule
from p2pfl.types import WEIGHT, PeerId, Roster, StartRecord

if TYPE_CHECKING:
    from p2pfl.gossip.directives import Directive

FRESH = ("begun", "joining", "sent", "mixed", "adopted", "closed")  # stages at which the worker holds something new
NO_CHANGES = "the plan allows no change of arguments; give its plan.toml a table [arguments]"
ArgumentProblem = Callable[[Mapping[str, int | float]], str | None]
"""What is wrong with new values of arguments under the approved plan; None if nothing is."""

VERSIONS_KEPT = 18  # entered last, and signed under: as many rounds as can be open with the greatest staleness
REFUSALS_LOGGED = 16  # per peer and run; a member that sends rubbish must not fill the other's log


@dataclass(slots=True)
class Context:
    """Mutable state of one machine. The parts own their own fields; this holds what all of them read."""

    me: PeerId
    roster: Roster
    proposal: Proposal
    verify: Verify = verify_signature
    state: State = State.PROPOSING
    now: float = 0.0
    record: StartRecord | None = None  # as it was signed
    start: StartRecord | None = None  # the same with all who were admitted since, also for rounds to come
    schedules: list[Schedule] = field(default_factory=list)  # with none, one, ... of all admissions ever
    admitted: int = 0  # how many of these hold: a stop may come before the last ones do
    joined: dict[PeerId, int] = field(default_factory=dict)  # from which round each who was admitted takes part
    prekeys: dict[PeerId, bytes] = field(default_factory=dict)  # of all who ever took part
    position: Position = (0, 0)  # the one in work, or the next one
    linked: set[PeerId] = field(default_factory=set)
    missing: dict[PeerId, tuple[int, str]] = field(default_factory=dict)
    effects: list[Effect] = field(default_factory=list)
    pending: list[LogEntry] = field(default_factory=list)
    counters: Counter[str] = field(default_factory=Counter)
    notes: int = 0
    refusals: Counter[PeerId] = field(default_factory=Counter)
    ignored: set[tuple[PeerId, int]] = field(default_factory=set)
    pause_wanted: bool = False
    asked: bool = (
        True  # after a restart False until a neighbour told what it has of ours: nothing final is signed before
    )
    gone: set[PeerId] = field(default_factory=set)  # said in a signed statement that they take no further part
    closed: set[PeerId] = field(default_factory=set)  # finished, by their signed statements: they beat no more
    remember: Callable[[str], bytes] = lambda stage: b""  # the whole machine's state, for a restart
    too_few: Callable[[], str | None] = lambda: None  # why no further round may begin; None: enough contribute
    never_enough: Callable[[], bool] = lambda: False  # whether too few of the participants will ever contribute again
    at_work: Callable[[PeerId, int], bool] = lambda peer, round_: False  # whether heartbeats say so of this round
    few: str | None = None  # paused for that reason
    held: str | None = None  # paused because the proposer directs it
    directive: Directive | None = None  # the proposer's newest word
    arguments: int = 0  # the argument version of the round that was entered last
    versions: dict[int, int] = field(default_factory=dict)  # of each round entered within the window
    argument_problem: ArgumentProblem = lambda arguments: NO_CHANGES
    halved: bool = False  # the plan's rule mixes with (I + W) / 2
    newcomer_problem: str | None = None  # why the plan lets nobody join a run that has begun
    barred: str | None = None  # why this peer could not go on, should it be admitted
    tolerance: float | None = None  # of the consensus distances at the end, as the plan states it; None: not judged
    unlike: set[PeerId] = field(default_factory=set)  # whose messages show another argument version than ours
    outside_rounds: Callable[[], bool] = lambda: False  # admitted, and not in the rounds yet
    wait_to_join: Callable[[], None] = lambda: None  # after a restart: admitted, and still without a neighbour's state
    adopt: Callable[[], bool] = lambda: False  # before a round: whether neighbours' states are taken in first
    away_for_good: str | None = None  # why we take no part in the rest of the run

    def begin(self, record: StartRecord, schedule: Schedule) -> None:
        """The start record is valid."""
        self.record = self.start = record
        self.schedules = [schedule]
        self.prekeys = {item.peer_id: item.prekey for item in record.participants}

    @property
    def schedule(self) -> Schedule | None:
        """The schedule of all who take part now or from a later round on; None before the start record."""
        return self.schedules[self.admitted] if self.schedules else None

    @property
    def running_schedule(self) -> Schedule:
        """The same; only after the start record."""
        return self.schedules[self.admitted]

    def schedule_at(self, round_: int) -> Schedule:
        """The schedule of those who take part in this round, by the arguments that it has here."""
        if len(self.schedules) == 1 or self.directive is None:
            return self.schedules[0]
        return self.schedules[self.directive.admitted(round_, self.arguments_at(round_))]

    @property
    def signed(self) -> StartRecord:
        """The start record as it was signed; only after it is valid."""
        assert self.record is not None
        return self.record

    @property
    def running(self) -> StartRecord:
        """The start record with all who were admitted since; only after it is valid."""
        assert self.start is not None
        return self.start

    @property
    def law(self) -> Mapping[PeerId, float]:
        """What each participant counts in the mean that mixing keeps: its sample share, or as the topology's weights
        say."""
        schedule = self.running_schedule
        return dict(zip(schedule.nodes, schedule.law, strict=True))

    @property
    def first_weight(self) -> float:
        """Push-sum's weight that this peer begins with; where one model walks 0, but at the site that begins."""
        first = self.schedules[0]
        return dict(zip(first.nodes, first.weights_before(0), strict=True)).get(self.me, 0.0 if first.walks else 1.0)

    def counting(self, origin: PeerId, channel: str) -> dict[str, float]:
        """What the sender of a weight counts, under the name that the worker has for it; nothing of other channels."""
        law = self.law if channel == WEIGHT else {}
        return {"share": law[origin]} if origin in law else {}

    def arguments_at(self, round_: int) -> int:
        """The argument version of a round: fixed once the round is entered, else as directed so far."""
        if round_ in self.versions:
            return self.versions[round_]
        return self.directive.arguments_version(round_) if self.directive is not None else 0

    def enter(self, round_: int) -> None:
        """A round begins under what is directed now; after a directed stop the closing rounds follow."""
        self.heed_stop()
        self.arguments = self.arguments_at(round_)
        self.sign_under(round_)

    def heed_stop(self) -> None:
        """The schedule is the stopped one from now on, if the proposer has stopped the run."""
        if self.directive is not None:
            stop = self.directive.stop_at
            if stop is not None and stop < self.running_schedule.rounds:
                self.stop_after(stop)

    def stop_after(self, rounds: int) -> None:
        """Fewer training rounds; the closing ones follow right after them."""
        self.schedules = [schedule.stopped(rounds) for schedule in self.schedules]

    def sign_under(self, round_: int) -> None:
        """The round in work has this number from now on; its arguments are those that it was entered with."""
        self.versions[round_] = self.arguments
        # the last ones stay: in asynchronous runs, where rounds are skipped, their edges may still be open
        for past in [past for past in list(self.versions)[:-VERSIONS_KEPT] if past < round_ - SETTLING_WINDOW]:
            del self.versions[past]

    @property
    def staleness(self) -> int:
        """Own rounds that an edge may be mixed late; 0 in synchronous runs."""
        return self.start.staleness if self.start is not None else 0

    def asynchronous(self, round_: int) -> bool:
        """Whether this round mixes on arrival; closing rounds never do."""
        return self.staleness > 0 and round_ < self.running_schedule.rounds

    def neighbours(self, position: Position) -> tuple[tuple[PeerId, float], ...]:
        """Scheduled (peer, weight) at this position, in peer-id order; empty past the end."""
        round_, step = position
        if round_ >= self.running_schedule.total:
            return ()
        mixings = self._mixings(round_)
        return mixings[step].neighbours(self.me) if step < len(mixings) else ()

    def given(self, position: Position) -> Mapping[PeerId, float]:
        """What the own message gives up for each neighbour of this position in a directed mixing."""
        return self._mixings(position[0])[position[1]].given(self.me) if self.neighbours(position) else {}

    def own_steps(self, round_: int) -> tuple[int, ...]:
        """The mixing steps of a round in which this peer has a neighbour; (0,) if there is none."""
        mixings = self._mixings(round_)
        steps = tuple(step for step, mixing in enumerate(mixings) if mixing.neighbours(self.me))
        return steps or (0,)

    def _mixings(self, round_: int) -> tuple[Mixing, ...]:
        """None in rounds before this peer takes part."""
        schedule = self.schedule_at(round_)
        return schedule.round(round_).mixings if self.me in schedule.graph else ()

    @property
    def neighbours_change(self) -> bool:
        """Whether a neighbour of one round may be none in the next: both settle what is open between them then, too."""
        return bool(self.joined) or self.running_schedule.changes

    def partners_until(self, round_: int) -> frozenset[PeerId]:
        """Whom this peer mixes with after the round in work and up to this one, as things stand."""
        last = min(round_, self.running_schedule.total - 1)
        mixings = [mixing for t in range(self.position[0] + 1, last + 1) for mixing in self._mixings(t)]
        return frozenset(peer for mixing in mixings for peer, _ in mixing.neighbours(self.me))

    def partners(self) -> tuple[PeerId, ...]:
        """All peers this one mixes with as things stand, in peer-id order."""
        return self._around([self.running_schedule])

    def partners_ever(self) -> tuple[PeerId, ...]:
        """The same, and those it mixed with before others were admitted."""
        return self._around(self.schedules)

    def _around(self, schedules: Sequence[Schedule]) -> tuple[PeerId, ...]:
        graphs = [schedule.graph for schedule in schedules if self.me in schedule.graph]
        return tuple(sorted({peer for graph in graphs for peer in graph.neighbors(self.me)}))

    def watched(self, round_: int) -> tuple[PeerId, ...]:
        """Where the graph changes: those whom this peer mixes with at some time, though not (yet) in this round.

        Each of them hears that the round is done here, without the parameters, and is waited for like a neighbour:
        so nobody can lead a site away alone, and no slow site is left behind (decision 0022).
        """
        if round_ >= self.running_schedule.total:
            return ()
        schedule = self.schedule_at(round_)
        if not schedule.changes or self.me not in schedule.graph:
            return ()
        mixing = dict(self.neighbours((round_, self.own_steps(round_)[0])))
        return tuple(sorted(peer for peer in schedule.graph.neighbors(self.me) if peer not in mixing))

    def newcomers_after(self, round_: int) -> tuple[PeerId, ...]:
        """Partners that take part from the next round on: they go on from this round's messages."""
        now, then = self.schedule_at(round_), self.schedule_at(round_ + 1)
        if now is then or self.me not in then.graph:
            return ()
        return tuple(sorted(peer for peer in then.graph.neighbors(self.me) if peer not in now.graph))

    def emit(self, effect: Effect) -> None:
        """Add an effect to the answer for the event in hand."""
        self.effects.append(effect)

    def tell(self, topic: str, **facts: Any) -> None:
        """Show something to the user."""
        self.emit(Tell(topic, facts))

    def log(self, kind: str, body: Mapping[str, Any], *documents: tuple[str, bytes]) -> None:
        """Write an entry with the next commit."""
        self.pending.append(LogEntry(kind, {"run": self.proposal.run, **body}, documents))

    def commit(
        self,
        token: str,
        cores: tuple[Core, ...] = (),
        recipients: tuple[PeerId, ...] = (),
        stage: str = "",
    ) -> None:
        """Make everything logged so far durable, with these cores and, where a ``stage`` is given, the own state."""
        state = b""
        if stage:
            state = self.remember(stage)
            round_, step = self.position
            self.log("state_stored", {"round": round_, "step": step, "stage": stage, "digest": sha256(state)})
        entries, self.pending = tuple(self.pending), []
        self.emit(Commit(token, entries, cores, recipients, state, stage in FRESH))

    def give_up(self, reason: str) -> None:
        """Take no further part, for a reason that the user must see; the machine states the absence."""
        for timer in ("deadline", "nudge", "absent", "standing", "few", "states", "holders"):
            self.cancel_timer(timer)
        self.away_for_good = reason
        self.state = State.ABSENT
        self.log("absent", {"round": self.position[0], "reason": reason[:400]})
        self.tell("left", reason=reason)

    def log_now(self, kind: str, body: Mapping[str, Any], *documents: tuple[str, bytes]) -> None:
        """Write an entry without waiting for the round's next commit."""
        self.log(kind, body, *documents)
        self.notes += 1
        self.commit(f"note:{self.notes}")

    def refuse(self, peer: PeerId, reason: str) -> None:
        """A remote message is refused: count it, name it, write it down (at most so often per peer)."""
        self.counters["refused"] += 1
        self.refusals[peer] += 1
        if self.refusals[peer] <= REFUSALS_LOGGED:
            self.tell("refused", peer=peer, reason=reason)
            self.log_now("refused", {"peer": peer, "reason": reason[:400]})

    def ignore(self, origin: PeerId, round_: int, reason: str) -> None:
        """A harmless message that is of no use: count it; one entry per origin and round at most."""
        self.counters[reason] += 1
        recent = round_ >= self.position[0] - 2 * SETTLING_WINDOW
        if recent and (origin, round_) not in self.ignored and self.state is not State.ABSENT:
            self.ignored.add((origin, round_))
            self.log("delta_ignored", {"origin": origin, "round": round_, "reason": reason})
            if self.state is State.DONE:
                self.notes += 1
                self.commit(f"note:{self.notes}")

    def prune_ignored(self) -> None:
        """Keep the memory of ignored messages as long as the window."""
        floor = self.position[0] - 2 * SETTLING_WINDOW
        self.ignored = {key for key in self.ignored if key[1] >= floor}

    def set_timer(self, name: str, seconds: float) -> None:
        """Fire ``name`` so many seconds from the event in hand."""
        self.emit(SetTimer(name, self.now + seconds))

    def cancel_timer(self, name: str) -> None:
        """Stop a timer."""
        self.emit(CancelTimer(name))
