"""Schedules whose graph changes from round to round, against table R2 and R3 and their own definitions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import networkx as nx
import numpy as np
import pytest

from p2pfl.errors import ConfigError
from p2pfl.topology import Schedule, build_graph
from p2pfl.topology.base import BaseGraph, radices
from p2pfl.topology.changing import changing_of
from p2pfl.types import PeerId

MATCHING, EPIDEMIC = {"kind": "matching", "seed": 7}, {"kind": "epidemic", "degree": 3, "seed": 7}
BASE = {"kind": "base", "k": 2}


def nodes(count: int) -> list[PeerId]:
    return [PeerId(f"{place:05d}") for place in range(count)]


def schedule(spec: dict[str, Any], count: int, rounds: int = 20, *, equal: bool = True, closing: int = 0) -> Schedule:
    parts = np.ones(count) if equal else np.arange(1, count + 1) ** 1.3
    shares = dict(zip(nodes(count), (parts / parts.sum()).tolist(), strict=True))
    return Schedule(spec, nodes(count), shares, rounds, closing)


def matrices(found: Schedule) -> Iterator[np.ndarray]:
    for t in range(found.total):
        (mixing,) = found.round(t).mixings
        yield mixing.matrix.toarray()


LENGTHS = {
    1: (5, 5, 5, 7, 4, 9, 5, 6, 13),
    2: (3, 2, 4, 3, 4, 6, 5, 6, 9),
    3: (3, 2, 3, 2, 2, 5, 3, 3, 7),
    4: (1, 2, 3, 2, 2, 2, 3, 3, 6),
}


@pytest.mark.parametrize("k", LENGTHS)
def test_the_base_graphs_lengths_of_table_r2(k: int) -> None:
    assert tuple(BaseGraph(n, k).length for n in (5, 6, 7, 12, 16, 25, 32, 64, 99)) == LENGTHS[k]


@pytest.mark.parametrize("k", range(1, 5))
def test_the_base_graph_is_exact_for_every_number_of_sites(k: int) -> None:
    """R2: the product of the rounds is J, no site has more than k neighbours, and all rounds are symmetric."""
    for sites in range(1, 100):
        graph, product = BaseGraph(sites, k), np.eye(sites)
        assert graph.length <= max(1.0, 2 * np.log(sites) / np.log(k + 1) + 2)
        for t in range(graph.length):
            matrix = graph.matrix(t).toarray()
            assert (matrix == matrix.T).all() and matrix.min() >= 0
            assert np.abs(matrix.sum(axis=1) - 1).max() < 1e-15
            assert ((matrix > 0).sum(axis=1) - (matrix.diagonal() > 0)).max() <= k
            product = matrix @ product
        assert np.abs(product - 1 / sites).max() < 1e-15


def test_the_base_graph_begins_again_and_shares_its_rounds() -> None:
    found = schedule(BASE, 25, rounds=14, closing=4)
    length = BaseGraph(25, 2).length
    assert found.round(1) is found.round(1 + length)
    closing, training = found.round(14), found.round(14 - length)
    assert not closing.training and closing.mixings[0] is training.mixings[0]


def test_closing_rounds_of_a_whole_base_graph_leave_nothing() -> None:
    """One cycle from its beginning, wherever the closing rounds begin; 12 sites in pairs: 8 + 4."""
    spec, length = {"kind": "base", "k": 1}, BaseGraph(12, 1).length
    assert schedule(spec, 12, rounds=2 * length, closing=length).closing_contraction() < 1e-14
    assert schedule(spec, 12, rounds=2 * length, closing=length - 1).closing_contraction() > 0.1
    for rounds in range(1, length):
        assert schedule(spec, 12, rounds=rounds, closing=2 * length - rounds).closing_contraction() < 1e-14
    assert schedule(spec, 12, rounds=5, closing=length).closing_contraction() > 0.1


def test_the_base_graph_refuses_unequal_shares() -> None:
    """Four sites and two rounds of pairs: the mean is reached only where pi_0 pi_3 = pi_1 pi_2, as base.py says."""
    with pytest.raises(ConfigError, match="only if all sites count alike"):
        schedule({"kind": "base", "k": 1}, 4, equal=False)
    alike = schedule({"kind": "base", "k": 1, "weights": "metropolis"}, 4, equal=False, closing=3)
    assert alike.law == (0.25,) * 4 and alike.closing_contraction() < 1e-14
    for law in (np.array([0.1, 0.2, 0.3, 0.4]), np.array([0.08, 0.12, 0.32, 0.48])):
        product = np.eye(4)
        for pairs in (((0, 1), (2, 3)), ((0, 2), (1, 3))):
            matrix = np.zeros((4, 4))
            for pair in pairs:
                matrix[np.ix_(pair, pair)] = law[list(pair)] / law[list(pair)].sum()
            product = matrix @ product
        exact = np.isclose(law[0] * law[3], law[1] * law[2])
        assert (np.abs(product - law).max() < 1e-15) == exact


@pytest.mark.parametrize("sites", [2, 6, 7, 64])
def test_a_matching_pairs_everybody_but_the_last_of_an_odd_number(sites: int) -> None:
    for matrix in matrices(schedule(MATCHING, sites, equal=False)):
        partners = (matrix > 0).sum(axis=1) - 1
        assert sorted(partners.tolist()) == [0] * (sites % 2) + [1] * (sites // 2 * 2)
        for one in np.flatnonzero(partners):
            (other,) = set(np.flatnonzero(matrix[one])) - {one}
            law = np.arange(1, sites + 1) ** 1.3
            assert matrix[one, other] == pytest.approx(law[other] / (law[one] + law[other]), abs=1e-15)


@pytest.mark.parametrize(("sites", "degree"), [(2, 1), (8, 1), (8, 3), (9, 4), (9, 8), (30, 5)])
def test_an_epidemic_round_is_regular(sites: int, degree: int) -> None:
    spec = {"kind": "epidemic", "degree": degree, "seed": 1}
    for matrix in matrices(schedule(spec, sites, rounds=30)):
        off = matrix[~np.eye(sites, dtype=bool)].reshape(sites, -1)
        assert ((off > 0).sum(axis=1) == degree).all()
        assert np.abs(off[off > 0] - 1 / (degree + 1)).max() < 1e-15


@pytest.mark.parametrize("spec", [MATCHING, EPIDEMIC], ids=lambda spec: spec["kind"])
@pytest.mark.parametrize("equal", [True, False])
def test_the_mean_is_kept_and_the_union_holds_what_some_round_uses(spec: dict[str, Any], equal: bool) -> None:
    found = schedule(spec, 10, rounds=9, equal=equal, closing=3)
    law, used = np.array(found.shares), np.zeros((10, 10), dtype=bool)
    for matrix in matrices(found):
        assert np.abs(law @ matrix - law).max() < 1e-15
        flows = law[:, None] * matrix
        assert np.abs(flows - flows.T).max() < 1e-16
        used |= matrix > 0
    assert (nx.to_numpy_array(found.graph) > 0).tolist() == (used & ~np.eye(10, dtype=bool)).tolist()


@pytest.mark.parametrize("spec", [MATCHING, EPIDEMIC], ids=lambda spec: spec["kind"])
def test_every_call_gives_the_same_rounds_and_each_round_others(spec: dict[str, Any]) -> None:
    one, again = schedule(spec, 12), schedule(spec, 12, rounds=200)
    rounds = [matrix.tobytes() for matrix in matrices(one)]
    assert rounds == [again.round(t).mixings[0].matrix.toarray().tobytes() for t in range(20)]
    assert len(set(rounds)) == 20
    other = schedule({**spec, "seed": 8}, 12)
    assert not set(rounds) & {matrix.tobytes() for matrix in matrices(other)}


def test_the_first_rounds_are_pinned() -> None:
    """On every machine, in every version: peers of different versions mix with each other."""
    pairs = changing_of(MATCHING, 6), changing_of(EPIDEMIC, 6)
    found = [[changing.pairs(t).tolist() for t in (0, 1)] for changing in pairs if changing is not None]
    assert found == PINNED


PINNED: list[Any] = [
    [[[0, 4], [1, 2], [3, 5]], [[2, 5], [1, 4], [0, 3]]],
    [
        [[0, 2], [0, 3], [0, 5], [1, 2], [1, 4], [1, 5], [2, 4], [3, 4], [3, 5]],
        [[0, 1], [0, 3], [0, 5], [1, 2], [1, 3], [2, 4], [2, 5], [3, 4], [4, 5]],
    ],
]


@pytest.mark.parametrize(
    ("spec", "sites", "factor"),
    [
        ({"kind": "matching", "seed": 0}, 16, 0.466667),
        ({"kind": "matching", "seed": 0}, 100, 0.494949),
        ({"kind": "matching", "seed": 0}, 1000, 0.499499),
        ({"kind": "epidemic", "degree": 7, "seed": 0}, 96, 0.11578947),
        ({"kind": "epidemic", "degree": 7, "seed": 0}, 1000, 0.12412412),
        ({"kind": "epidemic", "degree": 1, "seed": 0}, 1000, 0.49949950),
        ({"kind": "epidemic", "degree": 10, "seed": 0}, 1000, 0.08999909),
    ],
)
def test_the_factors_of_table_r3(spec: dict[str, Any], sites: int, factor: float) -> None:
    """E[V'] / V: exactly over all directions of the start, and for one fixed start as the mean over fixed draws.

    Over all x of mean 0 the mean of |W x|^2 / |x|^2 is (trace(W'W) - 1) / (n - 1), the same in each round. That it is so
    for any single start, too, needs rounds that favour no site: measured over 60 rounds, within four standard errors.
    """
    changing = changing_of(spec, sites)
    assert changing is not None
    start = np.where(np.arange(sites) < sites // 2, 1.0, -1.0)  # neighbours by number are alike
    shrunk = []
    for t in range(60):
        matrix = changing.matrix(t, [1 / sites] * sites)
        assert (float((matrix.data**2).sum()) - 1) / (sites - 1) == pytest.approx(factor, rel=5e-6)
        shrunk.append(float(((matrix @ start) ** 2).sum() / sites))
    error = float(np.std(shrunk, ddof=1)) / 60**0.5
    assert abs(np.mean(shrunk) - factor) < 4 * error and error < 0.05 * factor


@pytest.mark.parametrize("spec", [MATCHING, EPIDEMIC, BASE, {"kind": "ring"}, {"kind": "hierarchical", "clusters": 2}])
def test_edges_and_degrees_are_those_of_the_graph(spec: dict[str, Any]) -> None:
    found = schedule(spec, 40, rounds=25)
    named = {frozenset({found.nodes[one], found.nodes[other]}) for one, other in found.edges.tolist()}
    assert named == {frozenset(edge) for edge in found.graph.edges} and len(named) == len(found.edges)
    assert found.degrees.tolist() == [found.graph.degree[node] for node in found.nodes]


def test_rounds_that_never_join_all_are_refused_and_a_stop_keeps_the_links() -> None:
    with pytest.raises(ConfigError, match="in 2 rounds of this topology some of the 20 sites never hear"):
        schedule(MATCHING, 20, rounds=2)
    found = schedule(MATCHING, 20, rounds=40)
    stopped = found.stopped(1)
    assert stopped.total == 1 and set(stopped.graph.edges) == set(found.graph.edges)
    assert (stopped.round(0).mixings[0].matrix != found.round(0).mixings[0].matrix).nnz == 0


def test_without_a_number_of_rounds_everybody_may_meet() -> None:
    assert build_graph(MATCHING, nodes(7)).number_of_edges() == 21
    assert build_graph(MATCHING, nodes(7), 6).number_of_edges() <= 18
    assert build_graph(EPIDEMIC, nodes(8), 10**6).number_of_edges() == 28
    base = build_graph({"kind": "base", "k": 1}, nodes(7))
    assert {*map(frozenset, base.edges)} == {*map(frozenset, schedule({"kind": "base", "k": 1}, 7).graph.edges)}


def test_memory_of_rounds_that_never_come_again_is_bounded() -> None:
    found = schedule(MATCHING, 8, rounds=500)
    for t in range(500):
        found.round(t)
    assert len(found._kept) <= 64 and len(found._rounds) <= 128
    assert found.round(499) is found.round(499)


@pytest.mark.parametrize("spec", [MATCHING, EPIDEMIC, BASE, {"kind": "hierarchical", "clusters": 2}], ids=str)
def test_asynchronous_runs_refuse_what_changes(spec: dict[str, Any]) -> None:
    shares = dict.fromkeys(nodes(4), 0.25)
    with pytest.raises(ConfigError, match=f"of the kind {spec['kind']} changes"):
        Schedule(spec, nodes(4), shares, 10, 0, 1)
    assert not schedule(spec, 4).same_each_round and schedule({"kind": "ring"}, 4).same_each_round


@pytest.mark.parametrize("period", [1, 2, 3, 5])
def test_heads_mix_every_so_many_rounds_and_all_have_their_turn(period: int) -> None:
    spec = {"kind": "hierarchical", "clusters": [[0, 1], [2, 3, 4]], "period": period}
    found, heads = schedule(spec, 5, rounds=12 * period), []
    for t in range(found.total):
        mixings = found.round(t).mixings
        assert len(mixings) == (1 if t % period else 2)
        if len(mixings) == 2:
            heads.append(frozenset(int(node) for node in found.nodes if mixings[1].neighbours(node)))
    assert set(heads) == {frozenset({one, other}) for one in (0, 1) for other in (2, 3, 4)}
    used = {frozenset(map(int, edge)) for edge in found.graph.edges}
    assert used == {*heads, frozenset({0, 1}), *map(frozenset, ({2, 3}, {2, 4}, {3, 4}))}


@pytest.mark.parametrize(
    ("spec", "count", "says"),
    [
        ({"kind": "base", "k": 0}, 4, "k is 0; give a whole number from 1"),
        ({"kind": "base"}, 4, "give it exactly k, kind"),
        ({"kind": "matching", "seed": True}, 4, "seed is True"),
        ({"kind": "matching", "seed": 2**32}, 4, "seed is 4294967296"),
        ({"kind": "epidemic", "degree": 4, "seed": 0}, 4, "cannot have 4 neighbours each; give a degree from 1 to 3"),
        ({"kind": "epidemic", "degree": 3, "seed": 0}, 5, "every edge has two ends"),
        ({"kind": "epidemic", "degree": "3", "seed": 0}, 5, "degree is 3; give a whole number"),
        ({"kind": "hierarchical", "clusters": 2, "period": 0}, 5, "period is 0; give a whole number from 1"),
        (
            {"kind": "hierarchical", "clusters": 2, "periods": 2},
            5,
            "clusters, kind, and if you like closing, period, weights",
        ),
        ({"kind": "ring", "period": 2}, 5, "give it exactly kind"),
    ],
)
def test_a_wrong_spec_is_refused(spec: dict[str, Any], count: int, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        schedule(spec, count)
    with pytest.raises(ConfigError, match=says):
        build_graph(spec, nodes(count))


def test_factors_are_as_few_as_possible() -> None:
    assert radices(64, 5) == (4, 4, 4) and radices(12, 4) == (4, 3) and radices(1, 2) == ()
    assert radices(14, 6) is None and radices(49, 7) == (7, 7)


@pytest.mark.parametrize("spec", [MATCHING, BASE, {"kind": "epidemic", "degree": 2, "seed": 0}], ids=str)
def test_one_site_alone(spec: dict[str, Any]) -> None:
    assert [matrix.tolist() for matrix in matrices(schedule(spec, 1, rounds=2))] == [[[1.0]], [[1.0]]]
