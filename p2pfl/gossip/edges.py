"""The edges to partners: what both ends come to agree on (`p2pfl.gossip.settling`), and what is taken back for it.

One ledger for each partner, also former ones. What a ledger asks for is kept here until the next mixing takes it back.
Where one model walks, also whether an edge gave it on, and so whether it would be lost with the site it went to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from p2pfl.gossip.context import Context
from p2pfl.gossip.deliveries import Deliveries
from p2pfl.gossip.effects import Forget
from p2pfl.gossip.messages import SETTLING_WINDOW, Core, EdgeList, Position, position_of
from p2pfl.gossip.settling import EdgeLedger, Settled
from p2pfl.gossip.table import State
from p2pfl.types import PeerId


@dataclass(slots=True)
class Edges:
    """The ledgers, and what they ask for."""

    context: Context
    deliveries: Deliveries
    ledgers: dict[PeerId, EdgeLedger] = field(default_factory=dict)
    corrections: list[tuple[PeerId, Position]] = field(default_factory=list)
    in_work: tuple[tuple[PeerId, Position], ...] = ()  # taken back by the mixing in work
    settled: list[tuple[PeerId, Position]] = field(default_factory=list)  # displacements to forget after the mixing
    biased: int = 0
    asking: set[PeerId] = field(default_factory=set)  # who listed open edges without being a neighbour any more

    def prepare(self) -> None:
        """The run begins, or others are admitted: one ledger per partner. Former partners keep theirs."""
        asynchronous, walks = self.context.staleness > 0, self.context.running_schedule.walks
        for peer in self.context.partners_ever():
            self.ledgers.setdefault(peer, EdgeLedger(asynchronous=asynchronous, revocable=walks))

    # --- what goes out, and what comes

    def lists(self, peers: tuple[PeerId, ...]) -> dict[PeerId, EdgeList]:
        """What the next cores tell each of these peers of its edge."""
        return {peer: self.ledgers[peer].list(self.deliveries.open_edges.until(peer)) for peer in peers}

    def left_open(self, recipients: tuple[PeerId, ...]) -> tuple[PeerId, ...]:
        """Who is no neighbour now, nor soon, and still has something to settle: it gets the lists alone.

        That is who was one before others were admitted, or before the graph changed. Without them the edges of the last
        common rounds would never settle; whoever lists some gets ours in return.
        """
        context = self.context
        if not context.neighbours_change:
            return ()
        asking, self.asking = self.asking, set()
        left = [peer for peer, ledger in sorted(self.ledgers.items()) if peer in asking or ledger.list().items]
        beside = [peer for peer in left if peer in context.linked and peer not in recipients]
        soon = context.partners_until(context.position[0] + SETTLING_WINDOW // 2) if beside else ()
        return tuple(peer for peer in beside if peer not in soon)

    def heard(self, core: Core, origin: PeerId) -> None:
        """What a verified core says of our edge to its sender."""
        told = core.lists.get(self.context.me)
        if told is not None:
            if told.items and self.context.neighbours_change:
                self.asking.add(origin)
            self.apply(origin, self.ledgers[origin].hear(told, core.position, self.deliveries.decided_until))

    def decide(self, peer: PeerId, position: Position, mixed: bool) -> None:
        """Whether this end mixed the neighbour's message of this position."""
        self.apply(peer, self.ledgers[peer].decide(position, mixed))

    def apply(self, peer: PeerId, settled: Settled) -> None:
        """Carry out what a ledger asks for."""
        self.corrections.extend((peer, position) for position in settled.take_back)
        self.settled.extend((peer, position) for position in settled.keep_no_longer)
        # a neighbour that is ahead settles an edge before we mix it: forgotten too early, it would be kept for ever
        if self.context.state is not State.MIXING:
            self._forget_settled()

    # --- mixings

    def take_corrections(self) -> tuple[tuple[PeerId, Position], ...]:
        """The displacements that the coming mixing takes back, in a fixed order."""
        self.in_work, self.corrections = tuple(sorted(self.corrections)), []
        return self.in_work

    def taken_back(self) -> None:
        """The mixing is done: the model needs nothing of them any more."""
        self.settled += self.in_work
        self.in_work = ()
        self._forget_settled()

    def _forget_settled(self) -> None:
        if self.settled:
            self.context.emit(Forget(edges=tuple(self.settled)))
            self.settled = []

    # --- what was never settled

    def expire(self, round_: int) -> None:
        """Give up what is older than the window that ends at this round."""
        before = round_ - SETTLING_WINDOW
        if before <= 0:
            return
        self.deliveries.expire(before)
        for peer, ledger in self.ledgers.items():
            if counted := ledger.counted((before, 0)):
                self.apply(peer, Settled(keep_no_longer=counted))
            self._apply_expired(peer, ledger.thin((before, 0)) if ledger.asynchronous else ledger.expire((before, 0)))

    def _apply_expired(self, peer: PeerId, positions: tuple[Position, ...]) -> None:
        back = tuple(position for position in positions if self._gave_on(peer, position))
        if back:
            self.apply(peer, Settled(take_back=back))  # better twice than nowhere
        positions = tuple(position for position in positions if position not in back)
        for position in positions:
            self.biased += 1
            self.context.log("edge_unsettled", {"peer": peer, "round": position[0], "step": position[1]})
        if positions:
            self.context.emit(Forget(edges=tuple((peer, position) for position in positions)))

    # --- a model that walks

    def have_back(self, round_: int) -> None:
        """Where one model walks: who gave it on and never heard that it came has it again, for its own next turn.

        Else a site that vanishes as it is given the model would take it along, and nobody trained. The other end hears
        of it, and takes back its part. Word of a visit comes with the message after it, so a round later at least.
        """
        context, schedule = self.context, self.context.running_schedule
        if not schedule.walks:
            return
        late = round_ > schedule.rounds
        if not late and (round_ + 1 >= schedule.rounds or context.me not in schedule.round(round_ + 1).active):
            return
        for peer, ledger in self.ledgers.items():
            given = [at for at in ledger.mixed_and_unknown if at[0] < round_ - 1 and self._gave_on(peer, at)]
            self.apply(peer, ledger.revoke(given))

    def would_be_lost(self, peer: PeerId, position: Position) -> bool:
        """Whether the model would be given to a site that is not there any more: its word came before the visit."""
        context = self.context
        away = peer in context.missing or peer in context.gone or peer not in context.linked
        return away and self._gave_on(peer, position)

    def _gave_on(self, peer: PeerId, position: Position) -> bool:
        """Whether this was the whole model, given on to the next site of a walk."""
        schedule = self.context.running_schedule
        return schedule.walks and position[0] < schedule.rounds and self.context.given(position).get(peer, 0.0) > 0.0

    # --- restarts

    def remember(self) -> dict[str, Any]:
        """For a restart, as plain values."""
        return {
            "ledgers": {peer: ledger.remember() for peer, ledger in self.ledgers.items()},
            # those that a mixing under way takes back are not taken back before it is committed
            "corrections": [[peer, *position] for peer, position in (*self.corrections, *self.in_work)],
            "settled": [[peer, *position] for peer, position in self.settled],
            "biased": self.biased,
        }

    def recall(self, kept: Mapping[str, Any]) -> None:
        """What `remember` gave."""
        self.ledgers = {PeerId(peer): EdgeLedger.recall(row) for peer, row in kept["ledgers"].items()}
        self.corrections = [(PeerId(row[0]), position_of(row[1:])) for row in kept["corrections"]]
        self.settled = [(PeerId(row[0]), position_of(row[1:])) for row in kept["settled"]]
        self.biased = kept["biased"]
