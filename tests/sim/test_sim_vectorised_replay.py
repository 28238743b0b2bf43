"""Recorded decisions on the engine: what real sessions end with, when messages are lost, late, or states taken in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from vector_worlds import PLAN, Deployed, finished, settings_of, tables, vectorised, write

from p2pfl.errors import ConfigError
from p2pfl.sim import At, ComputeModel, Loss, Pause, VirtualConsortium
from p2pfl.sim.decisions import ADOPTED, Decisions, RecordedRound, edge_rows
from p2pfl.train.rules import RULES
from p2pfl.train.session import Session

SITES = 5
WALK = {"kind": "cyclic"}
LOCAL = {"kind": "epidemic", "degree": 2, "seed": 1, "choice": "local"}


class Noted(Session):
    """A session that notes what it is told, and where each message was signed."""

    def __init__(self, settings: dict[str, Any], number: int, places: dict[Any, Any]) -> None:
        super().__init__(PLAN.encode(), settings)
        self.number, self.places = number, places
        self.trained: dict[int, int] = {}
        self.mixed: list[tuple[int, int, list[Any], list[Any]]] = []
        self.adopted: list[tuple[int, float, list[Any]]] = []
        self.results: dict[str, str] = {}

    def train(self, round: int, steps: int, *more: Any, **named: Any) -> Any:
        answer = super().train(round, steps, *more, **named)
        if steps:
            self.trained[round] = steps
        return answer

    def encode(self, round: int, step: int, closing: bool, **more: Any) -> Any:
        answers = super().encode(round, step, closing, **more)
        for answer in answers:
            self.places.setdefault((self.number, answer["channel"], answer["result"]), (round, step))
        return answers

    def receive(self, key: str, channel: str, payload: bytes, result: str, share: float | None = None) -> None:
        super().receive(key, channel, payload, result, share)
        self.results[key] = result

    def mix(self, round: int, step: int, edges: Any, corrections: Any, last: bool, closing: bool, **more: Any) -> Any:
        answer = super().mix(round, step, edges, corrections, last, closing, **more)
        self.mixed.append((round, step, [list(row) for row in edges], [list(row) for row in corrections]))
        return answer

    def adopt(self, round: int, own: float, states: Any, **more: Any) -> Any:
        answer = super().adopt(round, own, states, **more)
        self.adopted.append((round, own, [list(row) for row in states]))
        return answer


def decided(sessions: Sequence[Noted], numbers: Any, mixings: list[int]) -> Decisions:
    """The notes as decisions."""
    amounts: dict[Any, tuple[float, float]] = {}
    rounds = []
    for t, count in enumerate(mixings):
        edges: list[list[Any]] = [[] for _ in range(count)]
        adopted = []
        for i, session in enumerate(sessions):
            for round_, step, taken, back in session.mixed:
                if round_ != t:
                    continue
                for row in taken:
                    place = tuple(row[3:5] or (round_, step))
                    amounts[i, numbers[row[0]], *place] = share, given = row[1], row[5] if len(row) > 5 else row[1]
                    edges[step].append((i, numbers[row[0]], *place, share, 1, given))
                for peer, since, at in back:
                    key = (i, numbers[peer], since, at)
                    edges[-1].append((*key, amounts[key][0], -1, amounts[key][1]))
            for round_, own, states in session.adopted:
                for peer, weight, keys in states if round_ == t else ():
                    place = session.places[numbers[peer], "x", session.results[keys["x"]]]
                    adopted.append((i, numbers[peer], *place, weight, own))
        steps = np.array([session.trained.get(t, 0) for session in sessions])
        nothing = np.zeros(len(sessions))
        rows = tuple(edge_rows(rows) for rows in edges)
        rounds.append(RecordedRound(steps > 0, steps, rows, nothing, nothing, np.array(adopted, dtype=ADOPTED)))
    return Decisions(tuple(rounds))


def deployed(
    folder: Path, settings: dict[str, Any], topology: Any, *, faults: Any = (), rounds: int = 16, closing: int = 2,
    staleness: int = 0, **more: Any,
) -> tuple[Deployed, Decisions]:  # fmt: skip
    """Real machines and sessions under the virtual clock, and what they decided."""
    data, places = tables(SITES), {}
    files = write(folder, data)

    def trainer(number: int) -> Session:
        session = Noted({**settings, "staleness": staleness}, number, places)
        session.load_data(str(files[number]))
        return session

    world = VirtualConsortium(
        SITES, topology=topology, rounds=rounds, closing_rounds=closing, training=trainer, seed=4, staleness=staleness,
        samples=[len(label) for _, label in data], local_steps=settings["local_steps"], folder=folder,
        **{"deadline": 10.0, **more},
    )  # fmt: skip
    for fault, when in faults:
        world.inject(fault, when)
    world.begin()
    assert world.run(world.done, limit_seconds=1e5)
    schedule = world.machines[0].context.running_schedule
    assert list(schedule.nodes) == world.peers, "numbers are the same in both"
    sites = world.sites
    sessions: list[Noted] = [site.trainer for site in sites]  # type: ignore[misc]
    mixings = [len(schedule.round(t).mixings) for t in range(schedule.total)] + [1]
    found = decided(sessions, world.numbers, mixings)
    x = torch.stack([session.vector for session in sessions])
    run = bytes.fromhex(world.proposal.run)
    return Deployed(x, schedule, world.initial, [site.key for site in sites], run, [*range(SITES)]), found


def signs(found: Decisions) -> Any:
    return np.concatenate([rows for round_ in found.rounds for rows in round_.edges])


@pytest.mark.parametrize(
    ("rule", "topology"),
    [(rule, kind) for rule in ("dpsgd", "kgt") for kind in ("ring", "full", {"kind": "hierarchical", "clusters": 2})]
    + [("quasi_global", "full"), ("exact_diffusion", "ring"), ("gradient_tracking", "ring"), ("fedprox", "ring")]
    + [("sgp", {"kind": "exponential"}), ("sgp", LOCAL), ("cyclic", WALK)]
    + [pytest.param("sgp", spec, marks=pytest.mark.slow) for spec in ("ring", {"kind": "exponential", "hops": "all"})],
)
def test_lost_messages_and_what_is_taken_back(tmp_path: Path, rule: str, topology: Any) -> None:
    settings = settings_of(rule, local_steps=RULES[rule].needs.most_steps or 3)
    world, found = deployed(tmp_path, settings, topology, faults=[(Loss(0.15), At(1.5))])
    rows = signs(found)
    assert (rows["sign"] < 0).sum() >= 3, "or this shows little"
    run = finished(vectorised(world, tables(SITES), settings, decisions=found))
    assert float((run.x - world.x).abs().max()) < 1e-12


@pytest.mark.parametrize("topology", ["ring", "full"])
def test_late_edges_of_asynchronous_runs(tmp_path: Path, topology: Any) -> None:
    settings = settings_of("dpsgd")
    slow = ComputeModel(factors={3: 4.0})
    world, found = deployed(tmp_path, settings, topology, rounds=24, staleness=2, compute=slow)
    late = sum(int((rows["round"] < t).sum()) for t, facts in enumerate(found.rounds) for rows in facts.edges)
    assert late > 5, "or this shows little"
    run = finished(vectorised(world, tables(SITES), settings, decisions=found))
    assert float((run.x - world.x).abs().max()) < 1e-12


@pytest.mark.parametrize(("rule", "topology"), [("dpsgd", "ring"), ("kgt", "ring"), ("sgp", "ring"), ("sgp", LOCAL)])
def test_states_that_are_taken_in_after_an_absence(tmp_path: Path, rule: str, topology: Any) -> None:
    settings = settings_of(rule)
    away = [(Pause(2, 150.0), At(8.0))]
    world, found = deployed(
        tmp_path, settings, topology, rounds=40, faults=away, catch_up_rounds=5, compute=ComputeModel(seconds=10.0)
    )
    adopted = np.concatenate([facts.adopted for facts in found.rounds])
    assert len(adopted) and (adopted["own"] < 1).all(), "or this shows little"
    run = finished(vectorised(world, tables(SITES), settings, decisions=found))
    assert float((run.x - world.x).abs().max()) < 1e-12


def test_decisions_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    settings = settings_of()
    world, found = deployed(tmp_path, settings, "ring", rounds=3, closing=0)

    def start(decisions: Decisions, **more: Any) -> None:
        vectorised(world, tables(SITES), settings_of(**more), decisions=decisions)

    with pytest.raises(ConfigError, match="decisions of 1 rounds for 3"):
        start(Decisions(found.rounds[:1]))
    with pytest.raises(ConfigError, match="decisions of 1 sites for 5"):
        one = RecordedRound(np.ones(1, dtype=bool), np.ones(1, dtype=int), (), np.zeros(1), np.zeros(1))
        start(Decisions((one,) * 3))
    ahead = edge_rows([(0, 1, 2, 0, 0.1, 1)])
    early = RecordedRound(
        *(getattr(found.rounds[0], name) for name in ("active", "steps")), (ahead,), *[np.zeros(SITES)] * 2
    )
    with pytest.raises(ConfigError, match="round 0 mixes a message of round 2"):
        start(Decisions((early, *found.rounds[1:])))
    with pytest.raises(ConfigError, match="bytes of shape"):
        RecordedRound(np.ones(3, dtype=bool), np.ones(3, dtype=int), (), np.zeros(3), np.zeros(2))
