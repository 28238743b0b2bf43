"""Back after a restart: ask the neighbours where the run is and what they heard, then go on.

Every peer tells each neighbour its standing when their link comes up: its position, and the newest core it has of
the other, as the other signed it. A peer whose disk is older than what left it (a restored backup) learns so before it
signs anything, and skips the rounds it may have signed for: two cores for one round would be equivocation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from p2pfl.errors import RemoteError, SignatureRefused
from p2pfl.gossip.closing import ClosingPart
from p2pfl.gossip.closing_statement import open_closing
from p2pfl.gossip.context import Context
from p2pfl.gossip.deliveries import Deliveries
from p2pfl.gossip.direct import Standing, open_standing
from p2pfl.gossip.directives import Directives
from p2pfl.gossip.effects import Begin, Restore, SendStatement, ShareClosings
from p2pfl.gossip.messages import Position, open_core
from p2pfl.gossip.rounds import Rounds
from p2pfl.gossip.table import State
from p2pfl.types import Digest, PeerId

SHARE_AFTER = 5.0  # seconds after the own end; doubled each time
SHARED = 5  # times
PATIENCE = 10.0  # seconds from the first link for all neighbours to tell their standing
ALONE = 60.0  # seconds after a restart without any link, until this peer goes on alone


@dataclass(slots=True)
class Returning:
    """What neighbours say of us, and the way back into the rounds."""

    context: Context
    deliveries: Deliveries
    rounds: Rounds
    closing: ClosingPart
    directives: Directives
    stage: str | None = None  # of the stored state; None: this machine was never restarted, or is back
    told: set[PeerId] = field(default_factory=set)  # neighbours that told their standing over the present link
    told_to: set[PeerId] = field(default_factory=set)  # members that were told ours over the present link
    counting: bool = False  # the neighbours' time to tell has begun
    given: dict[PeerId, tuple[Digest, int]] = field(default_factory=dict)  # what was given, and how often
    compared: dict[PeerId, tuple[int, int]] = field(default_factory=dict)  # for which version told, and how often
    shared: int = 0  # how often the own standing was told after the end
    behind: Position | None = None  # the last position that neighbours have signed by us and our disk has not

    def begin(self, digest: Digest | None) -> None:
        """Have the worker prepared as it was (None: at the run's start), and wait for the neighbours' words."""
        start = self.context.running
        self.context.emit(Begin(start) if digest is None else Restore(start, digest))
        self.context.set_timer("standing", ALONE)
        self.go_on_when_told()

    def wait_for_words(self) -> None:
        """The run begins by what is on this disk alone, after a restart: an older disk, for all that is known here.

        The neighbours may have what this key has signed since. Nothing is signed before they had the time to tell,
        whoever else is linked. Those whose link came up before the run began there have not told: they are asked.
        """
        context = self.context
        self.stage, context.asked = "begun", False
        context.state = State.CATCHING_UP
        self.counting = bool(context.linked)
        context.set_timer("standing", PATIENCE if self.counting else ALONE)
        for peer in sorted(context.linked.intersection(self.rounds.edges.ledgers)):
            self.tell(peer)

    def linked(self) -> None:
        """A link is up after a restart: from now on the neighbours have their time to tell."""
        waits = self.stage is not None or not self.context.asked
        if waits and not self.counting:
            self.counting = True
            self.context.set_timer("standing", PATIENCE)

    def patience_over(self) -> None:
        """Nobody more is waited for."""
        self.context.asked = True
        self.go_on_when_told(late=True)

    def tell(self, peer: PeerId) -> None:
        """A link to a member came up: where we are, and the newest words of its own that we have."""
        context = self.context
        if context.roster.member(peer) is not None:
            self.told_to.add(peer)
            newest = self.deliveries.newest.get(peer, (0, b""))[1]
            own_word = self.closing.envelopes.get(peer, b"")
            standing = Standing(
                context.running.run, peer, context.position, newest, own_word, self.closing.known_digest,
                self.directives.envelope,
            )  # fmt: skip
            context.emit(SendStatement(peer, "standing", standing.encode()))

    def compare_directives(self) -> None:
        """Some neighbours' messages show other arguments than ours: one of us lacks the proposer's newest word.

        Each is told some times per word of ours. Whoever hears a standing with an older word than its own answers it.
        """
        unlike, self.context.unlike = self.context.unlike, set()
        version = self.directives.version
        for peer in sorted(unlike & self.context.linked):
            known, times = self.compared.get(peer, (version, 0))
            times = times if known == version else 0
            if times < SHARED:
                self.compared[peer] = (version, times + 1)
                self.tell(peer)

    def hear(self, peer: PeerId, standing: Standing) -> None:
        """Where a neighbour is, and what it has of ours. Raises RemoteError."""
        context = self.context
        if standing.recipient != context.me:
            raise SignatureRefused("standing for another peer", peer=peer)
        self._check_own(peer, standing.newest)
        self._check_closed(peer, standing.closing)
        if standing.directive != self.directives.envelope:
            context.unlike.add(peer)  # it lacks the proposer's newest word
        context.asked = True
        self._share_closings(peer, standing.closings)
        if peer not in self.rounds.edges.ledgers:
            return
        if peer not in self.told_to:
            self.tell(peer)  # the link came up before the run began here; it was restarted, and waits for our word
        self._learn(peer, standing)
        self.told.add(peer)
        self.go_on_when_told()

    def _share_closings(self, peer: PeerId, known_there: Digest) -> None:
        """It knows other closing statements than we do: give it ours, some times, since they may be lost again."""
        ours = self.closing.known_digest
        digest, times = self.given.get(peer, (ours, 0))
        times = times if digest == ours else 0
        if known_there != ours and self.closing.statements and times < SHARED:
            self.given[peer] = (ours, times + 1)
            self.context.emit(ShareClosings(peer))

    def _learn(self, peer: PeerId, standing: Standing) -> None:
        deliveries = self.deliveries
        deliveries.reached[peer] = max(deliveries.reached.get(peer, (0, 0)), standing.position)
        deliveries.believe(peer, standing.position[0])

    def share(self) -> None:
        """After the end, some times: whoever lacks a closing statement that was lost on its way gets it."""
        for peer in sorted(self.context.linked):
            self.tell(peer)
        self.shared += 1
        if self.shared < SHARED:
            self.context.set_timer("share", SHARE_AFTER * 2**self.shared)

    def _check_own(self, peer: PeerId, newest: bytes) -> None:
        context = self.context
        if not newest:
            return
        envelope, core = open_core(newest, context.verify)
        if envelope.signer != context.me or core.run != context.running.run:
            raise SignatureRefused("a core in a standing that this peer did not sign", peer=peer)
        if core.sequence < self.rounds.sequence:
            return
        if context.away_for_good is not None or context.state in (State.CLOSING, State.DONE):
            return  # nothing that could contradict it is signed any more
        if self.stage is None and not context.outside_rounds():
            # the same key signs elsewhere: whatever we sign from now on could contradict it
            context.give_up(
                "another process signs with this peer's key: a neighbour has a message of it; stop the other one"
            )
            return
        self.rounds.sequence = core.sequence + 1
        self.behind = max(self.behind or (0, 0), core.position)

    def _check_closed(self, peer: PeerId, data: bytes) -> None:
        """An own closing statement that this disk does not know ends the run here: another one would contradict it."""
        if data:
            envelope, statement = open_closing(data, self.context.verify)
            if envelope.signer != self.context.me or statement.run != self.context.running.run:
                raise SignatureRefused("a closing statement in a standing that this peer did not sign", peer=peer)
            if not self.closing.stated:
                self.closing.hear_closing(self.context.me, statement, data)

    def signed_before(self, standings: Mapping[PeerId, bytes]) -> bool:
        """The run begins on this disk, but perhaps not for this key: then the rounds it has signed for are skipped."""
        context, self.stage = self.context, "begun"
        for peer, data in sorted(standings.items()):
            try:
                _, standing = open_standing(data, context.verify)
                self._check_own(peer, standing.newest)
                self._check_closed(peer, standing.closing)
                if peer in self.rounds.edges.ledgers:
                    self._learn(peer, standing)
            except RemoteError as error:
                context.refuse(peer, str(error))
        self.stage = None
        if context.state is State.PROPOSING and self.behind is not None:
            self._skip()
        return context.state is not State.PROPOSING

    def hear_early(self, peer: PeerId, data: bytes) -> None:
        """A standing told before this peer took part: what it has signed on another disk is not signed again."""
        try:
            _, standing = open_standing(data, self.context.verify)
            self._check_own(peer, standing.newest)
            self._check_closed(peer, standing.closing)
        except RemoteError as error:
            self.context.refuse(peer, str(error))

    def join(self) -> None:
        """The first round, or the one that the others are in already."""
        horizon, total = self.rounds.horizon(), self.context.running_schedule.total
        if horizon > 0:
            self.rounds.catch_up(0, min(horizon + 1, total), reason="the run has begun without this peer")
        else:
            self.rounds.enter(0)

    def go_on_when_told(self, *, late: bool = False) -> None:
        """Once every neighbour of the run has told its standing, or they had the time to."""
        if self.stage is None or self.context.state is not State.CATCHING_UP:
            return
        if not late and not self.told >= set(self.rounds.edges.ledgers):
            return
        stage, self.stage = self.stage, None
        context = self.context
        self.rounds.attendance.was_away = True
        context.cancel_timer("standing")
        context.tell("resumed", round=context.position[0], stage=stage)
        if self.behind is not None and self.behind >= context.position:
            self._skip()
        elif stage == "sent":
            self.rounds.begin_collecting()
        elif stage == "joining":
            context.wait_to_join()
        elif stage == "mixed":
            self.rounds.go_on_after(*context.position)
        elif stage == "paused" and context.pause_wanted:
            context.state = State.PAUSED
        else:
            self.rounds.proceed()

    def _skip(self) -> None:
        """This disk is a backup from before: the rounds until the neighbours' last word of us are not done again."""
        assert self.behind is not None
        context = self.context
        total = context.running_schedule.total
        context.tell("backup", round=context.position[0], signed_until=self.behind[0])
        # what was signed last may have reached nobody: no round that the others have begun is signed for either
        target = min(max(self.behind[0], self.rounds.horizon()) + 1, total)
        self.rounds.catch_up(context.position[0], target, reason="this disk is older than what neighbours have")
