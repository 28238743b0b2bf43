"""A backup from the moment at which a run begins is put back: what was signed since is not signed again."""

from __future__ import annotations

import pytest

from p2pfl.gossip import State
from p2pfl.gossip.returning import Returning
from p2pfl.sim import Crash, InState, VirtualConsortium


def consortium(topology: str) -> VirtualConsortium:
    return VirtualConsortium(4, topology=topology, rounds=5, seed=438, signatures="real")


@pytest.mark.parametrize("topology", ["ring", "full"])
def test_no_round_is_signed_twice_whenever_the_backup_was_taken(topology: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each millisecond before the run's beginning is written down. On some, the disk alone says that it can begin."""
    world = consortium(topology)
    world.begin()
    world.run(lambda: bool(world.entries(0, "run_started")), limit_seconds=60.0)
    began = world.now
    world.close()
    waited = []
    wait = Returning.wait_for_words
    monkeypatch.setattr(Returning, "wait_for_words", lambda self: (waited.append(self.context.now), wait(self)))
    for milliseconds in range(14):
        world = consortium(topology)
        backup_at = began - milliseconds / 1000
        world.inject(Crash(0, 3.0, disk="backup", backup_at=backup_at), InState(0, State.COLLECTING, round=1))
        world.begin()
        assert world.run(world.done, limit_seconds=900.0), milliseconds
        for number in range(4):
            assert not world.entries(number, "equivocation"), (milliseconds, number)
            assert not world.entries(number, "refused"), (milliseconds, number)
        assert any("older than" in entry["reason"] for entry in world.entries(0, "absent")), milliseconds
        world.close()
    assert waited, "no backup was of the moment that this is about"
