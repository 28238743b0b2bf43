"""Asynchronous runs under the virtual clock: nobody is held by a slow site, nothing is lost, sums hold under faults."""

from __future__ import annotations

import itertools
import statistics
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import pytest
from matrix import FAULTS, FORGETFUL, HOSTILE, Case, Played, cases, play
from test_sim_matrix import WORKERS, _one_thread, told

from p2pfl.gossip import State
from p2pfl.gossip.messages import SETTLING_WINDOW
from p2pfl.gossip.statements import MAX_STALENESS
from p2pfl.sim import At, ComputeModel, Crash, InState, LinkModel, Loss, VirtualConsortium, training

ROUNDS = 40
SLOW = 3


def world_of(
    topology: str, staleness: int = 2, slow: float = 10.0, sites: int = 4, **options: object
) -> VirtualConsortium:
    options = {"rounds": ROUNDS, "closing_rounds": 2, "seed": 3, **options}
    compute = ComputeModel(factors={SLOW: slow})
    return VirtualConsortium(sites, topology=topology, staleness=staleness, compute=compute, **options)  # type: ignore[arg-type]


def ended(world: VirtualConsortium) -> VirtualConsortium:
    world.begin()
    assert world.run(world.done, limit_seconds=5000), world.states()
    world.run(limit_seconds=200_000)
    assert not world.contradictions()
    assert len({repr(machine.closing.record()) for machine in world.machines}) == 1
    assert not any(world.entries(number, "refused") for number in range(len(world.sites)))
    return world


def round_seconds(world: VirtualConsortium, number: int) -> float:
    """Mean seconds of the first 30 training rounds of a site."""
    times = [at for at, round_ in world.sites[number].round_times if round_ <= 30]
    return statistics.mean(later - earlier for earlier, later in itertools.pairwise(times))


def late(world: VirtualConsortium, number: int) -> int:
    return sum(len(edge) > 2 for body in world.entries(number, "mixed") for edge in body["edges"])


@pytest.mark.parametrize("topology", ["ring", "full"])
def test_a_site_ten_times_slower_holds_nobody_and_contributes(topology: str) -> None:
    alike, slow = ended(world_of(topology, slow=1.0)), ended(world_of(topology))
    for number in range(SLOW):
        assert round_seconds(slow, number) <= 1.05 * round_seconds(alike, number)
    record = slow.machines[0].closing.record()[slow.peers[SLOW]]
    assert record["finished"] and 3 <= record["rounds"] <= 5, "one message per training of its own"
    mixed = [body["edges"] for body in slow.entries(0, "mixed") if body["round"] < ROUNDS]
    assert sum(edge[0] == slow.peers[SLOW] for edges in mixed for edge in edges) >= 3
    own = [edge for body in slow.entries(SLOW, "mixed") if body["round"] < ROUNDS for edge in body["edges"]]
    assert len(own) >= 2 * (record["rounds"] - 1), "and it takes in what both neighbours send, but for the very last"
    for world in (alike, slow):
        assert world.settled()
        assert world.imbalance() < 1e-12
        assert all(machine.rounds.edges.biased == 0 for machine in world.machines)


def test_the_same_slow_site_does_hold_a_synchronous_run() -> None:
    """Or the test above would show nothing."""
    alike = ended(world_of("ring", staleness=0, slow=1.0, rounds=12))
    slow = ended(world_of("ring", staleness=0, rounds=12))
    assert round_seconds(slow, 0) > 2 * round_seconds(alike, 0)


@pytest.mark.parametrize("factors", [{2: 10.0, 3: 10.0}, {1: 0.1}, pytest.param({3: 60.0}, marks=pytest.mark.slow)])
def test_sites_of_any_speed_settle(factors: dict[int, float]) -> None:
    """Two slow neighbours on a ring; one much faster than all; one slower than the settling window is long."""
    rounds = 200 if 60.0 in factors.values() else 60
    world = VirtualConsortium(
        4, topology="ring", rounds=rounds, closing_rounds=2, staleness=2, seed=1, compute=ComputeModel(factors=factors)
    )
    ended(world)
    assert world.settled() and world.imbalance() < 1e-12
    record = world.machines[0].closing.record()
    assert all(record[peer]["rounds"] >= 2 for peer in world.peers)


def test_a_very_slow_site_keeps_only_what_it_can_still_mix() -> None:
    """A hundred rounds of two neighbours come in while it trains once; it refuses none of them, and holds few."""
    world = world_of("ring", slow=150.0, rounds=200)
    world.begin()
    world.run(lambda: world.machines[0].context.position[0] >= 100, limit_seconds=1000)
    slow = world.machines[SLOW]
    assert slow.context.position[0] == 0 and slow.state is State.TRAINING
    assert max(slow.deliveries.reached.values()) >= (99, 0)
    assert len(slow.deliveries.incoming) <= 2 * (MAX_STALENESS + 4)
    assert len(slow.deliveries.signed) <= 2 * (SETTLING_WINDOW + MAX_STALENESS + 4)
    assert not world.entries(SLOW, "refused")


def test_every_edge_is_mixed_once_and_within_the_own_newest_rounds() -> None:
    world = ended(world_of("full", staleness=1))
    assert sum(late(world, number) for number in range(4)) > 20, "or nothing was late"
    for number in range(4):
        sent = sorted({core.round for core in world.cores(number)})
        seen: set[tuple[str, int]] = set()
        for body in world.entries(number, "mixed"):
            for peer, weight, *place in body["edges"]:
                round_ = place[0] if place else body["round"]
                assert (peer, round_) not in seen
                seen.add((peer, round_))
                assert sent.index(body["round"]) - sent.index(round_) <= 1
                scheduled = dict(world.machines[number].context.neighbours((round_, 0)))
                assert weight == scheduled[peer]
        received = {(body["peer"], body["round"]) for body in world.entries(number, "delta_received")}
        assert received == seen, "each delta is on record under the round it is of"


@pytest.mark.slow
def test_loss_and_kills_leave_the_weighted_mean_as_it_was() -> None:
    """10 % of all messages are lost from the first second on, and two sites are killed in the middle."""
    taken_back = 0
    for seed in range(6):
        world = world_of("ring", slow=4.0, seed=seed)
        world.inject(Loss(0.1, seconds=15.0), At(1.0))
        world.inject(Crash(1, back_after=2.0), InState(1, State.TRAINING, round=9))
        world.inject(Crash(SLOW, back_after=3.0), InState(SLOW, State.TRAINING, round=0, after=2.0))
        ended(world)
        if world.settled():
            assert world.imbalance() < 1e-12
            taken_back += sum(len(body["taken_back"]) for site in range(4) for body in world.entries(site, "mixed"))
    assert taken_back > 20, "losses must have happened in settled runs, or this test shows nothing"


@pytest.mark.parametrize("state", [State.TRAINING, State.ANNOUNCING, State.MIXING])
def test_a_restarted_worker_has_the_bits_it_had(state: State) -> None:
    world = world_of("ring", slow=1.0)
    world.inject(Crash(1, back_after=1.0), InState(1, state, round=11))
    world.begin()
    world.run(lambda: bool(world.triggers.struck))
    site = world.sites[1]
    name = site.disk.newest_state()
    assert name is not None
    _, saved = site.disk.checkpoints[name]
    world.run(lambda: site.alive and site.begun)
    trainer = site.trainer
    assert isinstance(trainer, training.StubTraining)
    assert trainer.save_bytes() == saved
    assert len(trainer._exchange.past) == 3, "with the own messages that late edges are mixed against"
    world.run(world.done, limit_seconds=5000)
    world.run(limit_seconds=200_000)
    assert not world.contradictions()
    assert world.settled() and world.imbalance() < 1e-12


def chosen() -> list[Case]:
    """Two of three pairs of fault and state, on one graph each, taking turns; every fault and every state is there."""
    every = [case for case in cases(range(300, 301)) if case.topology != "hierarchical"]
    return [case for number, case in enumerate(every) if number % 3 == 0]


@pytest.mark.slow
def test_every_fault_in_every_state_with_staleness_2() -> None:
    with ProcessPoolExecutor(WORKERS, initializer=_one_thread) as pool:
        results: list[Played] = list(pool.map(partial(play, staleness=2), chosen(), chunksize=8))
    assert not any(result.problems for result in results), told(results)
    struck = {(result.case.fault, result.case.state) for result in results if result.struck}
    assert {fault for fault, _ in struck} == set(FAULTS), "every fault must have struck"
    assert {state for _, state in struck} >= set(State) - {State.COLLECTING}, "nobody collects but in closing rounds"
    checked = [result for result in results if result.settled and result.case.fault not in HOSTILE | FORGETFUL]
    assert len(checked) > len(results) / 2, "or the conserved sums hold for want of a case"


def test_content_that_is_pulled_slowly_is_mixed_late_not_lost() -> None:
    """Pulling a delta for both neighbours takes most of a training, or twice its time: later rounds mix it."""
    for bandwidth, share in ((12e6, 0.7), (5e6, 0.15)):
        world = world_of("ring", slow=1.0, links=LinkModel(bandwidth=bandwidth), content_bytes=5_000_000)
        ended(world)
        assert world.settled() and world.imbalance() < 1e-12
        assert sum(late(world, number) for number in range(4)) > share * 8 * ROUNDS, "of 8 directed edges per round"
