"""Random regular graphs: regular, simple, connected, the same everywhere, and as good mixers as theory says."""

from __future__ import annotations

import hashlib
from math import sqrt

import networkx as nx
import numpy as np
import pytest

from p2pfl.topology import Schedule, build_graph, spectral_gap, stationary_weights
from p2pfl.topology.regular import regular_pairs
from p2pfl.types import PeerId

SMALL = [
    (sites, degree)
    for sites in range(2, 19)
    for degree in range(1, sites)
    if sites * degree % 2 == 0 and (degree > 1 or sites == 2)
]


@pytest.mark.parametrize(("sites", "degree"), [*SMALL, (200, 99), (200, 100), (201, 100), (1000, 7)])
def test_every_graph_that_can_be_is_simple_regular_and_connected(sites: int, degree: int) -> None:
    for seed in range(3):
        pairs = regular_pairs(sites, degree, seed)
        assert all(0 <= one < other < sites for one, other in pairs)
        assert len(set(pairs)) == len(pairs) == sites * degree // 2
        graph = nx.Graph(pairs)
        assert set(dict(graph.degree).values()) == {degree} and nx.is_connected(graph)


@pytest.mark.parametrize(
    ("sites", "degree", "seed", "expected"),
    [
        (12, 3, 0, "d7a4dd125954e389"),
        (12, 3, 1, "b2b2b6d5ab8ce558"),
        (12, 8, 0, "54133edd7d5fd7fe"),
        (100, 4, 7, "7b4b66620eeea66b"),
        (10_000, 8, 0, "94daa8f45b94201f"),
    ],
)
def test_the_same_on_every_machine(sites: int, degree: int, seed: int, expected: str) -> None:
    text = ";".join(f"{one},{other}" for one, other in regular_pairs(sites, degree, seed))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == expected


def test_all_edges_are_equally_likely() -> None:
    counts = np.zeros((8, 8))
    for seed in range(2000):
        for one, other in regular_pairs(8, 3, seed):
            counts[one, other] += 1
    found = counts[np.triu_indices(8, 1)]
    assert found.sum() == 2000 * 12
    # 28 possible edges, each with probability 3/7: five standard deviations of a binomial
    assert np.abs(found - 2000 * 3 / 7).max() < 5 * sqrt(2000 * 3 / 7 * 4 / 7)


def test_large_random_graphs_are_near_ramanujan() -> None:
    """The second eigenvalue of a random d-regular graph is at most 2 sqrt(d - 1) + o(1) (Friedman, 2008)."""
    nodes = [PeerId(f"{place:05d}") for place in range(10_000)]
    graph = build_graph({"kind": "regular", "degree": 8, "seed": 3}, nodes)
    gap = spectral_gap(stationary_weights(graph, dict.fromkeys(nodes, 1e-4)))
    assert gap == pytest.approx(1 - (1 + 2 * sqrt(7)) / 9, abs=0.01)


def test_a_schedule_of_ten_thousand_sites() -> None:
    nodes = [PeerId(f"{place:05d}") for place in range(10_000)]
    schedule = Schedule({"kind": "regular", "degree": 8, "seed": 0}, nodes, dict.fromkeys(nodes, 1e-4), 20, 2)
    matrix = schedule.round(0).mixings[0].matrix
    assert matrix.nnz == 90_000 and np.abs(matrix.sum(axis=0) - 1).max() < 1e-15
