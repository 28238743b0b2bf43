"""The end of a run: the last rounds settle, corrections are mixed in, the closing statement is signed.

The completion record is the mergeable union of the participants' statements, open until every participant's
statement or a reason for its absence is in.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from p2pfl.crypto import sha256
from p2pfl.errors import Equivocation, LimitExceeded, SignatureRefused
from p2pfl.gossip.closing_statement import Closing, heard_facts
from p2pfl.gossip.context import Context
from p2pfl.gossip.contributions import completion_record, summary
from p2pfl.gossip.direct import Settle
from p2pfl.gossip.effects import Flood, Mix, Release, SendStatement
from p2pfl.gossip.messages import EdgeList
from p2pfl.gossip.rounds import Rounds
from p2pfl.gossip.table import State
from p2pfl.types import Digest, PeerId

COMPLETION_PATIENCE = 24 * 3600.0  # seconds for a site that fell silent at the very end to come back and close
HOPE = 30.0  # seconds; a hospital's peer is back from a restart within some ten
HOPED_FOR = 2  # rounds before the end: who was lost earlier is not waited for again
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
    hoping: bool = True  # that neighbours lost at the very end come back
    statements: dict[PeerId, Closing] = field(default_factory=dict)
    named_missing: dict[PeerId, tuple[int, str]] = field(default_factory=dict)
    envelopes: dict[PeerId, bytes] = field(default_factory=dict)  # of the statements, as they were signed
    statement: Closing | None = None
    waiting: list[tuple[PeerId, EdgeList, bytes]] = field(default_factory=list)  # settle messages not yet durable
    durable: dict[PeerId, EdgeList] = field(default_factory=dict)  # what each neighbour may be told without a commit
    questions: dict[PeerId, bool] = field(default_factory=dict)  # to be sent after the commit under way

    @property
    def finished_here(self) -> bool:
        """Whether this site closed the run with a model of its own."""
        own = self.statement or self.statements.get(self.context.me)  # the second: after a restart
        return own is not None and own.finished

    def record(self) -> dict[PeerId, dict[str, Any]]:
        """Who contributed when, as far as the statements known here say; it grows as they come in."""
        context = self.context
        return completion_record(self.statements, context.running.shares, self.training_rounds, context.joined)

    @property
    def training_rounds(self) -> int:
        """As planned, or up to a directed stop; where that came late, to the round that half of the sites reached."""
        planned, directive = self.context.running.rounds, self.context.directive
        if directive is None or directive.stop_at is None:
            return planned
        reached = dict.fromkeys(self.context.running.shares, 0)
        for statement in self.statements.values():
            for peer, ranges in statement.contributed:
                reached[peer] = max([reached.get(peer, 0), *(last + 1 for _, last in ranges)])
        half = sorted(reached.values())[len(reached) // 2]
        return min(planned, max(directive.stop_at, half))

    def outcome(self) -> str | None:
        """How the run ended, in one sentence; None before the own end. Never plain "finished" if somebody missed."""
        if not self.stated:
            return None
        names = {member.peer_id: member.name for member in self.context.roster.members}
        rounds, planned = self.training_rounds, self.context.running.rounds
        stopped = "" if rounds == planned else f"stopped by the proposer after {rounds} of {planned} rounds; "
        agreement = self.agreement()
        apart = ""
        if agreement["within"] is False:
            apart = (
                f"; sites differ by {agreement['distance']:.3g}, more than the tolerance of {agreement['tolerance']:g}"
            )
        return stopped + summary(self.record(), names, rounds) + apart

    def agreement(self) -> dict[str, Any]:
        """How far the closing rounds brought the sites together, as far as the statements known here say.

        ``distance``: the largest root mean square distance of a site to those it mixed with last (None: no statement);
        ``contraction``: the part of the disagreement that the closing rounds leave at most, if nobody is absent.
        """
        distances = [statement.distance for statement in self.statements.values() if statement.finished]
        distance, tolerance = max(distances, default=None), self.context.tolerance
        within = None if distance is None or tolerance is None else distance <= tolerance
        contraction = self.context.running_schedule.closing_contraction(halved=self.context.halved)
        return {"distance": distance, "tolerance": tolerance, "within": within, "contraction": contraction}

    @property
    def known_digest(self) -> Digest:
        """Over all closing statements known here, in peer-id order: equal for peers that know the same ones."""
        return sha256(b"".join(self.statements[peer].encode() for peer in sorted(self.statements)))

    def begin(self) -> None:
        """All rounds are done: ask the neighbours about edges that are still open."""
        self.begun = True
        context = self.context
        context.tell("closing", unsettled=sum(len(ledger.unsettled) for ledger in self.rounds.edges.ledgers.values()))
        context.set_timer("closing", context.running.deadline)
        context.set_timer("hope", min(HOPE, context.running.deadline))
        self.ask(everybody=True)
        self.finish_when_settled()

    def ask(self, *, everybody: bool = False) -> None:
        """Send our lists, with a question where something is open; again after a while."""
        open_edges = self._open()
        for peer in self.rounds.edges.ledgers:
            if peer in self.context.linked and (everybody or peer in open_edges):
                self.send(peer, question=peer in open_edges)
        if open_edges:
            self.context.set_timer("ask", ASK_AGAIN)

    def send(self, peer: PeerId, *, question: bool) -> None:
        """Tell one neighbour our verdicts, standing at the end of the run: first durable, then told.

        The other end forgets what it hears that we know; after a restart nobody could tell us again.
        """
        edges = self.rounds.edges.ledgers[peer].list()
        if self.durable.get(peer) == edges and not self.waiting:
            self.context.emit(SendStatement(peer, "settle", self._settle(peer, edges, question)))
            return
        self.questions[peer] = question or self.questions.get(peer, False)
        if not self.waiting:
            self._commit_settling()

    def _settle(self, peer: PeerId, edges: EdgeList, question: bool) -> bytes:
        return Settle(self.context.running.run, peer, self.context.position, edges, question).encode()

    def _commit_settling(self) -> None:
        for peer, question in sorted(self.questions.items()):
            edges = self.rounds.edges.ledgers[peer].list()
            self.waiting.append((peer, edges, self._settle(peer, edges, question)))
        self.questions = {}
        self.context.commit("settling", stage="settled" if self.context.state is State.DONE else "settling")

    def settling_durable(self) -> None:
        """What we know is stored: say it."""
        waiting, self.waiting = self.waiting, []
        for peer, edges, payload in waiting:
            self.durable[peer] = edges
            self.context.emit(SendStatement(peer, "settle", payload))
        if self.questions:
            self._commit_settling()

    def _open(self) -> list[PeerId]:
        """Neighbours that can still tell us something we need."""
        return [
            peer
            for peer, ledger in self.rounds.edges.ledgers.items()
            if ledger.unsettled and peer not in self.context.gone and (self._there(peer) or self._hoped_for(peer))
        ]

    def _there(self, peer: PeerId) -> bool:
        return peer in self.context.linked and peer not in self.context.missing

    def _hoped_for(self, peer: PeerId) -> bool:
        """It was lost at the very end, and a restart takes less time than we give it: else its edge becomes bias."""
        since = self.context.missing.get(peer, (0, ""))[0]
        recent = since >= self.context.running_schedule.total - HOPED_FOR
        return self.hoping and recent and bool(self.rounds.edges.ledgers[peer].mixed_and_unknown)

    def hear_settle(self, peer: PeerId, settle: Settle) -> None:
        """A neighbour's verdicts on our common edge."""
        context, rounds = self.context, self.rounds
        if settle.recipient != context.me:
            raise SignatureRefused("settle message for another edge", peer=peer)
        if peer not in rounds.edges.ledgers:  # one of us has not heard yet who takes part
            context.unlike.add(peer)
            context.counters["settle message of a site that is no neighbour"] += 1
            return
        planned = context.running.rounds + context.running.closing_rounds
        if not context.running.closing_rounds < settle.position[0] <= planned or settle.position[1] != 0:
            raise LimitExceeded("settle message that was not written at an end of the run", peer=peer)
        if settle.position < (context.running_schedule.total, 0):
            # the proposer may have stopped the run, and the word of it is still on its way to us
            context.unlike.add(peer)
            context.counters["settle message before the end"] += 1
            return
        if peer in context.missing and context.state is State.CLOSING:
            del context.missing[peer]
        reached = rounds.deliveries.reached
        reached[peer] = max(reached.get(peer, (0, 0)), settle.position)
        settled = rounds.edges.ledgers[peer].hear(settle.edges, settle.position, rounds.deliveries.decided_until)
        if not self.finishing:
            rounds.edges.apply(peer, settled)
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
        for timer in ("closing", "ask", "hope"):
            context.cancel_timer(timer)
        for peer, ledger in rounds.edges.ledgers.items():
            for round_, step in ledger.mixed_and_unknown:
                rounds.edges.biased += 1
                context.log("edge_unsettled", {"peer": peer, "round": round_, "step": step})
        corrections = rounds.edges.take_corrections()
        total = context.running_schedule.total
        inertia = context.running_schedule.inertias(total)
        if not corrections and (not inertia or rounds.moved_until >= total):
            self.state_own()
            return
        rounds.mixing = ()
        context.emit(Mix(total, 0, (), corrections, True, True, inertia))

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
        absent = context.state is State.ABSENT and context.away_for_good is not None and context.asked
        if absent and not self.stated and context.me in context.running.shares:
            self.state_own()

    def state_own(self) -> None:
        """Write the closing statement down."""
        context, rounds = self.context, self.rounds
        finished = context.away_for_good is None
        missing = []
        for peer in rounds.edges.ledgers if finished else ():
            since = rounds.missing_since(peer)
            if since is not None:
                reason = context.missing.get(peer, (since, "its last messages did not arrive"))[1]
                missing.append((peer, since, reason[:200]))
        digest = rounds.digest if finished and rounds.digest is not None else NO_MODEL
        contributed = tuple((peer, tuple(done.ranges)) for peer, done in sorted(rounds.contributed.items()))
        samples = next((item.samples for item in context.running.participants if item.peer_id == context.me), 0)
        self.statement = Closing(
            context.running.run, finished, rounds.rounds_done, digest, tuple(missing), rounds.edges.biased,
            samples, rounds.distance, contributed,
        )  # fmt: skip
        self.stated = True
        context.log(
            "run_closed",
            {
                "finished": finished,
                "rounds_done": rounds.rounds_done,
                "digest": digest,
                "missing": [list(row) for row in missing],
                "unsettled": rounds.edges.biased,
                "samples": samples,
                "distance": rounds.distance,
                "contributed": [[peer, [list(item) for item in ranges]] for peer, ranges in contributed],
                "reason": context.away_for_good or "",
            },
        )
        context.commit("closed", stage="closed")

    def closed(self) -> None:
        """The own statement is durable: tell everybody."""
        assert self.statement is not None
        self.context.state = State.DONE
        self.context.emit(Flood("closing", self.statement.encode()))
        self.context.tell("closed", finished=self.statement.finished, distance=self.rounds.distance)
        self.context.set_timer("completion", COMPLETION_PATIENCE)

    def hear_closing(self, signer: PeerId, statement: Closing, data: bytes) -> None:
        """A participant's statement, ours included; ``data`` is its envelope."""
        if signer not in self.context.running.shares:
            raise SignatureRefused("closing statement by a site that takes no part in the run", peer=signer)
        if signer == self.context.me and not self.stated:
            self._closed_elsewhere(statement)
        news = signer not in self.statements and signer != self.context.me
        if self.statements.setdefault(signer, statement) != statement:
            raise Equivocation("two different closing statements for one run", peer=signer)
        if news:  # with its signature: whoever takes its own closing back later is contradicted by everybody
            self.context.log_now("closing_heard", heard_facts(signer, statement), ("closing", data))
        if signer not in self.envelopes and self.complete:
            self.context.tell("late statement", peer=signer)
        self.envelopes[signer] = data
        if statement.finished:
            self.context.closed.add(signer)
        if not statement.finished and signer != self.context.me:
            self.context.gone.add(signer)
            if signer in self.rounds.edges.ledgers and self.context.state is not State.DONE:
                self.rounds.attendance.mark_missing(signer, "it takes no further part")
        for peer, since, reason in statement.missing:
            if peer not in self.named_missing and peer in self.context.running.shares:
                self.named_missing[peer] = (since, reason)
        self.state_absence()
        self.check_complete()

    def _closed_elsewhere(self, statement: Closing) -> None:
        """An own statement that this disk does not know: it is a backup of before. A second one would contradict it."""
        context = self.context
        context.give_up("this site had closed the run, and its disk is older than that (a restored backup)")
        self.begun = self.finishing = self.stated = True
        self.statement = statement
        context.state = State.DONE
        context.commit("note:closed-elsewhere")
        context.tell("closed", finished=False, distance=statement.distance)

    def check_complete(self, *, late: bool = False) -> None:
        """Complete once every participant's statement, or a signed absence, is in, or the patience for it is over.

        The record stays open: a statement that comes later is still taken into it.
        """
        expected = set(self.context.running.shares)
        concerned = self.context.me in expected
        unheard = expected - set(self.statements) - set(self.named_missing)
        if self.complete or (concerned and not self.stated) or (unheard and not late):
            return
        self.context.cancel_timer("completion")
        self.complete = True
        if not concerned:
            self.context.state = State.DONE
        for digest in list(self.rounds.deliveries.outgoing):
            del self.rounds.deliveries.outgoing[digest]
            self.context.emit(Release(digest))
        self.context.tell("complete", missing=sorted(expected - set(self.statements)))
