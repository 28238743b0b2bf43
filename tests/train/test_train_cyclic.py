"""Cyclic weight transfer: plain SGD over the sites in turn, its optimum, its sums under losses, who keeps the model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from rule_rows import made
from session_worlds import Pushing, push_rounds, pushing
from torch import Tensor
from train_worlds import Quadratic

from p2pfl.errors import ConfigError
from p2pfl.topology import Schedule
from p2pfl.train.mixing import PeerGraph, PeerInbox, VectorGraph
from p2pfl.train.rules import WEIGHT, Context, check_combination
from p2pfl.types import PeerId

WALK = {"kind": "cyclic"}
OPTIMISERS = ("sgd", "momentum", "adam")


def schedule_of(shares: Tensor, rounds: int, closing: int = 1, **more: Any) -> Schedule:
    nodes = [PeerId(str(site)) for site in range(len(shares))]
    return Schedule({**WALK, **more}, nodes, dict(zip(nodes, shares.tolist(), strict=True)), rounds, closing)


def in_turn(world: Quadratic, found: Schedule, lr: float, usual: int, optimiser: str = "sgd", skip: Any = ()) -> Tensor:
    """One vector [P] that each site's own optimiser moves when it is that site's turn."""
    own = made("dpsgd", optimiser).optimiser  # type: ignore[attr-defined]
    x = torch.zeros(world.size, dtype=torch.float64)
    states = [own.init(x) for _ in found.nodes]
    for t in range(found.rounds):
        site = t % len(found.nodes)
        for k in range(found.steps_of(found.nodes[site], usual) if t not in skip else 0):
            states[site], x = own.step(states[site], x, world.oracle(site)(x, k).grad, lr)
    return x


def played(world: Quadratic, found: Schedule, lr: float, usual: int, optimiser: str = "sgd") -> tuple[Any, Tensor]:
    """All sites as rows, the schedule's matrices dense; those without a turn take part without a step."""
    rule, sites = made("cyclic", optimiser), len(world.shares)
    graph = VectorGraph(sites, [], world.shares)
    graph.first_weight = torch.tensor(found.weights_before(0), dtype=torch.float64).reshape(-1, 1)
    x = torch.zeros(sites, world.size, dtype=torch.float64)
    state = rule.init(x, graph)
    for t in range(found.total):
        active = [site for site, node in enumerate(found.nodes) if node in found.round(t).active]
        for site in active if found.round(t).training else ():
            context = Context(t, lr, found.steps_of(found.nodes[site], usual))
            own = {name: value[site] for name, value in state.items()}
            after, x[site] = rule.local(own, x[site], context, world.oracle(site))
            for name, value in after.items():
                state[name][site] = value
        context = Context(t, lr, 0, closing=t >= found.rounds)
        state, messages = rule.send(state, x, context, graph)
        moves = torch.from_numpy(found.round(t).mixings[0].matrix.toarray()) - torch.eye(sites, dtype=torch.float64)
        pulls = {"x": moves @ (messages["x"] * messages[WEIGHT]), WEIGHT: moves @ messages[WEIGHT]}
        state, x = rule.merge(state, x, context, PeerInbox(pulls))
    return state, x


@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize("more", [{}, {"weights": "metropolis"}], ids=["shares", "alike"])
def test_it_is_plain_training_over_the_sites_in_turn(optimiser: str, more: dict[str, Any]) -> None:
    world = Quadratic(5)
    found = schedule_of(world.shares, 23, 1, **more)
    _, x = played(world, found, 0.02, 3, optimiser)
    assert float((x - in_turn(world, found, 0.02, 3, optimiser)).abs().max()) < 1e-12, "at every site, at the end"
    steps = [found.steps_of(node, 3) for node in found.nodes]
    assert steps == ([3] * 5 if more else [1, 2, 3, 4, 5])


def test_it_ends_the_nearer_to_the_weighted_optimum_the_smaller_the_steps() -> None:
    """7 usual steps are 2, 4, ..., 12 of the six sites: as their shares exactly."""
    world, errors = Quadratic(6, seed=3), []
    for lr in (0.004, 0.001):
        errors.append(float((in_turn(world, schedule_of(world.shares, 12_000), lr, 7) - world.optimum).abs().max()))
    assert errors[1] < 0.35 * errors[0] and errors[1] < 0.1
    alike = torch.full_like(world.shares, 1 / 6)
    x = in_turn(world, schedule_of(world.shares, 12_000, weights="metropolis"), 0.001, 7)
    equal = Quadratic(6, seed=3)
    equal.shares = alike
    assert float((x - equal.optimum).abs().max()) < 0.1 < float((x - world.optimum).abs().max())


def test_a_site_without_weight_keeps_the_model_that_it_had_last() -> None:
    world = Quadratic(4)
    found = schedule_of(world.shares, 9, 0)
    state, x = played(world, found, 0.05, 2)
    mass = world.shares * state["weight"][:, 0]
    assert mass.tolist() == pytest.approx([0.0, 1.0, 0.0, 0.0], abs=1e-15)
    for site, rounds in enumerate((9, 9, 7, 8)):  # the last one trains in round 8 and gives it on to the second
        ended = in_turn(world, schedule_of(world.shares, rounds, 0), 0.05, 2)
        assert float((x[site] - ended).abs().max()) < 1e-13, site


def test_the_names_of_the_sites_decide_nothing() -> None:
    """The walk goes by the order of the sites, so another first site is another run; which row it is does not matter."""
    world, rule = Quadratic(4), made("cyclic")
    found = schedule_of(world.shares, 8)
    _, stacked = played(world, found, 0.05, 2)
    graphs = [
        PeerGraph(float(share), first_weight=first)
        for share, first in zip(world.shares, found.weights_before(0), strict=True)
    ]
    x = [torch.zeros(world.size, dtype=torch.float64) for _ in graphs]
    states = [rule.init(vector, graph) for vector, graph in zip(x, graphs, strict=True)]
    for t in range(found.total):
        context = Context(t, 0.05, 0, closing=t >= found.rounds)
        site = t % 4
        if not context.closing:
            own = Context(t, 0.05, found.steps_of(found.nodes[site], 2))
            states[site], x[site] = rule.local(states[site], x[site], own, world.oracle(site))
        sent = [rule.send(states[i], x[i], context, graphs[i])[1] for i in range(4)]
        for i in reversed(range(4)):
            pulls = {"x": torch.zeros(4, dtype=torch.float64), WEIGHT: torch.zeros(1, dtype=torch.float64)}
            given = found.round(t).mixings[0].given(found.nodes[i])
            for other, weight in found.round(t).mixings[0].neighbours(found.nodes[i]):
                theirs, mine = sent[int(other)], sent[i]
                pulls[WEIGHT] = pulls[WEIGHT] + weight * theirs[WEIGHT] - given[other] * mine[WEIGHT]
                pulls["x"] = (
                    pulls["x"] + weight * theirs["x"] * theirs[WEIGHT] - given[other] * mine["x"] * mine[WEIGHT]
                )
            states[i], x[i] = rule.merge(states[i], x[i], context, PeerInbox(pulls))
    assert float((torch.stack(x) - stacked).abs().max()) < 1e-12


# --- losses


def ended(sessions: list[Pushing]) -> Tensor:
    return torch.stack([session.vector for session in sessions])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("loss", [0.05, 0.4])
def test_both_sums_are_kept_where_messages_are_lost_at_one_end(loss: float, seed: int) -> None:
    shares = Quadratic(5).shares
    found, law = schedule_of(shares, 120, 2), shares.unsqueeze(-1)
    sessions = pushing(found, "cyclic")
    start = sessions[0].vector
    told = push_rounds(sessions, found, 100, loss, seed)
    weights = torch.stack([session.state["weight"] for session in sessions])
    numerators = torch.stack([session.numerator - session.put for session in sessions])
    assert told.one_sided > 3 and float((law * weights).sum() - 1) == pytest.approx(0.0, abs=1e-13)
    assert float(((law * numerators).sum(0) - start).abs().max()) < 1e-12
    assert float((ended(sessions) - ended(sessions)[0]).abs().max()) < 1e-12, "and all have one model at the end"
    assert told.furthest < 20.0, "no model is what is left of sums that cancelled"


def test_a_model_that_was_lost_on_the_way_waits_where_it_was() -> None:
    """Lost at both ends in round 5: until it is that site's turn again, in round 9, nobody trains it."""
    world = Quadratic(4)
    found = schedule_of(world.shares, 14)
    rule, graphs = made("cyclic"), VectorGraph(4, [], world.shares)
    graphs.first_weight = torch.tensor(found.weights_before(0), dtype=torch.float64).reshape(-1, 1)
    x = torch.zeros(4, 4, dtype=torch.float64)
    state = rule.init(x, graphs)
    for t in range(found.total):
        closing = t >= found.rounds
        context = Context(t, 0.05, 0 if closing else 2, closing=closing)
        if not closing:
            active = torch.tensor([[node in found.round(t).active] for node in found.nodes])
            after, moved = rule.local(state, x, context, world.oracle())
            state = {name: torch.where(active, after[name], value) for name, value in state.items()}
            x = torch.where(active, moved, x)
        state, messages = rule.send(state, x, context, graphs)
        moves = torch.from_numpy(found.round(t).mixings[0].matrix.toarray()) - torch.eye(4, dtype=torch.float64)
        moves = moves * (t != 5)
        pulls = {"x": moves @ (messages["x"] * messages[WEIGHT]), WEIGHT: moves @ messages[WEIGHT]}
        state, x = rule.merge(state, x, context, PeerInbox(pulls))
    alike = schedule_of(world.shares, 14, weights="metropolis")  # the same number of steps at each site, as above
    expected = in_turn(world, alike, 0.05, 2, skip=(6, 7, 8))
    assert float((x - expected).abs().max()) < 1e-12
    assert float((x - in_turn(world, alike, 0.05, 2)).abs().max()) > 1e-3


def test_who_has_the_model_keeps_it_when_it_comes_back() -> None:
    """And who has not takes in what others have, while the sum over all sites stays."""
    found = schedule_of(Quadratic(3).shares, 6, 0)
    sessions = pushing(found, "cyclic")
    push_rounds(sessions, schedule_of(Quadratic(3).shares, 4, 0), 0, 0.0)
    for session in sessions:
        session.train(10, 0)
    sent = [session.encode(10, 0, closing=False) for session in sessions]
    for place in (1, 2):  # the second has it
        session, other = sessions[place], sent[0][0]
        before, numerator = session.vector, session.numerator
        session.receive("state", other["channel"], other["payload"], other["result"])
        answer = session.adopt(20, 0.25, [("0", 1.0, {"x": "state"})])
        moved = 0.25 * before + 0.75 * sessions[0].vector
        assert torch.equal(session.vector, before if place == 1 else moved)
        assert (answer["distance"] == 0.0) == (place == 1)
        assert float((session.numerator - numerator).abs().max()) < 1e-15


def test_what_does_not_go_with_a_walk() -> None:
    with pytest.raises(ConfigError, match=r"rule sgp does not go with the topology cyclic: .*, or the rule cyclic$"):
        check_combination("sgp", "sgd", walks=True, directed=True, varying=True)
    with pytest.raises(ConfigError, match="the model does not come to all of the 5 sites; take at least 5 rounds"):
        schedule_of(Quadratic(5).shares, 4)
