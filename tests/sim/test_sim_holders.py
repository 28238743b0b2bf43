"""Neighbours' states from whoever holds them, under the virtual clock: the origin is gone when a site comes back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from test_sim_states import NAMES, TOPOLOGIES, jumps

from p2pfl.gossip import State
from p2pfl.sim import ComputeModel, Crash, InState, VirtualConsortium

AWAY, DEAD = 2, 1  # neighbours of each other in all graphs, with a third that mixes with both
SITES = {"ring": 4, "full": 4, "hierarchical": 6}
AWAY_FROM, DEAD_FROM = 8, 40
ROUNDS, BACK_AFTER = 60, 400.0


def consortium(topology: Any = "ring", seed: int = 1, **options: Any) -> VirtualConsortium:
    """Rounds of some 10 s; one site is off from round 8 to about 48, a neighbour of its from round 40 on for good."""
    sites = SITES[topology if isinstance(topology, str) else topology["kind"]]
    world = VirtualConsortium(
        sites,
        topology=topology,
        rounds=ROUNDS,
        closing_rounds=4,
        seed=seed,
        compute=ComputeModel(seconds=10.0),
        **options,
    )
    world.inject(Crash(AWAY, back_after=BACK_AFTER), InState(AWAY, State.TRAINING, round=AWAY_FROM, after=3.0))
    world.inject(Crash(DEAD, back_after=None), InState(DEAD, State.TRAINING, round=DEAD_FROM, after=3.0))
    world.begin()
    return world


def returned(world: VirtualConsortium) -> dict[str, Any]:
    """What the site wrote down when it had taken states."""
    assert world.run(lambda: bool(world.entries(AWAY, "caught_up")), limit_seconds=3000.0)
    (body,) = world.entries(AWAY, "caught_up")
    return dict(body)


def of_dead(world: VirtualConsortium, body: dict[str, Any]) -> list[list[Any]]:
    return [row for row in body["states"] if row[0] == world.peers[DEAD]]


@pytest.mark.parametrize("topology", TOPOLOGIES, ids=NAMES)
@pytest.mark.parametrize("content_bytes", [0, 200_000], ids=["inline", "pulled"])
def test_a_neighbour_that_died_meanwhile_is_stood_in_for(topology: Any, content_bytes: int) -> None:
    world = consortium(topology, content_bytes=content_bytes)
    body = returned(world)
    (row,) = of_dead(world, body)
    assert row[4] not in (world.peers[DEAD], world.peers[AWAY]), "from another holder"
    signed = [core.round for core in world.cores(DEAD)]
    assert row[2] == max(signed) == DEAD_FROM - 1, "the state of its last round"
    sent = {entry["core"]: entry["to"] for entry in world.entries(DEAD, "delta_sent")}
    assert world.peers[AWAY] in sent[row[3]]
    holder = world.numbers[row[4]]
    offered = [entry for entry in world.entries(holder, "state_offered") if entry["core"] == row[3]]
    assert [(entry["peer"], entry["origin"]) for entry in offered] == [(world.peers[AWAY], world.peers[DEAD])]
    assert all(other[4] == other[0] for other in body["states"] if other[0] != world.peers[DEAD]), "by themselves"
    assert world.run(lambda: all(world.sites[number].result for number in range(len(world.sites)) if number != DEAD))
    share = world.machines[0].context.running.shares[world.peers[AWAY]]
    assert body["moved"] == pytest.approx(share * float(np.linalg.norm(jumps(world, AWAY))), rel=1e-12)
    assert world.contradictions() == [] and not any(
        world.entries(number, "refused") for number in range(len(world.sites))
    )
