"""The sans-IO machine of one peer in one run: events in, effects out, time passed in.

It reads no clock, opens no socket, draws no randomness and holds no tensor; it sees handles and digests. The asyncio
shell, the virtual clock and the tests drive this same machine. What is legal where stands in `p2pfl.gossip.table`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from p2pfl.crypto import Verify, verify_signature
from p2pfl.errors import (
    IllegalStep,
    P2PFLError,
)
from p2pfl.gossip import events as ev
from p2pfl.gossip.adopting import Adopting
from p2pfl.gossip.closing import ClosingPart
from p2pfl.gossip.context import ArgumentProblem, Context
from p2pfl.gossip.deliveries import Deliveries
from p2pfl.gossip.directives import Directives
from p2pfl.gossip.effects import Begin, Effect
from p2pfl.gossip.hearing import Hearing
from p2pfl.gossip.holders import Holders
from p2pfl.gossip.joining import OUTSIDE, Joining
from p2pfl.gossip.memory import Memory, Restored
from p2pfl.gossip.presence import Presence
from p2pfl.gossip.returning import SHARE_AFTER, Returning
from p2pfl.gossip.rounds import Rounds
from p2pfl.gossip.starting import Starting, schedule_of
from p2pfl.gossip.statements import Proposal
from p2pfl.gossip.table import TABLE, State
from p2pfl.types import PeerId, Roster

USER_PAUSED = "this site's user paused it; `p2pfl plan resume` lets it take part again"
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
        halved: bool = False,
    ) -> None:
        """``verify`` checks signatures; only simulations pass another one than Ed25519's.

        ``argument_problem`` says what is wrong with a change of arguments under the plan; without it, none is allowed.
        ``newcomer_problem`` says why the plan lets nobody join a run that has begun, if it does not.
        ``tolerance`` is the plan's for the distances between sites at the end, in parameter units; ``halved``: its rule
        mixes with (I + W) / 2, so that closing rounds bring the sites together more slowly.
        """
        self.context = Context(me, roster, proposal, verify)
        self.context.tolerance, self.context.halved = tolerance, halved
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
        self.context.too_few = self.presence.too_few
        self.context.never_enough = self.presence.never_enough
        self.context.at_work = self.presence.at_work
        self.joining = Joining(
            self.context, self.starting, self.deliveries, self.rounds, self.closing, self.directives, self.returning,
            self.presence,
        )  # fmt: skip
        self.context.outside_rounds = self.joining.still_outside
        self.context.wait_to_join = self.joining.wait
        holders = Holders(self.context, self.deliveries, self.presence)
        self.adopting = Adopting(self.context, self.rounds, holders)
        self.context.adopt = self.adopting.begin
        self.hearing = Hearing(
            self.context, self.starting, self.deliveries, self.rounds, self.closing, self.directives, self.returning,
            self.presence, self.joining, self.adopting, progress=self._progress, enough_again=self._enough_again,
        )  # fmt: skip
        self._handlers = self._handling()
        self.memory = Memory(
            self.context, self.starting, self.deliveries, self.rounds, self.closing, self.returning, self.presence,
            self.directives,
        )  # fmt: skip
        self.context.remember = self.memory.remember
        self._restarted = restored is not None
        if restored is not None:
            self.memory.restore(restored)

    def _handling(self) -> dict[type[ev.Event], Callable[[Any], None]]:
        """Who takes which event."""
        return {
            ev.Proposed: self._proposed,
            ev.Resumed: self._resumed,
            ev.AnnouncementReceived: self.hearing.announcement,
            ev.OfferReceived: self.hearing.offer,
            ev.StatementReceived: self.hearing.statement,
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
            "unsettled": rounds.edges.biased,
            "counters": dict(context.counters),
            "away": context.away_for_good,
        }

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
            if event.peer in self.rounds.edges.ledgers and context.state in (State.CLOSING, State.DONE):
                self.closing.send(event.peer, question=context.state is State.CLOSING)
            self.adopting.linked(event.peer)

    def _link_down(self, event: ev.LinkDown) -> None:
        context = self.context
        context.linked.discard(event.peer)
        self.returning.told_to.discard(event.peer)
        self.adopting.unlinked(event.peer)
        if context.start is None or event.peer not in self.rounds.edges.ledgers or context.state is State.DONE:
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
            self.rounds.edges.in_work = ()
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
            self.joining.standings, self.hearing.early_standings = self.hearing.early_standings, {}
            self.hearing.early_statements()
            return
        context.emit(Begin(record))
        self.rounds.edges.prepare()
        self.presence.begin()
        context.commit("begun", stage="begun")
        self.hearing.early_statements()
        early = self.hearing.early_standings
        for peer in sorted(early):
            self.returning.tell(peer)  # it was restarted, and waits for our word
        partners = self.rounds.edges.ledgers.keys()
        if self._restarted and context.state is State.PROPOSING and not early.keys() >= partners:
            self.returning.wait_for_words()
            self.hearing.early_words()
        elif context.state is State.PROPOSING and not self.returning.signed_before(early):
            self.returning.join()
        self.hearing.early_announcements()

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
