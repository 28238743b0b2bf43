"""The rounds: train, announce, collect until the deadline, mix, and on to the next.

Owns the position in the run. A round of (training and) one mixing is

    x_i <- local steps;   x_i <- x_i + sum_j w_ij (x_j - x_i)   over the neighbours j whose message is here,

and `p2pfl.gossip.edges` sees to it that both ends of an edge count the same rounds.
Who is waited for is `p2pfl.gossip.attendance`'s to know.
"""

from __future__ import annotations

import math
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from p2pfl.gossip.attendance import Attendance
from p2pfl.gossip.context import Context
from p2pfl.gossip.contributions import RoundSet
from p2pfl.gossip.deliveries import OTHER_ARGUMENTS, Deliveries
from p2pfl.gossip.edges import Edges
from p2pfl.gossip.effects import Edge, Encode, Mix, SendAnnouncement, Train
from p2pfl.gossip.events import Encoded, Mixed, TrainingFailed
from p2pfl.gossip.messages import MAX_STEPS, SETTLING_WINDOW, TO_ALL, Core, Position, position_of
from p2pfl.gossip.on_arrival import OnArrival
from p2pfl.gossip.pace import Pace
from p2pfl.gossip.table import State
from p2pfl.types import Digest, PeerId

PAUSE_LIMIT = 7 * 24 * 3600.0  # seconds; after a week too few will not become enough by themselves
EARLY = 1e-3  # seconds that a timer may fire before its time: clocks round
DIVERGED = sys.float_info.max  # a distance in a signed statement is a finite number, also of a plan that diverged
MAX_FAILURES = 3  # local trainings that fail one after the other before the peer leaves the run


@dataclass(slots=True)
class Rounds:
    """The round in work and everything that must be remembered from round to round."""

    context: Context
    deliveries: Deliveries
    sequence: int  # the next core's durable sequence number
    mixing: tuple[Edge, ...] = ()
    rounds_done: int = 0
    failures: int = 0
    contributed: defaultdict[PeerId, RoundSet] = field(default_factory=lambda: defaultdict(RoundSet))
    last_mixed: dict[PeerId, int] = field(default_factory=dict)  # or heard in time, where it was only watched
    moved_until: int = 0  # the round after the last one that was mixed here
    finished: int = -1  # the last round that was done to its end here, with whoever was there
    pace: Pace = field(default_factory=Pace)
    due: dict[PeerId, float] = field(default_factory=dict)  # until when each awaited neighbour is waited for
    loss: float | None = None
    digest: Digest | None = None
    distance: float = 0.0
    cores: tuple[Core, ...] = ()  # own cores of the position in work, while they are being committed
    recipients: tuple[PeerId, ...] = ()
    watchers: tuple[PeerId, ...] = ()  # who hears of these cores, and gets no key to what they hold
    beside: tuple[PeerId, ...] = ()  # who gets the lists of these cores alone
    attendance: Attendance = field(init=False)
    edges: Edges = field(init=False)

    def __post_init__(self) -> None:
        self.attendance = Attendance(self.context, self.deliveries, self._set_deadline)
        self.edges = Edges(self.context, self.deliveries)

    @property
    def blank(self) -> bool:
        """Whether the own parameters are still the run's first ones: never trained, nor caught up."""
        return self.loss is None and self.digest is None

    # --- one round, in order

    def enter(self, round_: int) -> None:
        """Begin a round, or close when there is none left."""
        context = self.context
        context.enter(round_)
        if context.staleness and not context.asynchronous(round_):
            OnArrival(self).decide_rest()
        if round_ >= context.running_schedule.total:
            # past the end: the proposer's stop was heard here some rounds after it held
            context.position = (round_, 0)
            context.state = State.CLOSING
            return
        context.position = (round_, context.own_steps(round_)[0])
        self.attendance.tell_back()
        self.pace.start(context.position, context.now)
        plan = context.schedule_at(round_).round(round_)
        context.log(
            "round_started", {"round": round_, "active": context.me in plan.active, "arguments": context.arguments}
        )
        context.tell("round", round=round_, of=context.running_schedule.total)
        self.edges.expire(round_)
        self.edges.have_back(round_)
        context.prune_ignored()
        self.deliveries.fetch_due()
        if plan.training and context.me in plan.active:
            context.state = State.TRAINING
            changed = context.directive.arguments(context.arguments) if context.directive is not None else {}
            context.emit(Train(round_, changed))
        else:
            self._encode()

    def trained(self, loss: float) -> None:
        """Local steps are done."""
        self.loss = loss
        self.failures = 0
        if not (self.context.staleness and OnArrival(self).overtaken()):
            self._encode()

    def failed(self, event: TrainingFailed) -> None:
        """Local steps failed: absent in this round, for good after several in a row."""
        context = self.context
        self.failures += 1
        context.state = State.ABSENT
        context.log_now("absent", {"round": event.round, "reason": event.reason[:400]})
        context.tell("training failed", round=event.round, reason=event.reason)
        self.attendance.tell_away("local training failed")  # not why: a plan's own words may hold data
        if self.failures >= MAX_FAILURES:
            context.away_for_good = f"local training failed {self.failures} times: {event.reason[:300]}"
            return  # the machine states the absence
        context.set_timer("absent", context.running.deadline)

    def _encode(self) -> None:
        context = self.context
        round_, step = context.position
        context.state = State.ANNOUNCING
        schedule = context.running_schedule
        context.emit(Encode(round_, step, not schedule.round(round_).training, schedule.inertias(round_)))

    def encoded(self, event: Encoded) -> None:
        """The messages are sealed: commit them with what they say about unsettled edges."""
        context = self.context
        mixing = tuple(peer for peer, _ in context.neighbours(context.position))
        recipients = (*mixing, *context.newcomers_after(event.round))
        watchers = context.watched(event.round) if event.step == context.own_steps(event.round)[0] else ()
        self.watchers = tuple(peer for peer in watchers if peer not in recipients and peer not in context.gone)
        if not recipients and not self.watchers:
            context.commit(f"sent:{event.round}:{event.step}", stage="sent")
            return
        if context.asynchronous(event.round):
            OnArrival(self).announce(event.round, mixing)
        told = (*recipients, *self.watchers)
        self.beside = self.edges.left_open(told)
        lists = self.edges.lists((*told, *self.beside))
        bases = {channel.name: channel.base for channel in context.running.channels}
        cores = []
        for parcel in event.parcels:
            cores.append(
                Core(
                    context.running.run, self.sequence, event.round, event.step, parcel.channel, TO_ALL,
                    bases[parcel.channel], parcel.result, "raw", parcel.manifest, context.arguments, lists,
                )
            )  # fmt: skip
            self.sequence += 1
        context.commit(f"sent:{event.round}:{event.step}", tuple(cores), recipients, stage="sent")
        self.cores = tuple(cores)
        self.recipients = recipients

    def committed(self, digests: tuple[Digest, ...]) -> None:
        """The own messages are on the record: let them out, and collect."""
        if digests:
            self.deliveries.sent(self.cores, digests, self.recipients, self.watchers)
            for peer in self.beside:
                self.context.emit(SendAnnouncement(peer, digests[0]))
        self.begin_collecting()

    def begin_collecting(self) -> None:
        """The own messages are out, perhaps since before a restart: wait for the neighbours', each for its time."""
        context = self.context
        if context.asynchronous(context.position[0]):
            OnArrival(self).mix()
            return
        context.state = State.COLLECTING
        self.attendance.tell_back()
        self.due = self._dues()
        if self.due:
            self._set_deadline()
            context.set_timer("nudge", (min(self.due.values()) - context.now) / 3)
        self.collect()

    def _set_deadline(self) -> None:
        context = self.context
        self.due = self._dues() | self.due  # who is back meanwhile
        times = [self.due[peer] for peer in self.awaited()]
        if times:
            context.set_timer("deadline", min(times) - context.now)

    def _dues(self) -> dict[PeerId, float]:
        """Until when whoever is awaited is waited for, from now."""
        context = self.context
        now, upper, watched = context.now, context.running.deadline, context.watched(context.position[0])
        if context.running_schedule.walks:  # how long others' rounds took says nothing of the one that trains now
            return dict.fromkeys(self.awaited(), now + upper)
        return {
            peer: self.pace.due(peer, context.position, now, upper, word=peer in watched) for peer in self.awaited()
        }

    def nudge(self) -> None:
        """Whoever keeps us waiting may be waiting for us: send again what it has not acknowledged."""
        for peer in self.awaited():
            if peer in self.context.linked:
                self.deliveries.resend(peer)

    def awaited(self) -> list[PeerId]:
        """Neighbours whose message for the position in work may still come, and who has not begun this round."""
        context, position = self.context, self.context.position
        return self._watched_for() + [
            peer
            for peer, _ in context.neighbours(position)
            if peer not in context.missing
            and peer not in context.gone
            and self.deliveries.ready(peer, position) is None
            and not self.deliveries.refused(peer, position)
            and self.deliveries.may_still_come(peer, position)
            and not self.edges.ledgers[peer].declined(position)
        ]

    def _watched_for(self) -> list[PeerId]:
        context, (round_, step) = self.context, self.context.position
        if step != context.own_steps(round_)[0]:
            return []
        here = [peer for peer in context.watched(round_) if peer not in context.missing and peer not in context.gone]
        return [peer for peer in here if not self.deliveries.has_reached(peer, round_)]

    def collect(self) -> None:
        """Mix as soon as nobody is awaited any more."""
        if self.context.state is State.COLLECTING and not self.awaited():
            self.context.cancel_timer("deadline")
            self.context.cancel_timer("nudge")
            self._mix()

    def deadline(self) -> None:
        """Whoever's time is over is missing from now on."""
        context = self.context
        began = self.pace.starts.get(context.position, context.now)
        watched = context.watched(context.position[0])
        for peer in self.awaited():
            if peer in self.due and self.due[peer] <= context.now + EARLY:
                if self._on_a_visit(peer) and context.now - began < PAUSE_LIMIT:
                    self.due[peer] = context.now + context.running.deadline
                    continue
                word = peer in watched
                late = self.attendance.late_word if word else self.attendance.late
                late(peer, f"no {'word' if word else 'delta'} {context.now - began:.3g} s after the round began")
        self._set_deadline()
        self.collect()

    def _on_a_visit(self, peer: PeerId) -> bool:
        """Whether the model is with this site, which says by its heartbeats that it is there and in this round.

        Others have nothing to do meanwhile, so a deadline that begins with the round would have to be longer than the
        longest visit.
        """
        context, round_ = self.context, self.context.position[0]
        plan = context.running_schedule.round(round_)
        walking = context.running_schedule.walks and plan.training and peer in plan.active
        return walking and context.at_work(peer, round_)

    def _mix(self) -> None:
        context, position = self.context, self.context.position
        context.state = State.MIXING
        edges, given = [], context.given(position)
        for peer, weight in context.neighbours(position):
            ready = self.deliveries.ready(peer, position)
            declined = self.edges.ledgers[peer].declined(position)
            there = not declined and not self.edges.would_be_lost(peer, position)
            mixed = ready is not None and there
            if mixed and ready is not None:
                edges.append(Edge(peer, weight, ready, position, given.get(peer)))
                self.took(peer, position)
            else:
                self.attendance.not_mixed(peer, position, declined=ready is not None)
            self.edges.decide(peer, position, mixed)
        round_, step = position
        for peer in context.watched(round_):
            if self.deliveries.has_reached(peer, round_):
                self.last_mixed[peer] = max(self.last_mixed.get(peer, -1), round_)
                self.attendance.word(peer, round_)
        self.mixing = tuple(edges)
        self.deliveries.decided_until = (round_, step + 1)
        for peer in self.deliveries.unlike(position):
            context.ignore(peer, round_, OTHER_ARGUMENTS)
        last = step == context.own_steps(round_)[-1]
        corrections = self.edges.take_corrections() if last else ()
        closing = not context.running_schedule.round(round_).training
        inertia = context.running_schedule.inertias(round_ + 1)
        context.emit(Mix(round_, step, self.mixing, corrections, last, closing, inertia))

    def took(self, peer: PeerId, position: Position) -> None:
        """A neighbour's message of this position goes into the mixing: it is there, and it contributed."""
        context = self.context
        self.last_mixed[peer] = max(self.last_mixed.get(peer, -1), position[0])
        if context.running_schedule.round(position[0]).training:
            self.contributed[peer].add(position[0])
        self.attendance.mixed(peer, position[0])

    def log_mixed(self, event: Mixed) -> None:
        """What went into a mixing and what came out; an edge of an earlier round is written with its own place."""
        context, position = self.context, (event.round, event.step)
        for edge in self.mixing:
            for channel, digest in sorted(edge.cores.items()):
                context.log(
                    "delta_received",
                    {
                        "peer": edge.peer,
                        "round": edge.position[0],
                        "step": edge.position[1],
                        "channel": channel,
                        "core": digest,
                    },
                )
        context.log(
            "mixed",
            {
                "round": position[0],
                "step": position[1],
                "edges": [edge.noted(position) for edge in self.mixing],
                "taken_back": [[peer, round_, step] for peer, (round_, step) in self.edges.in_work],
                "digest": event.shared or event.digest,
                **self._inertia(event.round),
            },
        )

    @property
    def _accelerated(self) -> bool:
        schedule = self.context.schedule
        return schedule is not None and schedule.accelerated

    def _inertia(self, round_: int) -> dict[str, float]:
        """Of an accelerated closing round, for the log: without it what was mixed could not be computed again."""
        schedule = self.context.running_schedule
        inertia = schedule.round(round_).inertia if round_ < schedule.total else None
        return {} if inertia is None else {"inertia": inertia}

    def mixed(self, event: Mixed) -> None:
        """The model holds the mix: write it down and go on."""
        context = self.context
        round_, step = event.round, event.step
        self.log_mixed(event)
        self.digest = event.digest
        self.distance = event.distance if math.isfinite(event.distance) else DIVERGED
        self.deliveries.finish(context.position)
        self.edges.taken_back()
        last = step == context.own_steps(round_)[-1]
        self.rounds_done += last
        self.moved_until = round_ + 1
        self.finished = round_ if last else self.finished
        if last and context.running_schedule.round(round_).training:
            self.contributed[context.me].add(round_)
        context.commit(f"mixed:{round_}:{step}", stage="mixed")
        if last:
            context.tell(
                "mixed",
                round=round_,
                loss=self.loss,
                distance=event.distance,
                with_peers=[edge.peer for edge in self.mixing],
            )
        self.go_on_after(round_, step)

    def go_on_after(self, round_: int, step: int) -> None:
        """The next mixing of this round, or the next round; also after a restart."""
        later = [number for number in self.context.own_steps(round_) if number > step]
        if not later:
            self.leave_round(round_)
            return
        self.context.position = (round_, later[0])
        self.pace.start(self.context.position, self.context.now)
        self._encode()

    # --- between rounds

    def leave_round(self, round_: int) -> None:
        """Go on after ``round_``: pause, catch up, or take the next round."""
        context = self.context
        context.position = (round_ + 1, 0)
        if context.pause_wanted:
            context.state = State.PAUSED
            context.log("absent", {"round": round_ + 1, "reason": "paused by the user", "paused": True})
            context.commit(f"paused:{round_ + 1}", stage="paused")
            context.tell("paused", round=round_ + 1)
            self.attendance.tell_away("paused by the user")
            return
        self.proceed()

    def proceed(self) -> None:
        """Take the next round, or catch up with neighbours that are two or more rounds further."""
        context = self.context
        round_ = context.position[0]
        directive = context.directive
        if directive is not None and directive.holds_back(round_) and round_ < context.running_schedule.total:
            context.held = f"the proposer paused the run from round {directive.paused_from}"
            self._pause_until(context.held)
            return
        context.held = None
        # a directed stop ends also a run that waits for contributors: its closing rounds take whoever is there
        stopped = directive is not None and directive.stop_at is not None
        asks = round_ < context.running_schedule.total and not stopped
        context.few = context.too_few() if asks else None
        if context.few is not None:
            self._pause_until(context.few)
            return
        if context.asynchronous(round_):
            if not OnArrival(self).skip_to_closing(round_) and not context.adopt():
                self.enter(round_)
            return
        horizon = self.horizon()
        target = min(horizon + 1, context.running_schedule.total)
        # one round ahead is normal: a neighbour that has mixed our message begins the next round before we do
        if horizon > round_ and round_ < context.running_schedule.total:
            self.catch_up(round_, target)
        elif not context.adopt():
            self.enter(round_)

    def _pause_until(self, why: str) -> None:
        """No round begins until the reason for it is gone, or this peer's patience is over."""
        context = self.context
        context.state = State.PAUSED
        context.log("absent", {"round": context.position[0], "reason": why, "paused": True})
        context.commit(f"paused:{context.position[0]}", stage="paused")
        context.tell("paused", round=context.position[0], reason=why)
        context.set_timer("few", 0.0 if context.never_enough() else PAUSE_LIMIT)

    def horizon(self) -> int:
        """The round the neighbours are in, as far as it may be believed.

        A message of any neighbour can pull us two rounds ahead of where it found us, which brings pairs back in step
        after a loss. Further, and where the graph changes, only the lower median of all who are present counts. Limits:
        a member whose only present neighbour lies about its round, or that is lied to in every round, skips rounds; its
        log says so.
        """
        context = self.context
        round_ = context.position[0]
        if round_ >= context.running_schedule.total:
            return 0
        # Only those who hear of this round from us would have waited for us; others may be ahead by their own right.
        waiting = {peer for step in context.own_steps(round_) for peer, _ in context.neighbours((round_, step))}
        waiting.update(context.watched(round_))
        present = [peer for peer in waiting if peer in context.linked and peer not in context.missing]
        rounds = sorted(self.deliveries.reached.get(peer, (0, 0))[0] for peer in present)
        if not rounds:
            return 0
        median = rounds[(len(rounds) - 1) // 2]
        if context.running_schedule.changes:
            return median  # all wait for all; one liar would pull those whom it mixes with, and they the next ones
        return max(median, max(self.deliveries.believed.get(peer, 0) for peer in present))

    def missing_since(self, peer: PeerId) -> int | None:
        """The first round of those at the end in which this neighbour was awaited and did not come; None if none."""
        for round_ in range(self.last_mixed.get(peer, -1) + 1, self.context.running_schedule.total):
            if peer in self.context.watched(round_) or any(
                peer in dict(self.context.neighbours((round_, step))) for step in self.context.own_steps(round_)
            ):
                return round_
        return None

    def catch_up(self, from_round: int, target: int, reason: str = "the others are further") -> None:
        """Skip to ``target``: take no part in the rounds between, say so to the neighbours and to the log."""
        context = self.context
        context.state = State.CATCHING_UP
        self.attendance.was_away = True
        context.log("absent", {"round": from_round, "until": target, "reason": reason})
        context.tell("catching up", round=from_round, until=target)
        self.edges.expire(target)
        if context.staleness:
            OnArrival(self).decide_rest()
        for round_ in range(max(from_round, target - SETTLING_WINDOW), target):
            for step in context.own_steps(round_):
                position = (round_, step)
                for peer, _ in context.neighbours(position):
                    # of an asynchronous round without an own message the other end has nothing to learn
                    if position >= self.deliveries.decided_until and not context.asynchronous(round_):
                        self.edges.decide(peer, position, False)
        context.position = (target, 0)
        self.deliveries.decided_until = max(self.deliveries.decided_until, (target, 0))
        self.deliveries.finish((target - 1, MAX_STEPS))
        context.commit(f"caught-up:{target}", stage="caught up")

    # --- what neighbours' messages say

    def noticed(self, origin: PeerId, position: Position) -> None:
        """All of a neighbour's messages for a position are there, in time or not."""
        if self.context.asynchronous(position[0]):
            return  # nobody is waited for, and a round's number says nothing of how long its training took
        if origin in self.context.watched(position[0]):
            self.pace.word(origin, position[0], self.context.now)
        elif self.deliveries.ready(origin, position) is not None or position < self.context.position:
            self.pace.arrived(origin, position, self.context.now)

    def heard(self, core: Core, origin: PeerId) -> None:
        """A verified core from a neighbour: it is there, and it says what it knows of our edge."""
        self.attendance.heard(origin, core.round)
        self.edges.heard(core, origin)

    # --- restarts

    def remember(self) -> dict[str, Any]:
        """For a restart, as plain values."""
        return {
            "sequence": self.sequence,
            **self.edges.remember(),
            "rounds_done": self.rounds_done,
            "last_mixed": dict(self.last_mixed),
            "contributed": {peer: [list(item) for item in rounds.ranges] for peer, rounds in self.contributed.items()},
            "missed": dict(self.attendance.missed),
            "unheard": [[peer, *reached, times] for peer, (reached, times) in self.attendance.unheard.items()],
            "away_from": dict(self.attendance.away_from),
            "finished": self.finished,
            **({"moved_until": self.moved_until} if self._accelerated else {}),
            "loss": self.loss,
            "digest": self.digest,
            "distance": self.distance,
            "pace": self.pace.remember(),
        }

    def recall(self, kept: Mapping[str, Any]) -> None:
        """What `remember` gave."""
        self.sequence = kept["sequence"]
        self.edges.recall(kept)
        self.rounds_done = kept["rounds_done"]
        self.last_mixed = {PeerId(peer): round_ for peer, round_ in kept["last_mixed"].items()}
        for peer, ranges in kept["contributed"].items():
            self.contributed[PeerId(peer)] = RoundSet([position_of(item) for item in ranges])
        self.finished, self.moved_until = kept["finished"], kept.get("moved_until", 0)
        self.attendance.missed = Counter({PeerId(peer): count for peer, count in kept["missed"].items()})
        self.attendance.unheard = {PeerId(row[0]): (position_of(row[1:3]), row[3]) for row in kept.get("unheard", ())}
        self.attendance.away_from = {PeerId(peer): round_ for peer, round_ in kept["away_from"].items()}
        self.loss, self.distance = kept["loss"], kept["distance"]
        self.digest = None if kept["digest"] is None else Digest(kept["digest"])
        self.pace.recall(kept["pace"])
