"""The rules' theorems on heterogeneous quadratics, in both forms."""

from __future__ import annotations

import random

import pytest
import torch
from train_worlds import Quadratic, edges_of, run_joined, run_stacked, stationary_edges

from p2pfl.errors import ConfigError, IllegalStep
from p2pfl.train.mixing import VectorGraph, VectorInbox
from p2pfl.train.optimisers import SGD, Momentum, optimiser_named
from p2pfl.train.rules import Context, check_combination, rule_named


def graph_of(kind: str, world: Quadratic) -> VectorGraph:
    return VectorGraph(len(world.shares), stationary_edges(kind, world.shares), world.shares)


def error_of(x: torch.Tensor, world: Quadratic) -> float:
    return float((x - world.optimum).norm(dim=-1).max())


@pytest.mark.parametrize("kind", ["ring", "full"])
@pytest.mark.parametrize("seed", [0, 1])
def test_kgt_reaches_the_weighted_optimum(kind: str, seed: int) -> None:
    world = Quadratic(5, seed)
    state, x = run_stacked(rule_named("kgt", SGD()), world, graph_of(kind, world), 600, 0.04, 5)
    assert error_of(x, world) < 1e-12
    assert float((world.shares[:, None] * state["correction"]).sum(0).abs().max()) < 1e-12


def test_kgt_with_equal_weights_misses_the_weighted_optimum() -> None:
    world = Quadratic(5)
    equal = torch.full((5,), 0.2, dtype=torch.float64)
    graph = VectorGraph(5, stationary_edges("ring", equal), equal)
    _, x = run_stacked(rule_named("kgt", SGD()), world, graph, 600, 0.04, 5)
    assert error_of(x, world) > 0.1


def test_dpsgd_is_exact_on_the_full_graph_with_one_step() -> None:
    world = Quadratic(5)
    _, x = run_stacked(rule_named("dpsgd", SGD()), world, graph_of("full", world), 800, 0.1, 1)
    assert error_of(x, world) < 1e-12


@pytest.mark.parametrize(
    ("kind", "rate", "steps", "site", "mean"),
    [("ring", 0.1, 1, 2.01, 0.191), ("ring", 0.05, 1, 1.17, 0.111), ("full", 0.02, 5, 0.088, 0.0879)],
)
def test_dpsgd_bias_is_the_documented_figure(kind: str, rate: float, steps: int, site: float, mean: float) -> None:
    """docs/update-rules.md quotes these numbers."""
    world = Quadratic(5)
    _, x = run_stacked(rule_named("dpsgd", SGD()), world, graph_of(kind, world), 800, rate, steps)
    model = (world.shares[:, None] * x).sum(0)
    assert error_of(x, world) == pytest.approx(site, abs=0.005)
    assert float((model - world.optimum).norm()) == pytest.approx(mean, abs=0.0005)


@pytest.mark.parametrize("sites", [2, 5, 8])
def test_relaysgd_reaches_the_weighted_optimum_on_a_tree(sites: int) -> None:
    world = Quadratic(sites)
    _, x = run_stacked(rule_named("relaysgd", SGD()), world, graph_of("tree", world), 1500, 0.05, 1)
    assert error_of(x, world) < 1e-12


@pytest.mark.parametrize("loss", [0.0, 0.05, 0.3])
def test_relaysgd_through_joined_sites_reaches_the_weighted_optimum_also_with_losses(loss: float) -> None:
    world, chance = Quadratic(6), random.Random(3)
    lost = {(i, j, t) for t in range(2000) for i in range(6) for j in range(6) if chance.random() < loss}
    x = run_joined(
        rule_named("relaysgd", SGD()), world, graph_of("tree", world), 2000, 0.05, 1,
        lambda i, j, t: (i, j, t) not in lost,
    )  # fmt: skip
    assert error_of(x, world) < 1e-12


def test_relaysgd_without_shares_ends_elsewhere() -> None:
    world = Quadratic(5)
    equal = torch.full((5,), 0.2, dtype=torch.float64)
    graph = VectorGraph(5, stationary_edges("tree", world.shares), equal)
    _, x = run_stacked(rule_named("relaysgd", SGD()), world, graph, 1500, 0.05, 1)
    assert error_of(x, world) > 0.1


@pytest.mark.parametrize(
    ("name", "kind", "optimiser", "steps"),
    [
        ("dpsgd", "ring", "sgd", 3),
        ("dpsgd", "full", "momentum", 2),
        ("dpsgd", "ring", "adam", 2),
        ("kgt", "ring", "sgd", 4),
        ("kgt", "full", "sgd", 1),
        ("relaysgd", "tree", "sgd", 2),
        ("relaysgd", "tree", "adam", 1),
        ("fedprox", "ring", "adam", 3),
        ("quasi_global", "ring", "sgd", 3),
        ("exact_diffusion", "full", "sgd", 1),
        ("gradient_tracking", "ring", "sgd", 1),
    ],
)
def test_both_forms_agree(name: str, kind: str, optimiser: str, steps: int) -> None:
    world = Quadratic(6)
    rule = rule_named(name, optimiser_named(optimiser))
    graph = graph_of(kind, world)
    _, stacked = run_stacked(rule, world, graph, 20, 0.02, steps)
    joined = run_joined(rule, world, graph, 20, 0.02, steps)
    assert float((stacked - joined).abs().max()) < 1e-12
    assert float(stacked.abs().max()) > 0.1


@pytest.mark.parametrize(
    ("name", "optimiser"),
    [
        ("dpsgd", "adam"),
        ("kgt", "sgd"),
        ("relaysgd", "momentum"),
        ("fedprox", "momentum"),
        ("quasi_global", "sgd"),
        ("exact_diffusion", "sgd"),
        ("gradient_tracking", "sgd"),
    ],
)
def test_a_rule_changes_nothing_in_place(name: str, optimiser: str) -> None:
    world = Quadratic(4)
    rule, graph = rule_named(name, optimiser_named(optimiser)), graph_of("tree", world)
    state, x = run_stacked(rule, world, graph, 3, 0.05, 2)
    context = Context(3, 0.05, 2)
    given = [x, *state.values()]
    before = [tensor.clone() for tensor in given]
    later, y = rule.local(state, x, context, world.oracle())
    later, messages = rule.send(later, y, context, graph)
    given += [y, *later.values(), *messages.values()]
    before += [tensor.clone() for tensor in given[len(before) :]]
    rule.merge(later, y, context, VectorInbox(graph, messages))
    assert all(torch.equal(a, b) for a, b in zip(given, before, strict=True))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: rule_named("fedavg", SGD()),
            "one of dpsgd, fedprox, kgt, quasi_global, exact_diffusion, gradient_tracking, relaysgd",
        ),
        (lambda: rule_named("kgt", Momentum()), "mean gradient"),
        (lambda: check_combination("kgt", "adam"), "choose sgd"),
        (lambda: check_combination("relaysgd", "sgd", sites=4, edges=4), "needs a tree"),
        (lambda: check_combination("relaysgd", "sgd", sites=3, varying=True), "one and the same mixing"),
    ],
)
def test_wrong_combinations_are_refused_with_the_reason(call, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        call()


def test_good_combinations_pass() -> None:
    check_combination("relaysgd", "adam", sites=5, edges=len(edges_of("tree", 5)))
    check_combination("dpsgd", "adam", sites=5, edges=10)


@pytest.mark.parametrize("edges", [[(0, 1, 0.5)], [(0, 0, 0.5)]])
def test_a_graph_refuses_loops_and_one_way_edges(edges) -> None:
    with pytest.raises(IllegalStep):
        VectorGraph(2, edges, [0.5, 0.5])


def test_a_graph_from_a_matrix_pulls_as_the_matrix_does() -> None:
    scipy_sparse = pytest.importorskip("scipy.sparse")
    world = Quadratic(5)
    graph = graph_of("ring", world)
    dense = torch.zeros(5, 5, dtype=torch.float64)
    dense[graph.receiver, graph.sender] = graph.weight
    dense += torch.diag(1 - dense.sum(1))
    again = VectorGraph.from_matrix(scipy_sparse.csr_array(dense.numpy()), world.shares)
    m = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(m + again.pull(m), dense @ m, atol=1e-15, rtol=0)
    assert float((world.shares @ again.pull(m)).abs().max()) < 1e-15
