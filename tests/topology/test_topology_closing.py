"""Accelerated closing rounds of schedules: their weights and what they leave, the common rho, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.polynomial.chebyshev import chebval

from p2pfl.errors import ConfigError, PlanError
from p2pfl.governance import closing_in_words, plan_from_files
from p2pfl.governance.topologies import CHANGING, CLOSINGS, topology_problem
from p2pfl.topology import Schedule, build_graph, chebyshev_factors, chebyshev_weights, spectral_gap
from p2pfl.topology.chebyshev import CLOSINGS as KNOWN
from p2pfl.topology.chebyshev import MOST_RHO, accelerated_contraction, common_rho
from p2pfl.train.rules import check_combination
from p2pfl.types import PeerId

NODES = [PeerId(f"{k:02d}") for k in range(12)]
SHARES = {node: 1.0 + k % 5 for k, node in enumerate(NODES)}
FAST = {"kind": "ring", "closing": "chebyshev"}
CHANGING_SPECS: list[dict[str, Any]] = [
    {"kind": "hierarchical", "clusters": 2}, {"kind": "base", "k": 1}, {"kind": "matching", "seed": 0},
    {"kind": "epidemic", "degree": 2, "seed": 0}, {"kind": "exponential"}, {"kind": "cyclic"},
]  # fmt: skip
PLAN = """
[plan]
name = "points"
[data]
tag = "points"
[topology]
{topology}
[training]
rule = "{rule}"
optimiser = {{ name = "sgd" }}
learning_rate = 0.1
local_steps = 1
batch_size = 8
rounds = 5
{more}
"""


def schedule(spec: dict[str, Any], closing: int = 10, staleness: int = 0) -> Schedule:
    return Schedule(spec, NODES, SHARES, 4, closing, staleness)


def plan(topology: str, rule: str = "dpsgd", more: str = "") -> Any:
    return plan_from_files(
        b"def model(): ...\ndef loss(model, batch): ...\ndef load(path): ...\n",
        PLAN.format(topology=topology, rule=rule, more=more).encode(),
    )


def test_both_rooms_know_the_same_ways_of_closing() -> None:
    assert tuple(CLOSINGS) == KNOWN and {spec["kind"] for spec in CHANGING_SPECS} == CHANGING
    for way in CLOSINGS:
        spec = {"kind": "ring", "closing": way}
        assert topology_problem(spec) is None and len(build_graph(spec, NODES)) == 12
        assert closing_in_words(spec).startswith(f"{way}: ")


def test_closing_rounds_mix_with_weights_that_grow() -> None:
    found, plain = schedule(FAST), schedule({"kind": "ring", "closing": "plain"})
    matrix = plain.round(0).mixings[0].matrix
    growing = chebyshev_weights(common_rho(matrix, plain.law), 10)
    assert max(growing) > 1.5
    assert found.inertias(100) == tuple((4 + k, weight - 1) for k, weight in enumerate(growing))
    assert found.inertias(4) == () and len(found.inertias(7)) == 3 and plain.inertias(14) == ()
    for t in range(found.total):
        factor = 1.0 if t < 4 else growing[t - 4]
        assert found.round(t).inertia == (None if t < 4 else factor - 1) and plain.round(t).inertia is None
        for node in NODES:
            pairs = zip(
                found.round(t).mixings[0].neighbours(node), plain.round(t).mixings[0].neighbours(node), strict=True
            )
            assert all(mine == (peer, factor * weight) for mine, (peer, weight) in pairs)
    assert found.round(0).mixings == found.round(4).mixings, "the first one is as plain ones are"


def test_a_stop_moves_the_accelerated_rounds() -> None:
    found = schedule(FAST).stopped(2)
    assert [t for t, _ in found.inertias(20)] == list(range(2, 12))
    assert found.round(3).inertia == schedule(FAST).round(5).inertia


def test_what_is_left_is_the_factor() -> None:
    for spec in ({"kind": "ring"}, {"kind": "chain"}, {"kind": "torus", "rows": 3, "columns": 4}):
        fast, plain = schedule({**spec, "closing": "chebyshev"}), schedule(spec)
        rho = 1 - spectral_gap(plain.round(0).mixings[0].matrix, plain.law)
        most = min(rho, MOST_RHO)
        factor = float(chebval(rho / most, [0] * 10 + [1]) / chebval(1 / most, [0] * 10 + [1]))
        assert rho > MOST_RHO or factor == pytest.approx(chebyshev_factors(rho, 10)[-1], rel=1e-9)
        assert fast.closing_contraction() == pytest.approx(factor, rel=1e-3)
        assert plain.closing_contraction() == pytest.approx(rho**10, rel=1e-9)
        assert fast.closing_contraction() < plain.closing_contraction()
        dense = plain.round(0).mixings[0].matrix
        assert accelerated_contraction(dense, [1.0] * 10, plain.law) == pytest.approx(rho**10, rel=1e-9)
    assert schedule(FAST, closing=0).closing_contraction() == pytest.approx(1.0)


def test_on_a_full_graph_plain_mixing_is_exact_and_nothing_is_accelerated() -> None:
    found = schedule({"kind": "full", "closing": "chebyshev"})
    assert {beta for _, beta in found.inertias(20)} == {0.0}
    assert found.closing_contraction() < 1e-15
    assert all(found.round(t).mixings == found.round(0).mixings for t in range(found.total))


def test_ring_of_12_needs_a_quarter_of_the_rounds_for_a_hundredth() -> None:
    """The figures of docs/topology.md."""
    equal = dict.fromkeys(NODES, 1.0)

    def rounds(closing: str, factor: float) -> int:
        spec = {"kind": "ring", "closing": closing}
        return next(T for T in range(1, 200) if Schedule(spec, NODES, equal, 1, T).closing_contraction() <= factor)

    assert [(rounds("plain", f), rounds("chebyshev", f)) for f in (0.1, 0.01, 1e-3, 1e-6)] == [
        (25, 7), (50, 13), (74, 18), (148, 34),
    ]  # fmt: skip


def test_eigenvalues_with_any_rounding_give_the_same_rho() -> None:
    """Simple fractions, as regular graphs have them, lie far from where the grid's next step begins."""
    fractions = {p / q for q in range(2, 40) for p in range(1, q)}
    fractions |= {1 / 3 + 2 / 3 * float(np.cos(2 * np.pi * k / n)) for n in range(3, 65) for k in range(1, n // 2)}
    for rest in sorted(value for value in fractions if 1e-3 < value < MOST_RHO - 1e-5):
        near = {common_rho(np.diag([1.0, rest * (1 + off)]), [0.5, 0.5]) for off in (-1e-12, 0.0, 1e-12)}
        assert len(near) == 1 and rest < min(near) < rest + 1.7e-6, rest
    assert common_rho(np.diag([1.0, 3e-16]), [0.5, 0.5]) == 0.0


@pytest.mark.parametrize("spec", CHANGING_SPECS, ids=lambda spec: spec["kind"])
def test_mixings_that_differ_are_refused(spec: dict[str, Any]) -> None:
    assert topology_problem({**spec, "closing": "plain"}) is None
    with pytest.raises(ConfigError, match=f'of the kind {spec["kind"]} has several; give closing = "plain"'):
        schedule({**spec, "closing": "chebyshev"})
    assert "write plain: chebyshev is for graphs" in str(topology_problem({**spec, "closing": "chebyshev"}))


@pytest.mark.parametrize("closing", ["fast", 1, ["plain"], None, ["chebyshev"]])
def test_other_ways_are_refused(closing: Any) -> None:
    with pytest.raises(ConfigError, match="give plain or chebyshev"):
        schedule({"kind": "ring", "closing": closing})
    assert "write one of plain, chebyshev" in str(topology_problem({"kind": "ring", "closing": closing}))


def test_asynchronous_runs_and_rules_that_halve_are_refused() -> None:
    with pytest.raises(ConfigError, match="asynchronous runs close plainly"):
        schedule(FAST, staleness=2)
    spec = 'kind = "ring"\nclosing = "chebyshev"'
    with pytest.raises(PlanError, match='choose closing = "plain" or the synchronous policy'):
        plan(spec, more='policy = "asynchronous"')
    says = r"rule exact_diffusion does not go with accelerated closing rounds: it mixes with \(I \+ W\) / 2"
    with pytest.raises(PlanError, match=says):
        plan(spec, rule="exact_diffusion")
    with pytest.raises(ConfigError, match=says):
        check_combination("exact_diffusion", "sgd", accelerated=True)
    with pytest.raises(ConfigError, match="closes plainly"):
        schedule(FAST).closing_contraction(halved=True)
    for rule in ("dpsgd", "kgt", "quasi_global", "gradient_tracking", "fedprox"):
        found = plan(spec, rule=rule).settings
        assert found.topology_spec() == FAST and found.graph_problem(4, 4, FAST) is None
        check_combination(rule, "sgd", accelerated=True)
    plain = plan('kind = "ring"', rule="exact_diffusion").settings
    assert "accelerated" in str(plain.graph_problem(4, 4, FAST)), "or a charter's topology would bring it in"


def test_graphs_that_hardly_mix_close_with_the_most_weights() -> None:
    weights = [[k, k + 1, 1e-7 if k == 5 else 0.3, 1e-7 if k == 5 else 0.3] for k in range(11)]
    spec = {"kind": "chain", "weights": weights}
    assert schedule(spec).closing_contraction() > 0.999
    found = schedule({**spec, "closing": "chebyshev"})
    assert found.inertias(100)[-1][1] == chebyshev_weights(MOST_RHO, 10)[-1] - 1
    assert 0.999 < found.closing_contraction() < 1.0


def going_through(spec: dict[str, Any], sites: int, rounds: int, away: Callable[[int, int, int], bool]) -> float:
    """How much of the disagreement is left when an edge (i, j) is away in round t."""
    nodes = [PeerId(f"{k:02d}") for k in range(sites)]
    found = Schedule(spec, nodes, dict.fromkeys(nodes, 1.0), 1, rounds)
    matrix = Schedule({"kind": spec["kind"]}, nodes, dict.fromkeys(nodes, 1.0), 1, 1).round(0).mixings[0].matrix
    i, j = np.nonzero(np.triu(matrix.toarray(), 1))
    weight = matrix.toarray()[i, j]
    x = np.random.default_rng(1).normal(size=sites)
    x -= x.mean()
    apart, flow = np.linalg.norm(x), np.zeros(sites)
    for t, inertia in found.inertias(rounds + 1):
        here = np.array([not away(t, int(a), int(b)) for a, b in zip(i, j, strict=True)])
        moved = (1 + inertia) * weight * here * (x[j] - x[i])
        flow = inertia * flow + np.bincount(i, moved, sites) - np.bincount(j, moved, sites)
        x = x + flow
    assert abs(x.mean()) < 1e-12 * max(1.0, np.abs(x).max())
    return float(np.linalg.norm(x) / apart)


@pytest.mark.parametrize(
    ("kind", "sites", "rounds"), [("chain", 12, 100), ("chain", 32, 300), ("ring", 32, 200), ("ring", 64, 300)]
)
@pytest.mark.parametrize("part", [0.2, 0.5])
def test_edges_that_come_and_go_push_nobody_apart(kind: str, sites: int, rounds: int, part: float) -> None:
    """With the weights of rho near 1 they do: up to 1e9 times on these graphs."""
    chance = np.random.default_rng(2)
    left = going_through({"kind": kind, "closing": "chebyshev"}, sites, rounds, lambda t, i, j: chance.random() < part)
    assert left < 1.0


def test_weights_for_a_rho_near_1_would_push_them_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2pfl.topology.chebyshev.MOST_RHO", 1.0)
    chance = np.random.default_rng(2)
    left = going_through({"kind": "chain", "closing": "chebyshev"}, 32, 300, lambda t, i, j: chance.random() < 0.3)
    assert left > 1000.0
