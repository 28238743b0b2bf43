"""Heartbeats: heard again at once after any restart, bounded in the work they make, and what too few mean for good."""

from __future__ import annotations

import pytest

from p2pfl.gossip import State
from p2pfl.gossip.presence import BEAT
from p2pfl.sim import ComputeModel, Crash, VirtualConsortium


@pytest.mark.parametrize("kills", [2, 3])
def test_after_kills_without_a_commit_between_them_the_first_heartbeat_counts(kills: int) -> None:
    """One round trains for minutes: nothing but the restarts themselves is stored while the peer is killed again."""
    world = VirtualConsortium(4, rounds=3, seed=2, deadline=600.0, compute=ComputeModel(seconds=200.0))
    world.begin()
    assert world.run(lambda: set(world.states()) == {State.TRAINING}, limit_seconds=60.0)
    world.run(limit_seconds=2 * BEAT)
    heard = world.machines[0].presence.heard
    for _ in range(kills):
        Crash(2, back_after=1.0).strike(world)
        before = heard[world.peers[2]].count
        world.run(limit_seconds=1.0 + 1.0 + BEAT + 1.0)  # down, until the links are up, the first heartbeat, its way
        assert heard[world.peers[2]].count > before
        world.run(limit_seconds=8 * BEAT)
    assert world.run(world.done, limit_seconds=3600.0)
    assert all(machine.closing.statement.finished for machine in world.machines)
    assert world.contradictions() == []
