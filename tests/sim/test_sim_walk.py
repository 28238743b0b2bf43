"""One model that walks, with real sessions under the virtual clock: what a site's bad day costs, and what it never does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from vector_worlds import PLAN, settings_of, tables, write

from p2pfl.gossip import events
from p2pfl.gossip.table import State
from p2pfl.sim import At, Crash, Loss, Pause, VirtualConsortium
from p2pfl.sim.compute import ComputeModel
from p2pfl.sim.faults import Fault, Leave, OneWayCut, UserPause
from p2pfl.train.session import Session

SITES, ROUNDS, CLOSING = 4, 20, 3


def consortium(folder: Path, faults: Sequence[tuple[Fault, float]], **more: Any) -> VirtualConsortium:
    """A visit takes some 2 to 5 virtual seconds; the walk begins at about 1.5."""
    data = tables(SITES)
    files, settings = write(folder, data), settings_of("cyclic")

    def trainer(number: int) -> Session:
        session = Session(PLAN.encode(), settings)
        session.load_data(str(files[number]))
        return session

    world = VirtualConsortium(
        SITES, topology={"kind": "cyclic"}, rounds=ROUNDS, closing_rounds=CLOSING, training=trainer,
        samples=[len(label) for _, label in data], local_steps=3, folder=folder,
        **{"seed": 4, "deadline": 20.0, "compute": ComputeModel(seconds=3.0), **more},
    )  # fmt: skip
    for fault, when in faults:
        world.inject(fault, At(when))
    world.begin()
    return world


def ended(world: VirtualConsortium) -> tuple[Tensor, Tensor]:
    """Each site's part of the weight, and the models."""
    schedule = world.machines[0].context.schedules[0]
    sites = [world.sites[world.numbers[peer]] for peer in schedule.nodes]
    weights = torch.stack([site.trainer.state["weight"] for site in sites]).flatten()  # type: ignore[attr-defined]
    law = torch.tensor(schedule.law, dtype=torch.float64)
    return law / law.sum() * weights, torch.stack([site.trainer.vector for site in sites])  # type: ignore[attr-defined]


def visits(world: VirtualConsortium) -> list[int]:
    """Rounds that each site trained in, by its log."""
    found = []
    for site in world.sites:
        entries = world.entries(site.number, "round_started")
        found.append(sum(entry["active"] and entry["round"] < ROUNDS for entry in entries))
    return found


def slow(*row: Any) -> Any:
    return pytest.param(*row, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    "faults",
    [
        [],
        [(Pause(2, 60.0), 6.0)],  # as it is given the model
        [(Crash(2, 90.0), 9.0)],
        slow([(Pause(2, 150.0), 9.0)]),
        slow([(Crash(3, 10.0), 8.0)]),
        slow([(Crash(3, 300.0, silently=True), 12.0)]),
        slow([(Crash(number % SITES, 40.0), 6.0 + 30.0 * number) for number in range(6)]),
        [(UserPause(2, 200.0), 9.0)],
    ],
    ids=[
        "none",
        "paused",
        "crashed",
        "paused long",
        "crashed shortly",
        "no power",
        "one after the other",
        "by its user",
    ],
)
def test_all_end_with_the_one_model(tmp_path: Path, faults: list[tuple[Fault, float]]) -> None:
    """Nothing is lost or there twice; and no rounds go by while a site is away, so that all have been visited."""
    world = consortium(tmp_path, faults)
    assert world.run(world.done, limit_seconds=1e5)
    mass, x = ended(world)
    assert float(mass.sum()) == pytest.approx(1.0, abs=1e-13)
    assert float((x - x[0]).abs().max()) < 1e-14
    assert all(machine.status()["round"] == ROUNDS + CLOSING for machine in world.machines)
    assert min(visits(world)) >= ROUNDS // SITES - 2


@pytest.mark.parametrize(
    ("ways", "when"),
    [(((1, 2), (2, 1)), 6.0), slow(((1, 2), (2, 1)), 9.0), slow(((2, 1),), 7.0), (((3, 2),), 11.0)],
    ids=["a pair", "a pair later", "one way back", "one way on"],
)
def test_all_wait_for_a_link_that_is_broken(tmp_path: Path, ways: Any, when: float) -> None:
    """Though all heartbeats come, over the other links: else the model would stay where it is, and rounds go by."""
    world = consortium(tmp_path, [(OneWayCut(*way, heal_after=300.0), when) for way in ways])
    assert world.run(world.done, limit_seconds=1e5)
    mass, x = ended(world)
    assert float(mass.sum()) == pytest.approx(1.0, abs=1e-13)
    assert float((x - x[0]).abs().max()) < 1e-14
    assert world.now > 300.0 and min(visits(world)) >= ROUNDS // SITES - 1


def test_a_visit_may_be_longer_than_the_deadline(tmp_path: Path) -> None:
    """All wait for the one that trains as long as its heartbeats say so; the longest visit takes some five times 3 s."""
    world = consortium(tmp_path, [], deadline=3.0)
    assert world.run(world.done, limit_seconds=1e5)
    _, x = ended(world)
    assert float((x - x[0]).abs().max()) < 1e-14
    assert not any(topic == "missing" for site in world.sites for topic, _ in site.told)
    world.run(limit_seconds=world.now + 120.0)
    assert {machine.status()["outcome"] for machine in world.machines} == {"finished"}, "nobody is missed for its turn"
    assert visits(world) == [ROUNDS // SITES] * SITES


@pytest.mark.parametrize("seed", [3, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(3))])
@pytest.mark.parametrize("loss", [0.05, 0.2])
def test_lost_messages_keep_the_weight(tmp_path: Path, loss: float, seed: int) -> None:
    """Until the closing rounds; whatever was counted at one end, given on, and taken back there, all read the same."""
    world = consortium(tmp_path, [(Loss(loss), 1.5)], seed=seed)
    assert world.run(
        lambda: all(machine.context.position[0] >= ROUNDS for machine in world.machines), limit_seconds=1e5
    )
    world.network.loss = 0.0
    assert world.run(world.done, limit_seconds=1e5)
    mass, x = ended(world)
    assert float(mass.sum()) == pytest.approx(1.0, abs=1e-13)
    assert float((x - x[0]).abs().max()) < 1e-13 and float(x.abs().max()) < 10.0


def test_a_site_that_leaves_for_good_makes_the_others_wait_for_a_stop(tmp_path: Path) -> None:
    world = consortium(tmp_path, [(Leave(2), 14.0)])
    others = [number for number in range(SITES) if number != 2]

    def waiting() -> bool:
        return all(world.machines[number].state is State.PAUSED for number in others)

    assert world.run(waiting, limit_seconds=1e4)
    why = world.machines[others[0]].status()["paused_because"]
    assert why.startswith("the model walks over 4 sites, and 1 left the run; its proposer can stop it")
    proposer = world.sites[world.numbers[world.proposal.proposer]]
    assert proposer.number in others
    proposer.post(events.Direct(proposer.now, "stop"))
    assert world.run(world.done, limit_seconds=1e5)
    _, x = ended(world)
    assert float((x[others] - x[others[0]]).abs().max()) < 1e-14
