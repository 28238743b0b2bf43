"""Joined machines with real sessions: away for one, ten and forty rounds, and killed while states are taken."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bottle import QUADRATIC_PLAN, Bottle, Quadratic

from p2pfl.errors import IllegalStep, LimitExceeded
from p2pfl.gossip import State, effects, events
from p2pfl.gossip.adopting import PATIENCE, own_weight
from p2pfl.gossip.messages import MAX_CATCH_UP_ROUNDS
from p2pfl.gossip.statements import open_proposal

AWAY = 3  # the site
WEIGHT = 1e-12


def bottle(folder: Path, rule: str = "kgt", **options: Any) -> Bottle:
    settings = {
        "rule": rule, "optimiser": {"name": "sgd"}, "learning_rate": 0.1, "local_steps": 2,
        "batch_size": 1000, "dtype": "float64",
    }  # fmt: skip
    files = Quadratic.make((40, 30, 20, 10)).write(folder)
    return Bottle(files, QUADRATIC_PLAN, settings, rounds=60, closing_rounds=2, deadline=3.0, **options)


def hanging(world: Bottle, rounds: int) -> None:
    """The site's training hangs while the others do so many rounds."""
    site, machine = world[AWAY], world.machine(AWAY)
    world.begin()
    world.run(lambda: machine.rounds.rounds_done == 5)
    site.hold_training = True
    world.run(lambda: machine.state is State.TRAINING and machine.context.position[0] == 6)
    world.run(lambda: world.machine(0).rounds.rounds_done == 6 + rounds)
    site.hold_training = False


def stopped(world: Bottle, rounds: int) -> None:
    """It hangs for so many rounds; then it goes on."""
    hanging(world, rounds)
    world.after(0.0, world[AWAY], lambda: world[AWAY].train(6))


def asked(world: Bottle) -> list[effects.Adopt]:
    """What the site is asked to take in, as it happens."""
    found: list[effects.Adopt] = []
    site = world[AWAY]
    whole = site.adopt
    site.adopt = lambda effect: (found.append(effect), whole(effect))[1]  # type: ignore[method-assign,func-returns-value]
    return found


@pytest.mark.parametrize(("rounds", "takes"), [(1, False), (10, False), (40, True)])
@pytest.mark.parametrize("rule", ["dpsgd", "kgt"])
def test_away_for_some_rounds(tmp_path: Path, rule: str, rounds: int, takes: bool) -> None:
    world = bottle(tmp_path, rule)
    found = asked(world)
    stopped(world, rounds)
    world.run()
    assert world.done()
    entries = world[AWAY].entries("caught_up")
    assert (len(found), len(entries)) == (int(takes), int(takes))
    assert all("caught_up" not in world[number].kinds() for number in range(3))
    later = [body["round"] for body in world[0].entries("mixed") if world.order[AWAY] in [e[0] for e in body["edges"]]]
    assert {50, 59, 61} <= set(later), "it contributes again"
    if takes:
        (body,), (adopt,) = entries, found
        assert body["own"] == adopt.own == 16 / body["away"]
        neighbours = sorted(world.order[number] for number in (0, 2))
        assert [row[0] for row in body["states"]] == neighbours, "those on the ring, in peer-id order"
        shares = world.machine(AWAY).context.running.shares
        expected = [shares[peer] / sum(shares[other] for other in neighbours) for peer in neighbours]
        assert [row[1] for row in body["states"]] == pytest.approx(expected, abs=WEIGHT)
        assert body["moved"] == pytest.approx(shares[world.order[AWAY]] * body["distance"], rel=1e-12)
    if rule == "kgt":
        shares = world.machine(0).context.running.shares
        conserved = sum(shares[peer] * site.session.state["correction"] for peer, site in world.sites.items())
        assert float(torch.as_tensor(conserved).abs().max()) < 1e-11, "corrections stay as they were"


def test_the_parameters_are_what_the_rule_says(tmp_path: Path) -> None:
    world = bottle(tmp_path)
    stopped(world, 40)
    adopting = world.machine(AWAY).adopting
    world.run(lambda: adopting.asked is not None)
    before = world[AWAY].session.vector.clone()
    states = adopting.asked.states  # type: ignore[union-attr]
    own = adopting.asked.own  # type: ignore[union-attr]
    received = world[AWAY].session._exchange._received  # type: ignore[union-attr]
    terms = [(state.weight, received[next(iter(state.cores.values()))].value.clone()) for state in states]
    world.run(lambda: bool(world[AWAY].entries("caught_up")))
    mean = sum(weight * value for weight, value in terms)
    torch.testing.assert_close(world[AWAY].session.vector, own * before + (1 - own) * mean, rtol=0, atol=1e-15)


def back(world: Bottle, path: Path, digest: str, state: bytes) -> None:
    """The process is a new one on the stored state and the checkpoint that belongs to it."""
    site = world[AWAY]
    share = world.machine(0).context.running.shares[site.peer_id]
    run = bytes.fromhex(world.proposal.run)
    for number in range(3):
        world[number].post(events.LinkDown(world.now, site.peer_id, "process gone"))
    world.heap = [row for row in world.heap if row[2] is not site]
    site.machine = world.remade(AWAY, state)
    site.session.restore(str(path), world.initial, run, site.key, share, digest)
    site.timers.clear()
    site.post(events.Resumed(world.now))
    for number in range(3):
        site.post(events.LinkUp(world.now, world.order[number]))
        world[number].post(events.LinkUp(world.now, site.peer_id))


@pytest.mark.parametrize("committed", [False, True])
def test_killed_between_taking_states_and_their_commit(tmp_path: Path, committed: bool) -> None:
    """Before the commit it is done again from the older checkpoint, after it never."""
    world = bottle(tmp_path)
    found = asked(world)
    stopped(world, 40)
    adopting, site = world.machine(AWAY).adopting, world[AWAY]
    world.run(lambda: adopting.asked is not None)
    path, state = tmp_path / "checkpoint", site.state
    digest = site.session.save(str(path))
    vector = site.session.vector.clone()
    world.run(lambda: len(found) == 1)
    assert not torch.equal(site.session.vector, vector)
    if committed:
        world.run(lambda: bool(site.entries("caught_up")))
        digest, state = site.session.save(str(path)), site.state
        vector = site.session.vector.clone()
    back(world, path, digest, state)
    assert torch.equal(site.session.vector, vector)
    world.run()
    assert world.done()
    assert len(found) == (1 if committed else 2)
    assert len(site.entries("caught_up")) == 1
    assert found[0].own <= 16 / 38 and found[-1].own <= 16 / 38


def test_a_neighbour_whose_state_never_comes_is_waited_for_so_long(tmp_path: Path) -> None:
    """One neighbour's announcements are lost from its return on: the other's state does, after the patience."""
    world = bottle(tmp_path)
    found = asked(world)
    hanging(world, 40)
    deaf, site = world.order[0], world.order[AWAY]
    world.lost = lambda kind, source, target, data: (
        (kind, source, target) == ("announcement", deaf, site)
        or (
            kind == "offer"  # nor from anybody else
        )
    )
    until = world.now + 0.1  # what was on its way is here
    world.run(lambda: world.now > until)
    world.machine(AWAY).deliveries.states.clear()
    world.after(0.0, world[AWAY], lambda: world[AWAY].train(6))
    world.run(lambda: world.machine(AWAY).adopting.began is not None)
    began = world.now
    world.run(lambda: bool(found))
    assert [edge.peer for edge in found[0].states] == [world.order[2]]
    assert found[0].states[0].weight == 1.0
    assert world.now - began <= PATIENCE + 0.1
    world.lost = lambda kind, source, target, data: False
    world.run()
    assert world.done()


def refusing(world: Bottle, spoilt: str) -> Callable[[effects.Fetch], None]:
    whole = world[AWAY].fetch

    def fetch(effect: effects.Fetch) -> None:
        if effect.key is not None and effect.peer == spoilt:
            world[AWAY].post(events.Received(world.now, effect.name, "delta with entries that are NaN"))
        else:
            whole(effect)

    return fetch


def test_a_state_that_is_refused_is_left_out_and_its_origin_named(tmp_path: Path) -> None:
    world = bottle(tmp_path, catch_up_rounds=3)
    found = asked(world)
    stopped(world, 10)
    world[AWAY].fetch = refusing(world, world.order[0])  # type: ignore[method-assign]
    world.run()
    assert world.done()
    assert [edge.peer for edge in found[0].states] == [world.order[2]]
    assert any(body["peer"] == world.order[0] and "NaN" in body["reason"] for body in world[AWAY].entries("refused"))


def test_leaving_while_states_are_taken_leaves(tmp_path: Path) -> None:
    world = bottle(tmp_path)
    stopped(world, 40)
    world.run(lambda: world.machine(AWAY).adopting.asked is not None)
    world[AWAY].post(events.Leave(world.now, "enough"))
    assert world.machine(AWAY).state is State.ABSENT
    world.run()
    assert world.done()
    assert "caught_up" not in world[AWAY].kinds()


def test_an_answer_that_nobody_asked_for_is_illegal(tmp_path: Path) -> None:
    world = bottle(tmp_path)
    stopped(world, 40)
    world.run(lambda: world.machine(AWAY).state is State.CATCHING_UP)
    machine = world.machine(AWAY)
    with pytest.raises(IllegalStep):
        machine.handle(events.Adopted(world.now, machine.context.position[0] + 1, world.proposal.plan, 0.0))
    assert machine.state is State.CATCHING_UP


def test_the_own_weight() -> None:
    assert [own_weight(away, 16, trained=True) for away in (0, 1, 16, 17, 32, 160)] == [1, 1, 1, 16 / 17, 0.5, 0.1]
    assert [own_weight(away, 16, trained=False) for away in (0, 1, 40)] == [1.0, 0.0, 0.0]
    assert own_weight(1000, 1000, trained=True) == 1.0


@pytest.mark.parametrize(("rounds", "taken"), [(0, False), (1, True), (MAX_CATCH_UP_ROUNDS, True), (1001, False)])
def test_a_proposal_with_rounds_out_of_range_is_refused(tmp_path: Path, rounds: int, taken: bool) -> None:
    from p2pfl.crypto import sign_envelope

    world = bottle(tmp_path, catch_up_rounds=rounds)
    data = sign_envelope(world[0].identity, "proposal", world.proposal.encode()).encode()
    if taken:
        proposal = open_proposal(data)[1]
        assert proposal.catch_up_rounds == proposal.start_record(()).catch_up_rounds == rounds
    else:
        with pytest.raises(LimitExceeded, match="catch_up_rounds must be between 1 and 1000"):
            open_proposal(data)
