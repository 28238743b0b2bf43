"""One battery for every update rule, by the rows of rule_rows.py."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from rule_rows import ON_GRAPHS, ROWS, made
from session_worlds import Consortium, lossy_rounds
from torch import Tensor
from train_worlds import QUADRATIC_PLAN, Quadratic, run_joined, run_stacked, stationary_edges

from p2pfl.train.mixing import VectorGraph, VectorInbox, VectorRelays
from p2pfl.train.optimisers import optimiser_named
from p2pfl.train.rules import RULES, Context, rule_named


def graph_of(kind: str, world: Quadratic) -> VectorGraph:
    return VectorGraph(len(world.shares), stationary_edges(kind, world.shares), world.shares)


def error_of(x: Tensor, world: Quadratic) -> float:
    return float((x - world.optimum).norm(dim=-1).max())


def worlds(*fields: str) -> list[tuple[str, str, int]]:
    """Rule, graph and K of the rows' graphs in these fields."""
    return [
        (name, kind, steps)
        for name, row in ROWS.items()
        for part in fields
        for kind in getattr(row, part)
        for steps in (row.exact_steps if part == "exact" else (1,))
    ]


def test_every_rule_has_a_row() -> None:
    assert set(ROWS) == set(RULES)
    assert all(set(row.exact) | set(row.biased) == set(row.graphs) for row in ROWS.values())
    assert all(set(row.numbers) == set(RULES[name].settings) for name, row in ROWS.items())


@pytest.mark.parametrize(("name", "kind", "steps"), worlds("exact"))
def test_it_ends_at_the_weighted_optimum(name: str, kind: str, steps: int) -> None:
    row, world = ROWS[name], Quadratic(5, seed=3)
    _, x = run_stacked(made(name), world, graph_of(kind, world), row.rounds, row.rate / steps, steps)
    assert error_of(x, world) < 2e-11  # pulls of the full graph round by 1e-16 of x, 3000 times


@pytest.mark.parametrize(("name", "kind", "steps"), worlds("biased"))
def test_its_bias_is_that_of_dpsgd(name: str, kind: str, steps: int) -> None:
    """FedProx with K = 1 is D-PSGD; quasi-global momentum ends where D-PSGD with (1 + beta) lr does."""
    row, world = ROWS[name], Quadratic(5, seed=3)
    graph = graph_of(kind, world)
    _, x = run_stacked(made(name), world, graph, row.rounds, row.rate, steps)
    _, plain = run_stacked(made("dpsgd"), world, graph, row.rounds, row.rate * (1 + row.numbers.get("beta", 0.0)), 1)
    assert error_of(x, world) > 0.1
    assert float((x - plain).abs().max()) < 1e-10


@pytest.mark.parametrize("proximal", [0.5, 5.0])
def test_fedprox_is_less_biased_the_stronger_its_spring(proximal: float) -> None:
    """On the full graph with K = 5, where D-PSGD is off by drift alone."""
    world = Quadratic(5, seed=3)
    graph = graph_of("full", world)
    rules = [rule_named("fedprox", optimiser_named("sgd"), {"proximal": mu}) for mu in (0.0, 0.1, proximal)]
    found = [error_of(run_stacked(rule, world, graph, 1500, 0.02, 5)[1], world) for rule in (made("dpsgd"), *rules)]
    assert found[0] == found[1] > found[2] > found[3] > 1e-3


def test_quasi_global_momentum_without_momentum_is_dpsgd() -> None:
    world = Quadratic(5)
    rule = rule_named("quasi_global", optimiser_named("sgd"), {"beta": 0.0})
    found = [run_stacked(each, world, graph_of("ring", world), 30, 0.05, 3)[1] for each in (rule, made("dpsgd"))]
    assert torch.equal(*found)


def test_gradient_tracking_is_kgt_with_one_step() -> None:
    """Also with sites that have no step in some rounds: c = y - g."""
    world = Quadratic(6)
    graph = graph_of("ring", world)
    ends = []
    for name in ("gradient_tracking", "kgt"):
        rule, x = made(name), torch.zeros(6, 4, dtype=torch.float64)
        state = rule.init(x, graph)
        for number in range(60):
            steps = 0 if number % 7 == 3 else 1
            context = Context(number, 0.05, steps)
            state, x = rule.local(state, x, context, world.oracle())
            state, messages = rule.send(state, x, context, graph)
            state, x = rule.merge(state, x, context, VectorInbox(graph, messages))
        ends.append((x, ROWS[name].zero(state, x)))  # type: ignore[misc]
    assert all(float((one - other).abs().max()) < 1e-12 for one, other in zip(*ends, strict=True))


def test_exact_diffusion_is_its_textbook_form() -> None:
    """x <- (I + W)/2 (psi + x - psi_previous), in dense matrices."""
    world = Quadratic(6)
    graph = graph_of("ring", world)
    mixing = torch.zeros(6, 6, dtype=torch.float64)
    mixing[graph.receiver, graph.sender] = graph.weight
    mixing += torch.eye(6, dtype=torch.float64) * (2 - mixing.sum(1))
    x, before = torch.zeros(6, 4, dtype=torch.float64), None
    for _ in range(60):
        psi = x - 0.05 * world.oracle()(x, 0).grad
        x, before = mixing / 2 @ (psi if before is None else psi + x - before), psi
    _, found = run_stacked(made("exact_diffusion"), world, graph, 60, 0.05, 1)
    assert float((found - x).abs().max()) < 1e-12


@pytest.mark.parametrize(("name", "kind"), [(name, kind) for name, row in ROWS.items() for kind in row.graphs])
def test_sums_are_conserved(name: str, kind: str) -> None:
    row, world = ROWS[name], Quadratic(6, seed=1)
    rule, graph = made(name), graph_of(kind, world)
    x, relays = torch.zeros(6, 4, dtype=torch.float64), VectorRelays(graph)
    state = rule.init(x, graph)
    for number in range(12):
        context = Context(number, row.rate, 1)
        state, x = rule.local(state, x, context, world.oracle())
        state, messages = rule.send(state, x, context, graph)
        before = world.shares @ x
        state, x = rule.merge(state, x, context, VectorInbox(graph, messages, relays))
        if row.keeps_sum:
            assert float((world.shares @ x - before).abs().max()) < 1e-13
        if row.zero is not None:
            assert float((world.shares @ row.zero(state, x)).abs().max()) < 1e-13
            assert float(row.zero(state, x).abs().max()) > 1e-3, "a sum of zeros says nothing"


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("name", ON_GRAPHS)
def test_both_forms_agree(name: str, steps: int) -> None:
    world, rule = Quadratic(6), made(name)
    graph, taken = graph_of(ROWS[name].graphs[0], world), min(steps, rule.needs.most_steps or steps)
    _, stacked = run_stacked(rule, world, graph, 20, 0.03, taken)
    assert float((stacked - run_joined(rule, world, graph, 20, 0.03, taken)).abs().max()) < 1e-12


@pytest.mark.parametrize("name", ON_GRAPHS)
def test_the_order_of_the_sites_decides_nothing(name: str) -> None:
    world, other, order = Quadratic(6), Quadratic(6), torch.tensor([3, 0, 5, 1, 4, 2])
    other.curvature, other.centre, other.shares = (t[order] for t in (world.curvature, world.centre, world.shares))
    place = {int(old): new for new, old in enumerate(order)}
    edges = stationary_edges(ROWS[name].graphs[0], world.shares)
    moved = [(place[i], place[j], weight) for i, j, weight in edges]
    graphs = VectorGraph(6, edges, world.shares), VectorGraph(6, moved, other.shares)
    ends = [run_stacked(made(name), w, graph, 25, 0.05, 1)[1] for w, graph in zip((world, other), graphs, strict=True)]
    assert float((ends[0][order] - ends[1]).abs().max()) < 1e-12


@pytest.mark.parametrize("name", list(ROWS))
def test_one_site_alone_is_its_own_optimiser(name: str) -> None:
    """Plain SGD on the one site; with momentum or a spring the site's own form of it."""
    world, row = Quadratic(1), ROWS[name]
    steps = min(3, RULES[name].needs.most_steps or 3)
    _, found = run_stacked(made(name), world, VectorGraph(1, [], world.shares), 20, 0.05, steps)
    x, momentum = torch.zeros(1, 4, dtype=torch.float64), torch.zeros(1, 4, dtype=torch.float64)
    beta, mu, proximal = (row.numbers.get(key, 0.0) for key in ("beta", "mu", "proximal"))
    for _ in range(20):
        start = x
        for k in range(steps):
            gradient = world.oracle()(x, k).grad + proximal * (x - start)
            x = x - 0.05 * (gradient + beta * (beta * momentum + gradient))
        momentum = mu * momentum + (1 - mu) * (start - x) / (0.05 * steps)
    assert float((found - x).abs().max()) < 1e-12


# --- losses


@cache
def lossy(name: str, loss: float, settle: bool = True) -> Consortium:
    row = ROWS[name]
    world = Consortium(
        QUADRATIC_PLAN, 4, row.graphs[0], rule=name, local_steps=1, learning_rate=0.1, rule_settings=dict(row.numbers)
    )
    one_sided = lossy_rounds(world, 30, 230, loss=loss, settle=settle)
    assert (one_sided > 2) == (loss > 0)
    return world


@pytest.mark.parametrize("name", ON_GRAPHS)
def test_settled_losses_change_nothing(name: str) -> None:
    """5 % of the messages lost for 30 rounds, taken back within 4; then the same end as without losses."""
    quiet, after = lossy(name, 0.0), lossy(name, 0.05)
    assert float((quiet.stacked - after.stacked).abs().max()) < 1e-10
    zero = ROWS[name].zero
    if zero is not None:
        sums = torch.stack([zero(dict(session.state), session.vector) for session in after.sessions])
        assert float((after.shares @ sums).abs().max()) < 1e-12


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.protected])
def test_losses_that_are_not_taken_back_cost_the_optimum(name: str) -> None:
    quiet, after = lossy(name, 0.0), lossy(name, 0.05, settle=False)
    assert float((quiet.stacked - after.stacked).abs().max()) > 1e-3


@pytest.mark.parametrize("name", ON_GRAPHS)
def test_closing_rounds_leave_the_state(name: str) -> None:
    """They mix the model; what a rule remembers of training stays, and so does sum pi x."""
    world = Consortium(QUADRATIC_PLAN, 4, ROWS[name].graphs[0], rule=name, local_steps=1)
    for number in range(5):
        world.round(number)
    states, mean, before = [dict(s.state) for s in world.sessions], world.mean, world.stacked
    for number in range(5, 8):
        world.mix(number, closing=True)
    assert float((world.mean - mean).abs().max()) < 1e-13
    mixing = torch.zeros(4, 4, dtype=torch.float64)
    for i, j, weight in world.edges:
        mixing[i, j], mixing[i, i] = weight, mixing[i, i] - weight
    step = torch.eye(4, dtype=torch.float64) + mixing / (2 if RULES[name].needs.halved else 1)
    assert float((torch.linalg.matrix_power(step, 3) @ before - world.stacked).abs().max()) < 1e-13
    assert float((before - world.stacked).abs().max()) > 1e-3
    for state, session in zip(states, world.sessions, strict=True):
        assert all(torch.equal(value, session.state[key]) for key, value in state.items())
