"""The end of a run: the last rounds settle, corrections are mixed in, the closing statement is signed.

The completion record is the mergeable union of the participants' statements, open until every participant's
statement or a reason for its absence is in.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from p2pfl.crypto import sha256
from p2pfl.errors import Equivocation, LimitExceeded, SignatureRefused
from p2pfl.gossip.context import Context
from p2pfl.gossip.effects import Flood, Mix, Release, SendStatement
from p2pfl.gossip.rounds import Rounds
from p2pfl.gossip.statements import Closing, Settle
from p2pfl.gossip.table import State
from p2pfl.types import PeerId

ASK_AGAIN = 1.0  # seconds between two questions for the same unsettled edges
NO_MODEL = sha256(b"")  # the digest in a statement of absence


@dataclass(slots=True)
class ClosingPart:
    """Settling after the last round, and everybody's closing statements."""

    context: Context
    rounds: Rounds
    begun: bool = False
    finishing: bool = False
    stated: bool = False
    complete: bool = False
    statements: dict[PeerId, Closing] = field(default_factory=dict)
    named_missing: dict[PeerId, tuple[int, str]] = field(default_factory=dict)
    statement: Closing | None = None

    def begin(self) -> None:
        """All rounds are done: ask the neighbours about edges that are still open."""
        self.begun = True
        context = self.context
        context.tell("closing", unsettled=sum(len(ledger.unsettled) for ledger in self.rounds.ledgers.values()))
        context.set_timer("closing", context.running.deadline)
        self.ask(everybody=True)
        self.finish_when_settled()

    def ask(self, *, everybody: bool = False) -> None:
        """Send our lists, with a question where something is open; again after a while."""
        open_edges = self._open()
        for peer in self.rounds.ledgers:
            if peer in self.context.linked and (everybody or peer in open_edges):
                self.send(peer, question=peer in open_edges)
        if open_edges:
            self.context.set_timer("ask", ASK_AGAIN)

    def send(self, peer: PeerId, *, question: bool) -> None:
        """Tell one neighbour our verdicts, standing at the end of the run."""
        edges = self.rounds.ledgers[peer].list()
        end = (self.context.running_schedule.total, 0)
        payload = Settle(self.context.running.run, peer, end, edges, question).encode()
        self.context.emit(SendStatement(peer, "settle", payload))

    def _open(self) -> list[PeerId]:
        """Neighbours that can still tell us something we need."""
        return [
            peer
            for peer, ledger in self.rounds.ledgers.items()
            if ledger.unsettled
            and peer in self.context.linked
            and peer not in self.context.missing
            and peer not in self.context.gone
        ]

    def hear_settle(self, peer: PeerId, settle: Settle) -> None:
        """A neighbour's verdicts on our common edge."""
        if settle.recipient != self.context.me or peer not in self.rounds.ledgers:
            raise SignatureRefused("settle message for another edge", peer=peer)
        context, rounds = self.context, self.rounds
        if settle.position != (context.running_schedule.total, 0):
            raise LimitExceeded("settle message that was not written at the end of the run", peer=peer)
        if peer in context.missing and context.state is State.CLOSING:
            del context.missing[peer]
        reached = rounds.deliveries.reached
        reached[peer] = max(reached.get(peer, (0, 0)), settle.position)
        settled = rounds.ledgers[peer].hear(settle.edges, settle.position, rounds.deliveries.decided_until)
        if not self.finishing:
            rounds.apply(peer, settled)
        if settle.question and context.state in (State.CLOSING, State.DONE):
            self.send(peer, question=False)

    def finish_when_settled(self) -> None:
        """Nothing more to hear: mix the last corrections in."""
        if self.context.state is State.CLOSING and not self.finishing and not self._open():
            self.finish()

    def finish(self) -> None:
        """What is still open stays as recorded bias."""
        context, rounds = self.context, self.rounds
        self.finishing = True
        context.cancel_timer("closing")
        context.cancel_timer("ask")
        for peer, ledger in rounds.ledgers.items():
            for round_, step in ledger.mixed_and_unknown:
                rounds.biased += 1
                context.log("edge_unsettled", {"peer": peer, "round": round_, "step": step})
        corrections = rounds.take_corrections()
        if not corrections:
            self.state_own()
            return
        total = context.running_schedule.total
        taken = [[peer, round_, step] for peer, (round_, step) in corrections]
        context.log("mixed", {"round": total, "step": 0, "edges": [], "taken_back": taken})
        context.emit(Mix(total, 0, (), corrections, True, True))

    def give_up(self) -> None:
        """The last mixing cannot be done here: close with a statement of absence instead of a model."""
        self.context.cancel_timer("closing")
        self.context.cancel_timer("ask")
        self.finishing = True
        if not self.stated:
            self.state_own()

    def state_absence(self) -> None:
        """A participant that takes no further part says so once, in a signed statement."""
        context = self.context
        absent = context.state is State.ABSENT and context.away_for_good is not None
        if absent and not self.stated and context.me in context.running.shares:
            self.state_own()

    def state_own(self) -> None:
        """Write the closing statement down."""
        context, rounds = self.context, self.rounds
        finished = context.away_for_good is None
        missing = []
        for peer in rounds.ledgers if finished else ():
            since = rounds.missing_since(peer)
            if since is not None:
                reason = context.missing.get(peer, (since, "its last messages did not arrive"))[1]
                missing.append((peer, since, reason[:200]))
        digest = rounds.digest if finished and rounds.digest is not None else NO_MODEL
        self.statement = Closing(
            context.running.run, finished, rounds.rounds_done, digest, tuple(missing), rounds.biased
        )
        self.stated = True
        context.log(
            "run_closed",
            {
                "finished": finished,
                "rounds_done": rounds.rounds_done,
                "digest": digest,
                "missing": [list(row) for row in missing],
                "unsettled": rounds.biased,
                "reason": context.away_for_good or "",
            },
        )
        context.commit("closed")

    def closed(self) -> None:
        """The own statement is durable: tell everybody."""
        assert self.statement is not None
        self.context.state = State.DONE
        self.context.emit(Flood("closing", self.statement.encode()))
        self.context.tell("closed", finished=self.statement.finished, distance=self.rounds.distance)

    def hear_closing(self, signer: PeerId, statement: Closing) -> None:
        """A participant's statement, ours included."""
        if signer not in self.context.running.shares:
            raise SignatureRefused("closing statement by a site that takes no part in the run", peer=signer)
        if self.statements.setdefault(signer, statement) != statement:
            raise Equivocation("two different closing statements for one run", peer=signer)
        if not statement.finished and signer != self.context.me:
            self.context.gone.add(signer)
            if signer in self.rounds.ledgers and self.context.state is not State.DONE:
                self.rounds.mark_missing(signer, "it takes no further part")
        for peer, since, reason in statement.missing:
            if peer not in self.named_missing and peer in self.context.running.shares:
                self.named_missing[peer] = (since, reason)
        self.state_absence()
        self.check_complete()

    def check_complete(self) -> None:
        """Complete once every participant's statement, or a signed absence, is in."""
        expected = set(self.context.running.shares)
        concerned = self.context.me in expected
        unheard = expected - set(self.statements) - set(self.named_missing)
        if self.complete or (concerned and not self.stated) or unheard:
            return
        self.complete = True
        if not concerned:
            self.context.state = State.DONE
        for digest in list(self.rounds.deliveries.outgoing):
            del self.rounds.deliveries.outgoing[digest]
            self.context.emit(Release(digest))
        self.context.tell("complete", missing=sorted(expected - set(self.statements)))
