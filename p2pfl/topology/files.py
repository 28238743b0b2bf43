"""Topologies from files of networkx: GraphML, and lists of edges with two names per line.

Files come from others: size and form are checked, and no XML is read that declares a document type or entities, so that
no parser expands or fetches any.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

import networkx as nx

from p2pfl.errors import ConfigError
from p2pfl.topology.graphs import spec_from_graph

SUFFIXES = (".graphml", ".edges", ".edgelist")
MOST_CHARACTERS = 1 << 22
SHOWN = 60


def graph_from_text(name: str, text: str) -> nx.Graph:
    """The undirected graph in the text of a file ``name``: ``*.graphml``, ``*.edges`` or ``*.edgelist``.

    Its nodes are texts. A list of edges has two names per line, and from # on a remark. Weights are refused unless all
    are 1, since mixing takes its weights from the sites' shares. ConfigError for anything else, or more than 4 MiB.
    """
    if not is_graph_file(name):
        raise ConfigError(f"{name} is no graph file; give one that ends in {', '.join(SUFFIXES)}")
    if len(text) > MOST_CHARACTERS:
        raise ConfigError(f"{name} has more than {MOST_CHARACTERS >> 20} MiB; give a smaller graph")
    graph = _graphml(name, text) if name.endswith(".graphml") else _edges(name, text)
    if graph.is_directed() or graph.is_multigraph():
        raise ConfigError(f"{name} holds a directed graph, or several edges between two sites; give a plain one")
    if not len(graph):
        raise ConfigError(f"{name} holds no graph; give one with at least one edge")
    for one, other, facts in graph.edges(data=True):
        if not _is_one(facts.get("weight", 1)):
            raise ConfigError(
                f"{name} gives the edge {one[:SHOWN]} {other[:SHOWN]} the weight {str(facts['weight'])[:SHOWN]}; leave "
                "weights out: they follow from the sites' shares"
            )
    return graph


def is_graph_file(name: str) -> bool:
    """Whether a file of this name is read as a graph."""
    return name.endswith(SUFFIXES)


def spec_from_text(name: str, text: str, nodes: Sequence[str] | None = None) -> dict[str, Any]:
    """The `edges` spec of such a file, whose nodes are ``nodes`` (names) or positions from 0.

    None: as many sites as the file has nodes, in the order of `sites_in_file`. ConfigError.
    """
    graph = graph_from_text(name, text)
    if nodes is None:
        return spec_from_graph(graph, sites_in_file(graph))
    strangers = [node for node in graph if node not in set(nodes)]
    if strangers and all(map(_is_number, graph)):
        graph = nx.relabel_nodes(graph, {node: int(node) for node in graph})
    elif strangers:
        raise ConfigError(
            f"{name} names {strangers[0][:SHOWN]!r}, which is neither a site nor a position; use the sites' names, or "
            "numbers from 0"
        )
    return spec_from_graph(graph, nodes)


def sites_in_file(graph: nx.Graph) -> list[str]:
    """The nodes in the order of their numbers if all are numbers, else as they come."""
    names = list(graph)
    return sorted(names, key=int) if all(map(_is_number, names)) else names


def _graphml(name: str, text: str) -> nx.Graph:
    if "<!DOCTYPE" in text.upper() or "<!ENTITY" in text.upper():
        raise ConfigError(f"{name} declares a document type or entities, which are not read; remove them")
    try:
        return nx.read_graphml(io.BytesIO(text.encode()), node_type=str)
    except Exception as error:  # the reader raises whatever its XML parser and its casts do
        raise ConfigError(f"{name} is no GraphML that networkx reads: {str(error)[:SHOWN]}; mend it") from error


def _edges(name: str, text: str) -> nx.Graph:
    graph = nx.Graph()
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split("#", 1)[0].split()
        if not words:
            continue
        if len(words) != 2:
            raise ConfigError(f"line {number} of {name} has {len(words)} words; write two names per line")
        if graph.has_edge(*words):
            edge = f"{words[0][:SHOWN]} {words[1][:SHOWN]}"
            raise ConfigError(f"line {number} of {name} names the edge {edge} again; leave one of the two out")
        graph.add_edge(*words)
    return graph


def _is_one(weight: object) -> bool:
    return isinstance(weight, int | float) and not isinstance(weight, bool) and math.isclose(weight, 1.0)


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdecimal() and len(name) < 10
