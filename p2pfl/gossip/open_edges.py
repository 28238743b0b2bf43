"""Which edges of an asynchronous run may still be mixed here: those of the own newest messages.

A position is open from the own message for it until the edge is decided: mixed, or not mixed because the other end said
so or because ``staleness`` more own messages went out. Counted in own messages, not in round numbers: a slow site's
number jumps with the others' between two messages, and what came meanwhile is still to be mixed. The worker keeps the
own messages of just these rounds (`p2pfl.train.exchange`). Empty in synchronous runs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from p2pfl.gossip.messages import Position
from p2pfl.types import PeerId

STEP = 0  # asynchronous rounds mix once
Open = tuple[PeerId, Position]


@dataclass(slots=True)
class OpenEdges:
    """Own rounds, oldest first, each with the neighbours whose message of that round is still wanted."""

    rounds: dict[int, set[PeerId]] = field(default_factory=dict)

    def add(self, round_: int, peers: Iterable[PeerId], staleness: int) -> list[Open]:
        """The own message of ``round_`` goes out; the edges that fall out of the window with it, oldest first."""
        self.rounds[round_] = set(peers)
        oldest = list(self.rounds)[: -(staleness + 1)]
        return [row for past in oldest for row in self._drop(past)]

    def clear(self) -> list[Open]:
        """Nothing is mixed late any more; the edges that were open, oldest first."""
        return [row for past in list(self.rounds) for row in self._drop(past)]

    def _drop(self, round_: int) -> list[Open]:
        return [(peer, (round_, STEP)) for peer in sorted(self.rounds.pop(round_))]

    def close(self, peer: PeerId, round_: int) -> None:
        """This edge is decided."""
        self.rounds[round_].discard(peer)

    def items(self) -> list[Open]:
        """All open edges, oldest round first."""
        return [(peer, (round_, STEP)) for round_, peers in self.rounds.items() for peer in sorted(peers)]

    def is_open(self, peer: PeerId, position: Position) -> bool:
        """Whether this neighbour's message of this position is still wanted."""
        return peer in self.rounds.get(position[0], ())

    def until(self, peer: PeerId) -> Position | None:
        """Below this position every edge with the neighbour is decided; None if none is open."""
        return next(((round_, STEP) for round_, peers in self.rounds.items() if peer in peers), None)

    @property
    def oldest(self) -> Position | None:
        """The oldest position with an open edge; None if there is none."""
        return next(((round_, STEP) for round_, peers in self.rounds.items() if peers), None)

    def remember(self) -> list[Any]:
        """For a restart, as plain values."""
        return [[round_, sorted(peers)] for round_, peers in self.rounds.items()]

    def recall(self, kept: Iterable[list[Any]]) -> None:
        """What `remember` gave."""
        self.rounds = {round_: {PeerId(peer) for peer in peers} for round_, peers in kept}
