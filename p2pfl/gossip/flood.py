"""Flooding: every member forwards a verified statement once, so that members without a direct link hear each other."""

from __future__ import annotations

import math
from collections import Counter, OrderedDict, deque
from collections.abc import Collection
from dataclasses import dataclass, field

from p2pfl.crypto import Envelope, Verify, claimed, open_envelope, verify_signature
from p2pfl.errors import LimitExceeded, MalformedMessage, NotAMember
from p2pfl.gossip.messages import FLOOD_LIMIT, MAX_DIRECTIVES
from p2pfl.gossip.statements import run_of
from p2pfl.types import Digest, PeerId, Roster, RunId

SEEN_LIMIT = 8192  # statements remembered; a run of 50 sites floods about 4 per site
SAME_KIND = 2  # per signer, run and kind: the second one is the evidence of equivocation, and must travel
SAME_KIND_OF = {"directive": MAX_DIRECTIVES + 1}  # the proposer speaks more than once
KINDS = ("proposal", "approval", "start", "start-signature", "closing", "heartbeat", "directive")
BEATS = 16  # heartbeats of one member remembered: those of the last minute are still under way somewhere
OFTEN = 0.5  # seconds; heartbeats of one member that come faster are not passed on (they are due every 5)


def kind_kept(data: bytes) -> str:
    """The kind of a statement that was verified before it was kept; empty if it is none."""
    named = claimed(data, FLOOD_LIMIT)
    return named[1] if named is not None else ""


@dataclass(slots=True)
class Beats:
    """One member's newest heartbeats in one run, and when the last one came that was news."""

    newest: deque[Digest] = field(default_factory=lambda: deque(maxlen=BEATS))
    at: float = -math.inf


@dataclass(slots=True)
class Flood:
    """Remembers what was seen and says where a statement goes next."""

    roster: Roster
    verify: Verify = verify_signature
    seen: OrderedDict[Digest, None] = field(default_factory=OrderedDict)
    counts: Counter[tuple[RunId, PeerId, str]] = field(default_factory=Counter)
    beats: dict[tuple[RunId, PeerId], Beats] = field(default_factory=dict)

    def hear(self, run: RunId, data: bytes, now: float = 0.0) -> Envelope | None:
        """Verify a statement; None if it was seen before. Raises RemoteError for what must not travel further."""
        envelope = open_envelope(data, kinds=KINDS, limit=FLOOD_LIMIT, verify=self.verify)
        if self.roster.member(envelope.signer) is None:
            raise NotAMember(f"statement by {envelope.signer}, a key that the charter does not name")
        if run_of(envelope) != run:
            # else a member could make us forget, or count as too many, what another one said about its run
            raise MalformedMessage("statement in the frame of another run")
        if envelope.kind == "heartbeat":
            return envelope if self._is_news(run, envelope, now) else None
        if not self.remember(envelope.digest):
            return None
        place = (run, envelope.signer, envelope.kind)
        self.counts[place] += 1
        limit = SAME_KIND_OF.get(envelope.kind, SAME_KIND)
        if self.counts[place] > limit:
            raise LimitExceeded(f"more than {limit} different {envelope.kind} statements", peer=envelope.signer)
        return envelope

    def own(self, run: RunId, statement: Envelope, now: float) -> None:
        """An own statement goes out: it is no news when it comes back."""
        if statement.kind == "heartbeat":
            self._is_news(run, statement, now)
        else:
            self.remember(statement.digest)

    def _is_news(self, run: RunId, beat: Envelope, now: float) -> bool:
        """Heartbeats are remembered apart: so many would push the statements out of the memory."""
        known = self.beats.setdefault((run, beat.signer), Beats())
        if beat.digest in known.newest or now - known.at < OFTEN:
            return False
        known.newest.append(beat.digest)
        known.at = now
        return True

    def forget(self, run: RunId) -> None:
        """The run is over: its counts are no longer needed."""
        for place in [place for place in self.counts if place[0] == run]:
            del self.counts[place]
        for beat in [beat for beat in self.beats if beat[0] == run]:
            del self.beats[beat]

    def remember(self, digest: Digest) -> bool:
        """Note a statement as seen; False if it already was."""
        if digest in self.seen:
            self.seen.move_to_end(digest)
            return False
        self.seen[digest] = None
        while len(self.seen) > SEEN_LIMIT:
            self.seen.popitem(last=False)
        return True

    def targets(self, linked: Collection[PeerId], origin: PeerId | None) -> list[PeerId]:
        """All linked members but the one it came from, in a fixed order."""
        return sorted(peer for peer in linked if peer != origin and self.roster.member(peer) is not None)
