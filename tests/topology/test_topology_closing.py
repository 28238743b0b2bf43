"""Accelerated closing rounds of schedules: their weights and what they leave, the common rho, what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from p2pfl.errors import ConfigError, PlanError
from p2pfl.governance import closing_in_words, plan_from_files
from p2pfl.governance.topologies import CHANGING, CLOSINGS, topology_problem
from p2pfl.topology import Schedule, build_graph, chebyshev_factors, chebyshev_weights, spectral_gap
from p2pfl.topology.chebyshev import CLOSINGS as KNOWN
from p2pfl.topology.chebyshev import accelerated_contraction, common_rho
from p2pfl.train.rules import check_combination
from p2pfl.types import PeerId

NODES = [PeerId(f"{k:02d}") for k in range(12)]
SHARES = {node: 1.0 + k % 5 for k, node in enumerate(NODES)}
FAST = {"kind": "ring", "closing": "chebyshev"}
CHANGING_SPECS: list[dict[str, Any]] = [
    {"kind": "hierarchical", "clusters": 2}, {"kind": "base", "k": 1}, {"kind": "matching", "seed": 0},
    {"kind": "epidemic", "degree": 2, "seed": 0},
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
        factor = chebyshev_factors(rho, 10)[-1]
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
    for rest in sorted(value for value in fractions if 1e-3 < value < 1 - 1e-5):
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


def test_graphs_that_hardly_mix_are_refused() -> None:
    weights = [[k, k + 1, 1e-7 if k == 5 else 0.3, 1e-7 if k == 5 else 0.3] for k in range(11)]
    spec = {"kind": "chain", "weights": weights}
    assert schedule(spec).closing_contraction() > 0.999
    with pytest.raises(ConfigError, match="mixes too slowly to close by Chebyshev gossip; add edges"):
        schedule({**spec, "closing": "chebyshev"})
