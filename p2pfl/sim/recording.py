"""Schedule first, learn second: what real machines decide and how long they take, recorded without learning anything.

The machines run under the virtual clock with stub training, with all that may go wrong; each trainer notes what it is
told. What comes out (`p2pfl.sim.decisions`) says which messages every site mixed in each of its rounds, which it took
back, when the round ended and how many bytes left the site, so the parameters can be computed afterwards at once.

A site's notes follow its checkpoints: a process that dies takes along what it had not stored, as it takes its model.
Not recordable: disks that are lost or older (two histories of one site), hostile members, changed arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from p2pfl.crypto import sha256
from p2pfl.errors import ConfigError
from p2pfl.gossip.messages import INLINE_LIMIT, Position
from p2pfl.sim.decisions import Decisions
from p2pfl.sim.faults import Crash, Fault
from p2pfl.sim.journals import Journal, Note, Sheet, recorded_round
from p2pfl.sim.training import CHANNEL, StubTraining
from p2pfl.sim.triggers import When
from p2pfl.sim.world import VirtualConsortium
from p2pfl.topology import Schedule
from p2pfl.types import PeerId

STUB_SIZE = 4  # float64 numbers of a stub whose content is pulled
SLICE = 600.0  # virtual seconds; in each of them so many actions of the clock are no circle:
EVENTS = 5_000_000  # and these
EVENTS_PER_SITES = 600  # times the number of sites to the third power: heartbeats over links of all pairs

KINDS = ("content", "announcement", "direct", "flood", "offer")  # of what a site sends; content is pulled


def world_sent(world: VirtualConsortium, number: int) -> int:
    """Bytes that a site has sent so far."""
    return sum(world.network.sent_bytes[number, kind] for kind in KINDS)


def world_flooded(world: VirtualConsortium, number: int) -> int:
    """Bytes of them in heartbeats and other statements that everybody sends on."""
    return world.network.sent_bytes[number, "flood"]


class _Recorder:
    """The journals of one world, and who signed what where."""

    world: VirtualConsortium  # from the moment it is made; no trainer notes anything before

    def __init__(self, sites: int) -> None:
        self.journals = [Journal() for _ in range(sites)]
        self.places: dict[tuple[int, str], Position] = {}  # (sender, digest of its message) -> where it was signed
        self.changed = False  # whether the proposer changed arguments


class RecordedTraining(StubTraining):
    """A stub that notes what it is told."""

    def __init__(self, seed: int, site: int, size: int, staleness: int, recorder: _Recorder) -> None:
        super().__init__(seed, site, size, staleness)
        self._recorder, self._journal = recorder, recorder.journals[site]
        self._results: dict[str, str] = {}  # key of a received message -> digest of what it rebuilds

    def begin(
        self, initial: bytes, run: bytes, key: bytes, share: float, first_weight: float = 1.0
    ) -> list[dict[str, Any]]:
        """A new history."""
        self._journal.newest = None
        if any(run) and self._journal.before is None:
            self._journal.before = world_sent(self._recorder.world, self.site)
            self._journal.flooded_before = world_flooded(self._recorder.world, self.site)
        return super().begin(initial, run, key, share, first_weight)

    def train(
        self, round: int, steps: int, learning_rate: float | None = None, batch_size: int | None = None
    ) -> dict[str, float | int]:
        """Note the local steps."""
        self._recorder.changed |= learning_rate is not None or batch_size is not None
        answer = super().train(round, steps, learning_rate, batch_size)
        self._note("train", round, 0, amount=float(steps))
        return answer

    def encode(
        self, round: int, step: int, closing: bool, inertia: Sequence[Sequence[float]] = ()
    ) -> list[dict[str, Any]]:
        """Remember where the message is signed: a state that is taken in names its digest only."""
        answers = super().encode(round, step, closing, inertia)
        for answer in answers:
            # the first place: a model that nothing moved is the same message again, of rounds that are still to come
            self._recorder.places.setdefault((self.site, answer["result"]), (round, step))
        return answers

    def receive(self, key: str, channel: str, payload: bytes, result: str, share: float | None = None) -> None:
        """Remember what a key stands for."""
        super().receive(key, channel, payload, result)
        self._results[key] = result

    def mix(
        self, round: int, step: int, edges: Sequence[Sequence[Any]], corrections: Sequence[Sequence[Any]],
        last: bool, closing: bool, inertia: Sequence[Sequence[float]] = (),
    ) -> dict[str, Any]:  # fmt: skip
        """Note edges and corrections."""
        answer = super().mix(round, step, edges, corrections, last, closing, inertia)
        numbers = self._recorder.world.numbers
        taken = tuple(
            (numbers[row[0]], *(row[3:5] or (round, step)), float(row[1]), *map(float, row[5:6])) for row in edges
        )
        back = tuple((numbers[peer], int(round_), int(step_)) for peer, round_, step_ in corrections)
        self._note("mix", round, step, taken=taken, taken_back=back, last=last)
        for row in edges:
            self._results.pop(row[2][CHANNEL], None)
        return answer

    def adopt(
        self, round: int, own: float, states: Sequence[Sequence[Any]], inertia: Sequence[Sequence[float]] = ()
    ) -> dict[str, Any]:
        """Note whose states were taken in."""
        answer = super().adopt(round, own, states, inertia)
        numbers, places = self._recorder.world.numbers, self._recorder.places
        taken = tuple(
            (numbers[peer], *places[numbers[peer], self._results[keys[CHANNEL]]], float(weight))
            for peer, weight, keys in states
        )
        self._note("adopt", round, 0, taken=taken, amount=float(own))
        return answer

    def _note(self, kind: str, round_: int, step: int, **facts: Any) -> None:
        world = self._recorder.world
        flooded = world_flooded(world, self.site)
        sent, pulled = world_sent(world, self.site), world.network.sent_bytes[self.site, "content"]
        self._journal.add(Note(kind, round_, step, world.now, sent, flooded=flooded, pulled=pulled, **facts))

    def save_bytes(self) -> bytes:
        """Mark the place in the notes."""
        data = super().save_bytes()
        self._journal.saved[sha256(data)] = self._journal.newest
        return data

    def restore_bytes(self, data: bytes, initial: bytes, run: bytes, key: bytes, share: float, digest: str) -> None:
        """Back to the notes of that place."""
        super().restore_bytes(data, initial, run, key, share, digest)
        self._journal.newest = self._journal.saved[digest]


@dataclass(frozen=True)
class Recording:
    """What one run came to. Seconds in ``decisions`` count from the moment the first site began round 0.

    ``decisions`` may have one round more than ``schedule``: what is taken back, or taken in, while the sites close.
    """

    decisions: Decisions
    nodes: tuple[PeerId, ...]  # in the order of the sites
    shares: Mapping[PeerId, float]
    schedule: Schedule
    began: float  # virtual seconds from the proposal to the first site's round 0
    before: np.ndarray  # float64 [n]: bytes that each site sent until its run began
    after: np.ndarray  # float64 [n]: bytes sent after the last round
    late: np.ndarray  # float64 [n]: of them, in deltas of the run that slower neighbours fetched then
    sent: Mapping[str, np.ndarray]  # by kind of message, float64 [n]: bytes of the whole run
    world: VirtualConsortium


def record(
    peers: int,
    *,
    topology: str | Mapping[str, Any] = "ring",
    rounds: int = 8,
    content_bytes: int = 0,
    closing_bytes: int | None = None,
    faults: Sequence[tuple[Fault, When]] = (),
    linked: str = "graph",
    limit_seconds: float | None = None,
    watch: Callable[[int], None] | None = None,
    **options: Any,
) -> Recording:
    """Play one run of real machines with stub training, and write down what they decided.

    ``content_bytes``: of one site's message in one mixing, all channels, which travel as one; up to 32 KiB are inside
    the announcement, as deployed. ``closing_bytes``: the same in closing rounds; where training's are inside, so are
    these, and of their size. ``linked`` "graph": the links that deployed peers keep. ``watch`` is told the first
    round that some site has not ended, whenever it rises. ``options`` are those of `VirtualConsortium`. ConfigError for
    what cannot be recorded, and for a run that never begins or has not ended after ``limit_seconds`` of virtual time.
    """
    if any(isinstance(fault, Crash) and fault.disk != "kept" for fault, _ in faults):
        raise ConfigError(
            "a disk that is lost or older gives one site two histories; record crashes with the disk kept"
        )
    recorder = _Recorder(peers)
    pulled = content_bytes > INLINE_LIMIT
    size = STUB_SIZE if pulled or not content_bytes else -(-content_bytes // 8)
    seed, staleness = options.get("seed", 0), options.get("staleness", 0)
    world = recorder.world = VirtualConsortium(
        peers,
        topology=topology,
        rounds=rounds,
        linked=linked,
        content_bytes=content_bytes if pulled else 0,
        closing_bytes=closing_bytes if pulled else None,
        training=lambda number: RecordedTraining(seed, number, size, staleness, recorder),
        **options,
    )
    for fault, when in faults:
        world.inject(fault, when)
    world.begin()
    ended = _play(world, _until(world, watch), limit_seconds)
    if not ended:
        raise ConfigError(f"the run has not ended after {world.now:.0f} s; allow more, or look at its faults")
    return _recording(recorder)


def _play(world: VirtualConsortium, until: Callable[[], bool], limit_seconds: float | None) -> bool:
    events = EVENTS + EVENTS_PER_SITES * len(world.sites) ** 3
    while world.clock.due() is not None and (limit_seconds is None or world.now < limit_seconds):
        seconds = SLICE if limit_seconds is None else min(SLICE, limit_seconds - world.now)
        if world.run(until, limit_seconds=seconds, limit_events=events):
            return True
    return until()


def _until(world: VirtualConsortium, watch: Callable[[int], None] | None) -> Callable[[], bool]:
    if watch is None:
        return world.done
    told = 0

    def done() -> bool:
        nonlocal told
        begun = min((site.round_times[-1][1] for site in world.sites if site.round_times and site.alive), default=0)
        if begun > told:
            told = begun
            watch(begun)
        return world.done()

    return done


def _recording(recorder: _Recorder) -> Recording:
    world = recorder.world
    started = next((site.machine for site in world.sites if site.machine and site.machine.context.start), None)
    first = [site.round_times[0][0] for site in world.sites if site.round_times]
    if started is None or not first:
        raise ConfigError("no round ever began; let more sites approve, or have fewer of them fail before the start")
    if recorder.changed:
        raise ConfigError("the proposer changed the learning rate or the batch size, which recordings do not carry")
    schedule, began = started.context.running_schedule, min(first)
    mixings = [len(schedule.round(t).mixings) for t in range(schedule.total)]
    sheets = [Sheet(number, [*mixings, 1], journal, began) for number, journal in enumerate(recorder.journals)]
    used = schedule.total + any(sheet.settled_late for sheet in sheets)
    decisions = Decisions(tuple(recorded_round(sheets, t) for t in range(used)))
    total = np.array([world_sent(world, number) for number in _all(world)], dtype=np.float64)
    return Recording(
        decisions=decisions,
        nodes=tuple(world.peers),
        shares=dict(started.context.running.shares),
        schedule=schedule,
        began=began,
        before=np.array([sheet.before for sheet in sheets]),
        after=total - [sheet.sent for sheet in sheets],
        late=np.array(
            [world.network.sent_bytes[sheet.number, "content"] - sheet.pulled for sheet in sheets], dtype=np.float64
        ),
        sent={
            kind: np.array([world.network.sent_bytes[number, kind] for number in _all(world)], dtype=np.float64)
            for kind in KINDS
        },
        world=world,
    )


def _all(world: VirtualConsortium) -> range:
    return range(len(world.sites))
