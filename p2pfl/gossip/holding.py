"""What this peer holds for others: the newest state of each neighbour, sealed as it came.

Of each origin and mixing step the newest core of the model channel whose content was opened here is held, for the other
recipients that the origin's cover names and for nobody else: each could always have had it from the origin itself. It
is offered to a peer that asks, never of our own accord, and the log has the offer before anybody hears it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from p2pfl.errors import RemoteError, SignatureRefused
from p2pfl.gossip.context import Context
from p2pfl.gossip.effects import Hold, LetGo, SendOffer
from p2pfl.gossip.messages import Announcement, Position, decode_announcement, open_core, open_cover
from p2pfl.gossip.offers import Wanted
from p2pfl.types import Digest, PeerId

if TYPE_CHECKING:
    from p2pfl.gossip.deliveries import Incoming

ANSWER_AGAIN = 1.0  # seconds until the same question of the same peer is answered again
Place = tuple[PeerId, int]  # origin and mixing step: in hierarchical runs the recipients differ by step


@dataclass(frozen=True, slots=True)
class Held:
    """One state that is held."""

    digest: Digest
    sequence: int
    position: Position
    recipients: frozenset[PeerId]


@dataclass(slots=True)
class Holding:
    """The states of one run that are held for others."""

    context: Context
    held: dict[Place, Held] = field(default_factory=dict)
    coming: dict[Digest, tuple[Incoming, frozenset[PeerId]]] = field(default_factory=dict)  # being fetched to be held
    offered: dict[Digest, float] = field(default_factory=dict)  # when each was offered last
    leaving: dict[Place, tuple[Digest, float]] = field(default_factory=dict)  # replaced while somebody may pull it
    answered: dict[tuple[PeerId, PeerId], float] = field(default_factory=dict)  # (asker, origin) -> when
    logged: set[tuple[PeerId, Digest]] = field(default_factory=set)  # offers that the log has
    waiting: dict[str, tuple[SendOffer, ...]] = field(default_factory=dict)  # by commit: not in the log yet
    commits: int = 0

    # --- what is held

    def begin(self, held: Incoming) -> bool:
        """A content is about to be fetched: whether its sealed bytes are kept as well."""
        if held.core.channel != self.context.running.channels[0].name:
            return False
        recipients = self._others(held.origin, held.recipients)
        if not recipients or not self._news(held.origin, held.core.step, held.core.sequence):
            return False
        self.coming[held.digest] = (held, recipients)
        return True

    def received(self, digest: Digest, problem: str | None) -> None:
        """The shell has the content, or has thrown away what it had of it."""
        held, recipients = self.coming.pop(digest, (None, frozenset[PeerId]()))
        if held is None or problem is not None:
            return
        if not self._news(held.origin, held.core.step, held.core.sequence):
            self.context.emit(LetGo(digest))
            return
        core = held.core
        announcement = Announcement(core.run, held.envelope, held.cover, b"").encode()
        self.context.emit(Hold(digest, announcement, recipients))
        self._replace((held.origin, core.step), Held(digest, core.sequence, core.position, recipients))

    def recall(self, announcements: Sequence[bytes]) -> None:
        """What the disk still has after a restart, its contents checked by the shell: the newest of each place."""
        for data in announcements:
            try:
                announcement = decode_announcement(data)
                envelope, core = open_core(announcement.core, self.context.verify)
                signed, cover = open_cover(announcement.cover, self.context.verify)
                if signed.signer != envelope.signer or cover.core != envelope.digest:
                    raise SignatureRefused("a cover on this disk does not belong to its core")
            except RemoteError:
                continue  # its content stays unknown to the shell, and goes with the run's folder
            recipients = self._others(envelope.signer, frozenset(cover.keys))
            place = (envelope.signer, core.step)
            if core.run != self.context.running.run or not recipients or not self._news(*place, core.sequence):
                self.context.emit(LetGo(envelope.digest))
                continue
            self.context.emit(Hold(envelope.digest, data, recipients))
            self._replace(place, Held(envelope.digest, core.sequence, core.position, recipients))

    def _others(self, origin: PeerId, named: frozenset[PeerId]) -> frozenset[PeerId]:
        return (named & frozenset(self.context.running.shares)) - {self.context.me, origin}

    def _news(self, origin: PeerId, step: int, sequence: int) -> bool:
        known = self.held.get((origin, step))
        return known is None or known.sequence < sequence

    def _replace(self, place: Place, held: Held) -> None:
        """Only the newest stays; the one before it as well, once, while somebody who was offered it may pull it."""
        old, self.held[place] = self.held.get(place), held
        leaving = self.leaving.get(place)
        if leaving is not None and leaving[1] <= self.context.now:
            del self.leaving[place]
            self._let_go(leaving[0])
        if old is None:
            return
        until = self.offered.get(old.digest, 0.0) + self.context.running.deadline
        if old.digest in self.offered and until > self.context.now and place not in self.leaving:
            self.leaving[place] = (old.digest, until)
        else:
            self._let_go(old.digest)

    def _let_go(self, digest: Digest) -> None:
        self.offered.pop(digest, None)
        self.logged = {row for row in self.logged if row[1] != digest}
        self.context.emit(LetGo(digest))

    # --- what is offered

    def answer(self, asker: PeerId, wanted: Wanted) -> None:
        """Each origin that is asked for gets one answer: what is held of it for this peer, or nothing."""
        context = self.context
        if wanted.recipient != context.me:
            raise SignatureRefused("a question for states to another peer", peer=asker)
        if asker not in context.running.shares or asker not in context.linked:
            return
        offers, fresh = [], []
        for origin in dict.fromkeys(wanted.origins):
            last = self.answered.get((asker, origin))
            if origin not in context.running.shares or (last is not None and context.now < last + ANSWER_AGAIN):
                continue
            self.answered[asker, origin] = context.now
            held = self._best(asker, origin, wanted.floor)
            offers.append(SendOffer(asker, origin, held.digest if held else None))
            if held is not None:
                self.offered[held.digest] = context.now
                if (asker, held.digest) not in self.logged:
                    self.logged.add((asker, held.digest))
                    fresh.append((origin, held))
        self._send(tuple(offers), asker, fresh)

    def _best(self, asker: PeerId, origin: PeerId, floor: int) -> Held | None:
        found = [held for place, held in self.held.items() if place[0] == origin and asker in held.recipients]
        return max((held for held in found if held.position[0] >= floor), key=lambda held: held.position, default=None)

    def _send(self, offers: tuple[SendOffer, ...], asker: PeerId, fresh: list[tuple[PeerId, Held]]) -> None:
        """First the log, then the offer: what may leave the building is on the record before it can."""
        if not fresh:
            for offer in offers:
                self.context.emit(offer)
            return
        for origin, held in fresh:
            round_, step = held.position
            body = {"peer": asker, "origin": origin, "round": round_, "step": step, "core": held.digest}
            self.context.log("state_offered", body)
        self.commits += 1
        token = f"offered:{self.commits}"
        self.waiting[token] = offers
        self.context.commit(token)

    def committed(self, token: str) -> None:
        """The log has the offers of this commit."""
        for offer in self.waiting.pop(token, ()):
            self.context.emit(offer)
