"""The asynchronous policy: nobody is waited for; edges are mixed when they are there.

A round number is a tick. An edge still pairs the two ends' messages of one round, so its displacement
w_ij (m_j - m_i) is the same whenever it is applied, and what conserves sums in synchronous runs conserves them here. At
the end of its local steps a site signs its message, mixes at once all that is ready of its newest ``staleness + 1`` own
rounds, and trains on. Training adds a displacement to the parameters it began with, so what is mixed after it keeps
both.

A site whose neighbours are ``staleness`` or more rounds further when its local steps end signs its message under the
round they are in: none of its work is too late to be mixed, and no place is signed twice, since the number only grows.
The rounds between are logged as absences. Closing rounds are synchronous; everything open is decided before them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from p2pfl.gossip.effects import Edge, Mix
from p2pfl.gossip.open_edges import STEP, Open
from p2pfl.gossip.table import State
from p2pfl.types import PeerId

if TYPE_CHECKING:
    from p2pfl.gossip.rounds import Rounds


@dataclass(frozen=True, slots=True)
class OnArrival:
    """What an asynchronous run does in place of collecting."""

    rounds: Rounds

    def announce(self, round_: int, recipients: tuple[PeerId, ...]) -> None:
        """The own message of this round is about to be signed: what falls out of the window is told with it."""
        open_edges = self.rounds.deliveries.open_edges
        self._decide_not(open_edges.add(round_, recipients, self.rounds.context.staleness))

    def decide_rest(self) -> None:
        """Closing rounds, or rounds that are skipped: what is not mixed by now never is."""
        self._decide_not(self.rounds.deliveries.open_edges.clear())

    def _decide_not(self, edges: Iterable[Open]) -> None:
        rounds = self.rounds
        for peer, position in edges:
            rounds.edges.decide(peer, position, False)
        self._set_decided()

    def _set_decided(self) -> None:
        deliveries = self.rounds.deliveries
        deliveries.decided_until = deliveries.open_edges.oldest or self.rounds.context.position

    def mix(self) -> None:
        """Mix what is there, of this round and of earlier ones, in the order of the rounds and peer ids."""
        rounds = self.rounds
        context, deliveries = rounds.context, rounds.deliveries
        context.state = State.MIXING
        edges = []
        for peer, position in deliveries.open_edges.items():
            ledger, ready = rounds.edges.ledgers[peer], deliveries.ready(peer, position)
            weight = dict(context.neighbours(position)).get(peer)  # None: the proposer took an admission back
            declined = ledger.declined(position) or weight is None
            if ready is None and not declined:
                continue
            if ready is not None and weight is not None and not declined:
                edges.append(Edge(peer, weight, ready, position))
                rounds.took(peer, position)
            deliveries.open_edges.close(peer, position[0])
            rounds.edges.decide(peer, position, not declined)
        self._set_decided()
        rounds.mixing = tuple(edges)
        corrections = rounds.edges.take_corrections()
        context.emit(Mix(*context.position, rounds.mixing, corrections, True, False))

    # --- a site that is slower than the others

    def overtaken(self) -> bool:
        """The local steps are done, and the others are further: go to their round. True if that ends the training."""
        rounds = self.rounds
        context = rounds.context
        context.heed_stop()
        round_ = context.position[0]
        if not context.asynchronous(round_):  # the stop came while it trained: nothing of this round is signed yet
            context.versions.pop(round_, None)
            context.arguments = context.arguments_at(round_)
            context.sign_under(round_)
            self.decide_rest()
            if round_ >= context.running_schedule.total:
                rounds.catch_up(round_, round_, reason="the proposer stopped the run")
                return True
        horizon = rounds.horizon()
        if horizon - round_ < context.staleness:
            return False
        if horizon >= context.running_schedule.total:
            rounds.catch_up(round_, context.running_schedule.total, reason="the others had finished first")
            return True
        self._jump(round_, horizon)
        return False

    def _jump(self, round_: int, target: int) -> None:
        rounds = self.rounds
        context = rounds.context
        reason = "the others were further when its local training ended"
        context.log("absent", {"round": round_, "until": target, "reason": reason})
        context.tell("catching up", round=round_, until=target)
        context.position = (target, context.own_steps(target)[0])
        if not context.asynchronous(target):
            context.arguments = context.arguments_at(target)
        context.sign_under(target)
        rounds.pace.start(context.position, context.now)
        rounds.edges.expire(target)
        if not context.asynchronous(target):
            self.decide_rest()
        self._set_decided()
        rounds.deliveries.finish((target, STEP - 1))
        rounds.deliveries.fetch_due()

    def skip_to_closing(self, round_: int) -> bool:
        """Between two rounds: where the others mix the last rounds, no training is begun any more."""
        rounds = self.rounds
        horizon, schedule = rounds.horizon(), rounds.context.running_schedule
        if horizon < schedule.rounds:
            return False
        rounds.catch_up(round_, min(horizon, schedule.total))
        return True
