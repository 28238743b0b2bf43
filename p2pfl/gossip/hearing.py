"""What others send in a run: announcements, offers and statements are used, kept for later, ignored or refused.

Nothing here raises for a remote message. What comes before the start record is valid here, or before the proposer's
word that admits its signer, waits.
"""

from __future__ import annotations

from collections.abc import Callable

from p2pfl.crypto import Envelope, open_envelope
from p2pfl.errors import MalformedMessage, NotAMember, RemoteError, SignatureRefused
from p2pfl.gossip import events as ev
from p2pfl.gossip.adopting import Adopting
from p2pfl.gossip.beat_rate import BeatRate
from p2pfl.gossip.closing import ClosingPart
from p2pfl.gossip.closing_statement import open_closing
from p2pfl.gossip.context import Context
from p2pfl.gossip.deliveries import Deliveries
from p2pfl.gossip.direct import open_acknowledgement, open_away, open_settle, open_standing
from p2pfl.gossip.directives import Directives
from p2pfl.gossip.effects import StoreStatement
from p2pfl.gossip.flood import SAME_KIND, SAME_KIND_OF
from p2pfl.gossip.heartbeat import open_heartbeat
from p2pfl.gossip.holders import NOT_ASKED_FOR
from p2pfl.gossip.joining import Joining
from p2pfl.gossip.messages import FLOOD_LIMIT
from p2pfl.gossip.offers import open_wanted
from p2pfl.gossip.presence import Presence
from p2pfl.gossip.returning import Returning
from p2pfl.gossip.rounds import Rounds
from p2pfl.gossip.starting import Starting
from p2pfl.gossip.statements import open_approval, open_start, open_start_signature, run_of
from p2pfl.gossip.table import State
from p2pfl.types import Digest, PeerId

EARLY_LIMIT = 8  # announcements kept per neighbour before the start record is valid here: one round's channels
FLOODED = frozenset({"approval", "start", "start-signature", "closing", "heartbeat", "directive"})
STATEMENTS = (*sorted(FLOODED), "settle", "acknowledgement", "away", "standing", "wanted")


class Hearing:
    """The ears of one peer in one run. ``progress`` looks whether what was heard lets the run go on."""

    def __init__(
        self, context: Context, starting: Starting, deliveries: Deliveries, rounds: Rounds, closing: ClosingPart,
        directives: Directives, returning: Returning, presence: Presence, joining: Joining, adopting: Adopting, *,
        progress: Callable[[], None], enough_again: Callable[[], None],
    ) -> None:  # fmt: skip
        self.context, self.starting, self.deliveries, self.rounds = context, starting, deliveries, rounds
        self.closing, self.directives, self.returning, self.presence = closing, directives, returning, presence
        self.joining, self.adopting = joining, adopting
        self.early_standings: dict[PeerId, bytes] = {}
        """Standings that came before the start record was valid here."""
        self._progress, self._enough_again = progress, enough_again
        self._beat_rate = BeatRate(len(context.roster.members))
        self._early: dict[PeerId, list[bytes]] = {}
        self._early_closings: dict[PeerId, bytes] = {}  # by member, so not many
        self._kept: dict[tuple[PeerId, str], set[Digest]] = {}

    def announcement(self, event: ev.AnnouncementReceived) -> None:
        context = self.context
        if context.start is None or self.joining.outside:
            early = self._early.setdefault(event.peer, [])
            if context.roster.member(event.peer) is not None:
                early.append(event.data)
                del early[:-EARLY_LIMIT]  # one that joins late needs the newest
            return
        if context.away_for_good:
            context.counters["while absent"] += 1
            return
        try:
            core = self.deliveries.accept(event.peer, event.data)
        except RemoteError as error:
            context.refuse(event.peer, str(error))
            return
        if core is not None:
            self.presence.noticed(event.peer)
            self.rounds.heard(core, event.peer)
            self.rounds.noticed(event.peer, core.position)
        self._progress()

    def offer(self, event: ev.OfferReceived) -> None:
        if not self.adopting.waiting:
            self.context.counters[NOT_ASKED_FOR] += 1
            return
        try:
            self.adopting.offered(event.peer, event.data)
        except RemoteError as error:
            self.context.refuse(event.peer, str(error))
            self.adopting.look()

    def statement(self, event: ev.StatementReceived) -> None:
        if self._beat_rate.exceeded(event.peer, event.data, event.now):
            self.context.counters["heartbeats too often"] += 1
            return
        blamed = event.peer  # for what never should have been passed on; else the signer, whoever brought it
        try:
            envelope = open_envelope(event.data, kinds=STATEMENTS, limit=FLOOD_LIMIT, verify=self.context.verify)
            self._check_statement(envelope, event.peer)
            blamed = envelope.signer
            used = self._hear(envelope, event.data)
        except RemoteError as error:
            self.context.refuse(blamed, str(error))
            return
        if used and envelope.kind in FLOODED and self._worth_keeping(envelope):
            self.context.emit(StoreStatement(self.context.proposal.run, event.data))
        self._progress()

    def _worth_keeping(self, envelope: Envelope) -> bool:
        """Each statement once, whatever its encoding, and two of a kind at most: one member must not fill the disk."""
        kept = self._kept.setdefault((envelope.signer, envelope.kind), set())
        if envelope.digest in kept or len(kept) >= SAME_KIND_OF.get(envelope.kind, SAME_KIND):
            return False
        kept.add(envelope.digest)
        return True

    def _check_statement(self, envelope: Envelope, sender: PeerId) -> None:
        if self.context.roster.member(envelope.signer) is None:
            raise NotAMember(f"statement by {envelope.signer}, a key that the charter does not name")
        if envelope.kind not in FLOODED and envelope.signer != sender:
            raise SignatureRefused(f"{envelope.kind} signed by {envelope.signer}, not by the peer that sent it")
        if run_of(envelope) != self.context.proposal.run:
            raise MalformedMessage("statement about another run")

    def _hear(self, envelope: Envelope, data: bytes) -> bool:
        """Take a member's statement about this run; whether it may be of use to others."""
        kind, signer = envelope.kind, envelope.signer
        if kind == "approval":
            _, approval = open_approval(data, _verified)
            if self.context.start is not None:
                return self.joining.hear_approval(envelope, approval, data)
            if self.context.state is not State.PROPOSING:
                return False
            self.starting.hear_approval(envelope, approval, data)
        elif kind == "start":
            self.starting.hear_start(*open_start(data, _verified))
        elif kind == "start-signature":
            self.starting.hear_signature(signer, open_start_signature(data, _verified)[1])
        elif self.context.start is None:
            # of a run that is under way or over elsewhere; the start record is on its way, or being committed here
            if kind == "closing":
                self._early_closings[signer] = data
            elif kind == "standing":
                self.early_standings[signer] = data
            elif kind == "directive":
                self.directives.hear_early(data)
            return kind in ("closing", "directive")
        elif kind == "directive":
            return self._heed(data)
        elif kind == "closing" and signer not in self.context.running.shares:
            self._early_closings[signer] = data  # the proposer may have admitted it, and the word is on its way
            self.context.unlike.add(signer)
        elif kind == "closing":
            self.closing.hear_closing(signer, open_closing(data, _verified)[1], data)
            self._enough_again()
        elif kind == "heartbeat":
            beat = open_heartbeat(data, _verified)[1]
            self.presence.hear(signer, beat, data)
            self.rounds.attendance.alive(signer, beat.position[0], beat.taking_part)
            self._enough_again()
            return False  # the next one says all that this one does
        elif kind == "settle":
            _, settle = open_settle(data, _verified)
            if not self.context.away_for_good:
                self.closing.hear_settle(signer, settle)
        elif kind == "standing":
            standing = open_standing(data, _verified)[1]
            if self.joining.outside:
                self.joining.standings[signer] = data
            if standing.directive:
                self._hear_shared(signer, standing.directive)
            self.returning.hear(signer, standing)
            self.closing.state_absence()
        elif kind == "wanted":
            self.deliveries.holding.answer(signer, open_wanted(data, _verified)[1])
        elif kind == "away":
            self.rounds.attendance.hear_away(signer, open_away(data, _verified)[1])
        else:
            self.deliveries.acknowledged(signer, open_acknowledgement(data, _verified)[1].cores)
        return True

    def early_announcements(self) -> None:
        early, self._early = self._early, {}
        for peer, announcements in early.items():
            for data in announcements:
                self.announcement(ev.AnnouncementReceived(self.context.now, peer, data))

    def early_statements(self) -> None:
        early, self._early_closings = self._early_closings, {}
        for data in (*early.values(), *filter(None, [self.directives.early])):
            self.statement(ev.StatementReceived(self.context.now, self.context.me, data))

    def early_words(self) -> None:
        """Standings that came before the run began here, heard like those that come now."""
        for peer, data in sorted(self.early_standings.items()):
            self.statement(ev.StatementReceived(self.context.now, peer, data))

    def _hear_shared(self, sender: PeerId, data: bytes) -> None:
        """A directive that a neighbour passes on with its standing; the proposer is to blame for what it says."""
        try:
            self.directives.open(data)
        except RemoteError as error:
            self.context.refuse(sender, str(error))
            return
        try:
            news = self._heed(data)
        except RemoteError as error:
            self.context.refuse(self.context.proposal.proposer, str(error))
            return
        if news:
            self.context.emit(StoreStatement(self.context.proposal.run, data))

    def _heed(self, data: bytes) -> bool:
        """Take a directive in; a run that it paused, and pauses no longer, goes on. Whether it is news."""
        context = self.context
        if not self.directives.hear(data):
            return False
        came = list(self.directives.came)
        self.joining.follow()
        if context.me in came:
            self.early_announcements()
        for closing in [self._early_closings.pop(peer) for peer in came if peer in self._early_closings]:
            self.statement(ev.StatementReceived(context.now, context.me, closing))
        assert context.directive is not None
        stopped = context.few is not None and context.directive.stop_at is not None
        waits = context.state is State.PAUSED and (context.held or stopped) and not context.pause_wanted
        if waits and not context.directive.holds_back(context.position[0]):
            context.cancel_timer("few")
            self.rounds.proceed()
        return True


def _verified(peer_id: str, message: bytes, signature: bytes) -> None:
    """The signature over these very bytes was checked when the envelope was opened."""
