"""Schedules over rounds, and which absences split a graph."""

from __future__ import annotations

import subprocess
import sys
from itertools import combinations
from typing import Any

import networkx as nx
import numpy as np
import pytest

from p2pfl.errors import ConfigError, IllegalStep
from p2pfl.topology import Schedule, absences_that_disconnect, build_graph
from p2pfl.types import PeerId

NODES = [PeerId(name) for name in "hfbgaced"]
SHARES = {peer: share / 36 for share, peer in enumerate(NODES, start=1)}

SPECS: list[dict[str, Any]] = [
    {"kind": "ring"},
    {"kind": "full"},
    {"kind": "edges", "edges": [[0, place] for place in range(1, 8)]},
    {"kind": "hierarchical", "clusters": 1},
    {"kind": "hierarchical", "clusters": 2},
    {"kind": "hierarchical", "clusters": 3},
    {"kind": "hierarchical", "clusters": 8},
    {"kind": "hierarchical", "clusters": [[0, 7, 3], [1], [2, 4], [5, 6]]},
]


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_every_mixing_keeps_the_weighted_mean_and_stays_on_the_graph(spec: dict[str, Any]) -> None:
    schedule = Schedule(spec, NODES, SHARES, rounds=6, closing_rounds=2)
    law = np.array([SHARES[node] for node in NODES])
    for t in range(schedule.total):
        for mixing in schedule.round(t).mixings:
            matrix = mixing.matrix.toarray()
            assert np.abs(law @ matrix - law).max() < 1e-15
            assert np.abs(matrix.sum(axis=1) - 1).max() < 1e-15
            used = {(NODES[i], NODES[j]) for i, j in zip(*np.nonzero(matrix), strict=True) if i != j}
            assert all(schedule.graph.has_edge(*edge) for edge in used)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_the_sites_come_together(spec: dict[str, Any]) -> None:
    schedule = Schedule(spec, NODES, SHARES, rounds=2000, closing_rounds=0)
    x = np.arange(8.0)
    mean = sum(SHARES[node] * value for node, value in zip(NODES, x, strict=True))
    for t in range(schedule.total):
        for mixing in schedule.round(t).mixings:
            x = mixing.matrix @ x
    assert np.abs(x - mean).max() < 1e-9


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_the_union_graph_holds_exactly_what_some_round_uses(spec: dict[str, Any]) -> None:
    schedule = Schedule(spec, NODES, SHARES, rounds=12, closing_rounds=0)
    used = {
        frozenset({node, other})
        for t in range(12)
        for mixing in schedule.round(t).mixings
        for node in NODES
        for other, _ in mixing.neighbours(node)
    }
    assert used == {frozenset(edge) for edge in schedule.graph.edges}


def test_heads_rotate_and_clusters_mix_fully_inside() -> None:
    spec = {"kind": "hierarchical", "clusters": [[0, 1, 2], [3, 4], [5, 6, 7]]}
    schedule = Schedule(spec, NODES, SHARES, rounds=7, closing_rounds=0)
    for t in range(7):
        inside, heads = schedule.round(t).mixings
        assert [peer for peer, _ in inside.neighbours(NODES[3])] == [NODES[4]]
        cluster_mean = (np.array([1, 2, 3, 0, 0, 0, 0, 0]) / 6)[None, :].repeat(3, axis=0)
        assert np.abs(inside.matrix.toarray()[:3] - cluster_mean).max() < 1e-15
        expected = {NODES[t % 3], NODES[3 + t % 2], NODES[5 + t % 3]}
        assert {node for node in NODES if heads.neighbours(node)} == expected


def test_training_then_closing_and_shared_objects() -> None:
    schedule = Schedule({"kind": "ring"}, NODES, SHARES, rounds=3, closing_rounds=2)
    assert [schedule.round(t).training for t in range(5)] == [True, True, True, False, False]
    assert schedule.total == 5
    assert schedule.round(0) is schedule.round(2)
    assert schedule.round(0).mixings[0] is schedule.round(4).mixings[0]
    assert schedule.round(1).active == frozenset(NODES)


def test_memory_of_rotating_heads_is_bounded() -> None:
    nodes = [PeerId(f"{place:02d}") for place in range(24)]
    clusters = [list(range(7)), list(range(7, 15)), list(range(15, 24))]
    spec = {"kind": "hierarchical", "clusters": clusters}
    schedule = Schedule(spec, nodes, dict.fromkeys(nodes, 1 / 24), rounds=504, closing_rounds=0)
    first = schedule.round(0).mixings[1].matrix.toarray()
    for t in range(504):
        schedule.round(t)
    assert len(schedule._kept) <= 64
    assert len(schedule._rounds) <= 128
    assert (schedule.round(0).mixings[1].matrix.toarray() == first).all()


@pytest.mark.parametrize("t", [-1, 5, 10**9])
def test_a_round_outside_the_schedule_is_refused(t: int) -> None:
    with pytest.raises(IllegalStep, match="ask for 0 to 4"):
        Schedule({"kind": "ring"}, NODES, SHARES, rounds=3, closing_rounds=2).round(t)


@pytest.mark.parametrize(("rounds", "closing", "shares"), [(0, 1, SHARES), (1, -1, SHARES), (1, 1, {NODES[0]: 1.0})])
def test_what_does_not_fit_together_is_refused(rounds: int, closing: int, shares: dict[PeerId, float]) -> None:
    with pytest.raises(ConfigError, match="give"):
        Schedule({"kind": "ring"}, NODES, shares, rounds, closing)


def test_a_ring_of_two_thousand_sites() -> None:
    nodes = [PeerId(f"{place:05d}") for place in range(2000)]
    schedule = Schedule({"kind": "ring"}, nodes, dict.fromkeys(nodes, 1 / 2000), 10, 0)
    mixing = schedule.round(9).mixings[0]
    assert mixing.matrix.nnz == 6000
    assert [peer for peer, _ in mixing.neighbours(nodes[0])] == [nodes[1], nodes[1999]]


def splits(graph: nx.Graph, size: int) -> set[frozenset[int]]:
    """The definition, tried for every set."""
    found = set()
    for absent in combinations(graph, size):
        rest = graph.subgraph(set(graph) - set(absent))
        if len(rest) and not nx.is_connected(rest):
            found.add(frozenset(absent))
    return found


ATLAS = [graph for graph in nx.graph_atlas_g()[1:] if len(graph) <= 6 and nx.is_connected(graph)]


@pytest.mark.parametrize("size", [1, 2])
def test_absences_on_every_small_graph(size: int) -> None:
    assert len(ATLAS) == 143  # all connected graphs of up to six nodes
    for graph in ATLAS:
        found = absences_that_disconnect(graph, size)
        assert len(found) == len(set(found))
        assert set(found) == splits(graph, size)


def test_absences_in_words() -> None:
    ring = build_graph({"kind": "ring"}, NODES[:4])
    assert absences_that_disconnect(ring, 1) == []
    assert absences_that_disconnect(ring, 2) == [
        frozenset({NODES[0], NODES[2]}),
        frozenset({NODES[1], NODES[3]}),
    ]
    with pytest.raises(ConfigError, match="ask for 1 or 2"):
        absences_that_disconnect(ring, 3)
    with pytest.raises(ConfigError, match="ask for single ones"):
        absences_that_disconnect(nx.cycle_graph(501), 2)


def test_the_room_does_not_import_torch() -> None:
    code = "import sys, p2pfl.topology; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("spec", [{"kind": "ring"}, {"kind": "full"}, {"kind": "hierarchical", "clusters": 2}])
@pytest.mark.parametrize("closing", [0, 1, 3, 6])
@pytest.mark.parametrize("halved", [False, True])
def test_closing_rounds_leave_what_their_contraction_says(spec: dict[str, Any], closing: int, halved: bool) -> None:
    """No disagreement shrinks less, and one shrinks exactly so: the bound is the largest there is."""
    nodes = [PeerId(f"site-{number}") for number in range(6)]
    law = np.array([0.3, 0.25, 0.2, 0.12, 0.08, 0.05])
    schedule = Schedule(spec, nodes, dict(zip(nodes, law.tolist(), strict=True)), 4, closing)
    bound = schedule.closing_contraction(halved=halved)
    matrices = [mixing.matrix.toarray() for t in range(4, 4 + closing) for mixing in schedule.round(t).mixings]
    matrices = [(np.eye(6) + matrix) / 2 for matrix in matrices] if halved else matrices

    def apart(x: np.ndarray) -> float:
        return float(np.sqrt((law[:, None] * (x - law @ x) ** 2).sum()))

    def closed(x: np.ndarray) -> np.ndarray:
        for matrix in matrices:
            x = matrix @ x
        return x

    draws = np.random.default_rng(3).normal(size=(200, 6, 1))
    shrunk = [apart(closed(x)) / apart(x) for x in draws]
    assert max(shrunk) <= bound + 1e-12
    root = np.sqrt(law)
    product = np.linalg.multi_dot([np.eye(6), *reversed(matrices), np.eye(6)]) if matrices else np.eye(6)
    _, values, right = np.linalg.svd(root[:, None] * product / root[None, :] - np.outer(root, root))
    worst = (right[0] / root)[:, None]
    assert bound == pytest.approx(values[0], abs=1e-12)
    assert apart(closed(worst)) == pytest.approx(bound * apart(worst), abs=1e-9)


@pytest.mark.parametrize(
    "spec", [spec for spec in SPECS if spec["kind"] in ("ring", "full") or spec.get("clusters") == 2], ids=str
)
@pytest.mark.parametrize("place", [0, 3, 7])
def test_one_more_site_shrinks_all_shares_alike_and_old_edges_keep_the_new_mean(
    spec: dict[str, Any], place: int
) -> None:
    """What an edge of before moves, now or taken back later, leaves the mean over all sites where it is."""
    newcomer = NODES[place]
    before = [node for node in NODES if node != newcomer]
    total = sum(SHARES[node] for node in before)
    old = Schedule(spec, before, {node: SHARES[node] / total for node in before}, rounds=6, closing_rounds=2)
    new = Schedule(spec, NODES, SHARES, rounds=6, closing_rounds=2)
    for t in range(new.total):
        for schedule in (old, new):
            for mixing in schedule.round(t).mixings:
                weights = {node: dict(mixing.neighbours(node)) for node in schedule.nodes}
                for one in schedule.nodes:
                    for other, weight in weights[one].items():
                        assert SHARES[one] * weight == pytest.approx(SHARES[other] * weights[other][one], rel=1e-12)
    assert newcomer not in old.graph and newcomer in new.graph
