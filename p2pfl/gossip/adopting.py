"""Catching up with the neighbours' states: what a peer that was away for long, or that joins late, goes on from.

With k the rounds it took no part in since the last one it finished, pi the sample shares, m_j the newest signed
parameters of each present neighbour j (the model channel of its newest core), and c the plan's ``catch_up_rounds``:

    x_i <- alpha x_i + (1 - alpha) sum_j pi_j m_j / sum_j pi_j,
    alpha = 1 for k <= c, c / k beyond, and 0 for a peer that never trained in this run.

Within the settling window edges settle exactly and the conserved sum holds the stored parameters, so they are kept
whole. Beyond it the edges are given up anyway, and old parameters at full weight would drag everybody back. The
hyperbola is the polynomial weight s(k) = (1 + k)^-a of Xie, Koyejo and Gupta, "Asynchronous Federated Optimization"
(2019), with a = 1, after a flat part as in their hinge. This is no mixing over edges: ledgers and contributions do
not know it. The conserved sum moves by pi_i times the jump, which is measured and logged.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from p2pfl.gossip.context import Context
from p2pfl.gossip.deliveries import Content, Deliveries, Incoming
from p2pfl.gossip.effects import Adopt, Edge, Fetch
from p2pfl.gossip.events import Adopted, Received
from p2pfl.gossip.messages import SETTLING_WINDOW
from p2pfl.gossip.rounds import Rounds
from p2pfl.gossip.table import State
from p2pfl.types import Digest, PeerId

PATIENCE = 10.0  # seconds for neighbours' announcements to come, as for their standings after a restart


def own_weight(away: int, whole: int, *, trained: bool) -> float:
    """Alpha after ``away`` rounds without this peer, of which ``whole`` cost it nothing."""
    if away <= 0:
        return 1.0
    if not trained:
        return 0.0
    return 1.0 if away <= whole else whole / away


def worker_key(core: Digest) -> Digest:
    """What the worker keeps a state under: its core may wait there as an edge's message at the same time."""
    return Digest(f"state {core}")


@dataclass(slots=True)
class Adopting:
    """The neighbours' states on their way into the own parameters."""

    context: Context
    deliveries: Deliveries
    rounds: Rounds
    began: float | None = None  # since when states are waited for
    taken: dict[PeerId, Incoming] = field(default_factory=dict)  # the one state of each neighbour that is fetched
    asked: Adopt | None = None  # with the worker

    @property
    def away(self) -> int:
        """Rounds since the last one that this peer finished."""
        return self.context.position[0] - self.rounds.finished - 1

    @property
    def weight(self) -> float:
        """Alpha as it is now. A slow site of an asynchronous run skips numbers, not work: it keeps what it has."""
        if self.context.staleness and not self.rounds.blank:
            return 1.0
        return own_weight(self.away, self.context.running.catch_up_rounds, trained=not self.rounds.blank)

    def begin(self) -> bool:
        """Before a round begins: whether states are to be taken first. The table's state is then catching up."""
        context = self.context
        if self.weight == 1.0:
            return False
        context.state = State.CATCHING_UP
        self.began, self.taken, self.asked = context.now, {}, None
        context.tell("taking states", round=context.position[0], away=self.away)
        context.set_timer("states", PATIENCE)
        self.look()
        return True

    def look(self) -> None:
        """Something may have come: fetch what is new, and go on when every present neighbour's state is here."""
        if self.began is None or self.context.state is not State.CATCHING_UP:
            return
        floor = self.context.position[0] - SETTLING_WINDOW  # older ones are themselves of a peer that was away
        for peer in self._present():
            held = self.deliveries.states.get(peer)
            if held is not None and peer not in self.taken and held.core.round >= floor:
                self.taken[peer] = replace(held, content=Content.FETCHING)
                self.context.emit(
                    Fetch(peer, held.digest, held.core, held.wrapped_key, held.inline, worker_key(held.digest))
                )
        known = [self.taken[peer].content for peer in self._present() if peer in self.taken]
        settled = len(known) == len(self._present()) and Content.FETCHING not in known
        if settled and Content.READY in known:
            self._adopt()

    def received(self, event: Received) -> bool:
        """The shell's answer to a Fetch of `look`; False if it is not one that is waited for."""
        held = next((item for item in self.taken.values() if worker_key(item.digest) == event.core), None)
        if held is None or self.began is None or held.content is not Content.FETCHING:
            return False
        if event.problem is None:
            held.content = Content.READY
        elif event.again:
            del self.taken[held.origin]  # with the next announcement
            return True
        else:
            held.content = Content.REFUSED
            self.context.refuse(held.origin, event.problem)
        self.look()
        return True

    def patience_over(self) -> None:
        """Whoever has announced is waited for as long as for a delta; then what is here must do."""
        if self.began is None:
            return
        left = self.began + self.context.running.deadline - self.context.now
        contents = [held.content for held in self.taken.values()]
        if Content.FETCHING in contents and left > 0:
            self.context.set_timer("states", left)
        elif Content.READY in contents:
            self._adopt()
        else:
            self._go_on_alone()

    def adopted(self, event: Adopted) -> None:
        """The parameters are replaced in the worker: written down together with its checkpoint before all else."""
        context, asked = self.context, self.asked
        assert asked is not None
        self._log(asked, event.distance)
        self.asked, self.taken = None, {}
        self.rounds.digest = event.digest
        self.rounds.finished = asked.round - 1
        context.commit(f"adopted:{asked.round}", stage="adopted")
        names = [edge.peer for edge in asked.states]
        context.tell("caught up", round=asked.round, own=asked.own, distance=event.distance, with_peers=names)

    def _present(self) -> list[PeerId]:
        context = self.context
        there = [peer for peer in context.partners() if peer in context.linked and peer not in context.gone]
        # one that is itself just coming in may be waiting for ours
        return [peer for peer in there if peer not in context.joined or peer in self.deliveries.states]

    def _adopt(self) -> None:
        """Peer-id order, so that the sum has the same bits wherever it is computed."""
        context = self.context
        ready = [held for _, held in sorted(self.taken.items()) if held.content is Content.READY]
        shares = context.running.shares
        total = sum(shares[held.origin] for held in ready)
        states = tuple(
            Edge(
                held.origin,
                shares[held.origin] / total,
                {held.core.channel: worker_key(held.digest)},
                held.core.position,
            )
            for held in ready
        )
        context.cancel_timer("states")
        self.began = None
        self.asked = Adopt(context.position[0], self.weight, states)
        context.emit(self.asked)

    def _go_on_alone(self) -> None:
        """No neighbour's state came: the own one is all there is, and the log says so."""
        context = self.context
        if context.me in context.joined and self.rounds.blank:
            # the run's first parameters would drag everybody back: a newcomer waits on, it is missed by nobody
            self.taken = {}
            context.set_timer("states", PATIENCE)
            return
        self._log(Adopt(context.position[0], 1.0, ()), 0.0)
        self.began, self.taken = None, {}
        self.rounds.finished = context.position[0] - 1
        context.tell("caught up", round=context.position[0], own=1.0, distance=0.0, with_peers=[])
        self.rounds.proceed()

    def _log(self, done: Adopt, distance: float) -> None:
        used = [[edge.peer, edge.weight, self.taken[edge.peer].core.round, self.taken[edge.peer].digest]
                for edge in done.states]  # fmt: skip
        self.context.log(
            "caught_up",
            {
                "round": done.round,
                "away": self.away,
                "own": done.own,
                "states": used,
                "distance": distance,
                "moved": self.context.running.shares[self.context.me] * distance,
            },
        )
