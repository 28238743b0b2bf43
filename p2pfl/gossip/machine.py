"""The sans-IO machine of one peer in one run: events in, effects out, time passed in.

It reads no clock, opens no socket, draws no randomness and holds no tensor; it sees handles and digests. The asyncio
shell, the virtual clock and the tests drive this same machine. What is legal where stands in `p2pfl.gossip.table`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from p2pfl.crypto import Envelope, Verify, open_envelope, verify_signature
from p2pfl.errors import (
    IllegalStep,
    MalformedMessage,
    NotAMember,
    P2PFLError,
    RemoteError,
    SignatureRefused,
)
from p2pfl.gossip import events as ev
from p2pfl.gossip.adopting import Adopting
from p2pfl.gossip.beat_rate import BeatRate
from p2pfl.gossip.closing import ClosingPart
from p2pfl.gossip.closing_statement import open_closing
from p2pfl.gossip.context import ArgumentProblem, Context
from p2pfl.gossip.deliveries import Deliveries
from p2pfl.gossip.direct import open_acknowledgement, open_away, open_settle, open_standing
from p2pfl.gossip.directives import Directives
from p2pfl.gossip.effects import Begin, Effect, StoreStatement
from p2pfl.gossip.flood import SAME_KIND, SAME_KIND_OF
from p2pfl.gossip.heartbeat import open_heartbeat
from p2pfl.gossip.holders import NOT_ASKED_FOR, Holders
from p2pfl.gossip.joining import OUTSIDE, Joining
from p2pfl.gossip.memory import Memory, Restored
from p2pfl.gossip.messages import FLOOD_LIMIT
from p2pfl.gossip.offers import open_wanted
from p2pfl.gossip.presence import Presence
from p2pfl.gossip.returning import SHARE_AFTER, Returning
from p2pfl.gossip.rounds import Rounds
from p2pfl.gossip.starting import Starting, schedule_of
from p2pfl.gossip.statements import Proposal, open_approval, open_start, open_start_signature, run_of
from p2pfl.gossip.table import TABLE, State
from p2pfl.types import Digest, PeerId, Roster

USER_PAUSED = "this site's user paused it; `p2pfl plan resume` lets it take part again"
EARLY_LIMIT = 8  # announcements kept per neighbour before the start record is valid here: one round's channels
FLOODED = frozenset({"approval", "start", "start-signature", "closing", "heartbeat", "directive"})
STATEMENTS = (*sorted(FLOODED), "settle", "acknowledgement", "away", "standing", "wanted")
OUT_OF_ROUNDS = (State.ABSENT, State.DONE)  # the worker may still answer for a round that was left


class Machine:
    """One peer's part in one run.

    Call ``handle`` with each event and carry out the effects it returns, in order. A local event that the table does
    not allow raises IllegalStep and changes nothing; a remote message never raises.
    """

    def __init__(
        self,
        me: PeerId,
        roster: Roster,
        proposal: Proposal,
        *,
        sequence: int = 0,
        restored: Restored | None = None,
        verify: Verify = verify_signature,
        argument_problem: ArgumentProblem | None = None,
        newcomer_problem: str | None = None,
        tolerance: float | None = None,
    ) -> None:
        """``verify`` checks signatures; only simulations pass another one than Ed25519's.

        ``argument_problem`` says what is wrong with a change of arguments under the plan; without it, none is allowed.
        ``newcomer_problem`` says why the plan lets nobody join a run that has begun, if it does not.
        ``tolerance`` is the plan's for the distances between sites at the end, in parameter units.
        """
        self.context = Context(me, roster, proposal, verify)
        self.context.tolerance = tolerance
        self.context.newcomer_problem = newcomer_problem
        if argument_problem is not None:
            self.context.argument_problem = argument_problem
        self.starting = Starting(self.context)
        self.deliveries = Deliveries(self.context)
        self.rounds = Rounds(self.context, self.deliveries, sequence)
        self.closing = ClosingPart(self.context, self.rounds)
        self.directives = Directives(self.context)
        self.returning = Returning(self.context, self.deliveries, self.rounds, self.closing, self.directives)
        self.presence = Presence(self.context, self.deliveries)
        self.beat_rate = BeatRate(len(roster.members))
        self.context.too_few = self.presence.too_few
        self.context.never_enough = self.presence.never_enough
        self.joining = Joining(
            self.context, self.starting, self.deliveries, self.rounds, self.closing, self.directives, self.returning,
            self.presence,
        )  # fmt: skip
        self.context.outside_rounds = self.joining.still_outside
        self.context.wait_to_join = self.joining.wait
        holders = Holders(self.context, self.deliveries, self.presence)
        self.adopting = Adopting(self.context, self.rounds, holders)
        self.context.adopt = self.adopting.begin
        self._early: dict[PeerId, list[bytes]] = {}
        self._early_closings: dict[PeerId, bytes] = {}  # by member, so not many
        self._early_standings: dict[PeerId, bytes] = {}
        self._kept: dict[tuple[PeerId, str], set[Digest]] = {}
        self._handlers = self._handling()
        self.memory = Memory(
            self.context, self.starting, self.deliveries, self.rounds, self.closing, self.returning, self.presence,
            self.directives,
        )  # fmt: skip
        self.context.remember = self.memory.remember
        if restored is not None:
            self.memory.restore(restored)

    def _handling(self) -> dict[type[ev.Event], Callable[[Any], None]]:
        """Who takes which event."""
        return {
            ev.Proposed: self._proposed,
            ev.Resumed: self._resumed,
            ev.AnnouncementReceived: self._announcement,
            ev.OfferReceived: self._offer,
            ev.StatementReceived: self._statement,
            ev.LinkUp: self._link_up,
            ev.LinkDown: self._link_down,
            ev.TimerFired: self._timer,
            ev.Trained: self._trained,
            ev.TrainingFailed: self._training_failed,
            ev.Encoded: self._encoded,
            ev.Received: self._received,
            ev.Mixed: self._mixed,
            ev.Adopted: self._adopted,
            ev.Committed: self._committed,
            ev.Approve: self._approve,
            ev.Pause: self._pause,
            ev.Resume: self._resume,
            ev.Leave: self._leave,
            ev.Direct: self._direct,
        }

    @property
    def state(self) -> State:
        """Where this peer stands."""
        return self.context.state

    def handle(self, event: ev.Event) -> list[Effect]:
        """Take one event, return what is to be done, in order.

        Raises IllegalStep (nothing has changed) for a local event that the present state does not allow.
        """
        allowed = TABLE[self.context.state].get(type(event))
        if allowed is None:
            raise IllegalStep(f"{type(event).__name__} is not possible while {self.context.state}")
        self.context.now = event.now
        try:
            self._handlers[type(event)](event)
        except P2PFLError:
            self.context.effects = []
            raise
        if self.context.state is State.CLOSING and not self.closing.begun:
            self.closing.begin()
        assert self.context.state in allowed, (
            f"{type(event).__name__} led to {self.context.state}, which the table does not have"
        )
        effects, self.context.effects = self.context.effects, []
        return effects

    def status(self) -> Mapping[str, Any]:
        """What `p2pfl status` shows of this run."""
        context, rounds = self.context, self.rounds
        total = context.schedule.total if context.schedule else context.proposal.rounds
        return {
            "run": context.proposal.run,
            "plan": context.proposal.plan,
            "state": str(context.state),
            "round": context.position[0],
            "of": total,
            "rounds_done": rounds.rounds_done,
            "loss": rounds.loss,
            "distance": rounds.distance,
            "missing": [
                {"peer": peer, "from_round": round_, "reason": why}
                for peer, (round_, why) in sorted(context.missing.items())
            ],
            "approvals": sorted(self.starting.approvals),
            "waiting_for": self.rounds.awaited() if context.state is State.COLLECTING else [],
            "outcome": self.closing.outcome(),
            "usual_seconds": dict(rounds.pace.shown()),
            "contributors": self.presence.contributors() if context.start else [],
            "paused_because": (context.few or context.held or USER_PAUSED) if context.state is State.PAUSED else None,
            "directive": self.directives.status(),
            "joining": self.joining.status(),
            "unacknowledged": len(self.deliveries.outgoing),
            "unsettled": rounds.biased,
            "counters": dict(context.counters),
            "away": context.away_for_good,
        }

    # --- remote messages: used, buffered, ignored or refused, never raised

    def _announcement(self, event: ev.AnnouncementReceived) -> None:
        context = self.context
        if context.start is None or self.joining.outside:
            early = self._early.setdefault(event.peer, [])
            if context.roster.member(event.peer) is not None:
                early.append(event.data)
                del early[:-EARLY_LIMIT]  # one that joins late needs the newest
            return
        if context.away_for_good:
            context.counters["while absent"] += 1
            return
        try:
            core = self.deliveries.accept(event.peer, event.data)
        except RemoteError as error:
            context.refuse(event.peer, str(error))
            return
        if core is not None:
            self.presence.noticed(event.peer)
            self.rounds.heard(core, event.peer)
            self.rounds.noticed(event.peer, core.position)
        self._progress()

    def _offer(self, event: ev.OfferReceived) -> None:
        if not self.adopting.waiting:
            self.context.counters[NOT_ASKED_FOR] += 1
            return
        try:
            self.adopting.offered(event.peer, event.data)
        except RemoteError as error:
            self.context.refuse(event.peer, str(error))
            self.adopting.look()

    def _statement(self, event: ev.StatementReceived) -> None:
        if self.beat_rate.exceeded(event.peer, event.data, event.now):
            self.context.counters["heartbeats too often"] += 1
            return
        blamed = event.peer  # for what never should have been passed on; else the signer, whoever brought it
        try:
            envelope = open_envelope(event.data, kinds=STATEMENTS, limit=FLOOD_LIMIT, verify=self.context.verify)
            self._check_statement(envelope, event.peer)
            blamed = envelope.signer
            used = self._hear(envelope, event.data)
        except RemoteError as error:
            self.context.refuse(blamed, str(error))
            return
        if used and envelope.kind in FLOODED and self._worth_keeping(envelope):
            self.context.emit(StoreStatement(self.context.proposal.run, event.data))
        self._progress()

    def _worth_keeping(self, envelope: Envelope) -> bool:
        """Each statement once, whatever its encoding, and two of a kind at most: one member must not fill the disk."""
        kept = self._kept.setdefault((envelope.signer, envelope.kind), set())
        if envelope.digest in kept or len(kept) >= SAME_KIND_OF.get(envelope.kind, SAME_KIND):
            return False
        kept.add(envelope.digest)
        return True

    def _check_statement(self, envelope: Envelope, sender: PeerId) -> None:
        if self.context.roster.member(envelope.signer) is None:
            raise NotAMember(f"statement by {envelope.signer}, a key that the charter does not name")
        if envelope.kind not in FLOODED and envelope.signer != sender:
            raise SignatureRefused(f"{envelope.kind} signed by {envelope.signer}, not by the peer that sent it")
        if run_of(envelope) != self.context.proposal.run:
            raise MalformedMessage("statement about another run")

    def _hear(self, envelope: Envelope, data: bytes) -> bool:
        """Take a member's statement about this run; whether it may be of use to others."""
        kind, signer = envelope.kind, envelope.signer
        if kind == "approval":
            _, approval = open_approval(data, _verified)
            if self.context.start is not None:
                return self.joining.hear_approval(envelope, approval, data)
            if self.context.state is not State.PROPOSING:
                return False
            self.starting.hear_approval(envelope, approval, data)
        elif kind == "start":
            self.starting.hear_start(*open_start(data, _verified))
        elif kind == "start-signature":
            self.starting.hear_signature(signer, open_start_signature(data, _verified)[1])
        elif self.context.start is None:
            # of a run that is under way or over elsewhere; the start record is on its way, or being committed here
            if kind == "closing":
                self._early_closings[signer] = data
            elif kind == "standing":
                self._early_standings[signer] = data
            elif kind == "directive":
                self.directives.hear_early(data)
            return kind in ("closing", "directive")
        elif kind == "directive":
            return self._heed(data)
        elif kind == "closing" and signer not in self.context.running.shares:
            self._early_closings[signer] = data  # the proposer may have admitted it, and the word is on its way
            self.context.unlike.add(signer)
        elif kind == "closing":
            self.closing.hear_closing(signer, open_closing(data, _verified)[1], data)
            self._enough_again()
        elif kind == "heartbeat":
            beat = open_heartbeat(data, _verified)[1]
            self.presence.hear(signer, beat, data)
            self.rounds.attendance.alive(signer, beat.position[0], beat.taking_part)
            self._enough_again()
            return False  # the next one says all that this one does
        elif kind == "settle":
            _, settle = open_settle(data, _verified)
            if not self.context.away_for_good:
                self.closing.hear_settle(signer, settle)
        elif kind == "standing":
            standing = open_standing(data, _verified)[1]
            if self.joining.outside:
                self.joining.standings[signer] = data
            if standing.directive:
                self._hear_shared(signer, standing.directive)
            self.returning.hear(signer, standing)
            self.closing.state_absence()
        elif kind == "wanted":
            self.deliveries.holding.answer(signer, open_wanted(data, _verified)[1])
        elif kind == "away":
            self.rounds.attendance.hear_away(signer, open_away(data, _verified)[1])
        else:
            self.deliveries.acknowledged(signer, open_acknowledgement(data, _verified)[1].cores)
        return True

    def _progress(self) -> None:
        """After anything heard: does it let the present state go on?"""
        context = self.context
        self.joining.admit()
        self.joining.look()
        if context.unlike and context.start is not None:
            self.returning.compare_directives()
        if context.state is State.PROPOSING:
            self.starting.begin_when_valid()
        elif context.state is State.COLLECTING:
            self.rounds.collect()
        elif context.state is State.CLOSING:
            self.closing.finish_when_settled()
        elif context.state is State.CATCHING_UP:
            self.adopting.look()
        elif (
            context.state is State.ABSENT and not context.away_for_good and self.rounds.horizon() > context.position[0]
        ):
            self._absence_over()

    # --- links and timers

    def _link_up(self, event: ev.LinkUp) -> None:
        context = self.context
        context.linked.add(event.peer)
        if context.start is None:
            return
        self.returning.linked()
        self.returning.tell(event.peer)
        self.deliveries.resend(event.peer)
        self.closing.state_absence()
        if not context.away_for_good:
            self.deliveries.fetch_due()
            if event.peer in self.rounds.ledgers and context.state in (State.CLOSING, State.DONE):
                self.closing.send(event.peer, question=context.state is State.CLOSING)
            self.adopting.linked(event.peer)

    def _link_down(self, event: ev.LinkDown) -> None:
        context = self.context
        context.linked.discard(event.peer)
        self.adopting.unlinked(event.peer)
        if context.start is None or event.peer not in self.rounds.ledgers or context.state is State.DONE:
            return
        self.returning.told.discard(event.peer)
        self.rounds.attendance.mark_missing(event.peer, f"link lost: {event.reason}")
        self._progress()

    def _timer(self, event: ev.TimerFired) -> None:
        context = self.context
        if event.name == "approvals" and context.state is State.PROPOSING:
            self.starting.patience_over()
            if context.away_for_good:
                context.state = State.DONE
                context.tell("expired", reason=context.away_for_good)
        elif event.name == "deadline" and context.state is State.COLLECTING:
            self.rounds.deadline()
        elif event.name == "nudge" and context.state is State.COLLECTING:
            self.rounds.nudge()
        elif event.name == "heartbeat" and context.start is not None:
            if context.state is not State.DONE and context.away_for_good is None:
                self.presence.beat()
            self._enough_again()
            self.joining.admit()
        elif event.name == "few" and context.state is State.PAUSED and (why := context.few or context.held):
            context.give_up(why)
            self.closing.state_absence()
        elif event.name == "share" and context.state is State.DONE:
            self.returning.share()
        elif event.name == "hope" and context.state is State.CLOSING:
            self.closing.hoping = False
            self.closing.finish_when_settled()
        elif event.name == "completion" and context.state is State.DONE:
            self.closing.check_complete(late=True)
        elif event.name == "states" and context.state is State.CATCHING_UP:
            self.adopting.patience_over()
        elif event.name == "holders":
            self.adopting.ask_again()
        elif event.name == "standing":
            self.returning.patience_over()
            self.closing.state_absence()
            self.joining.look()
        elif event.name == "absent" and context.state is State.ABSENT and not context.away_for_good:
            self._absence_over()
        elif event.name == "ask" and context.state is State.CLOSING and not self.closing.finishing:
            self.closing.ask()
        elif event.name == "closing" and context.state is State.CLOSING and not self.closing.finishing:
            self.closing.finish()

    def _enough_again(self) -> None:
        """Paused because too few contributed: go on as soon as enough are heard."""
        context = self.context
        waits = context.state is State.PAUSED and context.few is not None and not context.pause_wanted
        if waits and self.presence.never_enough():
            context.few = self.presence.too_few()
            context.set_timer("few", 0.0)
        elif waits and self.presence.too_few() is None:
            context.cancel_timer("few")
            context.tell("enough", contributors=self.presence.contributors())
            self.rounds.proceed()

    def _absence_over(self) -> None:
        self.context.cancel_timer("absent")
        round_ = self.context.position[0]
        total = self.context.running_schedule.total
        self.rounds.catch_up(round_, min(max(round_, self.rounds.horizon()) + 1, total))

    # --- answers of the shell

    def _trained(self, event: ev.Trained) -> None:
        if self.context.state in OUT_OF_ROUNDS:
            return
        self._in_work(event.round, self.context.position[1])
        self.rounds.trained(event.loss)

    def _training_failed(self, event: ev.TrainingFailed) -> None:
        if self.context.state in OUT_OF_ROUNDS:
            return
        self._in_work(event.round, self.context.position[1])
        self.rounds.failed(event)
        self.closing.state_absence()

    def _encoded(self, event: ev.Encoded) -> None:
        if self.context.state in OUT_OF_ROUNDS:
            return
        self._in_work(event.round, event.step)
        self.rounds.encoded(event)

    def _mixed(self, event: ev.Mixed) -> None:
        context = self.context
        if context.state in OUT_OF_ROUNDS:
            return
        if context.state is State.CLOSING:
            if context.away_for_good:
                return
            if not self.closing.finishing or self.closing.stated:
                raise IllegalStep("no mixing is in work")
            self.rounds.log_mixed(event)
            self.rounds.digest = event.digest
            self.rounds.corrections_used = ()
            self.closing.state_own()
            return
        self._in_work(event.round, event.step)
        self.rounds.mixed(event)

    def _adopted(self, event: ev.Adopted) -> None:
        if self.context.state in OUT_OF_ROUNDS:
            return
        if self.adopting.asked is None or self.adopting.asked.round != event.round:
            raise IllegalStep("no states are being taken in")
        self.adopting.adopted(event)

    def _in_work(self, round_: int, step: int) -> None:
        if (round_, step) != self.context.position:
            raise IllegalStep(f"round {round_}, step {step} is not in work; {self.context.position} is")

    def _received(self, event: ev.Received) -> None:
        if self.context.start is None:
            raise IllegalStep("nothing was to be fetched before the run began")
        self.deliveries.holding.received(event.core, event.problem)
        if self.adopting.received(event):
            return
        held = self.deliveries.incoming.get(event.core)
        if self.deliveries.received(event.core, event.problem, event.again):
            if held is not None:
                self.rounds.noticed(held.origin, held.core.position)
            self._progress()

    def _committed(self, event: ev.Committed) -> None:
        context = self.context
        name = event.token.split(":")[0]
        if name == "approved":
            self.starting.approved()
        elif name == "start-signed":
            self.starting.start_signed()
        elif name == "run-started" and context.state is State.PROPOSING:
            self._begin()
        elif name == "sent" and context.state is State.ANNOUNCING:
            for core, digest in zip(self.rounds.cores, event.cores, strict=False):
                self.presence.sent(core.key, digest)
            self.rounds.committed(event.cores)
        elif name == "mixed":
            self.deliveries.acknowledge()
        elif name in ("caught-up", "adopted") and context.state is State.CATCHING_UP and self.returning.stage is None:
            if context.pause_wanted:
                context.state = State.PAUSED
            else:
                self.rounds.proceed()
        elif name == "settling":
            self.closing.settling_durable()
        elif name == "directive":
            self.directives.committed()
        elif name == "offered":
            self.deliveries.holding.committed(event.token)
        elif name == "closed":
            self.deliveries.acknowledge()
            self.closing.closed()
            context.set_timer("share", SHARE_AFTER)

    def _begin(self) -> None:
        context, record = self.context, self.starting.record
        assert record is not None
        context.begin(record, schedule_of(record))
        context.tell("started", run=record.run, participants=[item.peer_id for item in record.participants])
        if context.me not in record.shares:
            context.away_for_good = OUTSIDE
            context.state = State.ABSENT
            self.presence.listen(context.now)
            self.joining.standings, self._early_standings = self._early_standings, {}
            self._hear_early()
            return
        context.emit(Begin(record))
        self.rounds.prepare()
        self.presence.begin()
        context.commit("begun", stage="begun")
        self._hear_early()
        if context.state is State.PROPOSING and not self.returning.signed_before(self._early_standings):
            self.returning.join()
        self._hear_early_announcements()

    def _hear_early_announcements(self) -> None:
        early, self._early = self._early, {}
        for peer, announcements in early.items():
            for data in announcements:
                self._announcement(ev.AnnouncementReceived(self.context.now, peer, data))

    def _hear_early(self) -> None:
        early, self._early_closings = self._early_closings, {}
        for data in (*early.values(), *filter(None, [self.directives.early])):
            self._statement(ev.StatementReceived(self.context.now, self.context.me, data))

    # --- the user

    def _proposed(self, event: ev.Proposed) -> None:
        self.starting.proposed(event.waited)

    def _approve(self, event: ev.Approve) -> None:
        if self.context.start is not None:
            self.joining.approve(event.samples, event.prekey)
        else:
            self.starting.approve(event.samples, event.prekey)

    def _pause(self, event: ev.Pause) -> None:
        context = self.context
        context.few = context.held = None
        if not context.pause_wanted:
            context.pause_wanted = True
            context.log_now("pause_asked", {"round": context.position[0]})  # also a restart in mid-round heeds it

    def _resume(self, event: ev.Resume) -> None:
        context = self.context
        if context.pause_wanted:
            context.pause_wanted = False
            context.log_now("pause_ended", {"round": context.position[0]})
        if context.state is State.PAUSED:
            self.rounds.proceed()

    def _direct(self, event: ev.Direct) -> None:
        if self.closing.complete:
            raise IllegalStep("the run is over at all sites; there is nothing to direct any more")
        if not self.context.asked or self.returning.stage is not None or self.presence.alone():
            raise IllegalStep("this peer does not know yet where the run is: no other site told; try again in a moment")
        self.directives.direct(event, self.presence.run_round())

    def _hear_shared(self, sender: PeerId, data: bytes) -> None:
        """A directive that a neighbour passes on with its standing; the proposer is to blame for what it says."""
        try:
            self.directives.open(data)
        except RemoteError as error:
            self.context.refuse(sender, str(error))
            return
        try:
            news = self._heed(data)
        except RemoteError as error:
            self.context.refuse(self.context.proposal.proposer, str(error))
            return
        if news:
            self.context.emit(StoreStatement(self.context.proposal.run, data))

    def _heed(self, data: bytes) -> bool:
        """Take a directive in; a run that it paused, and pauses no longer, goes on. Whether it is news."""
        context = self.context
        if not self.directives.hear(data):
            return False
        came = list(self.directives.came)
        self.joining.follow()
        if context.me in came:
            self._hear_early_announcements()
        for closing in [self._early_closings.pop(peer) for peer in came if peer in self._early_closings]:
            self._statement(ev.StatementReceived(context.now, context.me, closing))
        assert context.directive is not None
        stopped = context.few is not None and context.directive.stop_at is not None
        waits = context.state is State.PAUSED and (context.held or stopped) and not context.pause_wanted
        if waits and not context.directive.holds_back(context.position[0]):
            context.cancel_timer("few")
            self.rounds.proceed()
        return True

    def _leave(self, event: ev.Leave) -> None:
        context = self.context
        if context.state is State.DONE:
            return
        context.away_for_good = event.reason
        if context.state is State.PROPOSING:
            context.state = State.DONE
            context.tell("expired", reason=event.reason)
            return
        if context.state is State.CLOSING:
            self.closing.give_up()
            return
        if context.state is State.ABSENT:
            if self.joining.outside:
                context.barred = event.reason  # should the proposer admit this site, it says so
            return
        context.give_up(event.reason)
        self.closing.state_absence()

    def _resumed(self, event: ev.Resumed) -> None:
        if self.returning.stage is None:
            raise IllegalStep("this machine was not made from a stored state")
        if self.memory.digest is not None:
            # the count of heartbeats grows with each restart, also if the next one comes before anything else is stored
            self.context.commit("note:resumed", stage=self.returning.stage)
        self.presence.begin()
        self.returning.begin(self.memory.digest)


def _verified(peer_id: str, message: bytes, signature: bytes) -> None:
    """The signature over these very bytes was checked when the envelope was opened."""
