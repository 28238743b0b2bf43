"""The demo's run without peers: the plan's own sessions in one process, every message by hand.

It computes what joined peers compute when nobody is absent. Tests and studies over many seeds use it, because
a run takes a second and no port.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from p2pfl.demo.evaluation import Evaluation, Evaluator
from p2pfl.demo.hospitals import Hospital, charter_order
from p2pfl.governance import Plan, read_plan
from p2pfl.topology import Mixing, Schedule
from p2pfl.types import PeerId

PLANS = Path(__file__).parent / "plans"
"""The folder of the demo's own plans: ``breast_cancer`` and ``heart``."""


@dataclass(frozen=True, slots=True)
class InMemoryRun:
    """What a run left behind."""

    models: dict[str, bytes]  # each hospital's model file
    initial: bytes  # the run's initial parameters
    distance: float  # root mean square between neighbours at the end
    evaluation: Evaluation


def run_in_memory(
    plan: Plan | Path,
    hospitals: Sequence[Hospital],
    seed: int,
    topology: Mapping[str, Any] | None = None,
    *,
    rounds: int | None = None,
    closing_rounds: int | None = None,
) -> InMemoryRun:
    """Train together, alone and pooled, and evaluate.

    ``seed`` gives initial parameters and sampling keys; ``topology`` is a spec over the charter's order of
    the hospitals. The last three come from the plan if None. Raises ConfigError, PlanError or DataError.
    """
    plan = read_plan(plan) if isinstance(plan, Path) else plan
    training = plan.settings.training
    rounds = training.rounds if rounds is None else rounds
    closing = training.closing_rounds if closing_rounds is None else closing_rounds
    spec = plan.settings.topology_spec() if topology is None else topology
    with TemporaryDirectory(prefix="p2pfl-") as folder:
        evaluator = Evaluator(plan, hospitals, Path(folder))
        sites = _Sites(plan, {site.name: evaluator.files[site.name] for site in charter_order(hospitals)}, seed)
        schedule = Schedule(spec, sites.nodes, sites.shares, rounds, closing)
        sites.begin(schedule)
        distance = 0.0
        for round_ in range(schedule.total):
            distance = sites.round(schedule, round_, training.local_steps)
        models: dict[str, bytes] = {name: session.result() for name, session in sites.sessions.items()}
        evaluation = evaluator.evaluate(models, sites.initial, sites.key, rounds=rounds, run=sites.run)
    return InMemoryRun(models, sites.initial, distance, evaluation)


class _Sites:
    """One session per hospital."""

    def __init__(self, plan: Plan, files: Mapping[str, Path], seed: int) -> None:
        from p2pfl.train.session import Session

        self.nodes = tuple(map(PeerId, files))
        self.run = hashlib.sha256(f"demo in memory {seed}".encode()).digest()
        self.sessions = {name: Session(plan.source, plan.session_settings()) for name in self.nodes}
        counts = {name: self.sessions[name].load_data(str(files[name]))["train"] for name in self.nodes}
        self.shares = {name: count / sum(counts.values()) for name, count in counts.items()}
        self.initial = self.sessions[self.nodes[0]].initial(seed)

    def begin(self, schedule: Schedule) -> None:
        """All sites start from the same parameters."""
        for name, counts, first in zip(schedule.nodes, schedule.law, schedule.weights_before(0), strict=True):
            self.sessions[name].begin(self.initial, self.run, self.key(name), counts, first)

    def key(self, name: str) -> bytes:
        """A sampling key that everybody knows: right for a study, wrong for a deployment."""
        return hashlib.sha256(self.run + name.encode()).digest()

    def round(self, schedule: Schedule, round_: int, steps: int) -> float:
        """Train (unless closing), then each mixing; the distance to neighbours before the last one."""
        plan = schedule.round(round_)
        if plan.training:
            for name in plan.active:
                self.sessions[name].train(round_, schedule.steps_of(name, steps))
        squares = 0.0
        inertia = schedule.inertias(round_ + 1)
        for step, mixing in enumerate(plan.mixings):
            last = step == len(plan.mixings) - 1
            squares = self._mix(mixing, (round_, step), last=last, closing=not plan.training, inertia=inertia)
        return float((squares / len(self.nodes)) ** 0.5)

    def _mix(
        self, mixing: Mixing, position: tuple[int, int], *, last: bool, closing: bool,
        inertia: Sequence[tuple[int, float]],
    ) -> float:  # fmt: skip
        round_, step = position
        sent = {name: session.encode(round_, step, closing=closing) for name, session in self.sessions.items()}
        squares = 0.0
        for name, session in self.sessions.items():
            edges: list[tuple[Any, ...]] = []
            given = mixing.given(PeerId(name))
            for origin, weight in mixing.neighbours(name):
                for item in sent[origin]:
                    session.receive(_tag(origin, item), item["channel"], item["payload"], item["result"])
                keys = {item["channel"]: _tag(origin, item) for item in sent[origin]}
                amounts = (round_, step, given[origin]) if origin in given else ()
                edges.append((origin, weight, keys, *amounts))
            answer = session.mix(round_, step, edges=edges, corrections=[], last=last, closing=closing, inertia=inertia)
            # Everybody is here, so no edge is ever taken back.
            session.forget([(edge[0], round_, step) for edge in edges])
            squares += answer["distance"] ** 2
        return squares


def _tag(origin: str, item: Mapping[str, Any]) -> str:
    return f"{origin}/{item['channel']}"
