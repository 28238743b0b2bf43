"""The asynchronous policy with joined machines and real sessions: late edges, slow sites, lists with open edges."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bottle import QUADRATIC_PLAN, Bottle, Quadratic
from test_gossip_runs import SIZES, error, settings

from p2pfl.crypto import Identity, sign_envelope
from p2pfl.errors import LimitExceeded, MalformedMessage
from p2pfl.gossip import State
from p2pfl.gossip.contributions import RoundSet
from p2pfl.gossip.messages import SETTLING_WINDOW, EdgeList, decode_edge_list, encode_edge_list
from p2pfl.gossip.open_edges import OpenEdges
from p2pfl.gossip.settling import EdgeLedger
from p2pfl.gossip.statements import MAX_STALENESS, Proposal, open_proposal
from p2pfl.types import PeerId

ONE, OTHER = PeerId("one"), PeerId("other")


def bottle(folder: Path, staleness: int = 2, rate: float = 0.2, **options: Any) -> Bottle:
    plan_settings = {**settings("dpsgd", 1, rate), "staleness": staleness}
    return Bottle(Quadratic.make(SIZES).write(folder), QUADRATIC_PLAN, plan_settings, **options)


def weighted_mean(world: Bottle) -> np.ndarray[Any, Any]:
    shares = world.machine(0).context.running.shares
    return sum(shares[peer] * site.session.vector.numpy() for peer, site in world.sites.items())  # type: ignore[return-value]


def late_edges(world: Bottle, number: int) -> list[tuple[int, Any]]:
    rows = world[number].entries("mixed")
    return [(row["round"], edge) for row in rows for edge in row["edges"] if len(edge) > 2]


@pytest.mark.parametrize("topology", ["ring", pytest.param("full", marks=pytest.mark.slow)])
def test_four_machines_learn_without_waiting(tmp_path: Path, topology: str) -> None:
    """All train one second, messages take 10 ms: every edge comes just too late for its round, and is mixed in the next."""
    world = bottle(tmp_path, rate=0.02, topology={"kind": topology}, rounds=400, closing_rounds=30)
    world.begin()
    world.run(lambda: all(site.machine and site.machine.state is State.DONE for site in world.sites.values()))
    assert world.now < 400 * 1.0 + 10, "nobody waited"
    world.run()
    assert world.done()
    assert error(world) < 0.05
    for number, site in enumerate(world.sites.values()):
        machine = world.machine(number)
        assert machine.closing.complete and machine.rounds.edges.biased == 0
        assert not site.outbox, "everything acknowledged is released"
        assert len(late_edges(world, number)) > 350 * (2 if topology == "ring" else 3)
        assert not site.entries("refused")


def test_late_edges_are_on_record_under_their_own_round(tmp_path: Path) -> None:
    world = bottle(tmp_path, rounds=20, closing_rounds=1)
    world.begin()
    world.run()
    for number in range(4):
        context = world.machine(number).context
        edges = late_edges(world, number)
        assert edges
        for round_, (peer, weight, own, step) in edges:
            assert 0 < round_ - own <= 2 and step == 0
            assert weight == dict(context.neighbours((own, 0)))[peer]
        received = [(row["peer"], row["round"]) for row in world[number].entries("delta_received")]
        assert len(received) == len(set(received)), "each delta once"
        assert {(edge[0], edge[2]) for _, edge in edges} <= set(received)


def test_lost_messages_leave_the_sum_as_if_nothing_was_mixed(tmp_path: Path) -> None:
    """Without gradients the weighted mean of all sites never moves, however many edges are one-sided for a while."""
    rng = np.random.default_rng(2)
    started: list[bool] = []

    def lost(kind: str, source: object, target: object, data: object) -> bool:
        return bool(started) and kind != "flood" and rng.random() < 0.1

    world = bottle(tmp_path, rate=1e-300, rounds=120, closing_rounds=2, lost=lost, deadline=3.0)
    world.begin()
    world.run(lambda: all(site.machine and site.machine.state is not State.PROPOSING for site in world.sites.values()))
    started.append(True)
    for number, site in enumerate(world.sites.values()):  # four different starts, as training would have left them
        site.session._x = site.session.vector + number**2
    before = weighted_mean(world)
    world.run()
    assert world.done()
    assert sum(len(row["taken_back"]) for site in world.sites.values() for row in site.entries("mixed")) > 20
    assert all(site.machine and site.machine.rounds.edges.biased == 0 for site in world.sites.values())
    np.testing.assert_allclose(weighted_mean(world), before, rtol=0, atol=1e-12)


def test_a_slow_site_signs_under_the_round_the_others_are_in(tmp_path: Path) -> None:
    world = bottle(tmp_path, rounds=40, closing_rounds=2)
    world.begin()
    world.run(lambda: world.machine(3).rounds.rounds_done == 4)
    slow = world[3]
    slow.hold_training = True
    world.run(lambda: world.machine(0).rounds.rounds_done == 20)
    assert world.machine(1).state in (State.TRAINING, State.ANNOUNCING, State.MIXING)
    slow.hold_training = False
    round_, done = world.machine(3).context.position[0], world.machine(3).rounds.rounds_done
    world.after(0.0, slow, lambda: slow.train(round_))
    world.run(lambda: world.machine(3).rounds.rounds_done == done + 1)
    sent = [row["round"] for row in slow.entries("delta_sent")]
    assert sent[:-1] == list(range(len(sent) - 1)) and 18 <= sent[-1] <= 20, "no place twice, and the round of now"
    absent = [row for row in slow.entries("absent") if "until" in row]
    assert absent[0]["round"] == round_ and absent[0]["until"] == sent[-1]
    world.run()
    assert world.done()
    for number in (0, 2):
        taken = [edge for row in world[number].entries("mixed") for edge in row["edges"] if edge[0] == world.order[3]]
        assert len(taken) > 20, "its neighbours go on mixing with it"
    assert all(site.machine and site.machine.rounds.edges.biased == 0 for site in world.sites.values())


def test_a_site_that_the_others_left_behind_closes_with_its_own_work(tmp_path: Path) -> None:
    world = bottle(tmp_path, rounds=6, closing_rounds=1, deadline=3.0)
    world.begin()
    world.run(lambda: world.machine(3).rounds.rounds_done == 3)
    slow = world[3]
    slow.hold_training = True
    world.run(lambda: all(world.machine(number).state is State.DONE for number in range(3)))
    round_ = world.machine(3).context.position[0]
    assert world.machine(3).state is State.TRAINING
    before = slow.session.vector.clone()
    world.after(0.0, slow, lambda: slow.train(round_))
    world.run()
    assert world.machine(3).state is State.DONE
    assert not np.array_equal(slow.session.vector.numpy(), before.numpy())
    rounds = [row["round"] for row in slow.entries("delta_sent")]
    assert len(rounds) == len(set(rounds))


# --- the parts


def test_open_edges_fall_out_by_own_messages_not_by_round_numbers() -> None:
    edges = OpenEdges()
    assert edges.add(3, [ONE, OTHER], 1) == []
    edges.close(ONE, 3)
    assert edges.add(40, [ONE, OTHER], 1) == [], "one own message later, whatever its number"
    assert edges.is_open(OTHER, (3, 0)) and not edges.is_open(ONE, (3, 0)) and not edges.is_open(ONE, (41, 0))
    assert edges.until(OTHER) == (3, 0) and edges.until(ONE) == (40, 0) and edges.oldest == (3, 0)
    kept = OpenEdges()
    kept.recall(edges.remember())
    assert kept == edges
    assert edges.add(41, [ONE], 1) == [(OTHER, (3, 0))]
    assert edges.clear() == [(ONE, (40, 0)), (OTHER, (40, 0)), (ONE, (41, 0))] and edges.oldest is None


def ledgers() -> tuple[EdgeLedger, EdgeLedger]:
    return EdgeLedger(asynchronous=True), EdgeLedger(asynchronous=True)


def test_what_an_author_has_not_decided_is_not_taken_for_settled() -> None:
    """It stands in round 5 and does not list round 3, which it may still mix."""
    mine, theirs = ledgers()
    mine.decide((3, 0), True)
    mine.hear(theirs.list(until=(3, 0)), (5, 0), (6, 0))
    assert mine.mixed_and_unknown == ((3, 0),) and mine.list().items == ((3, 0, True, False),)
    theirs.decide((3, 0), False)
    assert mine.hear(theirs.list(until=(4, 0)), (6, 0), (7, 0)).take_back == ((3, 0),)
    # without `until`, as in synchronous runs, the same silence says that both sides are known there
    other = EdgeLedger()
    other.decide((3, 0), True)
    other.hear(EdgeLedger().list(), (5, 0), (6, 0))
    other.hear(EdgeList((0, 0), ((3, 0, True, False),)), (6, 0), (6, 0))
    assert other.list().items == ()


def test_rounds_that_the_other_end_skipped_are_not_asked_about_for_ever() -> None:
    mine, theirs = ledgers()
    for round_ in range(5):
        mine.decide((round_, 0), False)
    mine.hear(theirs.list(until=(5, 0)), (9, 0), (6, 0))
    assert mine.unsettled == ()


def test_rows_are_given_up_by_number_not_by_age() -> None:
    """A site so slow that a whole window passes between two of its rounds: its one row waits for it."""
    mine, _ = ledgers()
    mine.decide((1, 0), True)
    for round_ in range(2, 102):
        mine.decide((round_, 0), False)
        assert mine.thin((round_ - SETTLING_WINDOW, 0)) == ()
    assert mine.mixed_and_unknown == ((1, 0),)
    assert len(mine.list().items) <= SETTLING_WINDOW + 2
    for round_ in range(200, 200 + SETTLING_WINDOW + 1):
        mine.decide((round_, 0), True)
    assert mine.thin((300, 0)) == ((1, 0),), "now it is recorded bias"
    assert EdgeLedger.recall(mine.remember()) == mine


def test_edge_lists_travel_with_and_without_an_end() -> None:
    for edges in (EdgeList((0, 0), ((1, 0, True, False),)), EdgeList((2, 0), (), (7, 0))):
        assert decode_edge_list(encode_edge_list(edges)) == edges
    for wrong in ([[0, 0], [], [1]], [[0, 0], [], [1, "0"]], [[0, 0], [], [1, 0], []], [[0, 0], [], 5]):
        with pytest.raises(MalformedMessage):
            decode_edge_list(wrong)


def test_contributions_may_come_out_of_order() -> None:
    rounds = RoundSet()
    for round_ in (5, 3, 4, 9, 0, 8):
        rounds.add(round_)
    assert rounds.ranges == [(0, 0), (3, 5), (8, 9)]


@pytest.mark.parametrize("staleness", [-1, MAX_STALENESS + 1])
def test_a_proposal_with_an_impossible_staleness_is_refused(tmp_path: Path, staleness: int) -> None:
    world = bottle(tmp_path)
    identity = Identity.from_seed(bytes([1]) * 32)
    fields: Mapping[str, Any] = {name: getattr(world.proposal, name) for name in Proposal.__dataclass_fields__}
    assert open_proposal(sign_envelope(identity, "proposal", world.proposal.encode()).encode())[1].staleness == 2
    wrong = Proposal(**{**fields, "staleness": staleness})
    with pytest.raises(LimitExceeded, match="staleness"):
        open_proposal(sign_envelope(identity, "proposal", wrong.encode()).encode())
