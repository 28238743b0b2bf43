"""Whole runs of joined machines, without sleeps: start, rounds, absences, closing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from bottle import QUADRATIC_PLAN, Bottle, Quadratic

from p2pfl.crypto import pack, sha256, sign_envelope, unpack
from p2pfl.gossip import State, effects, events, readable_state
from p2pfl.gossip.direct import Standing
from p2pfl.gossip.messages import open_core
from p2pfl.types import RunId

SIZES = (40, 30, 20, 10)


def settings(rule: str, steps: int = 1, rate: float = 0.2) -> dict[str, object]:
    return {
        "rule": rule, "optimiser": {"name": "sgd"}, "learning_rate": rate, "local_steps": steps,
        "batch_size": 1000, "dtype": "float64",
    }  # fmt: skip


def bottle(folder: Path, rule: str = "dpsgd", steps: int = 1, rate: float = 0.2, **options: object) -> Bottle:
    quadratic = Quadratic.make(SIZES)
    return Bottle(quadratic.write(folder), QUADRATIC_PLAN, settings(rule, steps, rate), **options)  # type: ignore[arg-type]


def error(world: Bottle) -> float:
    optimum = Quadratic.make(SIZES).optimum
    return max(
        float(np.abs(site.session.vector.numpy() - optimum).max()) for site in world.sites.values() if not site.dead
    )


def test_four_machines_run_to_the_end(tmp_path: Path) -> None:
    world = bottle(tmp_path, rounds=5, closing_rounds=2)
    world.begin()
    world.run()
    assert world.done()
    for site in world.sites.values():
        assert site.machine and site.machine.closing.complete
        assert site.machine.rounds.rounds_done == 7
        assert site.machine.rounds.edges.biased == 0
        assert not site.machine.context.missing
        assert site.kinds().count("delta_sent") == 7
        assert not site.outbox, "everything acknowledged is released"
    distinct = {site.session.digest() for site in world.sites.values()}
    assert len(distinct) == 4  # a ring does not reach exact consensus in 7 rounds


@pytest.mark.parametrize(
    ("rule", "steps", "topology", "rate", "rounds"),
    [
        pytest.param("kgt", 4, "ring", 0.1, 400, marks=pytest.mark.slow),
        pytest.param("kgt", 4, "full", 0.1, 300, marks=pytest.mark.slow),
        ("dpsgd", 1, "full", 0.5, 150),
        pytest.param("relaysgd", 1, "chain", 0.3, 250, marks=pytest.mark.slow),
        pytest.param("relaysgd", 1, "star", 0.3, 250, marks=pytest.mark.slow),
    ],
)
def test_weighted_optimum_is_reached_to_1e_12(
    tmp_path: Path, rule: str, steps: int, topology: str, rate: float, rounds: int
) -> None:
    world = bottle(tmp_path, rule, steps, rate, topology={"kind": topology}, rounds=rounds)
    world.begin()
    world.run()
    assert world.done()
    assert error(world) < 1e-12


def test_the_full_graph_gives_everybody_the_same_bits(tmp_path: Path) -> None:
    """Full graph: w_ij = pi_j, but each site sums in its own order: equal up to rounding, not more."""
    world = bottle(tmp_path, topology={"kind": "full"}, rounds=4)
    world.begin()
    world.run()
    vectors = [site.session.vector.numpy() for site in world.sites.values()]
    for vector in vectors[1:]:
        np.testing.assert_allclose(vector, vectors[0], rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("rule", "share_lost", "seed", "rounds"),
    [
        pytest.param("kgt", 0.05, 0, 300, marks=pytest.mark.slow),
        pytest.param("kgt", 0.05, 1, 300, marks=pytest.mark.slow),
        pytest.param("kgt", 0.15, 1, 400, marks=pytest.mark.slow),
        pytest.param("kgt", 0.3, 0, 800, marks=pytest.mark.slow),
        pytest.param("exact_diffusion", 0.05, 0, 500, marks=pytest.mark.slow),
        pytest.param("gradient_tracking", 0.05, 0, 500, marks=pytest.mark.slow),
    ],
)
def test_corrections_survive_lost_messages(
    tmp_path: Path, rule: str, share_lost: float, seed: int, rounds: int
) -> None:
    """5 % of all messages, lists included, is the claim; 30 % leaves many one-sided rounds to settle."""
    rng = np.random.default_rng(seed)
    started: list[bool] = []

    def lost(kind: str, source: object, target: object, data: object) -> bool:
        return bool(started) and kind != "flood" and rng.random() < share_lost

    steps, rate = (4, 0.1) if rule == "kgt" else (1, 0.2)
    world = bottle(tmp_path, rule, steps, rate, rounds=rounds, lost=lost, deadline=3.0)
    world.begin()
    world.run(lambda: all(site.machine and site.machine.state is not State.PROPOSING for site in world.sites.values()))
    started.append(True)
    world.run()
    assert world.done()
    taken_back = sum(len(entry["taken_back"]) for site in world.sites.values() for entry in site.entries("mixed"))
    assert taken_back > (20 if share_lost > 0.1 else 0), "losses must have happened, or this test shows nothing"
    assert error(world) < 1e-10
    shares = world.machine(0).context.running.shares
    states = {peer: site.session.state for peer, site in world.sites.items()}
    each = {peer: s["tracked"] - s["gradient"] if "tracked" in s else s["correction"] for peer, s in states.items()}
    assert np.abs(sum(shares[peer] * each[peer].numpy() for peer in each)).max() < 1e-12


@pytest.mark.parametrize(("share_lost", "seed"), [(0.05, 0), pytest.param(0.05, 1, marks=pytest.mark.slow)])
def test_relaysgd_survives_lost_messages(tmp_path: Path, share_lost: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    started: list[bool] = []

    def lost(kind: str, source: object, target: object, data: object) -> bool:
        return bool(started) and kind != "flood" and rng.random() < share_lost

    world = bottle(tmp_path, "relaysgd", 1, 0.3, topology={"kind": "chain"}, rounds=300, lost=lost, deadline=3.0)
    world.begin()
    world.run(lambda: all(site.machine and site.machine.state is not State.PROPOSING for site in world.sites.values()))
    started.append(True)
    world.run()
    assert world.done()
    mixed = [len(entry["edges"]) for site in world.sites.values() for entry in site.entries("mixed")]
    assert sum(mixed) < 300 * 6, "losses must have happened, or this test shows nothing"
    assert error(world) < 1e-12


def test_relaysgd_goes_on_without_a_killed_site(tmp_path: Path) -> None:
    """What was taken in of it counts 16 rounds more; then each of the others fills its share with the own model."""
    world = bottle(tmp_path, "relaysgd", 1, 0.3, topology={"kind": "star"}, rounds=40, deadline=3.0)
    world.begin()
    world.run(lambda: all(site.machine and site.machine.rounds.rounds_done >= 5 for site in world.sites.values()))
    schedule = world.machine(0).context.running_schedule
    leaf = next(peer for peer in schedule.nodes if schedule.graph.degree(peer) == 1)
    world.kill(world.order.index(leaf))
    world.run(world.done)
    shares = world.machine(world.order.index(schedule.nodes[0])).context.running.shares
    for peer, site in world.sites.items():
        if peer != leaf:
            assert site.machine is not None
            assert site.machine.rounds.rounds_done == 40
            counted = float(site.session.state["relay"][-1])
            assert counted == pytest.approx(1.0 - shares[peer] - shares[leaf], abs=1e-12)


def test_a_killed_site_costs_the_others_its_data_not_their_run(tmp_path: Path) -> None:
    world = bottle(tmp_path, rounds=12, deadline=10.0)
    world.begin()
    world.run(lambda: world.machine(3).rounds.rounds_done == 5)
    world.kill(3)
    before = world.now
    world.run(world.done)
    # seven more rounds of one second of training each: nobody waited for a deadline
    assert world.now - before < 7 * 1.0 + 5.0
    world.run()
    for number in (0, 2):
        machine = world.machine(number)
        assert [(peer, since) for peer, since, _ in machine.closing.statement.missing] == [(world.order[3], 5)]
        assert machine.closing.complete
    assert world.machine(1).closing.named_missing.keys() == {world.order[3]}


def test_a_silent_site_costs_one_deadline_only(tmp_path: Path) -> None:
    world = bottle(tmp_path, rounds=10, deadline=10.0)
    world.begin()
    world.run(lambda: world.machine(3).rounds.rounds_done == 4)
    world[3].dead = True  # silent: the links stay up
    world.run(lambda: all(world[number].machine.state is State.DONE for number in range(3)))
    assert world.now < 10 * 1.1 + 2 * 10.0


def test_a_stopped_site_comes_back_and_catches_up(tmp_path: Path) -> None:
    world = bottle(tmp_path, rounds=40, deadline=3.0, closing_rounds=2)
    world.begin()
    world.run(lambda: world.machine(3).rounds.rounds_done == 4)
    world[3].hold_training = True
    world.run(lambda: world.machine(0).rounds.rounds_done == 20)
    world[3].hold_training = False
    round_ = world.machine(3).context.position[0]
    world.after(0.0, world[3], lambda: world[3].train(round_))
    world.run()
    assert world.done()
    assert "catching up" in [topic for topic, _ in world[3].told]
    for site in world.sites.values():
        assert site.machine and site.machine.closing.statement and site.machine.closing.statement.missing == ()
        assert site.machine.rounds.edges.biased == 0
    assert 20 <= world.machine(3).rounds.rounds_done < 40


def test_only_those_who_approved_take_part(tmp_path: Path) -> None:
    world = bottle(tmp_path, rounds=3)
    world.begin(approving=[0, 1, 2])
    world.run()
    assert [world.machine(number).state for number in range(4)] == [State.DONE] * 4
    assert set(world.machine(0).context.running.shares) == set(world.order[:3])
    assert world.machine(3).closing.complete and not world[3].entries("run_closed"), "it is over for the fourth, too"


def test_a_proposal_that_nobody_starts_ends_everywhere(tmp_path: Path) -> None:
    """The proposer vanishes: the others do not keep the proposal open for ever."""
    world = bottle(tmp_path)
    world.begin(approving=[1])
    world[0].dead = True
    world.run()
    assert world.now >= world.proposal.patience
    assert [world.machine(number).state for number in (1, 2, 3)] == [State.DONE] * 3
    assert all("ask for a new proposal" in world[number].told[-1][1]["reason"] for number in (1, 2, 3))


def test_one_approval_is_not_enough(tmp_path: Path) -> None:
    world = bottle(tmp_path)
    world.begin(approving=[0])
    world.run()
    assert world.machine(0).state is State.DONE
    assert world[0].told[-1][0] == "expired"
    assert "propose again" in world[0].told[-1][1]["reason"]


def test_a_minority_cannot_start_a_run(tmp_path: Path) -> None:
    """Two of four approve and sign; two are cut off: the record has no quorum, so nothing starts."""
    world = bottle(tmp_path)
    far = {world.order[2], world.order[3]}
    world.lost = lambda kind, source, target, data: source in far or target in far
    world.begin(approving=[0, 1])
    world.run()
    assert world.machine(0).state is State.PROPOSING
    assert "run_started" not in world[0].kinds()


def test_hierarchical_rounds_mix_twice(tmp_path: Path) -> None:
    world = bottle(tmp_path, topology={"kind": "hierarchical", "clusters": 2}, rounds=6, closing_rounds=1)
    world.begin()
    world.run()
    assert world.done()
    steps = {(entry["round"], entry["step"]) for site in world.sites.values() for entry in site.entries("mixed")}
    assert (0, 0) in steps and (0, 1) in steps
    shares = world.machine(0).context.running.shares
    for site in world.sites.values():
        assert site.machine and not site.machine.context.missing
        assert site.machine.closing.statement and site.machine.closing.statement.missing == ()
        assert site.machine.rounds.rounds_done == 7, "nobody skips a round because of sites it does not mix with"
    assert len(shares) == 4


def test_pause_and_resume(tmp_path: Path) -> None:
    world = bottle(tmp_path, rounds=20, deadline=2.0)
    world.begin()
    world.run(lambda: world.machine(2).rounds.rounds_done == 3)
    world[2].post(events.Pause(world.now))
    world.run(lambda: world.machine(2).state is State.PAUSED)
    world.run(lambda: world.machine(0).rounds.rounds_done == 10)
    world[2].post(events.Resume(world.now))
    world.run()
    assert world.done()
    assert world.machine(2).rounds.rounds_done < 20
    assert all(site.machine and site.machine.rounds.edges.biased == 0 for site in world.sites.values())


def test_a_pause_that_was_told_is_not_waited_for_although_the_last_message_is_mixed_after_it(tmp_path: Path) -> None:
    """Its neighbours still wait for somebody else in the round that it has mixed, and hear of the pause meanwhile."""
    world = bottle(tmp_path, rounds=12, deadline=30.0)
    world.begin()
    world.run(lambda: world.machine(0).rounds.rounds_done == 4)
    world[0].hold_training = True
    world.run(lambda: world.machine(2).context.position[0] == 5 and world.machine(2).state is State.COLLECTING)
    world[2].post(events.Pause(world.now))
    world.run(lambda: world.machine(2).state is State.PAUSED and world[2].peer_id in world.machine(1).context.missing)
    assert world.machine(1).context.position == (5, 0), "its message of this round is still to be mixed"
    world[0].hold_training = False
    world[0].post(events.TrainingFailed(world.now, 5, "the loss is not finite"))
    world.run(lambda: world.machine(1).rounds.rounds_done == 9)
    for number in (1, 3):
        reasons = [entry["reason"] for entry in world[number].entries("absent") if entry["peer"] == world[2].peer_id]
        assert reasons == ["it says: paused by the user"]
    world[2].post(events.Resume(world.now))
    world.run()
    assert world.done()
    assert all(world.machine(number).rounds.edges.biased == 0 for number in range(4))


def test_failing_training_makes_a_site_absent_for_the_round(tmp_path: Path) -> None:
    world = bottle(tmp_path, rounds=8, deadline=2.0)
    world.begin()
    world.run(lambda: world.machine(1).state is State.TRAINING and world.machine(1).context.position[0] == 3)
    world[1].post(events.TrainingFailed(world.now, 3, "the loss is not finite"))
    assert world.machine(1).state is State.ABSENT
    world[1].hold_training = False
    # the worker's late answer for the abandoned round is harmless
    world.run()
    assert world.done()
    assert world.machine(1).rounds.rounds_done in (5, 6, 7)


def test_one_that_announces_and_never_delivers_is_not_waited_for_every_round(tmp_path: Path) -> None:
    """Announcements alone do not make a neighbour awaited for ever: after three deadlines only a delta does."""
    world = bottle(tmp_path, rounds=20, deadline=10.0)
    world.begin()
    world.run(lambda: world.machine(0).rounds.rounds_done == 1)
    liar = world.order[3]
    for site in world.sites.values():
        honest = site.fetch
        site.fetch = lambda effect, honest=honest: None if effect.peer == liar else honest(effect)  # type: ignore[method-assign,misc]
    world.run(lambda: all(world.machine(number).state is State.DONE for number in range(3)))
    assert world.now < 20 * 1.1 + 3 * 10.0 + 2 * 10.0
    waits = [entry for entry in world[0].entries("absent") if entry.get("peer") == liar]
    assert len(waits) == 3


def test_a_restored_backup_skips_what_it_may_have_signed(tmp_path: Path) -> None:
    """Its neighbour shows it a core of its own that its disk does not know: it signs nothing for those rounds."""
    world = bottle(tmp_path, rounds=12)
    world.begin()
    world.run(lambda: world.machine(3).rounds.rounds_done == 2)
    backup = world[3].state
    world.run(lambda: world.machine(3).rounds.rounds_done == 6 and world.machine(3).state is State.COLLECTING)
    signed = world.machine(0).deliveries.newest[world.order[3]]
    returned = world.remade(3, backup)
    returned.handle(events.Resumed(world.now))
    before = returned.rounds.sequence
    assert returned.context.position[0] < 6 and before <= signed[0]
    for number in (0, 2):
        words = Standing(world.proposal.run, world.order[3], (0, 0), signed[1], b"", sha256(b""))
        data = sign_envelope(world[number].identity, "standing", words.encode()).encode()
        after = returned.handle(events.StatementReceived(world.now, world.order[number], data))
    assert returned.context.position[0] == open_core(signed[1])[1].round + 1
    assert returned.rounds.sequence == signed[0] + 1
    (commit,) = [effect for effect in after if isinstance(effect, effects.Commit)]
    assert "older than what neighbours have" in str(commit.entries)
    assert not [effect for effect in after if isinstance(effect, effects.Train | effects.Encode)]


def test_a_state_of_another_version_or_run_is_not_taken_up(tmp_path: Path) -> None:
    world = bottle(tmp_path, rounds=3)
    world.begin()
    world.run(lambda: world.machine(1).rounds.rounds_done == 1)
    state, run = world[1].state, world.proposal.run
    assert readable_state(state, run)
    assert not readable_state(state, RunId("0" * 64))
    assert not readable_state(state[:-1], run)
    assert not readable_state(b"", run)
    assert not readable_state(pack({**unpack(state, what="state", limit=1 << 20), "format": 99}), run)
