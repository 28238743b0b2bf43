"""Peers whose rounds are shorter than a message's way meet again after a common pause."""

from __future__ import annotations

import pytest

from p2pfl.gossip import State, events
from p2pfl.sim import ComputeModel, Crash, InState, LinkModel, VirtualConsortium

PAUSED = 5
ROUNDS = 60


@pytest.mark.parametrize("seed", [pytest.param(seed, marks=pytest.mark.slow if seed % 3 else ()) for seed in range(12)])
@pytest.mark.parametrize(("sites", "topology"), [(3, "full"), (4, "ring"), (5, "full")])
def test_after_a_restart_and_a_common_pause_nobody_chases_the_others(sites: int, topology: str, seed: int) -> None:
    world = VirtualConsortium(
        sites,
        topology=topology,
        rounds=ROUNDS,
        seed=seed,
        compute=ComputeModel(seconds=0.003, spread=0.8, handling=0.0005, commit=0.002),
        links=LinkModel(latency=0.003, jitter=0.004),
    )
    world.inject(Crash(1, back_after=0.3), InState(1, State.TRAINING, round=PAUSED))
    others = [number for number in range(sites) if number != 1]

    def say(word: type[events.Pause] | type[events.Resume]) -> None:
        for number in others:
            site = world.sites[number]
            site.post(word(site.now))

    world.begin()
    assert world.run(lambda: not world.sites[1].alive, limit_seconds=60.0)
    say(events.Pause)
    assert world.run(lambda: any(topic == "resumed" for topic, _ in world.sites[1].told), limit_seconds=60.0), (
        world.states()
    )
    say(events.Resume)
    assert world.run(world.done, limit_seconds=600.0), world.states()
    for number in range(sites):
        alone = [row["round"] for row in world.entries(number, "mixed") if not row["edges"]]
        assert not [round_ for round_ in alone if round_ > PAUSED + 8], (number, alone)
    assert not world.contradictions()
