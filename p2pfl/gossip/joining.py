"""Joining a run under way: the proposer admits who approved late, everybody makes room, the newcomer comes in.

The newcomer is caught up from the round before the one it takes part from: its neighbours seal their messages of that
round for it, too, and it takes their parameters (alpha = 0, `p2pfl.gossip.adopting`). Until one of them is there it
waits, and nobody waits for it: it is missing until it is heard. So it costs the others nothing if it never comes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from p2pfl.crypto import Envelope
from p2pfl.errors import ConfigError, IllegalStep
from p2pfl.gossip.closing import ClosingPart
from p2pfl.gossip.context import Context
from p2pfl.gossip.deliveries import Deliveries
from p2pfl.gossip.directives import Directives
from p2pfl.gossip.effects import Begin
from p2pfl.gossip.messages import MAX_DIRECTIVES
from p2pfl.gossip.presence import Presence
from p2pfl.gossip.returning import Returning
from p2pfl.gossip.rounds import Rounds
from p2pfl.gossip.starting import Starting
from p2pfl.gossip.statements import Approval
from p2pfl.gossip.table import State
from p2pfl.types import PeerId

OUTSIDE = "not among the participants"
NOT_HEARD = "it was not heard of since it was admitted"


@dataclass(slots=True)
class Joining:
    """Late approvals, admissions, and the own way in."""

    context: Context
    starting: Starting
    deliveries: Deliveries
    rounds: Rounds
    closing: ClosingPart
    directives: Directives
    returning: Returning
    presence: Presence
    waiting: bool = False  # admitted, and no neighbour's state is here yet
    refused: dict[PeerId, int] = field(default_factory=dict)  # not admitted, at so many participants
    standings: dict[PeerId, bytes] = field(default_factory=dict)  # told to this peer while it took no part

    @property
    def outside(self) -> bool:
        """Whether the run has begun without this peer, and nobody has admitted it yet."""
        context = self.context
        return context.start is not None and context.me not in context.start.shares

    def still_outside(self) -> bool:
        """Whether this peer was admitted, and has not come into the rounds yet."""
        return self.waiting

    # --- the member

    def approve(self, samples: int, prekey: bytes) -> None:
        """The user says yes to a run under way. Raises IllegalStep or ConfigError if it cannot take this site in."""
        context = self.context
        if not self.outside or self.closing.complete:
            raise IllegalStep("this site takes part in the run, or the run is over; nothing is to be approved")
        approval = Approval(context.proposal.run, context.proposal.plan, samples, prekey)
        problem = self.problem({context.me: approval}) if samples >= 1 else None
        if problem is not None:
            raise ConfigError(f"the run cannot take this site in: {problem}; wait for the next run")
        self.starting.approve(samples, prekey)

    def hear_approval(self, envelope: Envelope, approval: Approval, data: bytes) -> bool:
        """A member approves the run that is under way; whether the others should keep that for the proposer."""
        if envelope.signer in self.context.running.shares:
            return False
        news = self.starting.take_approval(envelope, approval, data)
        if news:
            self.context.tell("late approval", peer=envelope.signer, samples=approval.samples)
        return news

    # --- the proposer

    def admit(self) -> None:
        """If this peer proposed the run, and knows where it is: sign the admission of all who approved late."""
        context = self.context
        if context.start is None or context.proposal.proposer != context.me or self.closing.complete:
            return
        shares = context.running.shares
        late = [peer for peer in context.roster.peer_ids if peer in self.starting.approvals and peer not in shares]
        late = [peer for peer in late if self.refused.get(peer) != len(shares)]
        # while too few contribute no round comes in which neighbours could seal their parameters for a newcomer
        unsure = (
            context.few is not None or not context.asked or self.returning.stage is not None or self.presence.alone()
        )
        if not late or unsure or self.directives.waiting is not None:
            return
        newcomers: dict[PeerId, Approval] = {}
        for peer in late:
            approval = self.starting.approvals[peer][0]
            problem = self.problem({**newcomers, peer: approval})
            if problem is None:
                newcomers[peer] = approval
            else:
                self.refused[peer] = len(shares)
                context.tell("not admitted", peer=peer, reason=problem)
        if newcomers:
            from_round = self.directives.earliest(self.presence.run_round())
            self.directives.admit([self.starting.approvals[peer][1] for peer in newcomers], from_round)

    def problem(self, newcomers: Mapping[PeerId, Approval]) -> str | None:
        """Why these members cannot be admitted now, beside those who are; None if they can."""
        context, directive = self.context, self.context.directive
        if directive is not None and directive.stop_at is not None:
            return "its proposer has stopped it"
        if self.directives.earliest(self.presence.run_round()) >= context.running.rounds:
            return "it is in its last rounds"
        if self.directives.version >= MAX_DIRECTIVES:
            return f"its proposer has directed it {MAX_DIRECTIVES} times, and more is not possible"
        known = directive.admissions() if directive is not None else ()
        before = dict(self.directives.admissions.open(change.approval) for change in known)
        return self.directives.admissions.problem({**before, **newcomers})

    # --- everybody

    def follow(self) -> None:
        """The directive that was just heard may admit members, or take an admission back."""
        context = self.context
        came, went = self.directives.came, self.directives.went
        self.directives.came, self.directives.went = [], []
        self.presence.meet(came)
        for peer in went:
            self.presence.heard.pop(peer, None)
        for peer in came:
            context.tell("admitted", peer=peer, round=context.joined[peer])
        if context.me in went and context.away_for_good is None and context.state not in (State.CLOSING, State.DONE):
            self.waiting = False
            context.give_up(
                "the proposer's word admits this site no longer, or the run was stopped before it took part"
            )
        elif context.me in came:
            self._come_in()
        elif context.me in context.running.shares:
            self._make_room(came)

    def _make_room(self, came: list[PeerId]) -> None:
        """Edges to new neighbours; nobody waits for one that was not heard yet."""
        context = self.context
        known = set(self.rounds.edges.ledgers)
        self.rounds.edges.prepare()
        for peer in self.rounds.edges.ledgers:
            if peer in came or (peer not in known and peer not in context.linked):
                context.missing.setdefault(peer, (context.joined.get(peer, context.position[0]), NOT_HEARD))

    # --- the newcomer

    def _come_in(self) -> None:
        """This peer takes part from a later round on: have the worker ready, and wait for a neighbour's state."""
        context = self.context
        context.away_for_good = context.barred
        self.rounds.edges.prepare()
        if context.barred is not None:
            self.closing.state_absence()
            return
        context.state = State.CATCHING_UP
        context.position = (context.joined[context.me], 0)
        self.waiting = True
        context.emit(Begin(context.running))
        context.set_timer("heartbeat", 0.0)
        context.commit("joining", stage="joining")
        for peer, data in self.standings.items():
            self.returning.hear_early(peer, data)

    def wait(self) -> None:
        """Back from a restart, and still without a neighbour's state."""
        self.waiting = True
        self.look()

    def look(self) -> None:
        """Something was heard: come in as soon as a neighbour's state is here that already reckons with this peer."""
        context = self.context
        if context.start is None or context.me not in context.joined or not self.rounds.blank:
            return
        over = context.closed | context.gone
        if context.state is State.CATCHING_UP and all(peer in over for peer in context.partners()):
            self.waiting = False
            context.give_up("the run was over before a neighbour's parameters reached this site")
            self.closing.state_absence()
        since = context.joined[context.me]
        there = any(held.core.round >= since - 1 for held in self.deliveries.states.values())
        if self.waiting and there and context.asked and context.state is State.CATCHING_UP:
            self.waiting = False
            self._enter(since)

    def _enter(self, since: int) -> None:
        """The round we were admitted to, or the one after that which the others are in."""
        context, rounds = self.context, self.rounds
        horizon, behind = rounds.horizon(), self.returning.behind
        target = max(since, horizon + 1 if horizon > since else since, behind[0] + 1 if behind is not None else since)
        target = min(target, context.running_schedule.total)
        if target > since:
            rounds.catch_up(since, target, reason="its neighbours are further than the round it was admitted to")
            return
        rounds.attendance.was_away = True
        context.commit(f"caught-up:{since}", stage="caught up")

    # --- what is shown

    def status(self) -> dict[str, Any] | None:
        """How a site that was not there at the start stands: for `p2pfl status` and `p2pfl plan approve`."""
        context = self.context
        if context.start is None or context.me in context.signed.shares:
            return None
        approved = self.starting.own_approval is not None or context.me in self.starting.approvals
        heard = self.presence.heard.get(context.proposal.proposer)
        anybody = Approval(context.proposal.run, context.proposal.plan, 1, bytes(32))
        return {
            "approved": approved,
            "from_round": context.joined.get(context.me),
            "run_is_in_round": self.presence.run_round(),
            "proposer_heard": heard is not None and heard.count >= 0,
            "problem": None if approved else self.problem({context.me: anybody}),
        }
