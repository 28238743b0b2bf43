"""Stochastic gradient push on directed graphs: its textbook form, its optimum, its sums under losses, light weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from rule_rows import made
from session_worlds import RUN, Pushing, key_of, push_rounds, pushing, settings_of
from torch import Tensor
from train_worlds import QUADRATIC_PLAN, Quadratic, run_stacked, stationary_edges

from p2pfl.errors import ConfigError, IllegalStep
from p2pfl.topology import Schedule
from p2pfl.topology.directed import push_sum
from p2pfl.train.mixing import PeerGraph, PeerInbox, VectorGraph
from p2pfl.train.replay import why_not
from p2pfl.train.rules import WEIGHT, Context
from p2pfl.train.rules.sgp import LIGHT
from p2pfl.train.session import Session
from p2pfl.types import PeerId

ONE = {"kind": "exponential"}
LOCAL = {"kind": "epidemic", "degree": 2, "seed": 3, "choice": "local"}


EL_ONE = {**LOCAL, "degree": 1}


def schedule_of(spec: dict[str, Any], shares: Tensor, rounds: int) -> Schedule:
    nodes = [PeerId(str(site)) for site in range(len(shares))]
    return Schedule(spec, nodes, dict(zip(nodes, shares.tolist(), strict=True)), rounds, 0)


def played(world: Quadratic, spec: dict[str, Any], rounds: int, lr: float, steps: int = 1) -> tuple[Any, Tensor]:
    """All sites as rows, the schedule's matrices dense."""
    rule, sites = made("sgp"), len(world.shares)
    found = schedule_of(spec, world.shares, rounds)
    x = torch.zeros(sites, world.size, dtype=torch.float64)
    state = rule.init(x, VectorGraph(sites, [], world.shares))
    for number in range(rounds):
        context = Context(number, lr, steps)
        state, x = rule.local(state, x, context, world.oracle())
        state, messages = rule.send(state, x, context, VectorGraph(sites, [], world.shares))
        moves = torch.from_numpy(found.round(number).mixings[0].matrix.toarray()) - torch.eye(
            sites, dtype=torch.float64
        )
        pulls = {"x": moves @ (messages["x"] * messages[WEIGHT]), WEIGHT: moves @ messages[WEIGHT]}
        state, x = rule.merge(state, x, context, PeerInbox(pulls))
    return state, x


@pytest.mark.parametrize("equal", [True, False])
def test_it_is_its_textbook_form(equal: bool) -> None:
    """x <- P (x - lr pi g(x / w)), w <- P w from the masses pi: with equal shares algorithm 1 of Assran and others."""
    world = Quadratic(6)
    if equal:
        world.shares = torch.full((6,), 1 / 6, dtype=torch.float64)
    mass = world.shares.unsqueeze(-1)
    x, weight = torch.zeros(6, 4, dtype=torch.float64), mass.clone()
    for t in range(40):
        push = torch.from_numpy(push_sum(6, 2, 3, t).toarray())
        x, weight = push @ (x - 0.05 * mass * world.oracle()(x / weight, 0).grad), push @ weight
    state, found = played(world, LOCAL, 40, 0.05)
    assert float((found - x / weight).abs().max()) < 1e-12
    assert float((state["weight"] - weight / mass).abs().max()) < 1e-12
    assert float((weight / mass - 1).abs().max()) > 0.1, "or the weights decide nothing"


@pytest.mark.parametrize("spec", [ONE, {**ONE, "hops": "all"}, LOCAL], ids=["one peer", "all hops", "local choice"])
def test_it_ends_the_nearer_to_the_weighted_optimum_the_smaller_the_steps(spec: dict[str, Any]) -> None:
    world = Quadratic(6, seed=3)
    errors = []
    for lr in (0.02, 0.005):
        _, x = played(world, spec, 4000, lr)
        errors.append(float(((world.shares @ x) - world.optimum).abs().max()))
    assert errors[1] < 0.4 * errors[0] and errors[1] < 0.03


@pytest.mark.parametrize("spec", [ONE, {**ONE, "hops": "all"}, LOCAL], ids=["one peer", "all hops", "local choice"])
def test_a_heavy_site_may_take_many_local_steps(spec: dict[str, Any]) -> None:
    """Its weight is far below 1/2: a whole round's movement divided by it would overshoot at any learning rate."""
    world = Quadratic(6, seed=3)
    world.shares = torch.tensor([0.75, *[0.05] * 5], dtype=torch.float64)
    state, x = played(world, spec, 80, 0.02, 32)
    assert float(state["weight"][0]) < 0.5 and float((x - world.optimum).abs().max()) < 4.0
    errors = [float((played(world, spec, 80 * k, 0.005 / k, 16)[1] - world.optimum).abs().max()) for k in (1, 4)]
    assert errors[1] < 0.5 * errors[0] and errors[1] < 0.3


@pytest.mark.parametrize("kind", ["ring", "full"])
@pytest.mark.parametrize("steps", [1, 4])
def test_on_other_graphs_it_is_dpsgd(kind: str, steps: int) -> None:
    world = Quadratic(6)
    graph = VectorGraph(6, stationary_edges(kind, world.shares), world.shares)
    ends = [run_stacked(made(name), world, graph, 30, 0.05, steps)[1] for name in ("sgp", "dpsgd")]
    assert float((ends[0] - ends[1]).abs().max()) < 1e-13


def test_a_light_site_waits_and_keeps_what_it_misses() -> None:
    """Much is taken back at once: the weight is next to nothing, or below; z stays, and the numerator is not lost."""
    rule, world = made("sgp"), Quadratic(1)
    z = torch.ones(4, dtype=torch.float64)
    state = rule.init(z, VectorGraph(1, [], world.shares))
    context = Context(0, 0.05, 2)

    def mixed(weight: float, x: float) -> None:
        nonlocal state, z
        pulls = {"x": torch.full((4,), x, dtype=torch.float64), WEIGHT: torch.tensor([weight], dtype=torch.float64)}
        state, z = rule.merge(state, z, context, PeerInbox(pulls))

    def numerator() -> Tensor:
        return state["weight"] * z + state["rest"]

    mixed(-1.01, -0.7)
    assert torch.equal(z, torch.ones(4, dtype=torch.float64)) and float(state["weight"]) < 0.0
    assert not bool(rule.send(state, z, context, VectorGraph(1, [], world.shares))[1][WEIGHT].any())
    assert float((numerator() - 0.3).abs().max()) < 1e-15
    before = numerator()
    state, z = rule.local(state, z, context, world.oracle(0))
    step = numerator() - before
    assert torch.equal(z, torch.ones(4, dtype=torch.float64)) and float(step.abs().min()) > 1e-6
    mixed(0.51, 0.5)
    assert float((z - (0.8 + step) / 0.5).abs().max()) < 1e-14 and not bool(state["rest"].any())
    mixed(-0.49, -0.4)
    assert 0.0 < float(state["weight"]) < LIGHT and bool(state["rest"].any()), "in training rounds z waits"
    left, context = numerator(), replace(context, closing=True)
    mixed(0.02, 0.0)
    assert float((z - left / 0.03).abs().max()) < 1e-13 and not bool(state["rest"].any()), (
        "in closing rounds it is read"
    )


def test_the_last_reading_is_not_what_is_left_of_sums_that_cancelled() -> None:
    """All models lie between 1 and 1.01; an edge over which more came than is left is taken back after the last round."""
    rule, z = made("sgp"), torch.ones(1, dtype=torch.float64)
    state = rule.init(z, PeerGraph(0.25))
    pulls = {
        "x": torch.tensor([-(1.5 * 1.01 - 0.501)], dtype=torch.float64),
        WEIGHT: torch.tensor([-0.999], dtype=torch.float64),
    }
    state, after = rule.merge(state, z, Context(0, 0.05, 0, closing=True), PeerInbox(pulls))
    assert torch.equal(after, z) and float(state["weight"] * z + state["rest"]) == pytest.approx(1 - 1.014, abs=1e-12)


@pytest.mark.parametrize("share", [0.75, 1 / 6])
def test_more_weight_than_two_consortia_have_stays_at_home(share: float) -> None:
    rule, z = made("sgp"), torch.ones(4, dtype=torch.float64)
    graph = PeerGraph(share)
    state = {**rule.init(z, graph), "weight": torch.tensor([40.0], dtype=torch.float64)}
    assert float(rule.send(state, z, Context(0, 0.05, 1), graph)[1][WEIGHT]) == pytest.approx(2 / share)


def consortium(sites: int) -> tuple[list[Pushing], Tensor]:
    shares = 1.0 + torch.arange(sites, dtype=torch.float64)
    return pushing(schedule_of(ONE, shares / shares.sum(), 1)), shares / shares.sum()


@pytest.mark.parametrize("loss", [0.05, 0.4])
@pytest.mark.parametrize("spec", [ONE, LOCAL, EL_ONE], ids=["one peer", "local choice", "of one"])
def test_both_sums_are_kept_where_messages_are_lost_at_one_end(spec: dict[str, Any], loss: float) -> None:
    shares = Quadratic(6).shares
    found, law = schedule_of(spec, shares, 80), shares.unsqueeze(-1)
    sessions = pushing(found)
    start = sessions[0].vector
    told = push_rounds(sessions, found, 60, loss)
    weights = torch.stack([session.state["weight"] for session in sessions])
    numerators = torch.stack([session.numerator - session.put for session in sessions])
    assert told.one_sided > 20 and float((law * weights).sum() - 1) == pytest.approx(0.0, abs=1e-13)
    assert float(((law * numerators).sum(0) - start).abs().max()) < 1e-12
    assert told.light, "or the loss was no test"
    assert loss > 0.1 or told.furthest < 10.0, "no gradient is taken at what is left of sums that cancelled"


def test_a_session_knows_what_does_not_go_with_weights() -> None:
    plan = QUADRATIC_PLAN.replace(
        b"def model():", b"def model():\n    return nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))\n\ndef plain():"
    )
    with pytest.raises(ConfigError, match="rule sgp shares all parameters; use GroupNorm, or a rule such as dpsgd"):
        Session(plan, settings_of("sgp", batch_norm="private"))
    with pytest.raises(ConfigError, match="rule sgp does not go with running statistics that travel: a light weight"):
        Session(plan, settings_of("sgp", batch_norm="shared"))
    with pytest.raises(ConfigError, match="rule sgp does not go with the asynchronous policy"):
        Session(QUADRATIC_PLAN, settings_of("sgp", staleness=2))
    assert "a light site trains waits" in str(why_not(settings_of("sgp")))


@pytest.mark.parametrize(("weight", "given"), [(-0.1, 0.5), (0.5, 1.5), (0.0, 0.0), (float("inf"), 0.5), (0.5, -0.5)])
def test_amounts_that_no_mixing_has_are_refused(weight: float, given: float) -> None:
    (one, other), _ = consortium(2)
    for session in (one, other):
        session.train(0, 1)
    sent = [session.encode(0, 0, closing=False) for session in (one, other)][1]
    for m in sent:
        one.receive(m["channel"], m["channel"], m["payload"], m["result"])
    keys, before = {m["channel"]: m["channel"] for m in sent}, one.vector
    with pytest.raises(IllegalStep, match="take it from the mixing matrix"):
        one.mix(0, 0, [("1", weight, keys, 0, 0, given)], [], True, False)
    assert torch.equal(one.vector, before)
    one.mix(0, 0, [("1", 3.0, keys, 0, 0, 0.5)], [], True, False)
    assert float(one.state["weight"]) == 3.5


def test_a_checkpoint_goes_on_with_the_same_bits(tmp_path: Any) -> None:
    (one, other), _ = consortium(2)
    for session in (one, other):
        session.train(0, 1)
    sent = [session.encode(0, 0, closing=False) for session in (one, other)][1]
    for m in sent:
        one.receive(m["channel"], m["channel"], m["payload"], m["result"])
    row = ("1", 0.25, {m["channel"]: m["channel"] for m in sent}, 0, 0, 0.5)
    one.mix(0, 0, [row], [], True, False)
    digest = one.save(str(tmp_path / "saved"))
    again, _ = consortium(2)
    again[0].restore(str(tmp_path / "saved"), one.initial(seed=5), RUN, key_of(0), 1 / 3, digest)
    for session in (one, again[0]):
        session.mix(1, 0, [], [("1", 0, 0)], True, False)
    assert torch.equal(one.vector, again[0].vector) and float(one.state["weight"]) == pytest.approx(1.0, abs=1e-15)
    assert all(torch.equal(value, again[0].state[name]) for name, value in one.state.items())
