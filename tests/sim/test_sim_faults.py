"""Each kind of fault really happens, and each hostile member is noticed."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from p2pfl.gossip import State
from p2pfl.sim import (
    At,
    ClockSkew,
    Crash,
    Duplicate,
    Equivocate,
    FailTraining,
    Fault,
    FullDisk,
    InState,
    Leave,
    LieAboutEdges,
    LinkModel,
    Loss,
    OneWayCut,
    Partition,
    Pause,
    Reorder,
    Replay,
    SlowSite,
    UserPause,
    VirtualConsortium,
    Withhold,
)
from p2pfl.sim.members import Member

ROUNDS = 6


def world_with(*faults: tuple[Fault, At | InState], sites: int = 4, **options: object) -> VirtualConsortium:
    world = VirtualConsortium(sites, **{"rounds": ROUNDS, **options})  # type: ignore[arg-type]
    for fault, when in faults:
        world.inject(fault, when)
    world.begin()
    return world


def ended(world: VirtualConsortium) -> VirtualConsortium:
    assert world.run(world.done, limit_seconds=2000), world.states()
    world.run(limit_seconds=2000)
    assert not world.contradictions()
    return world


def told(world: VirtualConsortium, number: int, topic: str) -> list[object]:
    return [facts for name, facts in world.sites[number].told if name == topic]


def losses(world: VirtualConsortium, number: int) -> list[str]:
    return [str(body["reason"]) for body in world.entries(number, "absent") if body.get("peer")]


def test_a_killed_process_is_missed_by_its_neighbours_within_a_second() -> None:
    world = world_with((Crash(3), InState(3, State.COLLECTING, round=2)))
    world.run(lambda: bool(world.triggers.struck))
    crash = world.now
    world.run(lambda: bool(told(world, 2, "missing")))
    assert world.now - crash == pytest.approx(0.2)
    ended(world)
    assert world.sites[3].finished and not world.sites[3].alive
    assert any("closed" in reason for reason in losses(world, 0))


def test_what_was_not_durable_is_gone_after_a_crash() -> None:
    """A commit takes 5 ms; a crash 2 ms into it leaves nothing of it on the disk, one after it everything."""
    for after, sent in ((0.002, 0), (0.008, 1)):
        world = world_with((Crash(1, back_after=1.0), InState(1, State.ANNOUNCING, round=0, after=after)))
        world.run(lambda world=world: bool(world.triggers.struck))
        assert len(world.entries(1, "delta_sent")) == sent
        ended(world)


def test_a_restarted_process_reads_its_disk() -> None:
    world = world_with((Crash(1, back_after=2.0), InState(1, State.COLLECTING, round=2)))
    ended(world)
    assert world.sites[1].alive
    assert world.sites[1].life == 3, "first process, its end, second process"
    assert len(world.entries(1, "run_started")) == 1
    assert world.machines[1].state is State.DONE


@pytest.mark.parametrize("disk", ["lost", "backup"])
def test_a_lost_disk_or_a_backup_is_what_the_process_comes_back_with(disk: str) -> None:
    backup_at = 3.0 if disk == "backup" else None
    world = world_with((Crash(2, 1.0, disk, backup_at), InState(2, State.TRAINING, round=4)))  # type: ignore[arg-type]
    if backup_at:
        world.run(lambda: world.now > backup_at)
        size = len(world.sites[2].disk.entries)
        assert size > 3
    world.run(lambda: bool(world.triggers.struck))
    assert len(world.sites[2].disk.entries) == (size if backup_at else 0)
    ended(world)


def test_a_stopped_process_is_late_and_handles_everything_when_it_goes_on() -> None:
    world = world_with((Pause(1, 5.0), InState(1, State.COLLECTING, round=2)))
    world.run(lambda: bool(world.triggers.struck))
    start, items = world.now, len(world.sites[1].told)
    world.run(limit_seconds=4.9)
    assert len(world.sites[1].told) == items and world.sites[1].frozen
    ended(world)
    assert not any("silent" in reason for number in range(4) for reason in losses(world, number))
    assert world.now > start + 5.0


def test_a_long_stop_costs_the_links() -> None:
    world = world_with((Pause(1, 30.0), InState(1, State.TRAINING, round=2)))
    ended(world)
    for number in (0, 2):
        assert told(world, number, "missing")
    assert world.network.linked(1) == [0, 2, 3], "they came back"


def test_timers_due_during_a_stop_fire_on_waking() -> None:
    world = world_with((Pause(2, 12.0), At(3.3)), deadline=6.0)
    ended(world)
    assert told(world, 1, "missing")


def test_a_partition_cuts_the_groups_and_heals() -> None:
    world = world_with((Partition(((0, 1), (2, 3)), heal_after=40.0), At(3.0)), rounds=60)
    world.run(lambda: world.now > 20.0)
    assert world.network.linked(0) == [1] and world.network.linked(3) == [2]
    world.run(lambda: world.now > 45.0)
    assert world.network.linked(0) == [1, 2, 3]
    ended(world)
    assert any("silent" in reason for reason in losses(world, 0))


def test_a_one_way_cut_reaches_both_ends() -> None:
    world = world_with((OneWayCut(0, 1, heal_after=30.0), At(3.0)), rounds=60)
    world.run(lambda: world.now > 19.0)
    assert 1 not in world.network.linked(0) and 0 not in world.network.linked(1)
    ended(world)
    assert world.network.linked(0) == [1, 2, 3]


def test_a_skewed_clock_moves_timers_and_nothing_else() -> None:
    """Site 0 never approves; the others' timer for that is 60 + 60 s, on a clock that runs double 60 s of ours."""
    ends = []
    for rate in (1.0, 2.0):
        world = VirtualConsortium(3, rounds=2)
        world.inject(ClockSkew(1, rate, offset=100.0), At(0.0))
        world.begin(approving=[])
        world.run(lambda world=world: bool(told(world, 1, "expired")))
        ends.append(world.now)
    assert ends == [pytest.approx(120.0 - 100.0), pytest.approx((120.0 - 100.0) / 2)]
    straight, skewed = world_with(), world_with((ClockSkew(1, 3.0, 50.0), At(2.0)))
    assert ended(skewed).settled() and ended(straight).settled()
    assert [m.rounds.digest for m in straight.machines] == [m.rounds.digest for m in skewed.machines]


def test_a_slow_site_takes_its_factor() -> None:
    def trained(*faults: tuple[Fault, At]) -> float:
        world = world_with(*faults)
        assert world.run(lambda: world.sites[2].state is State.TRAINING)
        start = world.now
        assert world.run(lambda: world.sites[2].state is State.ANNOUNCING)
        return world.now - start

    assert trained((SlowSite(2, 3.0), At(0.0))) == pytest.approx(3 * trained())


def test_a_full_disk_ends_the_process_and_it_comes_back_with_what_it_had() -> None:
    world = world_with((FullDisk(1, free_after=3.0), InState(1, State.TRAINING, round=2)))
    world.run(lambda: world.sites[1].failure is not None)
    size = len(world.sites[1].disk.entries)
    assert not world.sites[1].alive and "space" in str(world.sites[1].failure)
    world.run(lambda: world.sites[1].alive)
    assert len(world.sites[1].disk.entries) == size
    ended(world)


@pytest.mark.parametrize(
    ("fault", "counter"),
    [(Loss(0.2, 4.0), "lost"), (Duplicate(0.2, 4.0), "duplicated"), (Reorder(0.2, 4.0), "reordered")],
)
def test_noise_is_counted_and_ends(fault: Loss, counter: str) -> None:
    world = world_with((fault, At(2.0)), links=LinkModel(reorder_by=0.3))
    world.run(lambda: world.now > 6.5)
    count = world.network.counters[counter]
    assert count > 3
    ended(world)
    assert world.network.counters[counter] == count


def test_a_user_pauses_and_resumes() -> None:
    world = world_with((UserPause(1, 4.0), InState(1, State.TRAINING, round=2)))
    world.run(lambda: world.sites[1].state is State.PAUSED)
    ended(world)
    assert [possible for _, _, possible in world.commands] == [True, True]
    assert told(world, 1, "paused")


def test_training_fails_and_the_site_is_absent() -> None:
    world = world_with((FailTraining(1), At(3.0)))
    world.run(lambda: world.sites[1].state is State.ABSENT)
    ended(world)
    assert told(world, 1, "training failed")


def test_a_user_leaves() -> None:
    world = world_with((Leave(1), InState(1, State.TRAINING, round=2)))
    ended(world)
    assert world.machines[1].context.away_for_good == "left by the user"


REACHED_BY: dict[State, tuple[tuple[Fault, At], ...]] = {
    State.ABSENT: ((FailTraining(1), At(3.0)),),
    State.PAUSED: ((UserPause(1, 5.0), At(3.0)),),
    State.CATCHING_UP: ((Pause(1, 20.0), At(3.0)),),
}


@pytest.mark.parametrize("state", list(State))
def test_a_trigger_works_for_every_state(state: State) -> None:
    world = VirtualConsortium(4, rounds=12)
    for fault, when in REACHED_BY.get(state, ()):
        world.inject(fault, when)
    world.inject(Crash(1), InState(1, state))
    world.begin()
    assert world.run(lambda: any(isinstance(fault, Crash) for _, fault in world.triggers.struck), limit_seconds=200)
    assert world.sites[1].state is state and not world.sites[1].alive
    if state is not State.PROPOSING:
        ended(world)


def test_a_trigger_counts_entries_and_rounds() -> None:
    world = world_with((Crash(0), InState(0, State.TRAINING, count=3)), (Crash(2), InState(2, State.MIXING, round=4)))
    world.run(lambda: len(world.triggers.struck) == 2, limit_seconds=100)
    rounds = [world.machines[number].context.position[0] for number in (0, 2)]
    assert rounds == [2, 4]
    assert not world.triggers.waiting


# --- hostile members


def with_member(member: Member, check: Callable[[VirtualConsortium], bool], **options: object) -> VirtualConsortium:
    world = VirtualConsortium(4, **{"rounds": ROUNDS, **options})  # type: ignore[arg-type]
    world.corrupt(1, member)
    world.begin()
    assert world.run(world.done, limit_seconds=3000), world.states()
    assert check(world)
    return world


def test_an_equivocator_leaves_the_proof_with_those_who_hear_both() -> None:
    member = Equivocate(victims=[2], both=True)
    world = with_member(member, lambda world: bool(world.entries(2, "equivocation")))
    assert member.other_cores and not world.entries(0, "equivocation")
    evidence = next(row for row in world.sites[2].disk.entries if row.kind == "equivocation")
    assert [role for role, _ in evidence.documents] == ["evidence", "evidence"]
    assert evidence.body["peer"] == world.peers[1]


def test_two_truths_for_two_neighbours_are_both_taken_in() -> None:
    """Nobody hears both, so nobody can tell; the simulator can: the sum is off."""
    member = Equivocate(victims=[2])
    world = with_member(member, lambda world: world.imbalance() > 1e-3)
    received = {body["core"] for body in world.entries(2, "delta_received") if body["peer"] == world.peers[1]}
    assert received and received <= set(member.other_cores)


def test_who_is_silent_to_some_is_missed_by_those() -> None:
    world = with_member(Withhold(silent_to=[2]), lambda world: bool(losses(world, 2)), deadline=5.0)
    mixed = [body["edges"] for body in world.entries(2, "mixed")]
    assert not any(world.peers[1] in [peer for peer, _ in edges] for edges in mixed)
    assert any(world.peers[1] in [p for p, _ in body["edges"]] for body in world.entries(0, "mixed"))


def test_content_that_never_comes_is_not_waited_for_without_end() -> None:
    world = with_member(Withhold(no_content_for=[2]), lambda world: world.now < 2.0 + ROUNDS * 7.0, deadline=5.0)
    assert not any(body["peer"] == world.peers[1] for body in world.entries(2, "delta_received"))
    assert [row[:2] for row in world.entries(2, "run_closed")[0]["missing"]] == [[world.peers[1], 0]]


def test_replays_are_counted_and_change_nothing() -> None:
    member = Replay()
    world = with_member(member, lambda world: world.settled())
    assert member.replayed > 50
    assert world.imbalance() < 1e-12
    counters = [machine.context.counters for machine in world.machines]
    assert counters[0]["duplicate"] + counters[2]["duplicate"] > 5
    assert any(counter["refused"] for counter in counters), "others' announcements in its own name are refused"


def test_a_lie_about_edges_costs_the_liars_edges_only() -> None:
    member = LieAboutEdges(claim=False)
    world = with_member(member, lambda world: world.imbalance() > 1e-3)
    assert member.lies
    for number in (0, 2):
        taken = [peer for body in world.entries(number, "mixed") for peer, _, _ in body["taken_back"]]
        assert set(taken) == {world.peers[1]}
    assert not any(body["taken_back"] for body in world.entries(3, "mixed"))


@pytest.mark.parametrize("after", [0.0, 0.3, 0.9])
def test_a_pause_asked_for_in_mid_round_outlives_a_kill(after: float) -> None:
    world = VirtualConsortium(4, topology="ring", rounds=30)
    world.inject(UserPause(2, 12.0), InState(2, State.TRAINING, round=3))
    world.inject(Crash(2, back_after=1.0), InState(2, State.TRAINING, round=3, after=0.05 + after))
    world.begin()
    assert world.run(lambda: any(row.get("paused") for row in world.entries(2, "absent")), limit_seconds=60.0)
    assert world.states()[2] is State.PAUSED and world.triggers.struck and told(world, 2, "resumed")
    assert world.run(world.done, limit_seconds=600.0) and world.run()
    assert set(world.states()) == {State.DONE} and not world.contradictions()
    assert [row["round"] for row in world.entries(2, "pause_ended")], "its user let it go on"
    assert world.sites[2].running.rounds.finished == 29


def test_patience_for_approvals_does_not_begin_anew_with_each_restart() -> None:
    world = VirtualConsortium(4, topology="ring", rounds=4, patience=100.0)
    world.approving = (0, 1)
    for time in (20.0, 40.0, 60.0, 80.0):
        world.inject(Crash(0, back_after=1.0), At(time))
    world.begin()
    assert world.run(lambda: bool(world.entries(0, "run_started")), limit_seconds=150.0), "two of four are enough"
    assert 100.0 <= world.now <= 145.0
