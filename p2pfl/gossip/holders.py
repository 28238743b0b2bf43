"""Neighbours' states from whoever holds them: who is asked, what they offer, and which source is taken.

A state is its origin's word, whoever hands it on: core and cover have the origin's signature, the content has the
core's root and digest. So a holder can lie only by offering an older state than it has, by offering nothing, or by
serving other bytes. The first two take nothing but what it could have withheld anyway, the third is found and named.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from p2pfl.errors import LimitExceeded, MalformedMessage, RemoteError, SignatureRefused
from p2pfl.gossip.anchors import check_anchor
from p2pfl.gossip.context import Context
from p2pfl.gossip.deliveries import Content, Deliveries, Incoming
from p2pfl.gossip.effects import SendStatement
from p2pfl.gossip.messages import SETTLING_WINDOW, Cover, decode_announcement, open_core, open_cover
from p2pfl.gossip.offers import Offer, Wanted, decode_offer
from p2pfl.gossip.presence import Presence
from p2pfl.types import Digest, PeerId

TRIES = 3  # of one state from one source, whose link or disk fails
OFFERS_KEPT = 4  # newest ones of each origin
NOT_ASKED_FOR = "offer not asked for"


@dataclass(slots=True)
class Source:
    """A state and the peer to pull it from: its origin, or one that holds it."""

    held: Incoming
    holder: PeerId
    fetch: int = 0  # which one of this peer's fetches: a late answer to an older one is not taken for this one's

    @property
    def origin(self) -> PeerId:
        """Who signed it."""
        return self.held.origin

    @property
    def worker_key(self) -> Digest:
        """What the worker keeps it under: its core may wait there as an edge's message at the same time."""
        return Digest(f"state {self.held.digest} from {self.holder}, fetch {self.fetch}")

    @property
    def place(self) -> tuple[Digest, PeerId]:
        """State and source."""
        return (self.held.digest, self.holder)


@dataclass(slots=True)
class Holders:
    """What is at hand of each neighbour's state while states are waited for."""

    context: Context
    deliveries: Deliveries
    presence: Presence
    asked: dict[tuple[PeerId, PeerId], bool] = field(default_factory=dict)  # (origin, holder) -> has answered
    offers: dict[PeerId, list[Source]] = field(default_factory=dict)
    failed: Counter[tuple[Digest, PeerId]] = field(default_factory=Counter)

    def begin(self) -> None:
        """States are needed from now on."""
        self.asked, self.offers = {}, {}
        self.failed.clear()

    @property
    def floor(self) -> int:
        """Older states are themselves of a peer that was away."""
        return max(0, self.context.position[0] - SETTLING_WINDOW)

    # --- questions

    def possible(self, origin: PeerId) -> list[PeerId]:
        """Who may hold states of a neighbour for us: those that it mixes with, linked or not."""
        graph = self.context.running_schedule.graph
        return sorted(peer for peer in graph.neighbors(origin) if peer != self.context.me)

    def ask(self, origins: Iterable[PeerId], only: PeerId | None = None) -> None:
        """Ask everybody linked (or one of them) that may hold a state of these.

        Whoever has answered is asked once more only while nothing is at hand.
        """
        questions: dict[PeerId, list[PeerId]] = {}
        for origin in origins:
            found = self.best(origin) is not None
            for holder in self.possible(origin):
                answered = found and self.asked.get((origin, holder), False)
                if holder in self.context.linked and only in (None, holder) and not answered:
                    questions.setdefault(holder, []).append(origin)
                    self.asked[origin, holder] = False
        for holder, wanted in sorted(questions.items()):
            payload = Wanted(self.context.running.run, holder, self.floor, tuple(wanted)).encode()
            self.context.emit(SendStatement(holder, "wanted", payload))

    def back(self, holder: PeerId) -> None:
        """A link is up: what failed over the old one may be tried again, unless its bytes were wrong."""
        for place in [place for place, times in self.failed.items() if place[1] == holder and times <= TRIES]:
            del self.failed[place]

    def lost(self, holder: PeerId) -> None:
        """A link is gone: no answer comes from there any more."""
        self.asked = {pair: answered for pair, answered in self.asked.items() if pair[1] != holder}

    def awaited(self, origin: PeerId) -> bool:
        """Whether an answer for this origin may still come."""
        answers = [answered for (named, _), answered in self.asked.items() if named == origin]
        return not all(answers) if answers else bool(self.possible(origin))

    # --- answers

    def hear(self, holder: PeerId, data: bytes) -> bool:
        """An answer; whether it was waited for. Raises RemoteError for what the holder is to blame for."""
        offer = decode_offer(data)
        if offer.run != self.context.running.run:
            raise MalformedMessage("offer in the frame of another run", peer=holder)
        if self.asked.get((offer.origin, holder), True):
            self.context.counters[NOT_ASKED_FOR] += 1  # it may just be late
            return False
        self.asked[offer.origin, holder] = True
        if offer.announcement:
            held, cover = self._open(holder, offer)
            try:
                self._check(held)  # first: two cores of one place are evidence, whatever their covers say
                check_anchor(cover, held.origin, offer.run, self.context.roster.consortium, self.context.verify)
            except RemoteError as error:
                self.context.refuse(held.origin, str(error))  # its own signed words: no holder can make them up
                return True
            self._keep(Source(held, holder))
        return True

    def _open(self, holder: PeerId, offer: Offer) -> tuple[Incoming, Cover]:
        """What the holder must have checked before it passed it on."""
        announcement = decode_announcement(offer.announcement)
        envelope, core = open_core(announcement.core, self.context.verify)
        signed, cover = open_cover(announcement.cover, self.context.verify)
        if not envelope.signer == signed.signer == offer.origin or cover.core != envelope.digest:
            raise SignatureRefused("an offered state is not signed by its origin", peer=holder)
        if core.run != offer.run or core.channel != self.context.running.channels[0].name:
            raise LimitExceeded("an offered core is no state of this run", peer=holder)
        wrapped = cover.keys.get(self.context.me)
        if wrapped is None:
            raise SignatureRefused("an offered state is not for this peer", peer=holder)
        held = Incoming(offer.origin, envelope.digest, core, announcement.core, wrapped, announcement.inline)
        return held, cover

    def _check(self, held: Incoming) -> None:
        """What the origin has signed: in its place, of the right size, and the only one of this place."""
        self.deliveries.check_offered(held)
        self.presence.compare(held.origin, held.core.key, held.digest, held.envelope)

    def _keep(self, source: Source) -> None:
        if source.held.core.round < self.floor:
            return  # the run went on meanwhile; being late is no offence
        kept = [item for item in self.offers.get(source.origin, []) if item.place != source.place]
        kept = sorted([*kept, source], key=lambda item: (item.held.core.position, item.holder))
        self.offers[source.origin] = kept[-OFFERS_KEPT:]

    # --- sources

    def best(self, origin: PeerId) -> Source | None:
        """The newest state at hand, from where it failed the fewest times; the origin itself comes first."""
        own = self.deliveries.states.get(origin)
        sources = [*self.offers.get(origin, ()), *([Source(replace(own), origin)] if own is not None else ())]
        usable = [source for source in sources if self._usable(source)]
        usable.sort(key=lambda source: (self.failed[source.place], source.holder != origin, source.holder))
        return max(usable, key=lambda source: source.held.core.position, default=None)

    def _usable(self, source: Source) -> bool:
        reachable = source.holder in self.context.linked or bool(source.held.inline)
        return reachable and source.held.core.round >= self.floor and self.failed[source.place] < TRIES

    def gave_up(self, source: Source, *, for_good: bool) -> None:
        """A source failed: the world did, or (``for_good``) it served other bytes than were signed."""
        source.held.content = Content.REFUSED
        self.failed[source.place] += 2 * TRIES if for_good else 1
