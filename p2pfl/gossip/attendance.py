"""Who is there: which neighbours a round waits for, and what peers tell each other about being away.

Nobody is waited for twice: a neighbour that misses a deadline or loses its link is not awaited again until it is
heard from at the present position or a later one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from p2pfl.gossip.context import Context
from p2pfl.gossip.deliveries import Deliveries
from p2pfl.gossip.direct import Away
from p2pfl.gossip.effects import SendStatement
from p2pfl.gossip.messages import MAX_TEXT, SETTLING_WINDOW, Position
from p2pfl.gossip.table import State
from p2pfl.types import PeerId

MAX_MISSED = 3  # deadlines in a row that a neighbour may let pass before its announcements alone count for nothing


@dataclass(slots=True)
class Attendance:
    """The neighbours' presence as this peer knows it, and its own as it tells it."""

    context: Context
    deliveries: Deliveries
    awaited_again: Callable[[], None]  # while collecting: somebody is waited for again
    missed: Counter[PeerId] = field(default_factory=Counter)  # deadlines in a row each neighbour let pass
    # how far each was at its last late word, and how often in a row one was late without its coming any further
    unheard: dict[PeerId, tuple[Position, int]] = field(default_factory=dict)
    away_from: dict[PeerId, int] = field(default_factory=dict)  # the round from which a neighbour said it is away
    was_away: bool = False  # neighbours may believe that they need not wait for this peer

    # --- the neighbours

    def late(self, peer: PeerId, reason: str) -> None:
        """It let a deadline pass."""
        self.missed[peer] += 1
        self.mark_missing(peer, reason)

    def late_word(self, peer: PeerId, reason: str) -> None:
        """Its word of a round did not come in time. One that is behind and comes nearer is waited for all the same."""
        reached = self.deliveries.reached.get(peer, (0, 0))
        before, times = self.unheard.get(peer, (reached, 0))
        self.unheard[peer] = reached, times + 1 if before == reached else 1
        self.mark_missing(peer, reason)

    def word(self, peer: PeerId, round_: int) -> None:
        """Its word of a round is here in time: it is waited for, unless its contents keep failing."""
        self.unheard.pop(peer, None)
        if self._only_late(peer) and not self._before_absence(peer, round_):
            self._back(peer, round_)

    def mark_missing(self, peer: PeerId, reason: str) -> None:
        """Nobody waits for this neighbour until it is heard again."""
        context = self.context
        if peer not in context.missing:
            context.missing[peer] = (context.position[0], reason)
            context.log("absent", {"peer": peer, "round": context.position[0], "reason": reason})
            context.tell("missing", peer=peer, round=context.position[0], reason=reason)

    def not_mixed(self, peer: PeerId, position: Position, *, declined: bool) -> None:
        """A position is mixed without a neighbour that is not missing: write down why, or no log would say it."""
        context = self.context
        here = peer not in context.missing and peer not in context.gone
        if here and peer not in self.deliveries.unlike(position) and not self.deliveries.refused(peer, position):
            reason = "it had mixed without this site" if declined else "its message did not come, and it had gone on"
            round_ = position[0]
            context.log("absent", {"peer": peer, "round": round_, "until": round_ + 1, "reason": reason})

    def mixed(self, peer: PeerId, round_: int) -> None:
        """Its message goes into a mixing: it is there, unless it has said that it is away from a later round on."""
        self.missed[peer] = 0
        if not self._before_absence(peer, round_) and peer in self.context.missing and peer in self.context.linked:
            self._back(peer, round_)

    def heard(self, peer: PeerId, round_: int) -> None:
        """A verified core of a neighbour.

        One round behind counts as present: it is on its way, and waiting for it brings both back in step. Words do
        not help one that let several deadlines pass: it is awaited again once a delta of its was really mixed. Where
        the graph changes nobody leaps to a minority that is ahead: the minority waits for all, however far behind.
        """
        near = round_ >= self.context.position[0] - 1 or self.context.running_schedule.changes
        if near and self._only_late(peer) and not self._before_absence(peer, round_):
            self._back(peer, round_)

    def alive(self, peer: PeerId, round_: int, taking_part: bool) -> None:
        """A heartbeat of a neighbour that is in our round: if it was only late, it is waited for again.

        Or a site that became slow would be left out for ever: what it sends always comes after the round. Its pace
        says by then how long it takes.
        """
        neighbour = peer in self.context.partners()
        if taking_part and neighbour and round_ >= self.context.position[0] and self._only_late(peer):
            self._back(peer, round_)
            self._wait_again()

    def hear_away(self, peer: PeerId, away: Away) -> None:
        """A neighbour says that it takes no part for a while, or that it takes part again."""
        context = self.context
        if peer not in context.partners():
            return
        if not away.back:
            if away.round >= context.position[0] - 1:
                self.away_from[peer] = away.round
                self.mark_missing(peer, f"it says: {away.reason}")
            return
        if not context.position[0] - SETTLING_WINDOW <= away.round <= context.position[0] + SETTLING_WINDOW:
            return
        self.away_from.pop(peer, None)
        # it only begins that round: whoever took it to be through would leap past it, and be leapt past in turn
        self.deliveries.begins(peer, away.round)
        if self._only_late(peer):
            self._back(peer, away.round)
            self._wait_again()

    def _before_absence(self, peer: PeerId, round_: int) -> bool:
        """Its message of this round says nothing of its return: it left after it."""
        return round_ < self.away_from.get(peer, 0)

    def _only_late(self, peer: PeerId) -> bool:
        context = self.context
        silent = self.unheard.get(peer, ((0, 0), 0))[1] >= MAX_MISSED
        return peer in context.missing and peer in context.linked and self.missed[peer] < MAX_MISSED and not silent

    def _back(self, peer: PeerId, round_: int) -> None:
        del self.context.missing[peer]
        self.context.tell("back", peer=peer, round=round_)

    def _wait_again(self) -> None:
        if self.context.state is State.COLLECTING:
            self.awaited_again()

    # --- ourselves

    def tell_away(self, reason: str) -> None:
        """Tell the neighbours that nobody need wait for this peer."""
        self.was_away = True
        self._tell(Away(self.context.running.run, self.context.position[0], reason[:MAX_TEXT]))

    def tell_back(self) -> None:
        """Tell the neighbours that this peer takes part again.

        Else rounds shorter than a message's way are never met: whoever is missing is not waited for, and what it sends
        comes after the round.
        """
        if self.was_away:
            self.was_away = False
            self._tell(Away(self.context.running.run, self.context.position[0], "", back=True))

    def _tell(self, word: Away) -> None:
        for peer in self.context.partners():
            if peer in self.context.linked:
                self.context.emit(SendStatement(peer, "away", word.encode()))
