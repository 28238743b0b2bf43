"""How long simulated rounds take and what they send: by the timing model, by recorded machines, or not at all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from p2pfl.errors import ConfigError
from p2pfl.gossip.messages import closing_channels
from p2pfl.sim.absences import Absences, check_kept, pauses
from p2pfl.sim.compute import ComputeModel
from p2pfl.sim.decisions import Decisions
from p2pfl.sim.links import LinkModel
from p2pfl.sim.profiles import with_profiles
from p2pfl.sim.recording import Recording, record
from p2pfl.sim.results import Columns
from p2pfl.sim.scenario import TimeTable
from p2pfl.sim.timing import Timing
from p2pfl.sim.unequal_steps import with_steps
from p2pfl.sim.vector_setup import own_steps
from p2pfl.topology import Mixing, Schedule
from p2pfl.train.relays import message_size

if TYPE_CHECKING:
    from p2pfl.sim.preparing import Simulation

MOST_MACHINES = 64  # sites hear each other's heartbeats: beyond, a run takes longer than its learning
HEARTBEATS = 1000  # sites up to which the model counts heartbeats' part of the uplinks


class Step(NamedTuple):
    """One round: when each site ended it, and the bytes that it sent in it; float64 [n] each."""

    seconds: Any
    sent: Any  # without heartbeats
    floods: Any  # of heartbeats; not a number beyond HEARTBEATS sites
    missed: bool = False  # somebody's patience would have ended
    mixed: int = 0  # edges that were mixed, where machines decided
    wanted: int = 0  # edges that the schedule has


class Pace:
    """Seconds and bytes up to the round that was advanced to; none where time is not simulated."""

    def __init__(
        self, name: str, schedule: Schedule, steps: Iterable[Step] = (), decisions: Decisions | None = None
    ) -> None:
        self.name, self.schedule, self.decisions = name, schedule, decisions
        self._steps = iter(steps)
        self._seconds: Any = None
        self._sent: Any = 0.0
        self._floods: Any = 0.0
        self.missed: int | None = None
        """The first round in which deployed peers would not have waited for each other as the model does."""
        self._mixed = self._wanted = 0

    def start(self) -> dict[str, float]:
        """Before the first round."""
        return {} if self.name == "none" else {"seconds": 0.0, "bytes": 0.0, "heartbeat_bytes": 0.0}

    def advance(self, t: int) -> dict[str, float]:
        """Round ``t``, the next one: when the last site ended it, and what all have sent by then."""
        step = next(self._steps, None)
        if step is None:
            return {}
        self._seconds = step.seconds
        self._sent, self._floods = self._sent + step.sent, self._floods + step.floods
        if step.missed and self.missed is None:
            self.missed = t
        self._mixed, self._wanted = self._mixed + step.mixed, self._wanted + step.wanted
        sent, floods = float(self._sent.sum()), float(self._floods.sum())
        return {"seconds": float(step.seconds.max()), "bytes": sent, "heartbeat_bytes": floods}

    @property
    def mixed_share(self) -> float | None:
        """Which share of the schedule's edges machines mixed; None where no machines decided."""
        return self._mixed / self._wanted if self._wanted else None

    def of_sites(self) -> Columns:
        """The same for each site."""
        if self._seconds is None:
            return {}
        return {"seconds": self._seconds, "bytes": self._sent, "heartbeat_bytes": self._floods}


def pace_of(simulation: Simulation) -> Pace:
    """The pace of a simulation, before anything is learnt. Raises ConfigError."""
    time, schedule, peers = simulation.time, simulation.schedule, simulation.parts.peers
    if time is None:
        return Pace("none", schedule)
    links, compute = check_time(time, peers, simulation.seed)
    usual = simulation.settings.local_steps
    if time.clock == "model":
        compute = with_steps(compute, own_steps(simulation.each.tolist(), schedule, usual), usual)
        return _modelled(simulation, links, compute)
    compute = with_steps(compute, simulation.each, usual)
    absences = simulation.absences
    counts = [len(rows) for rows in simulation.parts.rows]
    recording = record(
        peers, topology=simulation.spec, rounds=schedule.rounds, closing_rounds=schedule.closing_rounds,
        content_bytes=content_bytes(simulation), closing_bytes=content_bytes(simulation, closing=True),
        seed=simulation.seed, links=links, compute=compute,
        samples=counts if simulation.weights == "samples" else [1] * peers,
        local_steps=simulation.each.tolist(), staleness=time.staleness,
        deadline=simulation.plan.settings.training.deadline, faults=pauses(absences, schedule),
        catch_up_rounds=simulation.plan.settings.training.catch_up_rounds,
        limit_seconds=_longest(simulation, links, compute, absences) if absences else None,
    )  # fmt: skip
    check_kept(absences, recording.decisions, schedule.total)
    return Pace("machines", recording.schedule, _recorded(recording, absences), recording.decisions)


def _longest(simulation: Simulation, links: LinkModel, compute: ComputeModel, absences: Absences) -> float:
    """Virtual seconds after which a run with absences has lost its way: a user's pause may have come after its end."""
    deadline, schedule = simulation.plan.settings.training.deadline, simulation.schedule
    timing = Timing(
        schedule, links, compute, content_bytes(simulation), simulation.seed, heartbeats=False, absences=absences,
        closing_bytes=content_bytes(simulation, closing=True),
    )  # fmt: skip
    return 10.0 * max(float(row.seconds.max()) for row in timing) + 2.0 * schedule.total * deadline


def _recorded(recording: Recording, absences: Absences) -> Iterator[Step]:
    last = min(recording.schedule.total, len(recording.decisions.rounds)) - 1
    for t, row in enumerate(recording.decisions.rounds):
        late = recording.late if t == last else 0.0  # what others fetch after an earlier round counts in the next one
        floods = np.zeros(len(row.bytes)) if row.floods is None else row.floods
        mixed = sum(int(edges["sign"].sum()) for edges in row.edges)
        wanted = 0
        if t < recording.schedule.total:
            mixings = recording.schedule.round(t).mixings
            wanted = sum(_edges_between(mixing, absences.of(t)) for mixing in mixings)
        yield Step(row.seconds, row.bytes - floods + late, floods, mixed=mixed, wanted=wanted)


def _edges_between(mixing: Mixing, away: np.ndarray) -> int:
    receivers, senders, *_ = mixing.entries
    return int((~np.isin(receivers, away) & ~np.isin(senders, away)).sum())


def check_pace(simulation: Simulation) -> None:
    """What the timing model refuses of this run, such as uplinks that heartbeats alone fill. Raises ConfigError."""
    if simulation.time is not None and simulation.time.clock == "model":
        pace_of(simulation)


def check_time(time: TimeTable, peers: int, seed: int) -> tuple[LinkModel, ComputeModel]:
    """The models of links and work that a ``[time]`` table means. Raises ConfigError for what does not fit."""
    if time.clock == "model" and time.staleness:
        raise ConfigError('asynchronous rounds (staleness) need the real machines: write clock = "machines"')
    if time.clock == "machines" and not time.heartbeats:
        raise ConfigError("real machines hear of each other by heartbeats: leave heartbeats = false out of [time]")
    if time.clock == "machines" and peers > MOST_MACHINES:
        raise ConfigError(f'clock = "machines" drives up to {MOST_MACHINES} peers, not {peers}; write clock = "model"')
    links = LinkModel(latency=time.latency, bandwidth=time.bandwidth)
    compute = ComputeModel(seconds=time.seconds, spread=time.spread)
    return with_profiles(time.profiles, peers, seed, links, compute)


def content_bytes(simulation: Simulation, *, closing: bool = False) -> int:
    """What one site's message of one mixing weighs, all channels; in ``closing`` rounds the model's and weight's."""
    width, shared = simulation.settings.dtype.itemsize, simulation.layout.shared_size
    channels = {channel.name: channel for channel in simulation.settings.rule.channels}
    names = closing_channels(tuple(channels)) if closing else channels
    return sum(message_size(channels[name], shared, width) for name in names)


def _modelled(simulation: Simulation, links: Any, compute: Any) -> Pace:
    assert simulation.time is not None
    few = simulation.parts.peers <= HEARTBEATS
    timing = Timing(
        simulation.schedule, links, compute, content_bytes(simulation), simulation.seed,
        deadline=simulation.plan.settings.training.deadline, heartbeats=few and simulation.time.heartbeats,
        absences=simulation.absences, closing_bytes=content_bytes(simulation, closing=True),
    )  # fmt: skip
    nothing = np.full(simulation.parts.peers, np.nan)
    steps = (
        Step(row.seconds, row.content + row.announcements, row.floods if few else nothing, bool(row.missed))
        for row in timing
    )
    return Pace("model", simulation.schedule, steps)
