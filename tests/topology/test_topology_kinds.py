"""Random graphs, small worlds, trees and two clusters: their definitions, the same on every machine, refusals."""

from __future__ import annotations

import tomllib
from typing import Any

import networkx as nx
import numpy as np
import pytest

from p2pfl.errors import ConfigError
from p2pfl.topology import build_graph, spec_from_graph, spectral_gap, stationary_weights
from p2pfl.topology.trees import two_trees
from p2pfl.types import PeerId


def graph(spec: dict[str, Any], count: int) -> nx.Graph:
    return nx.convert_node_labels_to_integers(build_graph(spec, [PeerId(f"{place:05d}") for place in range(count)]))


def edges(spec: dict[str, Any], count: int) -> list[tuple[int, int]]:
    return sorted((min(edge), max(edge)) for edge in graph(spec, count).edges)


def erdos_renyi(probability: float, seed: int = 0) -> dict[str, Any]:
    return {"kind": "erdos_renyi", "probability": probability, "seed": seed}


def small_world(degree: int, probability: float, seed: int = 0) -> dict[str, Any]:
    return {"kind": "small_world", "degree": degree, "probability": probability, "seed": seed}


def test_edges_of_erdos_renyi_graphs_are_as_many_as_expected() -> None:
    """1,000 sites: 499,500 pairs with probability 0.02, mean 9,990, standard deviation 99; each site alike."""
    found = graph(erdos_renyi(0.02), 1000)
    assert abs(found.number_of_edges() - 9990) < 4 * 99
    degrees = np.array([degree for _, degree in found.degree])
    assert degrees.var() == pytest.approx(999 * 0.02 * 0.98, rel=0.2)
    halves = sum(one < 500 and other >= 500 for one, other in edges(erdos_renyi(0.02), 1000))
    assert abs(halves - 5000) < 4 * (250_000 * 0.02 * 0.98) ** 0.5
    assert edges(erdos_renyi(1), 6) == edges({"kind": "full"}, 6)


def test_disconnected_draws_are_drawn_again() -> None:
    """With 0.25 about a third of the graphs of 8 sites is connected; each seed gives a connected one."""
    assert all(nx.is_connected(graph(erdos_renyi(0.25, seed), 8)) for seed in range(30))
    with pytest.raises(ConfigError, match=r"none of 100 draws .* probability 0\.01; above some 0\.058 \(ln n / n\)"):
        graph(erdos_renyi(0.01), 75)
    with pytest.raises(ConfigError, match=r"above some 0\.35"):
        graph(erdos_renyi(0), 2)


def test_a_small_world_without_rewiring_is_the_lattice_and_keeps_its_number_of_edges_with() -> None:
    assert edges(small_world(4, 0), 12) == sorted(
        (min(pair), max(pair)) for site in range(12) for pair in ((site, (site + 1) % 12), (site, (site + 2) % 12))
    )
    for probability in (0.1, 0.5, 1.0):
        found = edges(small_world(6, probability, 3), 200)
        assert len(set(found)) == 600
        lattice = sum(min(other - one, 200 - other + one) <= 3 for one, other in found)
        assert abs(lattice - 600 * (1 - probability)) < 4 * (600 * 0.25) ** 0.5 + 600 * probability * 6 / 199 + 1


def test_rewiring_shortens_the_ways_before_it_loosens_the_neighbourhoods() -> None:
    """Figure 2 of the paper: at a few percent the path length is far down and the clustering hardly."""
    lattice, few = graph(small_world(10, 0), 400), graph(small_world(10, 0.02), 400)
    assert nx.average_shortest_path_length(few) < 0.5 * nx.average_shortest_path_length(lattice)
    assert nx.average_clustering(few) > 0.85 * nx.average_clustering(lattice)


@pytest.mark.parametrize(("arity", "sites"), [(1, 6), (2, 1), (2, 15), (3, 20), (63, 64)])
def test_a_tree_hangs_each_site_on_its_parent(arity: int, sites: int) -> None:
    found = graph({"kind": "tree", "arity": arity}, sites)
    assert nx.is_tree(found)
    assert all(found.has_edge(site, (site - 1) // arity) for site in range(1, sites))


@pytest.mark.parametrize("sites", [*range(1, 70), 127, 128, 129, 1000])
def test_inner_nodes_of_one_tree_are_leaves_of_the_other(sites: int) -> None:
    inner = []
    for pairs in two_trees(sites):
        assert len(pairs) == sites - 1 and nx.is_tree(nx.Graph(pairs) if pairs else nx.empty_graph(1))
        children = [sum(parent == site for parent, _ in pairs) for site in range(sites)] if sites < 130 else [0]
        assert max(children) <= 2
        assert len({child for _, child in pairs}) == sites - 1, "each but the root has one parent"
        inner.append({parent for parent, _ in pairs})
    assert not inner[0] & inner[1]
    found = graph({"kind": "double_tree"}, sites)
    assert max(degree for _, degree in found.degree) <= 4
    assert sites == 1 or nx.diameter(found) <= 2 * np.log2(sites) + 1


@pytest.mark.parametrize(("sites", "bridges"), [(2, 1), (7, 1), (7, 12), (8, 5), (8, 16)])
def test_two_clusters_have_so_many_bridges(sites: int, bridges: int) -> None:
    found, one = edges({"kind": "two_clusters", "bridges": bridges}, sites), (sites + 1) // 2
    across = [pair for pair in found if pair[0] < one <= pair[1]]
    assert len(across) == bridges
    assert len(found) == bridges + one * (one - 1) // 2 + (sites - one) * (sites - one - 1) // 2
    used = [sum(place in pair for pair in across) for place in range(one)]
    assert max(used) - min(used) <= 1, "no site is the bridge for all"


def test_one_bridge_between_full_clusters_is_the_barbell_of_table_r1() -> None:
    for half, gap in ((5, 0.0497396469), (10, 0.0153680096)):
        spec = {"kind": "two_clusters", "bridges": 1}
        found = graph(spec, 2 * half)
        assert nx.is_isomorphic(found, nx.barbell_graph(half, 0))
        matrix = stationary_weights(found, dict.fromkeys(found, 0.5 / half))
        assert spectral_gap(matrix) == pytest.approx(gap, abs=1e-10)


def test_published_gaps_of_graphs_that_come_as_edges() -> None:
    women = nx.convert_node_labels_to_integers(nx.davis_southern_women_graph())
    for given, gap in ((nx.barbell_graph(5, 0), 0.0497396469), (women, 0.0820975027)):
        found = graph(spec_from_graph(given, range(len(given))), len(given))
        matrix = stationary_weights(found, dict.fromkeys(found, 1 / len(given)))
        assert spectral_gap(matrix) == pytest.approx(gap, abs=1e-10)


PINNED: list[tuple[dict[str, Any], list[tuple[int, int]]]] = [
    (
        {"kind": "erdos_renyi", "probability": 0.4, "seed": 0},
        [
            (0, 3),
            (0, 5),
            (0, 6),
            (0, 7),
            (1, 2),
            (1, 3),
            (1, 4),
            (1, 6),
            (2, 4),
            (2, 5),
            (3, 6),
            (4, 5),
            (4, 7),
            (5, 7),
        ],
    ),
    (
        {"kind": "small_world", "degree": 4, "probability": 0.3, "seed": 0},
        [
            (0, 4),
            (0, 5),
            (0, 6),
            (0, 7),
            (1, 2),
            (1, 3),
            (1, 4),
            (2, 3),
            (2, 4),
            (3, 5),
            (3, 7),
            (4, 5),
            (4, 7),
            (5, 6),
            (5, 7),
            (6, 7),
        ],
    ),
]


@pytest.mark.parametrize(("spec", "expected"), PINNED, ids=lambda value: str(value)[:60])
def test_every_machine_draws_the_same_graph(spec: dict[str, Any], expected: list[tuple[int, int]]) -> None:
    assert edges(spec, 8) == expected == edges(dict(spec), 8)
    assert edges({**spec, "seed": 1}, 8) != expected
    written = "\n".join(f"{key} = {value!r}".replace("'", '"') for key, value in spec.items())
    assert tomllib.loads(written) == spec and edges(tomllib.loads(written), 8) == expected


@pytest.mark.parametrize(
    ("spec", "count", "says"),
    [
        (erdos_renyi(1.5), 4, "probability is 1.5; give a number from 0 to 1"),
        ({"kind": "erdos_renyi", "probability": True, "seed": 0}, 4, "probability is True"),
        ({"kind": "erdos_renyi", "probability": float("nan"), "seed": 0}, 4, "probability is nan"),
        ({"kind": "erdos_renyi", "probability": "0.5", "seed": 0}, 4, "probability is 0.5; give a number"),
        ({"kind": "erdos_renyi", "probability": 0.5}, 4, "give it exactly kind, probability, seed"),
        (erdos_renyi(0.5), 20_001, "for up to 20000 sites"),
        (small_world(3, 0.1), 9, "give an even degree below"),
        (small_world(10, 0.1), 9, "give an even degree below"),
        (small_world(0, 0.1), 9, "degree is 0; give a whole number from 2"),
        (small_world(4, -0.1), 9, "probability is -0.1"),
        ({"kind": "two_clusters", "bridges": 13}, 7, "clusters of 4 and 3 sites have 12 pairs"),
        ({"kind": "two_clusters", "bridges": 0}, 7, "bridges is 0; give a whole number from 1"),
        ({"kind": "tree", "arity": 0}, 7, "arity is 0; give a whole number from 1"),
        ({"kind": "double_tree", "arity": 2}, 7, "give it exactly kind"),
    ],
)
def test_a_wrong_spec_is_refused(spec: dict[str, Any], count: int, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        graph(spec, count)
