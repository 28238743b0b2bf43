"""Heartbeats: heard again at once after any restart, bounded in the work they make, and what too few mean for good."""

from __future__ import annotations

import pytest

from p2pfl.crypto import sign_envelope
from p2pfl.gossip import State, events
from p2pfl.gossip.beat_rate import BURST, RATE, BeatRate
from p2pfl.gossip.heartbeat import Heartbeat
from p2pfl.gossip.presence import BEAT
from p2pfl.sim import ComputeModel, Crash, InState, Leave, Pause, VirtualConsortium

DAY = 24 * 3600.0


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


def test_when_too_few_are_left_for_good_the_rest_close_at_once() -> None:
    world = VirtualConsortium(4, rounds=8, seed=1, minimum_contributors=3)
    for number in (1, 3):
        world.inject(Leave(number), InState(number, State.TRAINING, round=3))
    world.begin()
    assert world.run(world.done, limit_seconds=120.0), "nobody waits a week for those who will not come back"
    for number in (0, 2):
        machine = world.machines[number]
        assert machine.context.away_for_good == (
            "only 2 of the 3 contributors that the charter asks for still take part in the run"
        )
        assert not machine.closing.statement.finished
        assert machine.rounds.rounds_done >= 3, "what was done until then is on the record"


def test_one_more_that_leaves_ends_a_pause_that_waited_for_another() -> None:
    world = VirtualConsortium(4, rounds=8, seed=1, minimum_contributors=4)
    world.inject(Pause(1, 2 * DAY), InState(1, State.TRAINING, round=3))
    world.begin()
    rest = (0, 2, 3)
    assert world.run(lambda: all(world.states()[number] is State.PAUSED for number in rest), limit_seconds=300.0)
    world.run(limit_seconds=10 * BEAT)
    assert {world.states()[number] for number in rest} == {State.PAUSED}, "the fourth may still come back"
    Leave(3).strike(world)
    assert world.run(lambda: all(world.states()[number] is State.DONE for number in rest), limit_seconds=2 * BEAT)
    assert "3 of the 4 contributors" in str(world.machines[0].context.away_for_good)


def test_a_pause_ends_well_when_those_who_stay_are_enough() -> None:
    world = VirtualConsortium(5, rounds=8, seed=1, minimum_contributors=4)
    world.inject(Leave(4), InState(4, State.TRAINING, round=2))
    world.inject(Pause(1, 60.0), InState(1, State.TRAINING, round=3))
    world.begin()
    assert world.run(lambda: State.PAUSED in world.states(), limit_seconds=300.0)
    assert world.run(world.done, limit_seconds=600.0)
    assert [machine.closing.statement.finished for machine in world.machines] == [True] * 4 + [False]


def test_heartbeats_that_come_too_fast_are_not_even_verified() -> None:
    world = VirtualConsortium(4, rounds=8, seed=1)
    world.begin()
    assert world.run(lambda: world.machines[0].context.position[0] == 2, limit_seconds=60.0)
    machine, sender = world.machines[0], world.sites[1]
    verified = []
    verify = machine.context.verify
    machine.context.verify = lambda *arguments: (verified.append(1), verify(*arguments))[1]  # type: ignore[func-returns-value]
    beats = [
        sign_envelope(sender.identity, "heartbeat", Heartbeat(world.proposal.run, 100 + n, (2, 0), True, ()).encode())
        for n in range(500)
    ]
    now = world.sites[0].now
    for beat in beats:
        machine.handle(events.StatementReceived(now, sender.peer_id, beat.encode()))
    assert 0 < len(verified) <= BURST
    assert machine.context.counters["heartbeats too often"] >= 500 - BURST
    assert machine.presence.heard[sender.peer_id].count < 100 + BURST
    assert world.run(world.done, limit_seconds=300.0), "and it costs nobody anything"
    assert not world.entries(0, "refused") and all(machine.closing.statement.finished for machine in world.machines)


def test_the_allowance_is_one_for_each_signer_and_link() -> None:
    world = VirtualConsortium(3, seed=1)
    a, b, c = world.sites

    def beat(of: object) -> bytes:
        identity = getattr(of, "identity")  # noqa: B009
        return sign_envelope(identity, "heartbeat", b"payload").encode()

    rate = BeatRate(signers=2)
    assert [rate.exceeded(a.peer_id, beat(b), 10.0) for _ in range(int(BURST) + 2)] == [False] * int(BURST) + [True] * 2
    assert not rate.exceeded(c.peer_id, beat(b), 10.0), "another link may still bring them"
    assert not rate.exceeded(a.peer_id, beat(a), 10.0), "and this link another member's"
    assert rate.exceeded(a.peer_id, beat(c), 10.0), "but not those of more signers than there are members"
    assert not rate.exceeded(a.peer_id, beat(b), 10.0 + 1.0 / RATE)
    assert rate.exceeded(a.peer_id, beat(b), 10.0 + 1.0 / RATE)
    assert not rate.exceeded(a.peer_id, beat(b), 5.0 + 100.0), "after a pause there is a burst again, no more"
    assert not any(rate.exceeded(a.peer_id, data, 10.0) for data in (b"", b"rubbish", beat(b)[:-1]) for _ in range(50))
    closing = sign_envelope(b.identity, "closing", b"payload").encode()
    assert not any(rate.exceeded(a.peer_id, closing, 10.0) for _ in range(50)), "other kinds are bounded elsewhere"
