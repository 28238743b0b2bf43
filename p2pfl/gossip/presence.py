"""Who is there: signed heartbeats, flooded over all links, and the estimate that is made of them.

Every participant floods a heartbeat each ``BEAT`` seconds: where it stands, whether it takes part, and the digests of
its newest cores. Whoever was not heard for ``SILENT`` seconds does not count as a contributor. The number of
contributors is this peer's own estimate, no agreement: two peers may count differently for some seconds.

Core digests let peers that are not neighbours compare: two digests for one place, each under its origin's signature,
are equivocation, whoever was shown which.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from p2pfl.errors import Equivocation
from p2pfl.gossip.context import Context
from p2pfl.gossip.deliveries import EVIDENCE_LOGGED, Deliveries
from p2pfl.gossip.effects import Flood
from p2pfl.gossip.heartbeat import MAX_CORES_TOLD, Heartbeat
from p2pfl.gossip.messages import MAX_STEPS, SETTLING_WINDOW, TO_ALL
from p2pfl.gossip.table import State
from p2pfl.types import Digest, PeerId

BEAT = 5.0  # seconds between two heartbeats, as the keep-alive of the links
SILENT = 16.0  # seconds: three heartbeats lost one after the other
NEW_LIFE = 1_000_000  # added to the count after a restart: what was counted since the state was stored is less
Place = tuple[int, int, str, str]


@dataclass(slots=True)
class Heard:
    """What was last heard of one participant."""

    at: float
    count: int = -1
    round: int = 0
    taking_part: bool = True


@dataclass(slots=True)
class Presence:
    """The own heartbeat and everybody else's."""

    context: Context
    deliveries: Deliveries
    count: int = 0
    since: float = 0.0  # when listening began
    own: dict[Place, Digest] = field(default_factory=dict)  # newest own cores, not yet told or told lately
    heard: dict[PeerId, Heard] = field(default_factory=dict)
    claims: dict[tuple[PeerId, Place], tuple[Digest, bytes]] = field(default_factory=dict)  # with the signed envelope

    def begin(self) -> None:
        """The run begins, or goes on after a restart: everybody has the time of a silence to be heard."""
        self.listen(self.context.now)
        self.context.set_timer("heartbeat", BEAT)

    def listen(self, since: float) -> None:
        """Hear the participants; also a member that is none does, to direct the run that it proposed."""
        self.since = since
        self.heard = {peer: Heard(since) for peer in self.context.running.shares if peer != self.context.me}

    def meet(self, peers: Iterable[PeerId]) -> None:
        """Others take part, too: they count as soon as they are heard."""
        for peer in peers:
            if peer != self.context.me:
                self.heard.setdefault(peer, Heard(self.since, taking_part=False))

    def beat(self) -> None:
        """Flood the own heartbeat, and again after a while."""
        context = self.context
        if context.me not in context.running.shares:
            return
        self.prune()
        there = context.away_for_good is None and context.state is not State.DONE
        taking_part = there and not context.pause_wanted and not context.outside_rounds()
        cores = tuple((*place, digest) for place, digest in self.own.items())
        beat = Heartbeat(context.running.run, self.count, context.position, taking_part, cores)
        self.count += 1
        context.emit(Flood("heartbeat", beat.encode()))
        context.set_timer("heartbeat", BEAT)

    def sent(self, place: Place, digest: Digest) -> None:
        """An own core is out: the next heartbeats tell its digest."""
        self.own[place] = digest
        while len(self.own) > MAX_CORES_TOLD:
            del self.own[next(iter(self.own))]

    def noticed(self, peer: PeerId) -> None:
        """Any verified message of a participant shows that it is there."""
        if peer in self.heard:
            self.heard[peer].at = self.context.now

    def hear(self, signer: PeerId, beat: Heartbeat, envelope: bytes) -> None:
        """Another participant's heartbeat; an older one than the newest counts for nothing. Raises Equivocation."""
        if signer not in self.context.running.shares:
            self.context.unlike.add(signer)  # the proposer may have admitted it, and the word is still on its way
            self.context.counters["heartbeat of a site that takes no part"] += 1
            return
        known = self.heard.get(signer)
        if known is None or beat.count <= known.count:
            return
        self.heard[signer] = Heard(self.context.now, beat.count, beat.position[0], beat.taking_part)
        for round_, step, channel, recipient, digest in beat.cores:
            self.compare(signer, (round_, step, channel, recipient), digest, envelope)

    def compare(self, signer: PeerId, place: Place, digest: Digest, envelope: bytes) -> None:
        """A core of a participant, named or shown in a signed envelope. Raises Equivocation if another one is known."""
        round_ = self.context.position[0]
        channels = {channel.name for channel in self.context.running.channels}
        # only what can be a place near here is remembered: a liar must not fill our memory
        near = round_ - SETTLING_WINDOW <= place[0] <= round_ + SETTLING_WINDOW
        if not near or place[1] > MAX_STEPS or place[2] not in channels or place[3] != TO_ALL:
            return
        held = self.deliveries.signed.get((signer, place))
        first = (held.digest, held.envelope) if held else self.claims.setdefault((signer, place), (digest, envelope))
        if first[0] != digest:
            self._keep_evidence(signer, place, first[1], envelope)

    def _keep_evidence(self, signer: PeerId, place: Place, first: bytes, second: bytes) -> None:
        context = self.context
        places = self.deliveries.evidence.setdefault(signer, set())
        if place not in places and len(places) < EVIDENCE_LOGGED:
            places.add(place)
            body = {"peer": signer, "round": place[0], "step": place[1], "channel": place[2]}
            context.log_now("equivocation", body, ("evidence", first), ("evidence", second))
            context.tell("equivocation", peer=signer, round=place[0])
        raise Equivocation(
            f"two different cores for round {place[0]}, step {place[1]}, channel {place[2]}, shown to different peers; "
            "both are kept as evidence",
            peer=signer,
        )

    def prune(self) -> None:
        """Forget claims older than the window."""
        floor = self.context.position[0] - SETTLING_WINDOW
        self.claims = {key: claim for key, claim in self.claims.items() if key[1][0] >= floor}

    # --- the estimate

    def run_round(self) -> int:
        """Where the run is: the upper median of the participants' rounds as heard, or the own one if that is further.

        No single member can pretend that the run is further than it is.
        """
        own = 0 if self.context.away_for_good is not None else self.context.position[0]
        rounds = sorted(item.round for item in self.heard.values() if item.count >= 0)
        return max(own, rounds[len(rounds) // 2] if rounds else 0)

    def alone(self) -> bool:
        """Whether no other participant was heard of lately: what is known of the run may be old."""
        heard = [item.at for item in self.heard.values() if item.at > self.since]
        return bool(self.heard) and (not heard or self.context.now - max(heard) > SILENT)

    def contributors(self) -> list[PeerId]:
        """Participants that take part and were heard lately, this peer included: an estimate."""
        context = self.context
        there = [
            peer
            for peer, item in self.heard.items()
            if peer in context.closed
            or (item.taking_part and peer not in context.gone and context.now - item.at <= SILENT)
        ]
        return sorted([*there, context.me])

    def at_work(self, peer: PeerId, round_: int) -> bool:
        """Whether this participant was heard lately, takes part, and has not come further than this round."""
        item = self.heard.get(peer)
        return item is not None and item.taking_part and item.round <= round_ and self.context.now - item.at <= SILENT

    @property
    def needed(self) -> int:
        """How many contributors the charter asks for; never more than the run began with."""
        return min(self.context.roster.minimum_contributors, len(self.context.signed.shares))

    def staying(self) -> int:
        """Participants that have not said that they take no further part, this peer included."""
        return len(self.context.running.shares) - len(self.context.gone & set(self.context.running.shares))

    def never_enough(self) -> bool:
        """Whether so many are gone for good that no wait brings back as many contributors as are needed."""
        return self.staying() < self.needed

    def too_few(self) -> str | None:
        """Why no further round may begin here now, in plain words; None if enough are there."""
        need, have, staying = self.needed, len(self.contributors()), self.staying()
        if (walking := self._walkers_missing(staying)) is not None:
            return walking
        if staying < need:
            return f"only {staying} of the {need} contributors that the charter asks for still take part in the run"
        if have >= need:
            return None
        return f"only {have} of the {need} contributors that the charter asks for are heard (estimate from heartbeats)"

    def _walkers_missing(self, staying: int) -> str | None:
        """Where one model walks all sites are needed: while one is away, rounds would go by in which nobody trains.

        Also one whose words of the last two rounds did not come, over a broken link or since it waits itself: the site
        that is furthest behind waits for nobody here, so that all come together again.
        """
        schedule, round_ = self.context.running_schedule, self.context.position[0]
        need = len(self.context.signed.shares)
        if not schedule.walks or round_ >= schedule.rounds:
            return None
        reached = self.deliveries.reached
        have = len([peer for peer in self.contributors() if reached.get(peer, (round_, 0))[0] >= round_ - 2])
        if have >= need:
            return None
        if staying < need:
            return (
                f"the model walks over {need} sites, and {need - staying} left the run; its proposer can stop it, and "
                "closing rounds then give the model to all who are there, unless it left with the site"
            )
        return f"the model walks over {need} sites, and only {have} of them are heard here (estimate from heartbeats)"

    # --- restarts

    def remember(self) -> dict[str, Any]:
        """For a restart, as plain values."""
        return {"count": self.count, "own": [[*place, digest] for place, digest in self.own.items()]}

    def recall(self, kept: Mapping[str, Any]) -> None:
        """What `remember` gave."""
        self.count = kept["count"] + NEW_LIFE
        rows: Iterable[list[Any]] = kept["own"]
        self.own = {(row[0], row[1], row[2], row[3]): Digest(row[4]) for row in rows}
