"""Announcements in and out: checked, held in a bounded window, fetched, acknowledged.

Owns what came from the neighbours and is not mixed yet, what went out and is not acknowledged yet, and the memory
of which core each origin signed for which place (equivocation).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

from p2pfl.crypto import Envelope
from p2pfl.errors import Equivocation, LimitExceeded, MalformedMessage, SignatureRefused
from p2pfl.gossip.anchors import check_anchor
from p2pfl.gossip.context import Context
from p2pfl.gossip.direct import Acknowledgement
from p2pfl.gossip.effects import Fetch, Forget, Release, SendAnnouncement, SendStatement
from p2pfl.gossip.holding import Holding
from p2pfl.gossip.messages import (
    MAX_ARGUMENT_VERSION,
    MAX_STEPS,
    SETTLING_WINDOW,
    TO_ALL,
    Announcement,
    Core,
    Position,
    closing_channels,
    decode_announcement,
    open_core,
    open_cover,
    position_of,
)
from p2pfl.gossip.open_edges import OpenEdges
from p2pfl.gossip.statements import MAX_STALENESS
from p2pfl.gossip.table import State
from p2pfl.types import Digest, PeerId

LOOK_AHEAD = 1  # rounds for which content is fetched before its round has begun
OUTSIDE_WINDOW = "outside the window"
OTHER_ARGUMENTS = "made under other arguments"  # why a delta is ignored
SMALL_LEAD = 2  # rounds that one message of a single neighbour is believed to be ahead
EVIDENCE_LOGGED = 16  # places per origin whose two cores are kept; one is proof enough
OFFERS_REMEMBERED = 4  # cores of each origin that other holders showed
ACKNOWLEDGED_AT_ONCE = 256  # cores in one acknowledgement


class Content(Enum):
    """Where the content of an announced core stands."""

    HELD = "held"  # announced, not fetched yet
    FETCHING = "fetching"
    READY = "ready"
    REFUSED = "refused"
    LOST = "lost"  # announced before a restart, and not mixed; it comes again


@dataclass(slots=True)
class Incoming:
    """One announced core from a neighbour."""

    origin: PeerId
    digest: Digest
    core: Core
    envelope: bytes
    wrapped_key: bytes
    inline: bytes
    content: Content = Content.HELD
    cover: bytes = b""
    recipients: frozenset[PeerId] = frozenset()  # whom the cover names


@dataclass(slots=True)
class Outgoing:
    """One own core, committed, and who has not acknowledged it yet."""

    core: Core
    waiting: set[PeerId]
    watching: set[PeerId] = field(default_factory=set)  # who has no key to it, and has not said yet that it heard of it


@dataclass(slots=True)
class Deliveries:
    """The inbox and the outbox of one run."""

    context: Context
    incoming: dict[Digest, Incoming] = field(default_factory=dict)
    signed: dict[tuple[PeerId, tuple[int, int, str, str]], Incoming] = field(default_factory=dict)
    outgoing: dict[Digest, Outgoing] = field(default_factory=dict)
    reached: dict[PeerId, Position] = field(default_factory=dict)  # furthest position heard from each peer
    believed: dict[PeerId, int] = field(default_factory=dict)  # round of each peer, as far as it alone is believed
    to_acknowledge: dict[PeerId, list[Digest]] = field(default_factory=dict)
    evidence: dict[PeerId, set[tuple[int, int, str, str]]] = field(default_factory=dict)  # places written down
    newest: dict[PeerId, tuple[int, bytes]] = field(default_factory=dict)  # each origin's core of the highest sequence
    decided_until: Position = (0, 0)  # positions below are mixed, or are being mixed
    open_edges: OpenEdges = field(default_factory=OpenEdges)
    states: dict[PeerId, Incoming] = field(default_factory=dict)  # each neighbour's newest signed parameters
    offered: dict[PeerId, dict[tuple[int, int, str, str], Incoming]] = field(default_factory=dict)  # by other holders
    holding: Holding = field(init=False)

    def __post_init__(self) -> None:
        self.holding = Holding(self.context)

    # --- in

    def accept(self, peer: PeerId, data: bytes) -> Core | None:
        """Check an announcement and hold it; None if it is of no use. Raises RemoteError if it is refused.

        The verified core is returned also when its delta comes too late: its edge list still counts.
        """
        announcement = decode_announcement(data)
        if announcement.run != self.context.running.run:
            raise MalformedMessage("announcement in the frame of another run", peer=peer)
        envelope, core = open_core(announcement.core, self.context.verify)
        origin = envelope.signer
        if origin != peer:
            raise SignatureRefused(f"announcement signed by {origin}, not by the peer that sent it", peer=peer)
        self._check_place(origin, core)
        edge = self._mixed_with(origin, core) and not self._lists_alone(core, announcement)
        if not edge and not self._watched(origin, core):
            return self._beside(Incoming(origin, envelope.digest, core, announcement.core, b"", b""), announcement)
        known = self.signed.get((origin, core.key))
        for first in filter(None, (known, self.offered.get(origin, {}).get(core.key))):
            if first.digest != envelope.digest:
                self._keep_evidence(origin, first, announcement.core)
        if known is not None and known.content is not Content.LOST:
            if edge:
                self.context.ignore(origin, core.round, "duplicate")
            self._renew(known, announcement)
            return core
        self._compare_arguments(origin, core)
        if core.round >= self.context.running_schedule.total:
            # it does not know yet that the proposer stopped the run
            self.reached[origin] = max(self.reached.get(origin, (0, 0)), core.position)
            self.context.ignore(origin, core.round, OTHER_ARGUMENTS)
            return core
        oldest = self.context.position[0] - 2 * SETTLING_WINDOW  # one more window: a neighbour may be that far behind
        if core.round < oldest:
            self.context.counters[OUTSIDE_WINDOW] += 1  # nobody can use it any more; being late is no offence
            return None
        self._check_content(core)
        held = Incoming(origin, envelope.digest, core, announcement.core, b"", b"")
        self._cover(held, envelope, announcement, sealed=edge)
        newest = self.newest.get(origin)
        if newest is None or newest[0] < core.sequence:
            self.newest[origin] = (core.sequence, announcement.core)
        if edge:
            self._keep_state(held)
        # only what would be accepted in its own round may say how far its origin is
        window = self.context.position[0] + SETTLING_WINDOW
        self.reached[origin] = max(self.reached.get(origin, (0, 0)), core.position)
        self.believe(origin, core.round)
        if self.context.asynchronous(self.context.position[0]):
            self._drop_overtaken(origin, self.reached[origin][0])
        elif core.round > window:
            # its delta is of no use here, but it is there: the rounds it is ahead of us are caught up only with it
            if self.context.missing.pop(origin, None) is not None:
                self.context.tell("back", peer=origin, round=core.round)
            self.context.counters[OUTSIDE_WINDOW] += 1
            return None
        self.signed[(origin, core.key)] = held
        if not edge or self._late(origin, core.position):
            if edge:
                self.context.ignore(origin, core.round, "late")
            held.content = Content.REFUSED
            held.inline = b""
            self._owe(held)
            return core
        self.incoming[held.digest] = held
        self.fetch_due()
        return core

    def _like_ours(self, core: Core) -> bool:
        """Whether a core was made under the arguments of its round, as this peer knows them."""
        return core.arguments == self.context.arguments_at(core.round)

    def _compare_arguments(self, origin: PeerId, core: Core) -> None:
        """Where they differ, one of the two lacks the proposer's newest word."""
        if not self._like_ours(core) and core.round >= self.context.position[0]:
            self.context.unlike.add(origin)

    def _late(self, origin: PeerId, position: Position) -> bool:
        if self.context.asynchronous(position[0]) and position[0] in self.open_edges.rounds:
            return not self.open_edges.is_open(origin, position)
        return position < self.context.position or position < self.decided_until

    def believe(self, origin: PeerId, round_: int) -> None:
        """One neighbour by itself is believed to be some rounds ahead at most (`p2pfl.gossip.rounds.Rounds.horizon`).

        Further in asynchronous runs, where a fast site may have one fast neighbour among slow ones.
        """
        lead = SETTLING_WINDOW if self.context.staleness else SMALL_LEAD
        self.believed[origin] = max(self.believed.get(origin, 0), min(round_, self.context.position[0] + lead))

    def begins(self, origin: PeerId, round_: int) -> None:
        """A neighbour is about to begin this round: nothing more of it comes for the ones before, and no core yet."""
        if round_ > 0:
            self.reached[origin] = max(self.reached.get(origin, (0, 0)), (round_ - 1, MAX_STEPS))
            self.believe(origin, round_ - 1)

    def _drop_overtaken(self, origin: PeerId, newest: int) -> None:
        """A site far ahead in an asynchronous run: of its messages for rounds to come only the newest can be mixed."""
        first, window = self.context.position[0], self.context.position[0] + SETTLING_WINDOW
        for held in [*self.incoming.values()]:
            round_ = held.core.round
            if held.origin == origin and held.content is Content.HELD and first < round_ < newest - MAX_STALENESS:
                del self.incoming[held.digest]
                held.content, held.inline = Content.REFUSED, b""
                self._owe(held)
                if round_ > window:
                    del self.signed[(origin, held.core.key)]

    def _keep_state(self, held: Incoming) -> None:
        """Also of a round that is over, or far ahead: uncompressed, each model core is a whole state."""
        known = self.states.get(held.origin)
        newer = known is None or known.core.sequence < held.core.sequence
        if newer and held.core.channel == self.context.running.channels[0].name:
            self.states[held.origin] = replace(held)

    def _check_place(self, origin: PeerId, core: Core) -> None:
        start = self.context.running
        if core.run != start.run:
            raise SignatureRefused("core of another run", peer=origin)
        if core.recipient != TO_ALL:
            # also when it names us: two cores for one place, one of them hidden from the others, would be equivocation
            raise LimitExceeded("announcement for one peer only, where this run's go to all neighbours", peer=origin)
        if core.round >= start.rounds + start.closing_rounds:
            raise LimitExceeded(f"round {core.round} lies after the end of the run", peer=origin)
        if not 0 <= core.arguments <= MAX_ARGUMENT_VERSION or core.codec != "raw":
            raise LimitExceeded("core names a codec or arguments that this run cannot have", peer=origin)

    def _mixed_with(self, origin: PeerId, core: Core) -> bool:
        """Whether we mix with its origin at this place. Raises LimitExceeded where we never do.

        It is no offence where one of the two lacks the proposer's newest word on who takes part, nor where a newcomer
        is told what to go on from, or one end of a former edge what is still open.
        """
        context, partner = self.context, origin in self.context.partners_ever()
        past = core.round >= context.running_schedule.total
        if partner and (past or origin in dict(context.neighbours(core.position))):
            return True
        if not self._like_ours(core) or (context.neighbours_change and origin in context.running.shares):
            return False
        if not partner:
            raise LimitExceeded("announcement from a peer that is no neighbour in this run", peer=origin)
        raise LimitExceeded(
            f"no mixing with this peer is scheduled at round {core.round}, step {core.step}", peer=origin
        )

    def _watched(self, origin: PeerId, core: Core) -> bool:
        """Whether its origin mixes with us in other rounds, and tells us that it has come as far as this one."""
        schedule = self.context.schedule_at(core.round)
        if not schedule.changes or not self._like_ours(core) or self.context.me not in schedule.graph:
            return False
        return core.round < self.context.running_schedule.total and origin in schedule.graph[self.context.me]

    def _lists_alone(self, core: Core, announcement: Announcement) -> bool:
        """Whether its origin, by a word that we have not heard yet, is no neighbour of ours in this round any more."""
        if self._like_ours(core):
            return False
        return self.context.me not in open_cover(announcement.cover, self.context.verify)[1].keys

    def _beside(self, held: Incoming, announcement: Announcement) -> Core | None:
        """A core that is not for an edge here: its lists count, and a newcomer goes on from what it is given."""
        context, core, origin = self.context, held.core, held.origin
        context.counters["beside the schedule"] += 1
        self._compare_arguments(origin, core)
        if origin not in context.partners_ever():
            return None
        self.reached[origin] = max(self.reached.get(origin, (0, 0)), core.position)
        cover_envelope, cover = open_cover(announcement.cover, context.verify)
        own = cover_envelope.signer == origin and cover.core == held.digest
        if context.me in context.joined and own and context.me in cover.keys:
            check_anchor(cover, origin, core.run, context.roster.consortium, context.verify)
            known = self.signed.get((origin, core.key))
            if known is not None and known.digest != held.digest:
                self._keep_evidence(origin, known, announcement.core)
            self._check_content(core)
            held.wrapped_key, held.inline = cover.keys[context.me], announcement.inline
            self._keep_state(held)
            self._owe(held)
        return core

    def _check_content(self, core: Core) -> None:
        spec = next((item for item in self.context.running.channels if item.name == core.channel), None)
        if spec is None:
            raise LimitExceeded(f"the plan has no channel named {core.channel[:32]!r}")
        if core.channel not in self.channels(core.position):
            raise LimitExceeded(f"channel {core.channel!r} is not in use in the closing round {core.round}")
        if core.manifest.size != spec.size:
            raise LimitExceeded(
                f"delta of {core.manifest.size} bytes where the plan's channel {spec.name} has {spec.size}"
            )
        if core.base != spec.base:
            raise SignatureRefused("delta against another base than the run's; the sender has another start")

    def _cover(self, held: Incoming, envelope: Envelope, announcement: Announcement, *, sealed: bool = True) -> None:
        """Take the key out of a cover that belongs to its core; not ``sealed`` is what one is only told of."""
        cover_envelope, cover = open_cover(announcement.cover, self.context.verify)
        if cover_envelope.signer != envelope.signer or cover.core != envelope.digest:
            raise SignatureRefused("cover that does not belong to its core", peer=held.origin)
        check_anchor(cover, held.origin, held.core.run, self.context.roster.consortium, self.context.verify)
        wrapped = cover.keys.get(self.context.me)
        if not sealed:
            return
        if wrapped is None:
            raise SignatureRefused("cover holds no key for this peer", peer=held.origin)
        held.wrapped_key, held.inline = wrapped, announcement.inline
        held.cover, held.recipients = announcement.cover, frozenset(cover.keys)

    def _renew(self, known: Incoming, announcement: Announcement) -> None:
        """A resend of a core we know: its content may be needed after a broken fetch, or its receipt was lost."""
        if known.digest not in self.incoming:
            self._owe(known)
            return
        if known.content is Content.HELD:
            envelope, _ = open_core(announcement.core, self.context.verify)
            self._cover(known, envelope, announcement)
            self.fetch_due()

    def _owe(self, held: Incoming) -> None:
        owed = self.to_acknowledge.setdefault(held.origin, [])
        if held.digest not in owed:
            owed.append(held.digest)
            del owed[:-ACKNOWLEDGED_AT_ONCE]

    def check_offered(self, held: Incoming) -> None:
        """A neighbour's state from another holder, its signatures checked. Raises RemoteError: its origin's fault."""
        origin, core = held.origin, held.core
        self._check_place(origin, core)
        self._check_content(core)
        offered = self.offered.setdefault(origin, {})
        known = (self.signed.get((origin, core.key)), self.states.get(origin), offered.get(core.key))
        for first in known:
            if first is not None and first.core.key == core.key and first.digest != held.digest:
                self._keep_evidence(origin, first, held.envelope)
        offered[core.key] = replace(held, inline=b"")
        if len(offered) > OFFERS_REMEMBERED:
            del offered[next(iter(offered))]

    def _keep_evidence(self, origin: PeerId, first: Incoming, second: bytes) -> None:
        """Both envelopes go into the log, once per place: the same lie told again proves nothing new."""
        core = first.core
        self.context.counters["equivocation"] += 1
        places = self.evidence.setdefault(origin, set())
        if core.key not in places and len(places) < EVIDENCE_LOGGED:
            places.add(core.key)
            self.context.log_now(
                "equivocation",
                {"peer": origin, "round": core.round, "step": core.step, "channel": core.channel},
                ("evidence", first.envelope),
                ("evidence", second),
            )
            self.context.tell("equivocation", peer=origin, round=core.round)
        raise Equivocation(
            f"two different cores for round {core.round}, step {core.step}, channel {core.channel}; "
            "both are kept as evidence",
            peer=origin,
        )

    def remember(self) -> dict[str, Any]:
        """For a restart, as plain values. What is not mixed yet is not kept: nobody was told that it arrived."""
        signed = [[held.envelope, held.digest in self.incoming] for held in self.signed.values()]
        return {
            "reached": {peer: list(position) for peer, position in self.reached.items()},
            "believed": dict(self.believed),
            "owed": {peer: list(cores) for peer, cores in self.to_acknowledge.items()},
            "evidence": {peer: [list(place) for place in places] for peer, places in self.evidence.items()},
            "newest": {peer: list(row) for peer, row in self.newest.items()},
            "decided_until": list(self.decided_until),
            "open": self.open_edges.remember(),
            "signed": signed,
        }

    def recall(self, kept: Mapping[str, Any]) -> None:
        """What `remember` gave."""
        self.reached = {PeerId(peer): position_of(position) for peer, position in kept["reached"].items()}
        self.believed = {PeerId(peer): round_ for peer, round_ in kept["believed"].items()}
        self.to_acknowledge = {PeerId(peer): list(cores) for peer, cores in kept["owed"].items()}
        for peer, places in kept["evidence"].items():
            self.evidence[PeerId(peer)] = {(row[0], row[1], row[2], row[3]) for row in places}
        self.newest = {PeerId(peer): (row[0], row[1]) for peer, row in kept["newest"].items()}
        self.decided_until = position_of(kept["decided_until"])
        self.open_edges.recall(kept.get("open", ()))
        for data, open_ in kept["signed"]:
            envelope, core = open_core(data, self.context.verify)
            content = Content.LOST if open_ else Content.REFUSED
            held = Incoming(envelope.signer, envelope.digest, core, data, b"", b"", content)
            self.signed[(envelope.signer, core.key)] = held

    def fetch_due(self) -> None:
        """Fetch what is held for the round in work and the next one."""
        horizon = self.context.position[0] + LOOK_AHEAD
        due = [
            held
            for held in self.incoming.values()
            if held.content is Content.HELD and held.core.round <= horizon and self._like_ours(held.core)
        ]
        for held in self._newest(due) if self.context.asynchronous(self.context.position[0]) else due:
            held.content = Content.FETCHING
            keep = self.holding.begin(held)
            self.context.emit(
                Fetch(
                    held.origin, held.digest, held.core, held.wrapped_key, held.inline, keep=keep, signed=held.envelope
                )
            )  # fmt: skip
            held.inline = b""

    def _newest(self, due: list[Incoming]) -> list[Incoming]:
        """Of each origin the newest position, and only if nothing of it is on its way.

        Nobody waits in asynchronous runs: on a slow link all would be fetched beside each other, each of them too late.
        """
        busy = {held.origin for held in self.incoming.values() if held.content is Content.FETCHING}
        newest: dict[PeerId, Position] = {}
        for held in due:
            newest[held.origin] = max(newest.get(held.origin, (0, 0)), held.core.position)
        return [held for held in due if held.origin not in busy and held.core.position == newest[held.origin]]

    def received(self, digest: Digest, problem: str | None, again: bool) -> bool:
        """The shell's answer to a Fetch; False if the core is no longer wanted."""
        held = self.incoming.get(digest)
        if held is None or held.content is not Content.FETCHING:
            self.context.emit(Forget(cores=(digest,)))
            return False
        if problem is None:
            held.content = Content.READY
        elif again:
            held.content = Content.HELD
        else:
            held.content = Content.REFUSED
            self.context.refuse(held.origin, problem)
        if not again and self.context.asynchronous(self.context.position[0]):
            self.fetch_due()  # the next of this origin had to wait
        return True

    def ready(self, origin: PeerId, position: Position) -> dict[str, Digest] | None:
        """The core of each channel from ``origin`` at ``position``, once all of them are there."""
        found = {
            held.core.channel: held.digest
            for held in self.incoming.values()
            if held.origin == origin
            and held.core.position == position
            and held.content is Content.READY
            and held.core.arguments == self.context.arguments_at(position[0])
        }
        return found if set(found) == set(self.channels(position)) else None

    def refused(self, origin: PeerId, position: Position) -> bool:
        """Whether something from ``origin`` for ``position`` was refused, so that waiting has no use."""
        version = self.context.arguments_at(position[0])
        return any(
            held.origin == origin
            and held.core.position == position
            and (held.content is Content.REFUSED or held.core.arguments != version)
            for held in self.incoming.values()
        )

    def unlike(self, position: Position) -> list[PeerId]:
        """Neighbours whose message for ``position`` is here, made under other arguments: it is not mixed."""
        version = self.context.arguments_at(position[0])
        rows = self.incoming.values()
        return [held.origin for held in rows if held.core.position == position and held.core.arguments != version]

    def may_still_come(self, origin: PeerId, position: Position) -> bool:
        """Whether a message for ``position`` is on its way, or the origin has not gone past it without us."""
        if self.reached.get(origin, (0, 0)) <= position:
            return True
        return any(
            held.origin == origin and held.core.position == position and held.content is Content.FETCHING
            for held in self.incoming.values()
        )

    def channels(self, position: Position) -> tuple[str, ...]:
        """The channels in use at a position: all in training rounds, while closing the model's and its weight's."""
        names = tuple(channel.name for channel in self.context.running.channels)
        if position[0] >= self.context.running_schedule.total:
            return closing_channels(names)
        return names if self.context.running_schedule.round(position[0]).training else closing_channels(names)

    def has_reached(self, origin: PeerId, round_: int) -> bool:
        """Whether a core of this round or of a later one was heard."""
        return origin in self.reached and self.reached[origin][0] >= round_

    def finish(self, position: Position) -> list[Incoming]:
        """The position is mixed: take its cores out of the window, and older ones, unless their edge is still open.

        Returns the used ones.
        """
        gone = [
            held
            for held in self.incoming.values()
            if held.core.position <= position and not self.open_edges.is_open(held.origin, held.core.position)
        ]
        for held in gone:
            del self.incoming[held.digest]
            self._owe(held)
        floor = position[0] - SETTLING_WINDOW
        self.signed = {key: held for key, held in self.signed.items() if key[1][0] >= floor}
        if gone:
            self.context.emit(Forget(cores=tuple(held.digest for held in gone)))
        return [held for held in gone if held.content is Content.READY and held.core.position == position]

    def acknowledge(self) -> None:
        """Tell each origin which of its cores are committed here."""
        waiting, self.to_acknowledge = self.to_acknowledge, {}
        for peer, cores in sorted(waiting.items()):
            if peer in self.context.linked:
                payload = Acknowledgement(self.context.running.run, tuple(cores)).encode()
                self.context.emit(SendStatement(peer, "acknowledgement", payload))

    # --- out

    def sent(
        self,
        cores: tuple[Core, ...],
        digests: tuple[Digest, ...],
        recipients: tuple[PeerId, ...],
        watchers: tuple[PeerId, ...] = (),
    ) -> None:
        """Own cores are committed: announce them to every linked recipient, and the first one to those who watch."""
        for digest in [key for key, item in self.outgoing.items() if item.watching]:
            self.outgoing[digest].watching.clear()  # word of this round says all that older words do
            if not self.outgoing[digest].waiting:
                self._release(digest)
        for core, digest in zip(cores, digests, strict=True):
            watching = watchers if digest == digests[0] else ()
            if not recipients and not watching:
                self.context.emit(Release(digest))
                continue
            self.outgoing[digest] = Outgoing(core, set(recipients), set(watching))
            for peer in (*recipients, *watching):
                if peer in self.context.linked:
                    self.context.emit(SendAnnouncement(peer, digest))

    def resend(self, peer: PeerId) -> None:
        """A link came up: send again what this peer has not acknowledged, oldest first."""
        for digest, outgoing in self.outgoing.items():
            if peer in outgoing.waiting or peer in outgoing.watching:
                self.context.emit(SendAnnouncement(peer, digest))

    def acknowledged(self, peer: PeerId, cores: tuple[Digest, ...]) -> None:
        """A receiver has committed these cores; unknown ones are ignored (they may be long released)."""
        fresh = []
        for digest in cores:
            outgoing = self.outgoing.get(digest)
            if outgoing is None or peer not in outgoing.waiting | outgoing.watching:
                continue
            if peer in outgoing.waiting:
                fresh.append(digest)
            outgoing.waiting.discard(peer)
            outgoing.watching.discard(peer)
            if not outgoing.waiting and not outgoing.watching:
                self._release(digest)
        if fresh:
            # out of the rounds no other commit follows that could take the entry along
            out_of_rounds = self.context.state in (State.ABSENT, State.DONE)
            write = self.context.log_now if out_of_rounds else self.context.log
            write("acknowledged", {"peer": peer, "cores": fresh})

    def expire(self, before_round: int) -> None:
        """Give up cores that are older than the window: nobody can use them any more."""
        for digest in [key for key, item in self.outgoing.items() if item.core.round < before_round]:
            self._release(digest)

    def _release(self, digest: Digest) -> None:
        del self.outgoing[digest]
        self.context.emit(Release(digest))
