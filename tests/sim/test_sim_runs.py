"""Whole undisturbed runs, and that a run is the same run when it is repeated."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from bottle import QUADRATIC_PLAN, Quadratic

from p2pfl.gossip import State
from p2pfl.sim import At, Crash, LinkModel, Loss, Pause, StubTraining, VirtualConsortium
from p2pfl.train.session import Session

TWO_CLUSTERS = {"kind": "hierarchical", "clusters": 2}


def finished(world: VirtualConsortium, seconds: float = 1000.0) -> VirtualConsortium:
    world.begin()
    assert world.run(world.done, limit_seconds=seconds), world.states()
    assert world.run()
    return world


@pytest.mark.parametrize("topology", ["ring", "full", TWO_CLUSTERS])
@pytest.mark.parametrize("links", [LinkModel(), LinkModel(latency=0.05, jitter=0.05, bandwidth=20_000.0)])
def test_an_undisturbed_run_ends_settled_and_conserved(topology: object, links: LinkModel) -> None:
    world = finished(VirtualConsortium(6, topology=topology, rounds=6, closing_rounds=2, links=links))  # type: ignore[arg-type]
    assert set(world.states()) == {State.DONE}
    assert all(machine.closing.complete and machine.rounds.rounds_done == 8 for machine in world.machines)
    assert world.settled()
    assert world.imbalance() < 1e-12
    assert not world.contradictions() and not world.refused
    assert [site.problems for site in world.sites] == [[]] * 6
    assert all(not site.disk.contents for site in world.sites), "everything acknowledged is released"
    for site in world.sites:
        assert isinstance(site.result, StubTraining) and site.result.pending == 0
        assert sorted(site.result.displacements) == list(range(6))


def test_imbalance_sees_an_edge_that_only_one_end_counted() -> None:
    world = finished(VirtualConsortium(4, rounds=3))
    result = world.sites[2].result
    assert isinstance(result, StubTraining)
    result._x = result.vector + 1e-6
    assert world.imbalance() > 1e-7


def test_the_slowest_uplink_sets_the_pace_of_large_deltas() -> None:
    """1 MB to two neighbours at 1 MB/s takes two seconds a round; without limit the round costs its training."""
    quick = finished(VirtualConsortium(4, rounds=4, content_bytes=1_000_000))
    slow = finished(VirtualConsortium(4, rounds=4, content_bytes=1_000_000, links=LinkModel(bandwidth=1e6)))
    assert quick.settled() and slow.settled()
    assert slow.network.counters["sent"] >= quick.network.counters["sent"] - 50
    ends = [ended(VirtualConsortium(4, rounds=4, content_bytes=1_000_000, links=links)) for links in (
        LinkModel(), LinkModel(bandwidth=1e6))]  # fmt: skip
    assert 4 * 1.9 < ends[1] - ends[0] < 4 * 2.1 + 1.0


def ended(world: VirtualConsortium) -> float:
    world.begin()
    assert world.run(world.done)
    return world.now


def disturbed(seed: int) -> VirtualConsortium:
    world = VirtualConsortium(5, rounds=4, seed=seed, links=LinkModel(jitter=0.03, bandwidth=50_000.0))
    world.inject(Loss(0.05, seconds=3.0), At(2.0))
    world.inject(Crash(1, back_after=2.0), At(3.5))
    world.inject(Pause(3, 4.0), At(4.0))
    return finished(world)


def test_the_same_seed_is_the_same_run_and_another_one_is_not() -> None:
    first = disturbed(7).trace
    assert disturbed(7).trace.digest() == first.digest()
    assert first.items > 500
    assert disturbed(8).trace.digest() != first.digest()


@pytest.mark.slow
def test_a_run_does_not_depend_on_the_hash_seed_of_the_process() -> None:
    code = "import test_sim_runs; print(test_sim_runs.disturbed(7).trace.digest())"
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1]), *sys.path])
    digests = {
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": paths},
            capture_output=True, text=True, check=True,
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert digests == {disturbed(7).trace.digest() + "\n"}


def test_who_does_not_approve_takes_no_part() -> None:
    world = VirtualConsortium(5, rounds=2)
    world.begin(approving=[0, 1, 2, 4])
    assert world.run(world.done, limit_seconds=500)
    world.run()
    assert world.machines[0].context.running.shares.keys() == {world.peers[number] for number in (0, 1, 2, 4)}
    assert world.settled()
    assert not world.cores(3)


def test_a_graph_that_the_shares_do_not_go_with_is_given_up_at_once() -> None:
    """Only the approvals tell the shares; all have approved, so nobody waits for the proposer's patience to end."""
    world = VirtualConsortium(4, topology={"kind": "base", "k": 1}, rounds=6, samples=[10, 20, 30, 40], patience=3600.0)
    world.begin()
    world.run(
        lambda: world.sites[0].machine is not None and world.sites[0].machine.state is State.DONE, limit_seconds=9
    )
    reason = world.machines[0].context.away_for_good
    assert reason is not None and "only if all sites count alike" in reason
    assert finished(VirtualConsortium(4, topology={"kind": "base", "k": 1}, rounds=6, samples=[7] * 4)).settled()


def test_links_along_the_graph_alone_are_enough() -> None:
    world = finished(VirtualConsortium(6, rounds=3, linked="graph"))
    assert world.settled()
    assert world.network.linked(0) == [1, 5]


def test_real_signatures_seals_and_audit_logs(tmp_path: Path) -> None:
    world = VirtualConsortium(3, rounds=2, signatures="real", folder=tmp_path, audited=True)
    world.inject(Crash(1, back_after=1.0), At(2.5))
    finished(world)
    checks = world.verify_logs()
    world.close()
    assert [check.ok for check in checks] == [True] * 3, checks
    assert [check.entries for check in checks] == [1 + len(site.disk.entries) for site in world.sites]


def test_real_sessions_reach_what_they_reach_in_the_bottle(tmp_path: Path) -> None:
    quadratic = Quadratic.make((40, 30, 20, 10))
    files = quadratic.write(tmp_path)
    settings = {
        "rule": "kgt", "optimiser": {"name": "sgd"}, "learning_rate": 0.1, "local_steps": 4, "batch_size": 1000,
        "dtype": "float64",
    }  # fmt: skip

    def trainer(number: int) -> Session:
        session = Session(QUADRATIC_PLAN.encode(), settings)
        session.load_data(str(files[number]))
        return session

    world = VirtualConsortium(
        4, rounds=60, training=trainer, samples=(40, 30, 20, 10), local_steps=4, folder=tmp_path,
        topology="full",
    )  # fmt: skip
    finished(world)
    optimum = torch.from_numpy(quadratic.optimum)
    for site in world.sites:
        assert isinstance(site.result, Session)
        assert float((site.result.vector - optimum).abs().max()) < 1e-3


@pytest.mark.parametrize("topology", ["ring", TWO_CLUSTERS])
def test_closing_rounds_bring_all_within_what_the_record_states(topology: object) -> None:
    def disagreement(world: VirtualConsortium) -> float:
        shares = world.machines[0].context.running.shares
        vectors = {peer: world.site_of(peer).result.vector for peer in shares}  # type: ignore[union-attr]
        mean = sum(share * vectors[peer] for peer, share in shares.items())
        return float(sum(share * (vectors[peer] - mean).square().sum() for peer, share in shares.items())) ** 0.5

    def ran(closing: int, tolerance: float) -> VirtualConsortium:
        made = VirtualConsortium(6, topology=topology, rounds=6, closing_rounds=closing, tolerance=tolerance)  # type: ignore[arg-type]
        return finished(made)

    open_, closed = ran(0, 1e-9), ran(4, 10.0)
    stated = closed.machines[2].closing.agreement()
    assert 0 < stated["contraction"] < 0.5
    assert disagreement(closed) <= stated["contraction"] * disagreement(open_) * (1 + 1e-9)
    assert stated["within"] is True and closed.machines[2].closing.outcome() == "finished"
    said = open_.machines[2].closing.outcome() or ""
    assert said.startswith("finished; sites differ by") and said.endswith("more than the tolerance of 1e-09")
    for machine in closed.machines:
        assert machine.closing.agreement()["distance"] == max(
            statement.distance for statement in machine.closing.statements.values()
        )
