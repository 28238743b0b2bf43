"""How long simulated rounds take and what they send: by the timing model, by recorded machines, or not at all."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from p2pfl.errors import ConfigError
from p2pfl.sim.compute import ComputeModel
from p2pfl.sim.decisions import Decisions
from p2pfl.sim.links import LinkModel
from p2pfl.sim.profiles import with_profiles
from p2pfl.sim.recording import record
from p2pfl.sim.results import Columns
from p2pfl.sim.scenario import TimeTable
from p2pfl.sim.timing import Timing
from p2pfl.topology import Schedule
from p2pfl.train.layout import Layout

if TYPE_CHECKING:
    from p2pfl.sim.simulate import Simulation

MOST_MACHINES = 64  # sites hear each other's heartbeats: beyond, a run takes longer than its learning
HEARTBEATS = 1000  # sites up to which the model counts heartbeats' part of the uplinks


@dataclass
class Pace:
    """Seconds and bytes (without heartbeats) by round, [rounds, n]; empty where time is not simulated."""

    name: str
    schedule: Schedule
    decisions: Decisions | None = None
    seconds: np.ndarray = field(default_factory=lambda: np.empty((0, 0)))
    bytes: np.ndarray = field(default_factory=lambda: np.empty((0, 0)))
    floods: np.ndarray = field(default_factory=lambda: np.empty((0, 0)))
    """Bytes of heartbeats; not a number beyond HEARTBEATS sites: they grow with the square of the consortium."""
    missed: int | None = None
    """The first round in which real peers' patience would have ended: from there on the model waits, they would not."""

    def totals(self, t: int) -> dict[str, float]:
        """When the last site ended round ``t``, and what all have sent by then."""
        if t >= len(self.seconds):
            return {}
        sent, flooded = float(self.bytes[: t + 1].sum()), float(self.floods[: t + 1].sum())
        return {"seconds": float(self.seconds[t].max()), "bytes": sent, "heartbeat_bytes": flooded}

    def start(self) -> dict[str, float]:
        """Before the first round."""
        return {"seconds": 0.0, "bytes": 0.0, "heartbeat_bytes": 0.0} if len(self.seconds) else {}

    def of_sites(self, t: int) -> Columns:
        """The same for each site."""
        if not 0 <= t < len(self.seconds):
            return {}
        sent, flooded = self.bytes[: t + 1].sum(axis=0), self.floods[: t + 1].sum(axis=0)
        return {"seconds": self.seconds[t], "bytes": sent, "heartbeat_bytes": flooded}


def pace_of(simulation: Simulation) -> Pace:
    """The pace of a simulation, before anything is learnt. Raises ConfigError."""
    time, schedule, peers = simulation.time, simulation.schedule, simulation.parts.peers
    if time is None:
        return Pace("none", schedule)
    links, compute = check_time(time, peers, simulation.seed)
    if time.clock == "model":
        return _modelled(simulation, links, compute)
    counts = [len(rows) for rows in simulation.parts.rows]
    recording = record(
        peers, topology=simulation.spec, rounds=schedule.rounds, closing_rounds=schedule.closing_rounds,
        content_bytes=content_bytes(simulation), seed=simulation.seed, links=links, compute=compute,
        samples=counts if simulation.weights == "samples" else [1] * peers,
        local_steps=simulation.settings.local_steps, staleness=time.staleness,
        deadline=simulation.plan.settings.training.deadline,
    )  # fmt: skip
    rounds = recording.decisions.rounds
    seconds, sent = np.array([row.seconds for row in rounds]), np.array([row.bytes for row in rounds])
    floods = np.array([row.floods for row in rounds])
    return Pace("machines", recording.schedule, recording.decisions, seconds, sent - floods, floods)


def check_time(time: TimeTable, peers: int, seed: int) -> tuple[LinkModel, ComputeModel]:
    """The models of links and work that a ``[time]`` table means. Raises ConfigError for what does not fit."""
    if time.clock == "model" and time.staleness:
        raise ConfigError('asynchronous rounds (staleness) need the real machines: write clock = "machines"')
    if time.clock == "machines" and peers > MOST_MACHINES:
        raise ConfigError(f'clock = "machines" drives up to {MOST_MACHINES} peers, not {peers}; write clock = "model"')
    links = LinkModel(latency=time.latency, bandwidth=time.bandwidth)
    compute = ComputeModel(seconds=time.seconds, spread=time.spread)
    return with_profiles(time.profiles, peers, seed, links, compute)


def content_bytes(simulation: Simulation) -> int:
    """What one site's message of one mixing weighs, all channels."""
    module = simulation.code.model().to(simulation.settings.dtype)
    settings = simulation.settings
    layout = Layout(module, dtype=settings.dtype, buffers=settings.buffers, batch_norm=settings.batch_norm)
    return layout.shared_size * settings.dtype.itemsize * len(settings.rule.channels)


def _modelled(simulation: Simulation, links: Any, compute: Any) -> Pace:
    few = simulation.parts.peers <= HEARTBEATS
    timing = Timing(
        simulation.schedule, links, compute, content_bytes(simulation), simulation.seed,
        deadline=simulation.plan.settings.training.deadline, heartbeats=few,
    )  # fmt: skip
    rounds = list(timing)
    seconds = np.array([row.seconds for row in rounds])
    sent = np.array([row.content + row.announcements for row in rounds])
    floods = np.array([row.floods for row in rounds]) if few else np.full_like(sent, np.nan)
    missed = next((row.round for row in rounds if row.missed), None)
    return Pace("model", simulation.schedule, None, seconds, sent, floods, missed)
