"""Catching up with the neighbours' states: what a peer that was away for long, or that joins late, goes on from.

With k the rounds it took no part in since the last one it finished, pi what each site counts (`Context.law`: its sample
share, unless the topology has weights of its own), m_j the newest signed parameters of each present neighbour j (the
model channel of its newest core), and c the plan's ``catch_up_rounds``:

    x_i <- alpha x_i + (1 - alpha) sum_j pi_j m_j / sum_j pi_j,
    alpha = 1 for k <= c, c / k beyond, and 0 for a peer that never trained in this run.

Within the settling window edges settle exactly and the conserved sum holds the stored parameters, so they are kept
whole. Beyond it the edges are given up anyway, and old parameters at full weight would drag everybody back. The
hyperbola is the polynomial weight s(k) = (1 + k)^-a of Xie, Koyejo and Gupta, "Asynchronous Federated Optimization"
(2019), with a = 1, after a flat part as in their hinge. This is no mixing over edges: ledgers and contributions do
not know it. The conserved sum moves by pi_i times the jump, which is measured and logged.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from p2pfl.gossip.context import Context
from p2pfl.gossip.deliveries import Content
from p2pfl.gossip.effects import Adopt, Edge, Fetch
from p2pfl.gossip.events import Adopted, Received
from p2pfl.gossip.holders import Holders, Source
from p2pfl.gossip.rounds import Rounds
from p2pfl.gossip.table import State
from p2pfl.types import PeerId

PATIENCE = 10.0  # seconds for neighbours' announcements to come, as for their standings after a restart
ASK_AGAIN = PATIENCE / 3  # questions and answers may be lost


def own_weight(away: int, whole: int, *, trained: bool) -> float:
    """Alpha after ``away`` rounds without this peer, of which ``whole`` cost it nothing."""
    if away <= 0:
        return 1.0
    if not trained:
        return 0.0
    return 1.0 if away <= whole else whole / away


@dataclass(slots=True)
class Adopting:
    """The neighbours' states on their way into the own parameters."""

    context: Context
    rounds: Rounds
    holders: Holders
    began: float | None = None  # since when states are waited for
    late: bool = False  # the time for announcements and answers is over
    taken: dict[PeerId, Source] = field(default_factory=dict)  # the one state of each neighbour that is fetched
    asked: Adopt | None = None  # with the worker
    fetches: int = 0
    silent: set[PeerId] = field(default_factory=set)  # of whom nothing came in the last taking

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
        self.began, self.late, self.taken, self.asked = context.now, False, {}, None
        self.holders.begin()
        context.tell("taking states", round=context.position[0], away=self.away)
        context.set_timer("states", PATIENCE)
        context.set_timer("holders", ASK_AGAIN)
        # whoever is linked announces its state by itself
        self.holders.ask(peer for peer in self._neighbours() if peer not in context.linked)
        self.look()
        return True

    @property
    def waiting(self) -> bool:
        """Whether states are waited for now."""
        return self.began is not None and self.context.state is State.CATCHING_UP

    def look(self) -> None:
        """Something may have come: fetch what is new, and go on when nothing more is to be expected."""
        if not self.waiting:
            return
        for peer in self._neighbours():
            source = self.holders.best(peer)
            # the newest is known when all have answered
            if source is not None and peer not in self.taken and (self.late or not self._asked(peer)):
                self.fetches += 1
                source.held.content, source.fetch = Content.FETCHING, self.fetches
                self.taken[peer] = source
                held, key = source.held, source.worker_key
                self.context.emit(
                    Fetch(peer, held.digest, held.core, held.wrapped_key, held.inline, key, source.holder)
                )
        expected = [peer for peer in self._neighbours() if self._expected(peer)]
        if not expected and any(source.held.content is Content.READY for source in self.taken.values()):
            self._adopt()

    def _neighbours(self) -> list[PeerId]:
        """Whose states count; who has left the run takes no part in anything."""
        return [peer for peer in self.context.partners() if peer not in self.context.gone]

    def _asked(self, peer: PeerId) -> bool:
        """Whether holders of a neighbour's state were asked and have not all answered."""
        return any(named == peer for named, _ in self.holders.asked) and self.holders.awaited(peer)

    def _expected(self, peer: PeerId) -> bool:
        """Whether a neighbour's state is on its way, or may yet be."""
        source = self.taken.get(peer)
        if source is not None:
            return source.held.content is Content.FETCHING
        if peer in self.context.joined:
            return False  # it may itself be just coming in, and waiting for ours
        if peer in self.silent:  # waiting for it at each taking would leave us ever further behind
            return not self.late and self._asked(peer)
        return not self.late and (peer in self.context.linked or self.holders.awaited(peer))

    def _lacking(self) -> list[PeerId]:
        """Neighbours without a link of whom nothing is on its way."""
        return [peer for peer in self._neighbours() if peer not in self.taken and peer not in self.context.linked]

    def seeking(self) -> set[PeerId]:
        """With whom a link is worth having now: they may hold a state of a neighbour that is not linked."""
        if not self.waiting:
            return set()
        return {holder for peer in self._lacking() for holder in self.holders.possible(peer)}

    def ask_again(self) -> None:
        """Whatever is still lacking is asked for once more, also of neighbours that are linked and say nothing."""
        if self.waiting and not self.late:
            self.holders.ask(peer for peer in self._neighbours() if peer not in self.taken)
            self.context.set_timer("holders", ASK_AGAIN)

    def linked(self, peer: PeerId) -> None:
        """A link came up: its other end may hold what is lacking."""
        if self.waiting:
            self.holders.back(peer)
            self.holders.ask([] if self.late else self._lacking(), only=peer)

    def unlinked(self, peer: PeerId) -> None:
        """A link is gone: what came from there is tried elsewhere, and holders are asked in its place."""
        if not self.waiting:
            return
        self.holders.lost(peer)
        for origin, source in [*self.taken.items()]:
            if source.holder == peer and source.held.content is Content.FETCHING and not source.held.inline:
                self.holders.gave_up(source, for_good=False)
                del self.taken[origin]
        if peer in self._neighbours() and peer not in self.taken and not self.late:
            self.holders.ask([peer])
        self.look()

    def offered(self, holder: PeerId, data: bytes) -> None:
        """An answer of a peer that may hold states. Raises RemoteError."""
        if self.holders.hear(holder, data):
            self.look()

    def received(self, event: Received) -> bool:
        """The shell's answer to a Fetch of `look`; False if it is not one that is waited for."""
        source = next((item for item in self.taken.values() if item.worker_key == event.core), None)
        if source is None or self.began is None or source.held.content is not Content.FETCHING:
            return False
        if event.problem is None:
            source.held.content = Content.READY
        elif event.again:
            self.holders.gave_up(source, for_good=False)
            del self.taken[source.origin]
            if not self.late and source.holder != source.origin and self.holders.best(source.origin) is None:
                self.holders.ask([source.origin])  # it may have a newer one in its place
        elif event.altered and source.holder != source.origin:
            self.context.refuse(source.holder, event.problem)
            self.holders.gave_up(source, for_good=True)
            del self.taken[source.origin]
        else:
            source.held.content = Content.REFUSED
            self.context.refuse(source.origin, event.problem)
        self.look()
        return True

    def patience_over(self) -> None:
        """Whoever has announced is waited for as long as for a delta; then what is here must do."""
        self.late = True
        self.silent = {peer for peer in self._neighbours() if peer not in self.taken}
        self.look()
        if self.began is None:
            return
        left = self.began + self.context.running.deadline - self.context.now
        contents = [source.held.content for source in self.taken.values()]
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

    def _adopt(self) -> None:
        """Peer-id order, so that the sum has the same bits wherever it is computed."""
        context = self.context
        ready = [source for _, source in sorted(self.taken.items()) if source.held.content is Content.READY]
        law = context.law
        total = sum(law[source.origin] for source in ready)
        states = tuple(
            Edge(
                source.origin,
                law[source.origin] / total,
                {source.held.core.channel: source.worker_key},
                source.held.core.position,
            )
            for source in ready
        )
        context.cancel_timer("states")
        context.cancel_timer("holders")
        self.began = None
        inertia = context.running_schedule.inertias(context.position[0])
        self.asked = Adopt(context.position[0], self.weight, states, inertia)
        context.emit(self.asked)

    def _go_on_alone(self) -> None:
        """No neighbour's state came: the own one is all there is, and the log says so."""
        context = self.context
        if context.me in context.joined and self.rounds.blank:
            # the run's first parameters would drag everybody back: a newcomer waits on, it is missed by nobody
            self.began, self.late, self.taken = context.now, False, {}
            context.set_timer("states", PATIENCE)
            context.set_timer("holders", ASK_AGAIN)
            return
        context.cancel_timer("holders")
        self._log(Adopt(context.position[0], 1.0, ()), 0.0)
        self.began, self.taken = None, {}
        self.rounds.finished = context.position[0] - 1
        context.tell("caught up", round=context.position[0], own=1.0, distance=0.0, with_peers=[])
        self.rounds.proceed()

    def _log(self, done: Adopt, distance: float) -> None:
        sources = [(edge, self.taken[edge.peer]) for edge in done.states]
        used = [[edge.peer, edge.weight, source.held.core.round, *source.place] for edge, source in sources]
        self.context.log(
            "caught_up",
            {
                "round": done.round,
                "away": self.away,
                "own": done.own,
                "states": used,
                "distance": distance,
                "moved": self.context.law[self.context.me] * distance,
            },
        )
