"""RelaySGD on the virtual clock with real sessions: whatever fails on the way, the weighted optimum is the end."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from bottle import QUADRATIC_PLAN, Quadratic

from p2pfl.sim import At, Crash, Duplicate, Loss, Partition, Pause, VirtualConsortium
from p2pfl.sim.faults import Fault
from p2pfl.train.session import Session

SIZES = (40, 30, 20, 10)
ROUNDS = 240
SETTINGS = {
    "rule": "relaysgd", "optimiser": {"name": "sgd"}, "learning_rate": 0.3, "local_steps": 1, "batch_size": 1000,
    "dtype": "float64",
}  # fmt: skip
FAULTS: dict[str, list[tuple[float, Fault]]] = {
    "loss of 5 % throughout": [(5.0, Loss(0.05))],
    "every fifth message twice": [(5.0, Duplicate(0.2))],
    "an inner site killed in its rounds, three times": [(t, Crash(1, back_after=1.0)) for t in (12.3, 30.8, 51.1)],
    "a leaf killed, back after 40 rounds": [(20.0, Crash(0, back_after=60.0))],
    "an inner site put back from a backup": [(40.0, Crash(2, disk="backup", backup_at=25.0, back_after=2.0))],
    "both ends of an edge put back from backups": [
        (40.0, Crash(1, disk="backup", backup_at=30.0, back_after=2.0)),
        (43.0, Crash(2, disk="backup", backup_at=31.0, back_after=2.0)),
    ],
    "two halves for thirty rounds": [(25.0, Partition(((0, 1), (2, 3)), heal_after=45.0))],
    "a process that is stopped": [(25.0, Pause(2, 8.0))],
}


def ran(folder: Path, faults: list[tuple[float, Fault]]) -> VirtualConsortium:
    files = Quadratic.make(SIZES).write(folder)

    def trainer(number: int) -> Session:
        session = Session(QUADRATIC_PLAN.encode(), SETTINGS)
        session.load_data(str(files[number]))
        return session

    world = VirtualConsortium(
        4, rounds=ROUNDS, closing_rounds=2, training=trainer, samples=SIZES, local_steps=1, folder=folder,
        topology="chain", deadline=3.0,
    )  # fmt: skip
    for seconds, fault in faults:
        world.inject(fault, At(seconds))
    world.begin()
    assert world.run(world.done, limit_seconds=4000.0), world.states()
    assert world.run()
    return world


QUICK = ("an inner site killed in its rounds, three times", "both ends of an edge put back from backups")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FAULTS]
)
def test_the_weighted_optimum_is_reached_after_faults(name: str, tmp_path: Path) -> None:
    world = ran(tmp_path, FAULTS[name])
    optimum = torch.from_numpy(Quadratic.make(SIZES).optimum)
    for site in world.sites:
        assert isinstance(site.result, Session)
        assert float((site.result.vector - optimum).abs().max()) < 1e-10
        counted = float(site.result.state["relay"][-1])
        share = world.machines[site.number].context.running.shares[world.peers[site.number]]
        assert counted == pytest.approx(1.0 - share, abs=1e-12), "everybody else once, and not itself"
