"""Weights and spectral gaps: the theorems of docs/topology.md and table R1 of published exact gaps."""

from __future__ import annotations

from math import ceil, cos, log2, pi
from typing import Any

import networkx as nx
import numpy as np
import pytest

from p2pfl.errors import ConfigError
from p2pfl.topology import Mixing, closing_rounds_for, metropolis_hastings, spectral_gap, stationary_weights
from p2pfl.types import PeerId

GRAPHS = {
    "one": nx.empty_graph(1),
    "pair": nx.path_graph(2),
    "ring of 3": nx.cycle_graph(3),
    "ring of 7": nx.cycle_graph(7),
    "star": nx.star_graph(6),
    "full": nx.complete_graph(5),
    "barbell": nx.barbell_graph(4, 2),
    "women": nx.davis_southern_women_graph(),
}


def unequal(graph: nx.Graph) -> dict[Any, float]:
    parts = np.arange(1, len(graph) + 1) ** 1.5
    return dict(zip(graph.nodes, (parts / parts.sum()).tolist(), strict=True))


@pytest.mark.parametrize("name", GRAPHS)
def test_the_weighted_mean_is_kept_and_every_row_sums_to_one(name: str) -> None:
    graph = GRAPHS[name]
    shares = unequal(graph)
    matrix = stationary_weights(graph, shares).toarray()
    law = np.array([shares[node] for node in graph])
    assert np.abs(law @ matrix - law).max() < 1e-15
    assert np.abs(matrix.sum(axis=1) - 1).max() < 1e-15
    assert matrix.min() >= 0
    linked = nx.to_numpy_array(graph) + np.eye(len(graph))
    assert (matrix[linked == 0] == 0).all()


@pytest.mark.parametrize("name", GRAPHS)
def test_equal_shares_give_metropolis_hastings(name: str) -> None:
    graph = GRAPHS[name]
    equal = dict.fromkeys(graph, 1 / len(graph))
    difference = stationary_weights(graph, equal) - metropolis_hastings(graph)
    assert np.abs(difference.toarray()).max() < 1e-15


def test_metropolis_hastings_of_a_small_graph_by_hand() -> None:
    # Degrees 1, 3, 2, 2: w = 1/4 on the edges of node 1, 1/3 between 2 and 3.
    matrix = metropolis_hastings(nx.Graph([(0, 1), (1, 2), (1, 3), (2, 3)])).toarray()
    expected = [[9, 3, 0, 0], [3, 3, 3, 3], [0, 3, 5, 4], [0, 3, 4, 5]]
    assert np.abs(matrix - np.array(expected) / 12).max() < 1e-15


def test_the_full_graph_is_the_weighted_mean() -> None:
    graph = nx.complete_graph(6)
    shares = unequal(graph)
    matrix = stationary_weights(graph, shares).toarray()
    assert np.abs(matrix - np.array(list(shares.values()))).max() < 1e-15


def test_shares_need_not_sum_to_one() -> None:
    graph = nx.cycle_graph(5)
    counts = {node: 10.0 * (node + 1) for node in graph}
    shares = {node: count / 150 for node, count in counts.items()}
    difference = stationary_weights(graph, counts) - stationary_weights(graph, shares)
    assert np.abs(difference.toarray()).max() < 1e-15


@pytest.mark.parametrize("share", [0.0, -1.0, float("nan"), float("inf"), None])
def test_a_share_that_is_not_positive_is_refused(share: float | None) -> None:
    shares: dict[Any, Any] = {0: 0.5, 1: share, 2: 0.5}
    if share is None:
        del shares[1]
    with pytest.raises(ConfigError, match="share of 1 is"):
        stationary_weights(nx.cycle_graph(3), shares)


def test_neighbours_come_in_peer_id_order_without_the_site_itself() -> None:
    nodes = [PeerId(name) for name in ("d", "a", "c", "b")]
    graph = nx.Graph([("d", "a"), ("a", "c"), ("c", "b"), ("b", "d")])
    graph = nx.relabel_nodes(nx.cycle_graph(4), dict(enumerate(nodes)))
    shares = {PeerId("a"): 0.1, PeerId("b"): 0.2, PeerId("c"): 0.3, PeerId("d"): 0.4}
    mixing = Mixing(nodes, stationary_weights(graph, shares))
    # d-a-c-b-d: s_d = .4+.1+.2, s_a = .1+.4+.3, s_c = .3+.1+.2, s_b = .2+.3+.4
    assert [peer for peer, _ in mixing.neighbours(PeerId("d"))] == ["a", "b"]
    assert [weight for _, weight in mixing.neighbours(PeerId("d"))] == pytest.approx([0.1 / 0.8, 0.2 / 0.9])
    with pytest.raises(ConfigError, match="not a site"):
        mixing.neighbours(PeerId("e"))
    with pytest.raises(ConfigError, match="make both agree"):
        Mixing(nodes[:3], mixing.matrix)


def test_a_site_without_neighbours_has_none() -> None:
    assert Mixing([PeerId("a")], metropolis_hastings(nx.empty_graph(1))).neighbours(PeerId("a")) == ()


def static_exponential(count: int) -> np.ndarray[Any, Any]:
    """Directed: site i hears i - 2^j for each j, equal weights."""
    hops = [2**power for power in range(ceil(log2(count)))]
    matrix = np.zeros((count, count))
    for site in range(count):
        for hop in (0, *hops):
            matrix[site, (site - hop) % count] += 1 / (1 + len(hops))
    return matrix


TABLE = [
    *[
        (f"ring {n}", nx.cycle_graph(n), gap)
        for n, gap in [
            (9, 0.1559703713),
            (16, 0.0507469783),
            (25, 0.0209445592),
            (32, 0.0128098131),
            (64, 0.0032101822),
            (100, 0.0013155144),
        ]
    ],
    *[
        (f"chain {n}", nx.path_graph(n), gap)
        for n, gap in [(9, 0.0402049195), (16, 0.0128098131), (25, 0.0052568658), (100, 0.0003289598)]
    ],
    *[
        (f"torus {k}", nx.grid_2d_graph(k, k, periodic=True), gap)
        for k, gap in [(4, 0.4), (5, 0.2763932023), (8, 0.1171572875), (10, 0.0763932023)]
    ],
    *[(f"hypercube {2**p}", nx.hypercube_graph(p), 2 / (p + 1)) for p in range(3, 8)],
    ("star 11", nx.star_graph(10), 1 / 11),
    ("full 12", nx.complete_graph(12), 1.0),
    ("barbell 5", nx.barbell_graph(5, 0), 0.0497396469),
    ("barbell 10", nx.barbell_graph(10, 0), 0.0153680096),
    ("women", nx.davis_southern_women_graph(), 0.0820975027),
]


@pytest.mark.parametrize(("graph", "gap"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_published_gaps(graph: nx.Graph, gap: float) -> None:
    assert spectral_gap(metropolis_hastings(graph)) == pytest.approx(gap, abs=1e-10)


@pytest.mark.parametrize("count", [8, 12, 16, 32, 64, 100])
def test_published_gaps_of_the_directed_exponential_graph(count: int) -> None:
    gap = 2 / (1 + ceil(log2(count)))
    assert spectral_gap(static_exponential(count)) == pytest.approx(gap, abs=1e-10)


@pytest.mark.parametrize("count", [501, 1000, 2000])
def test_large_rings_take_the_sparse_way(count: int) -> None:
    expected = 2 / 3 * (1 - cos(2 * pi / count))
    assert spectral_gap(metropolis_hastings(nx.cycle_graph(count))) == pytest.approx(expected, abs=1e-12)


def test_both_ways_agree_with_unequal_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = nx.random_regular_graph(3, 60, seed=1)
    shares = unequal(graph)
    matrix = stationary_weights(graph, shares)
    dense = spectral_gap(matrix, [shares[node] for node in graph])
    assert dense == pytest.approx(spectral_gap(matrix), abs=1e-10)  # the general way, without the shares
    monkeypatch.setattr("p2pfl.topology.spectral.DENSE_SITES", 1)
    assert spectral_gap(matrix, shares) == pytest.approx(dense, abs=1e-10)
    assert spectral_gap(matrix) == pytest.approx(dense, abs=1e-8)


def test_the_distance_from_the_mean_shrinks_at_the_gap() -> None:
    graph = nx.barbell_graph(4, 1)
    shares = unequal(graph)
    law = np.array(list(shares.values()))
    matrix = stationary_weights(graph, shares).toarray()
    root = np.sqrt(law)
    values, vectors = np.linalg.eigh(matrix * root[:, None] / root[None, :])
    slowest = int(np.argsort(np.abs(values))[-2])
    start = vectors[:, slowest] / root  # an eigenvector of W: equality in the bound
    after = np.linalg.matrix_power(matrix, 10) @ start
    shrunk = np.sqrt(law @ after**2) / np.sqrt(law @ start**2)
    assert shrunk == pytest.approx((1 - spectral_gap(matrix, law.tolist())) ** 10, rel=1e-10)


def test_gap_of_one_site_and_wrong_shares() -> None:
    assert spectral_gap(np.eye(1)) == 1.0
    assert spectral_gap(np.eye(3)) == 0.0
    for shares in ([0.5, 0.5], [1.0, 0.0, 1.0]):
        with pytest.raises(ConfigError, match="one positive share"):
            spectral_gap(np.eye(3), shares)


def test_closing_rounds() -> None:
    ring = metropolis_hastings(nx.cycle_graph(4))  # second eigenvalue 1/3 in absolute value
    assert closing_rounds_for(ring, 0.1) == 3  # 1/27 < 0.1 < 1/9
    assert closing_rounds_for(metropolis_hastings(nx.complete_graph(4)), 1e-9) == 1
    for factor in (0.0, 1.0, -1.0):
        with pytest.raises(ConfigError, match="between 0 and 1"):
            closing_rounds_for(ring, factor)
    with pytest.raises(ConfigError, match="too slowly"):
        closing_rounds_for(np.eye(2), 0.1)
