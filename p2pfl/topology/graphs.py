"""Graphs: who mixes with whom. A spec is plain data, so that it can travel in plans and start records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import networkx as nx

from p2pfl.errors import ConfigError
from p2pfl.types import PeerId

KINDS = ("ring", "full", "hierarchical", "edges")


def build_graph(spec: Mapping[str, Any], nodes: Sequence[PeerId]) -> nx.Graph:
    """The graph a spec describes over ``nodes``, in their order.

    ``{"kind": "ring"}``; ``{"kind": "full"}``; ``{"kind": "hierarchical", "clusters": 3}`` or with lists of
    positions; ``{"kind": "edges", "edges": [[0, 1], ...]}`` by position. Raises ConfigError.
    """
    kind = spec.get("kind")
    if len(nodes) < 1 or len(set(nodes)) != len(nodes):
        raise ConfigError("a topology needs at least one site, and every site once; check the list of members")
    graph = nx.Graph()
    graph.add_nodes_from(nodes)
    if kind == "ring":
        _only(spec, kind, ())
        graph.add_edges_from(_ring(nodes))
    elif kind == "full":
        _only(spec, kind, ())
        graph.add_edges_from((one, other) for i, one in enumerate(nodes) for other in nodes[i + 1 :])
    elif kind == "hierarchical":
        _only(spec, kind, ("clusters",))
        for members in clusters_of(spec, nodes):
            graph.add_edges_from((one, other) for i, one in enumerate(members) for other in members[i + 1 :])
        _add_heads(graph, clusters_of(spec, nodes))
    elif kind == "edges":
        _only(spec, kind, ("edges",))
        graph.add_edges_from(_edges(spec, nodes))
    else:
        raise ConfigError(f"unknown topology {kind!r}; known ones are {', '.join(KINDS)}")
    if len(nodes) > 1 and not nx.is_connected(graph):
        parts = sorted(len(part) for part in nx.connected_components(graph))
        raise ConfigError(f"the graph falls into {len(parts)} parts of {parts} sites; add edges between them")
    return graph


def _only(spec: Mapping[str, Any], kind: str, options: tuple[str, ...]) -> None:
    unknown = sorted(set(spec) - {"kind", *options})
    if unknown:
        known = f"known: {', '.join(options)}" if options else "it has none"
        raise ConfigError(f"topology {kind} has no option {unknown[0]!r}; {known}")


def _ring(nodes: Sequence[PeerId]) -> list[tuple[PeerId, PeerId]]:
    if len(nodes) < 3:
        return [(nodes[0], nodes[1])] if len(nodes) == 2 else []
    return [(node, nodes[(i + 1) % len(nodes)]) for i, node in enumerate(nodes)]


def clusters_of(spec: Mapping[str, Any], nodes: Sequence[PeerId]) -> list[list[PeerId]]:
    """The clusters of a hierarchical spec: neighbours in the order of nodes, or as listed by position."""
    value = spec.get("clusters")
    if isinstance(value, int) and not isinstance(value, bool):
        if not 1 <= value <= len(nodes):
            raise ConfigError(f"clusters = {value}: choose between 1 and the number of sites, {len(nodes)}")
        size, extra = divmod(len(nodes), value)
        bounds = [0]
        for number in range(value):
            bounds.append(bounds[-1] + size + (number < extra))
        return [list(nodes[low:high]) for low, high in zip(bounds, bounds[1:], strict=False)]
    if not (isinstance(value, list | tuple) and all(isinstance(part, list | tuple) and part for part in value)):
        raise ConfigError("clusters must be a number, or lists of positions such as [[0, 1], [2, 3]]")
    positions = [position for part in value for position in part]
    if sorted(positions, key=str) != sorted(range(len(nodes)), key=str):
        raise ConfigError(f"clusters must name every position from 0 to {len(nodes) - 1} exactly once")
    return [[nodes[position] for position in part] for part in value]


def head_ring(clusters: Sequence[Sequence[PeerId]], round_: int) -> list[tuple[PeerId, PeerId]]:
    """The ring of heads in a round: the head of a cluster is its member number ``round mod size``."""
    return _ring([cluster[round_ % len(cluster)] for cluster in clusters])


def _add_heads(graph: nx.Graph, clusters: Sequence[Sequence[PeerId]]) -> None:
    """Every pair of members of neighbouring clusters can be heads in one round; which ones follows from sizes."""
    for one, other in _ring([PeerId(str(number)) for number in range(len(clusters))]):
        first, second = clusters[int(one)], clusters[int(other)]
        for round_ in range(len(first) * len(second)):
            graph.add_edge(first[round_ % len(first)], second[round_ % len(second)])


def _edges(spec: Mapping[str, Any], nodes: Sequence[PeerId]) -> list[tuple[PeerId, PeerId]]:
    edges = spec.get("edges")
    if not isinstance(edges, list | tuple):
        raise ConfigError("a topology of kind edges needs edges = [[0, 1], ...] by position in the list of sites")
    found = []
    for edge in edges:
        if not (isinstance(edge, list | tuple) and len(edge) == 2 and all(type(end) is int for end in edge)):
            raise ConfigError(f"edge {edge!r} is not a pair of positions; write it as [0, 1]")
        one, other = edge
        if one == other:
            raise ConfigError(f"edge {edge!r} joins a site to itself; remove it")
        if not (0 <= one < len(nodes) and 0 <= other < len(nodes)):
            raise ConfigError(f"edge {edge!r} names a site that is not there; positions are 0 to {len(nodes) - 1}")
        found.append((nodes[one], nodes[other]))
    return found


def spec_from_graph(graph: nx.Graph, nodes: Sequence[str]) -> dict[str, Any]:
    """Any undirected networkx graph as a spec; its nodes are the sites' names or ids, or positions 0 to n - 1."""
    if graph.is_directed() or graph.is_multigraph():
        raise ConfigError("only simple undirected graphs can be used; convert it with networkx.Graph(graph)")
    names = {name: position for position, name in enumerate(nodes)}
    positions: dict[Any, int] = {}
    for node in graph.nodes:
        position = names.get(node) if isinstance(node, str) else node
        if type(position) is not int or not 0 <= position < len(nodes):
            raise ConfigError(f"graph node {node!r} is no site; use names of sites or positions 0 to {len(nodes) - 1}")
        positions[node] = position
    edges = sorted(sorted((positions[one], positions[other])) for one, other in graph.edges)
    spec = {"kind": "edges", "edges": edges}
    build_graph(spec, [PeerId(name) for name in nodes])
    return spec
