"""Sites that are away, and sites that take part without a step: the engine against sessions joined by hand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from vector_worlds import PLAN, finished, joined, schedule_of, settings_of, tables, write

from p2pfl.sim.vector_faults import Absent
from p2pfl.sim.vectorised import VectorisedRun
from p2pfl.topology import Schedule
from p2pfl.train.plan_code import PlanCode
from p2pfl.train.rules import RULES
from p2pfl.train.session import Session
from p2pfl.train.settings import read_settings
from p2pfl.train.stacked_sampling import DeployedKeys

SITES, ROUNDS, CLOSING, RUN = 5, 12, 2, b"run"
KEYS = [bytes([number]) * 32 for number in range(SITES)]
AWAY = {2: range(3, 7), 4: range(6, 9), 0: range(6, 7)}  # site -> rounds; in round 6 three of five
STEPS = {
    "all alike": [1, 1, 1, 1, 1],
    "one without a step": [1, 0, 1, 1, 1],
    "unequal": [3, 1, 0, 2, 3],
}


def settings_for(rule: str, most: int) -> dict[str, Any]:
    return settings_of(rule, local_steps=most, rule_settings={"fedprox": {"proximal": 0.5}}.get(rule, {}))


def topology_of(rule: str) -> dict[str, Any]:
    return {"kind": "cyclic" if rule == "cyclic" else "ring"}


def by_hand(
    folder: Path, settings: Mapping[str, Any], schedule: Schedule, steps: list[int]
) -> tuple[bytes, Tensor, list[Mapping[str, Tensor]]]:
    """Initial file, parameters [n, P] and states of sessions of which those who are away are told nothing."""
    data = tables(SITES)
    files = write(folder, data)
    sessions = [Session(PLAN.encode(), settings) for _ in range(SITES)]
    initial = sessions[0].initial(seed=9)
    for number, session in enumerate(sessions):
        session.load_data(str(files[number]))
        share, first = schedule.shares[number] / sum(schedule.shares), schedule.weights_before(0)[number]
        session.begin(initial, RUN, KEYS[number], share, first)
    for t in range(schedule.total):
        closing = t >= schedule.rounds
        here = [number for number in range(SITES) if t not in AWAY.get(number, ())]
        for number in here if not closing else ():
            if schedule.nodes[number] in schedule.round(t).active:
                sessions[number].train(t, schedule.steps_of(schedule.nodes[number], steps[number]))
        mixing = schedule.round(t).mixings[0]
        sent = {number: sessions[number].encode(t, 0, closing) for number in here}
        for number in here:
            edges = []
            for other in here:
                if schedule.nodes[other] not in dict(mixing.neighbours(schedule.nodes[number])):
                    continue
                for message in sent[other]:
                    key = f"{other}/{message['channel']}"
                    sessions[number].receive(key, message["channel"], message["payload"], message["result"])
                keys = {message["channel"]: f"{other}/{message['channel']}" for message in sent[other]}
                one, weight = schedule.nodes[number], mixing.matrix[number, other]
                amounts = (t, 0, mixing.given(one)[schedule.nodes[other]]) if mixing.directed else ()
                edges.append((f"{other}", weight, keys, *amounts))
            sessions[number].mix(t, 0, edges, [], True, closing)
            sessions[number].forget([(origin, t, 0) for origin, *_ in edges])
    return initial, torch.stack([session.vector for session in sessions]), [session.state for session in sessions]


@pytest.mark.parametrize("steps", list(STEPS.values()), ids=list(STEPS))
@pytest.mark.parametrize("rule", [rule for rule in RULES if RULES[rule].needs.linear])
def test_absences_and_no_steps_are_the_same_in_both_worlds(tmp_path: Path, rule: str, steps: list[int]) -> None:
    own = [min(number, RULES[rule].needs.most_steps or number) for number in steps]
    settings, data = settings_for(rule, max(own)), tables(SITES)
    schedule = schedule_of(topology_of(rule), SITES, ROUNDS, CLOSING, [float(len(label)) for _, label in data])
    initial, x, states = by_hand(tmp_path, settings, schedule, own)
    train, rows = joined(data)

    def engine(**more: Any) -> VectorisedRun:
        return VectorisedRun(
            PlanCode(PLAN.encode()), read_settings(settings), train, rows, schedule, seed=0, initial=initial,
            sampling=DeployedKeys(KEYS, RUN), execution="loop", **more,
        )  # fmt: skip

    faults = [Absent([site], span.start, span.stop) for site, span in AWAY.items()]
    run = finished(engine(steps=own, faults=faults))
    assert float((run.x - x).abs().max()) < 1e-12
    for name in states[0]:
        if name == "start":  # of the sites' last own round, which nothing reads again
            continue
        assert float((run.state[name] - torch.stack([state[name] for state in states])).abs().max()) < 1e-12, name
    present = finished(engine(steps=own))
    assert float((present.x - x).abs().max()) > 1e-3, "or the absences decide nothing"


@pytest.mark.parametrize("rule", [rule for rule in RULES if RULES[rule].needs.linear])
def test_nothing_happens_to_who_is_away(rule: str) -> None:
    settings, data = settings_for(rule, 1), tables(SITES)
    schedule = schedule_of(topology_of(rule), SITES, ROUNDS, 0)
    train, rows = joined(data)
    run = VectorisedRun(
        PlanCode(PLAN.encode()), read_settings(settings), train, rows, schedule, seed=0, execution="eager",
        faults=[Absent([3], since=2, until=5)],
    )  # fmt: skip
    run.step(), run.step()
    before = {"x": run.x[3].clone(), **{name: value[3].clone() for name, value in run.state.items()}}
    for _ in range(3):
        run.step()
        after = {"x": run.x[3], **{name: value[3] for name, value in run.state.items()}}
        assert all(torch.equal(after[name], before[name]) for name in before)
    for _ in range(3 if rule == "cyclic" else 1):  # until it is the site's turn again
        run.step()
    assert not torch.equal(run.x[3], before["x"])
