"""A backup from the moment at which a run begins is put back: what was signed since is not signed again."""

from __future__ import annotations

import pytest

from p2pfl.gossip import State, events
from p2pfl.gossip.machine import Machine
from p2pfl.gossip.returning import Returning
from p2pfl.sim import At, Crash, InState, OneWayCut, VirtualConsortium


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


def begins_at(topology: str) -> float:
    """When site 0 has written down that the run begins, if nothing happens to anybody."""
    world = consortium(topology)
    world.begin()
    world.run(lambda: bool(world.entries(0, "run_started")), limit_seconds=60.0)
    began = world.now
    world.close()
    return began


def nobody_contradicts(world: VirtualConsortium) -> bool:
    return not any(world.entries(number, kind) for number in range(4) for kind in ("equivocation", "refused"))


@pytest.mark.parametrize("late", [(1, 3), (3,)], ids=str)
def test_neighbours_that_are_linked_after_others_are_waited_for(
    late: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A link to anybody lets the restored site's run begin, by what that member has; the neighbours come 5 s later."""
    began = begins_at("ring")
    waited = []
    wait = Returning.wait_for_words
    monkeypatch.setattr(Returning, "wait_for_words", lambda self: (waited.append(self.context.now), wait(self)))
    for milliseconds in range(14):
        world = consortium("ring")
        put_back = InState(0, State.COLLECTING, round=1)
        world.inject(Crash(0, 3.0, disk="backup", backup_at=began - milliseconds / 1000), put_back)
        for other in late:
            for source, target in ((0, other), (other, 0)):
                world.inject(OneWayCut(source, target, heal_after=7.0), put_back)
        world.begin()
        assert world.run(world.done, limit_seconds=900.0), milliseconds
        assert nobody_contradicts(world), milliseconds
        world.close()
    assert waited, "no backup was of the moment that this is about"


def test_what_one_neighbour_told_before_the_run_began_here_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other neighbour has not told yet, and all links end while the beginning of the run is being committed."""
    began = begins_at("ring")
    world = consortium("ring")
    begin = Machine._begin
    seen: list[tuple[bool, tuple[int, int] | None]] = []

    def beginning(machine: Machine) -> None:
        second = machine.context.me == world.peers[0] and world.now > began + 1.0
        if second:
            assert set(machine.hearing.early_standings) == set(world.peers[1:])
            del machine.hearing.early_standings[world.peers[3]]
            for peer in world.peers[1:]:
                machine._link_down(events.LinkDown(world.now, peer, "gone"))
        begin(machine)
        if second:
            seen.append((machine.returning.stage == "begun", machine.returning.behind))

    monkeypatch.setattr(Machine, "_begin", beginning)
    world.inject(Crash(0, 3.0, disk="backup", backup_at=began - 0.006), InState(0, State.COLLECTING, round=1))
    world.begin()
    assert world.run(lambda: bool(seen), limit_seconds=60.0)
    ((waits, behind),) = seen
    assert waits and behind == (0, 0), "what was told is known, the other word is waited for"
    assert world.run(world.done, limit_seconds=900.0) and nobody_contradicts(world)
    world.close()


def test_an_ordinary_restart_before_the_run_begins_costs_no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Links are up before anybody's run begins, so nobody tells its word by itself; whoever is asked answers."""
    waited = []
    wait = Returning.wait_for_words
    monkeypatch.setattr(Returning, "wait_for_words", lambda self: (waited.append(self.context.me), wait(self)))
    world = consortium("ring")
    world.inject(Crash(0, 0.1), At(0.1))
    world.begin()
    assert world.run(world.done, limit_seconds=900.0) and nobody_contradicts(world)
    assert waited == [world.peers[0]], "the others have only just started"
    first = [site.round_times[0] for site in world.sites]
    assert {round_ for _, round_ in first} == {0} and max(time for time, _ in first) - min(first)[0] < 1.0
    world.close()
