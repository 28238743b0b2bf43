"""Topologies with weights of their own: what their law decides in learning, settling, catching up, and joining late."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sim_worlds import blobs, write_plan
from vector_worlds import finished, schedule_of

from p2pfl.gossip import State
from p2pfl.sim import At, ComputeModel, Crash, InState, Loss, Pause, StubTraining, VirtualConsortium, simulate
from p2pfl.sim.vectorised import VectorisedRun
from p2pfl.topology import Schedule
from p2pfl.train.plan_code import PlanCode
from p2pfl.train.settings import read_settings

STAR_LIST = [[0, 1, 0.125, 0.5], [0, 2, 0.25, 0.25], [3, 0, 0.25, 0.25], [0, 4, 0.25, 0.75]]
CHOICES: dict[str, tuple[dict[str, Any], list[float]]] = {
    "metropolis": ({"kind": "star", "weights": "metropolis"}, [1, 1, 1, 1, 1]),
    "uniform": ({"kind": "star", "weights": "uniform"}, [5, 2, 2, 2, 2]),
    "listed": ({"kind": "star", "weights": STAR_LIST}, [12, 3, 12, 12, 4]),
}
"""A spec for five sites, and what they count by it (not summing to 1)."""
ROWS = [(spec, law) for spec, law in CHOICES.values()]


# --- learning

POINT = PlanCode(b"""
import torch
from torch import nn

def load(path): ...

def model():
    return nn.Linear(1, 1, bias=False)

def loss(model, batch):
    return ((model(batch[0]) - batch[1]) ** 2).sum(-1) / 2
""")
SLOPES, TARGETS = (
    [1.0, 0.5, 1.5, 0.75, 1.25],
    [3.0, -2.0, 1.0, 5.0, -4.0],
)  # of each site's examples, which are all alike
SIZES = [2, 3, 4, 5, 6]
RATE = 0.1


def optimum(law: list[float]) -> float:
    """Where sum_i law_i a_i (a_i w - b_i) = 0."""
    weight, a, b = np.array(law), np.array(SLOPES), np.array(TARGETS)
    return float((weight * a * b).sum() / (weight * a * a).sum())


def learnt(rule: str, spec: dict[str, Any], closing: int = 0, rounds: int = 250, **more: Any) -> VectorisedRun:
    settings = {
        "rule": rule, "optimiser": {"name": "sgd"}, "learning_rate": RATE, "batch_size": 100, "dtype": "float64",
        "local_steps": 1, **more,
    }  # fmt: skip
    x, y = (
        torch.tensor([v for v, size in zip(values, SIZES, strict=True) for _ in range(size)], dtype=torch.float64)
        for values in (SLOPES, TARGETS)
    )
    stops = np.cumsum(SIZES)
    rows = [np.arange(stop - size, stop) for stop, size in zip(stops, SIZES, strict=True)]
    schedule = schedule_of(spec, 5, rounds, closing, [float(size) for size in SIZES])
    run = VectorisedRun(
        POINT, read_settings(settings), (x[:, None], y[:, None]), rows, schedule, seed=0, execution="eager"
    )
    return finished(run)


@pytest.mark.parametrize(
    ("rule", "name"),
    [("kgt", "metropolis"), ("kgt", "uniform"), ("exact_diffusion", "uniform"), ("exact_diffusion", "listed"),
     ("gradient_tracking", "listed"), ("gradient_tracking", "metropolis")],
)  # fmt: skip
def test_rules_without_bias_end_at_the_optimum_of_the_law(rule: str, name: str) -> None:
    spec, law = CHOICES[name]
    x = learnt(rule, spec, local_steps=2 if rule == "kgt" else 1).x
    assert float((x - optimum(law)).abs().max()) < 1e-6, "linear convergence: 1e-13 after twice as many rounds"
    assert abs(optimum(law) - optimum([float(size) for size in SIZES])) > 0.1, "or the shares would do as well"


@pytest.mark.parametrize(("spec", "law"), ROWS, ids=list(CHOICES))
def test_gossip_averaging_settles_where_the_law_says(spec: dict[str, Any], law: list[float]) -> None:
    """Its fixed point: with one step, sum_i law_i grad f_i(x_i) = 0 at the sites' own parameters."""
    x = learnt("dpsgd", spec).x.squeeze(-1).numpy()
    a, b = np.array(SLOPES), np.array(TARGETS)
    before = x + 0.05 * a * (
        a * x - b
    )  # the parameters from which the last step came, had it not moved them: none moved
    assert np.ptp(x) > 0.1 and np.abs(before - x).max() > 1e-3, "the sites differ, and each would go on alone"
    assert abs(float((np.array(law) * a * (a * x - b)).sum())) < 1e-8


@pytest.mark.parametrize(("spec", "law"), ROWS, ids=list(CHOICES))
def test_closing_rounds_bring_all_to_the_mean_of_the_law(spec: dict[str, Any], law: list[float]) -> None:
    apart, closed = learnt("dpsgd", spec, rounds=5).x, learnt("dpsgd", spec, rounds=5, closing=150).x
    mean = float((torch.tensor(law, dtype=torch.float64) @ apart) / sum(law))
    assert float((closed - mean).abs().max()) < 1e-12
    by_size = float(torch.tensor(SIZES, dtype=torch.float64) @ apart) / sum(SIZES)
    assert abs(by_size - mean) > 1e-4


# --- settling


def off(world: VirtualConsortium, law: dict[Any, float]) -> float:
    """max |sum_i pi_i (x_i - x_0 - own displacements_i)|."""
    total = torch.zeros(1, dtype=torch.float64)
    for peer, part in law.items():
        trainer = world.site_of(peer).result
        assert isinstance(trainer, StubTraining)
        total = total + part * (trainer.vector - trainer.expected())
    return float(total.abs().max())


def laws_of(world: VirtualConsortium, law: list[float]) -> dict[Any, float]:
    """In the order of the schedule, which is the charter's."""
    assert tuple(world.peers) == world.machines[0].context.running_schedule.nodes
    return {peer: part / sum(law) for peer, part in zip(world.peers, law, strict=True)}


@pytest.mark.parametrize("staleness", [0, 2], ids=["synchronous", "asynchronous"])
@pytest.mark.parametrize(("spec", "law"), ROWS, ids=list(CHOICES))
def test_lost_messages_and_absences_keep_the_mean_of_the_law(
    spec: dict[str, Any], law: list[float], staleness: int
) -> None:
    world = VirtualConsortium(5, topology=spec, rounds=12, closing_rounds=2, seed=3, staleness=staleness)
    world.inject(Loss(0.15, seconds=60.0), At(2.0))
    world.inject(Crash(1, back_after=8.0), At(4.0))
    world.inject(Pause(3, 9.0), At(6.0))
    world.begin()
    assert world.run(world.done, limit_seconds=2000)
    world.run()
    assert sum(len(world.entries(number, "absent")) for number in range(5)) > 0 or staleness, "nothing was amiss"
    assert world.network.counters["lost"] > 10
    assert world.settled()
    assert off(world, laws_of(world, law)) < 1e-12
    assert world.imbalance() < 1e-12, "the world's own check goes by the law, too"
    assert off(world, world.machines[0].context.running.shares) > 1e-3, "the sample shares are not what is kept"


def test_a_site_that_catches_up_takes_its_neighbours_in_by_the_law() -> None:
    """On a ring of sites that count 1, 5, 2, 3 by the listed weights, the third one is off for forty rounds."""
    counts, away = [1.0, 5.0, 2.0, 3.0], 2
    rows = [[k, (k + 1) % 4, counts[(k + 1) % 4] / 12, counts[k] / 12] for k in range(4)]
    world = VirtualConsortium(
        4, topology={"kind": "ring", "weights": rows}, rounds=60, closing_rounds=3, seed=1,
        compute=ComputeModel(seconds=10.0),
    )  # fmt: skip
    world.inject(Crash(away, back_after=400.0), InState(away, State.TRAINING, round=8, after=3.0))
    world.begin()
    assert world.run(world.done, limit_seconds=3000)
    law = laws_of(world, counts)
    (body,) = world.entries(away, "caught_up")
    taken = {row[0]: row[1] for row in body["states"]}
    assert taken == {
        peer: pytest.approx(law[peer] / (law[world.peers[1]] + law[world.peers[3]]), rel=1e-12)
        for peer in (world.peers[1], world.peers[3])
    }
    assert body["moved"] == pytest.approx(law[world.peers[away]] * body["distance"], rel=1e-12) and body["moved"] > 0


# --- joining late


def with_late(spec: dict[str, Any], sites: int, newcomer: int, **more: Any) -> VirtualConsortium:
    world = VirtualConsortium(sites, topology=spec, rounds=30, closing_rounds=3, seed=2, **more)
    world.approving = [number for number in range(sites) if number != newcomer]
    said: list[str] = []

    def say() -> None:
        try:
            world.sites[newcomer].approve_late()
        except Exception as error:
            said.append(str(error))

    world.clock.at(75.0, say)
    world.begin()
    assert world.run(world.done, limit_seconds=4000.0)
    world.run(limit_seconds=10_000.0)
    world.said = said  # type: ignore[attr-defined]
    return world


@pytest.mark.parametrize(
    "spec",
    [{"kind": "star", "weights": "metropolis"}, {"kind": "ring", "weights": "uniform"},
     {"kind": "hierarchical", "clusters": 2, "weights": "uniform"}],
    ids=str,
)  # fmt: skip
def test_newcomers_that_leave_the_proportions_are_admitted(spec: dict[str, Any]) -> None:
    world = with_late(spec, 6, 4)
    assert world.machines[0].context.joined == {world.peers[4]: world.machines[1].context.joined[world.peers[4]]}
    assert world.settled() and world.imbalance() < 1e-12
    law = world.machines[0].context.law
    assert law == dict.fromkeys(world.peers, 1 / 6)


def test_newcomers_that_would_change_the_proportions_are_not_admitted() -> None:
    """The centre of a star would count 6 to 2, where it counted 5 to 2 before."""
    world = with_late({"kind": "star", "weights": "uniform"}, 6, 4)
    assert world.machines[0].context.joined == {} and world.settled() and world.imbalance() < 1e-12
    (said,) = world.said  # type: ignore[attr-defined]
    assert "its topology's weights would count the others in other proportions than before" in said


def test_listed_weights_are_of_those_who_were_there() -> None:
    rows = [[0, 1, 0.25, 0.25], [1, 2, 0.25, 0.25], [2, 3, 0.25, 0.25]]
    world = with_late({"kind": "chain", "weights": rows}, 5, 4)
    assert world.machines[0].context.joined == {} and world.settled()
    (said,) = world.said  # type: ignore[attr-defined]
    assert "graph cannot be built with one more site: the weights leave out the edge [3, 4]" in said


def test_listed_weights_of_a_site_that_did_not_approve_end_the_run() -> None:
    world = VirtualConsortium(5, topology=CHOICES["listed"][0], rounds=3)
    world.begin(approving=[0, 1, 2, 3])
    world.run(limit_seconds=500)
    why = world.machines[0].context.away_for_good
    assert why is not None and "cannot form the graph: the weights name the site '4'; there are 4" in why


# --- as people ask for it


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_plan(tmp_path_factory.mktemp("plan") / "plan")


def test_a_simulation_says_what_counts_what(plan: Path) -> None:
    star, rows = {"kind": "star"}, STAR_LIST
    asked: dict[str, Any] = {"peers": 5, "rounds": 2, "execution": "eager"}
    plain = simulate(plan, blobs(), topology=star, **asked)
    named = simulate(plan, blobs(), topology=star | {"weights": "uniform"}, **asked)
    listed = simulate(plan, blobs(), topology=star | {"weights": rows}, **asked)
    shares = simulate(plan, blobs(), topology=star | {"weights": "shares"}, **asked)
    assert "law" not in plain.sites and "law" not in shares.sites
    np.testing.assert_allclose(named.sites["law"] * 13, [5, 2, 2, 2, 2], rtol=1e-12)
    np.testing.assert_allclose(listed.sites["law"] * 43, CHOICES["listed"][1], rtol=1e-12)
    np.testing.assert_array_equal(named.sites["share"], plain.sites["share"])
    assert listed.facts["topology"] == {"kind": "star", "weights": "4 edges"}
    assert not any("counts in training" in remark for remark in plain.facts["remarks"])
    assert any("a site counts in training" in remark for remark in named.facts["remarks"])
    assert plain.parameters is not None and shares.parameters is not None and named.parameters is not None
    assert (plain.parameters == shares.parameters).all()
    assert np.abs(plain.parameters - named.parameters).max() > 1e-4


def test_the_law_of_a_run_is_that_of_its_schedule() -> None:
    for spec, law in ROWS:
        schedule: Schedule = schedule_of(spec, 5, 1)
        np.testing.assert_allclose(schedule.law, np.array(law) / sum(law), rtol=1e-14)
