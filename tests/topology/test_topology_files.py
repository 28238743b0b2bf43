"""Graphs from files: GraphML and lists of edges, and what is refused of them."""

from __future__ import annotations

import io

import networkx as nx
import pytest

from p2pfl.errors import ConfigError
from p2pfl.topology import graph_from_text, sites_in_file, spec_from_text

NAMES = ["lille", "paris", "lyon", "brest"]
SQUARE = "lille paris  # near\n\nparis lyon\nlyon brest\nbrest lille\n"
HEAD = '<?xml version="1.0"?><graphml xmlns="http://graphml.graphdrawing.org/xmlns">'


def graphml(graph: nx.Graph) -> str:
    out = io.BytesIO()
    nx.write_graphml(graph, out)
    return out.getvalue().decode()


def test_names_are_those_of_the_sites_and_numbers_are_positions() -> None:
    expected = {"kind": "edges", "edges": [[0, 1], [0, 3], [1, 2], [2, 3]]}
    assert spec_from_text("square.edges", SQUARE, NAMES) == expected
    assert spec_from_text("square.edgelist", "0 1\n1 2\n2 3\n3 0\n", NAMES) == expected
    ring = nx.relabel_nodes(nx.cycle_graph(4), dict(enumerate(NAMES)))
    assert spec_from_text("ring.graphml", graphml(ring), NAMES) == expected
    assert spec_from_text("ring.graphml", graphml(nx.cycle_graph(4)), NAMES) == expected


def test_without_sites_the_file_says_how_many_there_are() -> None:
    found = graph_from_text("g.edges", "10 2\n2 1\n1 10\n")
    assert sites_in_file(found) == ["1", "2", "10"]
    assert spec_from_text("g.edges", "10 2\n2 1\n1 10\n") == {"kind": "edges", "edges": [[0, 1], [0, 2], [1, 2]]}
    assert sites_in_file(graph_from_text("g.edges", "b a\na c\n")) == ["b", "a", "c"]


def test_weights_of_one_say_nothing() -> None:
    graph = nx.cycle_graph(3)
    nx.set_edge_attributes(graph, 1.0, "weight")
    assert len(spec_from_text("g.graphml", graphml(graph))["edges"]) == 3
    nx.set_edge_attributes(graph, 0.5, "weight")
    with pytest.raises(ConfigError, match=r"the weight 0\.5; leave weights out"):
        spec_from_text("g.graphml", graphml(graph))
    nx.set_edge_attributes(graph, float("nan"), "weight")
    with pytest.raises(ConfigError, match="the weight nan"):
        spec_from_text("g.graphml", graphml(graph))


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("g.txt", "a b", "ends in .graphml, .edges, .edgelist"),
        ("g.edges", "a b 3\n", "line 1 of g.edges has 3 words"),
        ("g.edges", "a b\nb\n", "line 2 of g.edges has 1 words"),
        ("g.edges", "a b\nb a\n", "names the edge b a again"),
        ("g.edges", "# nothing\n", "holds no graph"),
        ("g.edges", "a b\nb b\n", "with itself"),
        ("g.edges", "a b\nc d\n", "not connected"),
        ("g.edges", "a b\n" * (1 << 20) + "c", "more than 4 MiB"),
        ("g.graphml", "", "is no GraphML"),
        ("g.graphml", "<graphml", "is no GraphML"),
        ("g.graphml", HEAD + "</graphml>", "is no GraphML"),
        ("g.graphml", graphml(nx.cycle_graph(3, create_using=nx.DiGraph)), "directed graph"),
        ("g.graphml", graphml(nx.MultiGraph([(0, 1), (0, 1)])), "several edges between two sites"),
        ("g.graphml", '<!DOCTYPE g [<!ENTITY a "b">]>' + graphml(nx.path_graph(2)), "declares a document type"),
        ("g.graphml", graphml(nx.path_graph(2)).replace("?>", "?><!doctype g>", 1), "declares a document type"),
    ],
)
def test_other_files_are_refused(name: str, text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        spec_from_text(name, text)


def test_nodes_that_are_no_sites_are_refused() -> None:
    with pytest.raises(ConfigError, match="names 'bordeaux', which is neither a site nor"):
        spec_from_text("g.edges", SQUARE.replace("brest", "bordeaux"), NAMES)
    with pytest.raises(ConfigError, match="site number 3"):
        spec_from_text("g.edges", "0 1\n1 2\n", NAMES)


@pytest.mark.parametrize("cut", range(0, 700, 23))
def test_a_file_that_was_cut_off_is_read_or_refused(cut: int) -> None:
    text = graphml(nx.path_graph(3))[:-1]
    if cut < len(text):
        with pytest.raises(ConfigError):
            spec_from_text("g.graphml", text[:cut])
