"""Graphs from specs, specs from graphs, and what is refused."""

from __future__ import annotations

from typing import Any

import networkx as nx
import pytest

from p2pfl.errors import ConfigError
from p2pfl.topology import build_graph, spec_from_graph
from p2pfl.types import PeerId


def sites(count: int) -> list[PeerId]:
    return [PeerId(f"site-{place:04d}") for place in range(count)]


@pytest.mark.parametrize(
    ("spec", "count", "edges"),
    [
        ({"kind": "ring"}, 1, 0),
        ({"kind": "ring"}, 2, 1),
        ({"kind": "ring"}, 3, 3),
        ({"kind": "ring"}, 8, 8),
        ({"kind": "full"}, 1, 0),
        ({"kind": "full"}, 5, 10),
        ({"kind": "hierarchical", "clusters": 1}, 4, 6),
        ({"kind": "hierarchical", "clusters": 4}, 4, 4),
        ({"kind": "hierarchical", "clusters": 2}, 4, 2 + 2),  # 2 and 2: heads meet only at equal places
        ({"kind": "hierarchical", "clusters": 2}, 5, 1 + 3 + 6),  # 2 and 3: every pair of heads comes up
        ({"kind": "hierarchical", "clusters": [[3, 0], [1, 2]]}, 4, 4),
        ({"kind": "edges", "edges": [[0, 1], [2, 1], [1, 0]]}, 3, 2),
        ({"kind": "edges", "edges": ()}, 1, 0),
        ({"kind": "star"}, 1, 0),
        ({"kind": "star"}, 6, 5),
        ({"kind": "chain"}, 1, 0),
        ({"kind": "chain"}, 6, 5),
        ({"kind": "hypercube"}, 1, 0),
        ({"kind": "hypercube"}, 2, 1),
        ({"kind": "hypercube"}, 16, 32),
        ({"kind": "torus", "rows": 3, "columns": 4}, 12, 24),
        ({"kind": "torus", "rows": 2, "columns": 5}, 10, 15),  # two rows: one edge between them, not two
        ({"kind": "torus", "rows": 2, "columns": 2}, 4, 4),
        ({"kind": "regular", "degree": 1, "seed": 0}, 2, 1),
        ({"kind": "regular", "degree": 3, "seed": 5}, 10, 15),
        ({"kind": "regular", "degree": 9, "seed": 0}, 10, 45),
    ],
)
def test_number_of_edges_and_order_of_nodes(spec: dict[str, Any], count: int, edges: int) -> None:
    graph = build_graph(spec, sites(count))
    assert graph.number_of_edges() == edges
    assert list(graph.nodes) == sites(count)
    assert nx.is_connected(graph)


def test_the_ring_follows_the_order_of_the_sites() -> None:
    nodes = sites(4)[::-1]
    assert list(build_graph({"kind": "ring"}, nodes).neighbors(nodes[0])) == [nodes[1], nodes[3]]


@pytest.mark.parametrize(
    ("spec", "count", "says"),
    [
        ({"kind": "moon"}, 3, "unknown topology 'moon'; choose one of ring, full, hierarchical, edges"),
        ({"kind": ["ring"]}, 3, "unknown topology"),
        ({}, 3, 'no "kind"'),
        ("ring", 3, 'no "kind"'),
        ({"kind": "ring", "cluster": 2}, 3, "give it exactly kind"),
        (
            {"kind": "hierarchical"},
            3,
            r"give it exactly clusters, kind.*such as \{ kind = \"hierarchical\", clusters = 2 \}",
        ),
        ({"kind": "ring"}, 0, "name at least one"),
        ({"kind": "hierarchical", "clusters": 0}, 3, "from 1 to 3"),
        ({"kind": "hierarchical", "clusters": 4}, 3, "from 1 to 3"),
        ({"kind": "hierarchical", "clusters": True}, 3, "must be a number or a list"),
        ({"kind": "hierarchical", "clusters": [[0, 1], []]}, 2, "none empty"),
        ({"kind": "hierarchical", "clusters": [[0, 1], [1, 2]]}, 3, "exactly once"),
        ({"kind": "hierarchical", "clusters": [[0], [2]]}, 3, "exactly once"),
        ({"kind": "hierarchical", "clusters": [[0], ["1"]]}, 2, "names the site '1'"),
        ({"kind": "edges", "edges": 3}, 3, "list of pairs"),
        ({"kind": "edges", "edges": [[0, 1, 2]]}, 3, "list of pairs"),
        ({"kind": "edges", "edges": [[0, 1], [1, 1], [1, 2]]}, 3, "with itself"),
        ({"kind": "edges", "edges": [[0, 1], [1, 3]]}, 3, "names the site '3'; there are 3"),
        ({"kind": "edges", "edges": [[0, 1], [1, -1]]}, 3, "names the site '-1'"),
        ({"kind": "edges", "edges": [[0, 1.0]]}, 2, "names the site '1.0'"),
        ({"kind": "edges", "edges": [[0, True]]}, 2, "names the site 'True'"),
        ({"kind": "edges", "edges": [[0, 1], [2, 3], [3, 4]]}, 5, "not connected: site number 0, 1 "),
        ({"kind": "hypercube"}, 12, "a hypercube has 2, 4, 8, 16, ... sites, not 12"),
        ({"kind": "torus", "rows": 3, "columns": 4}, 11, "3 x 4 has 12 sites, not 11"),
        ({"kind": "torus", "rows": 1, "columns": 4}, 4, "rows is 1; give a whole number from 2"),
        ({"kind": "torus", "rows": 2, "columns": 2.0}, 4, "columns is 2.0; give a whole number"),
        ({"kind": "torus", "rows": 2}, 4, "give it exactly columns, kind, rows"),
        (
            {"kind": "regular", "degree": 3},
            4,
            r"exactly degree, kind, seed.* \{ kind = \"regular\", degree = 4, seed = 0 \}",
        ),
        ({"kind": "star", "arity": 3}, 4, "give it exactly kind, and if you like closing, weights$"),
        ({"kind": "regular", "degree": 0, "seed": 0}, 4, "degree is 0; give a whole number from 1"),
        ({"kind": "regular", "degree": True, "seed": 0}, 4, "degree is True"),
        ({"kind": "regular", "degree": 4, "seed": 0}, 4, "cannot have 4 neighbours each; give a degree from 1 to 3"),
        ({"kind": "regular", "degree": 1, "seed": 0}, 4, "only pairs are connected"),
        ({"kind": "regular", "degree": 3, "seed": 0}, 5, "every edge has two ends.; give 2 or 4"),
        ({"kind": "regular", "degree": 2, "seed": -1}, 5, "seed is -1"),
        ({"kind": "regular", "degree": 2, "seed": 2**32}, 5, "give one below 4294967296"),
    ],
)
def test_a_wrong_spec_is_refused_in_plain_words(spec: Any, count: int, says: str) -> None:
    with pytest.raises(ConfigError, match=says.replace("[", r"\[")):
        build_graph(spec, sites(count))


def test_a_site_named_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="twice"):
        build_graph({"kind": "ring"}, [PeerId("a"), PeerId("b"), PeerId("a")])


def test_any_networkx_graph_becomes_a_spec_and_back() -> None:
    nodes = sites(7)
    by_position = nx.barbell_graph(3, 1)
    by_name = nx.relabel_nodes(by_position, dict(enumerate(nodes)))
    spec = spec_from_graph(by_position, nodes)
    assert spec == spec_from_graph(by_name, nodes)
    built = build_graph(spec, nodes)
    assert {frozenset(edge) for edge in built.edges} == {frozenset(edge) for edge in by_name.edges}


@pytest.mark.parametrize(
    ("graph", "says"),
    [
        (nx.cycle_graph(4, create_using=nx.DiGraph), "plain nx.Graph"),
        (nx.MultiGraph([(0, 1), (1, 2), (2, 3)]), "plain nx.Graph"),
        (nx.path_graph(5), "node '4' is neither"),
        (nx.grid_2d_graph(2, 2), "rename the nodes"),
        (nx.Graph([(0, 1), (1, 2), (2, 3), (3, 3)]), "with itself"),
        (nx.Graph([(0, 1), (2, 3)]), "not connected"),
        (nx.path_graph(3), "not connected: site number 3"),
    ],
)
def test_a_graph_that_cannot_be_used_is_refused(graph: nx.Graph, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        spec_from_graph(graph, sites(4))
