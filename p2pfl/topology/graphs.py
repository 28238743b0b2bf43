"""Graphs from a spec (what plans, charters and proposals carry) and specs from networkx graphs.

A spec is a small mapping that survives TOML, JSON and msgpack:

    {"kind": "ring"}                                    each site and the next one, in the order of the sites
    {"kind": "full"}                                    every pair
    {"kind": "hierarchical", "clusters": 2}             so many clusters of consecutive sites, or
    {"kind": "hierarchical", "clusters": [[0, 2], [1]]}     the clusters themselves, by position of the sites;
                                                        with "period": 5 their heads mix in every fifth round alone
    {"kind": "edges", "edges": [[0, 1], [1, 2]]}        any connected graph, by position of the sites
    {"kind": "star"}, {"kind": "chain"}, {"kind": "hypercube"}
    {"kind": "torus", "rows": 3, "columns": 4}
    {"kind": "regular", "degree": 4, "seed": 0}         random, so many neighbours each; see regular.py
    {"kind": "erdos_renyi", "probability": 0.3, "seed": 0}
    {"kind": "small_world", "degree": 4, "probability": 0.1, "seed": 0}
    {"kind": "two_clusters", "bridges": 1}, {"kind": "tree", "arity": 2}, {"kind": "double_tree"}
    {"kind": "base", "k": 1}                            other edges in each round, see changing.py; so too
    {"kind": "matching", "seed": 0}, {"kind": "epidemic", "degree": 4, "seed": 0}

All may have "weights", see weighting.py.
Specs come from other peers, so each entry is checked before it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from itertools import pairwise
from math import gcd
from typing import Any

import networkx as nx

from p2pfl.errors import ConfigError
from p2pfl.topology import random_graphs, shapes, trees
from p2pfl.topology.changing import CHANGING, Changing, changing_of
from p2pfl.topology.chebyshev import check_closing
from p2pfl.topology.weighting import check_choice, listed
from p2pfl.types import PeerId

Pair = tuple[int, int]


def build_graph(spec: Mapping[str, Any], nodes: Sequence[PeerId], rounds: int | None = None) -> nx.Graph:
    """The undirected graph of ``spec`` on ``nodes``; of kinds that change the union over so many ``rounds``.

    None: over all rounds that there can be, which is every pair where they are drawn. Of a hierarchical spec always the
    union over all. Nodes are added in the given order. One site alone is a graph without edges. Raises ConfigError if
    the spec is unknown, does not fit the number of sites, has a loop, or leaves the graph unconnected, and for listed
    weights that do not fit the edges.
    """
    changing = check_sites(spec, nodes)
    if changing is not None and rounds is not None:
        changing.check_connected(rounds)
        return graph_of(nodes, changing.union(rounds).tolist())
    graph = graph_of(nodes, KINDS[spec["kind"]](spec, len(nodes)))
    if not nx.is_connected(graph):
        apart = sorted(nodes.index(node) for node in min(nx.connected_components(graph), key=len))
        raise ConfigError(
            f"the graph is not connected: site number {_listed(apart)} (counted from 0) cannot reach "
            "all others; add an edge"
        )
    if not isinstance(spec.get("weights", ""), str):
        listed(spec["weights"], pairs_of(graph), len(nodes))
    return graph


def pairs_of(graph: nx.Graph) -> list[Pair]:
    """The edges as positions in the order of the nodes."""
    places = {node: place for place, node in enumerate(graph)}
    return [(places[one], places[other]) for one, other in graph.edges]


def check_sites(spec: Mapping[str, Any], nodes: Sequence[PeerId]) -> Changing | None:
    """Check spec and sites as `build_graph` does, before any edge; the rounds of a kind that changes."""
    check_spec(spec)
    if not nodes:
        raise ConfigError("couldn't build a graph of no sites; name at least one")
    if len(set(nodes)) != len(nodes):
        raise ConfigError("couldn't build the graph: a site is named twice; name each one once")
    return changing_of(spec, len(nodes))


def graph_of(nodes: Sequence[PeerId], pairs: Iterable[Pair]) -> nx.Graph:
    """The graph of these edges, its nodes in their order."""
    graph = nx.Graph()
    graph.add_nodes_from(nodes)
    graph.add_edges_from((nodes[one], nodes[other]) for one, other in pairs)
    return graph


def check_spec(spec: Mapping[str, Any]) -> None:
    """Raise ConfigError unless ``kind`` is known and the spec has exactly the keys of that kind."""
    if not isinstance(spec, Mapping) or "kind" not in spec:
        raise ConfigError(f'the topology has no "kind"; choose one of {_known()}')
    kind = spec["kind"]
    if not isinstance(kind, str) or kind not in KINDS:
        raise ConfigError(f"unknown topology {str(kind)[:40]!r}; choose one of {_known()}")
    wanted, more = {"kind"} | KEYS[kind], OPTIONAL.get(kind, frozenset())
    if not wanted <= set(spec) <= wanted | more:
        raise ConfigError(
            f"the topology {kind!r} has the keys {_listed(sorted(map(str, spec)))[:200]}; "
            f"give it exactly {_listed(sorted(wanted))}"
            + (f", and if you like {_listed(sorted(more))}" if more else "")
            + _example(kind)
        )
    check_choice(spec)
    check_closing(spec)


def _example(kind: str) -> str:
    """How a spec of this kind may be written, where that is short and more than its name."""
    if not KEYS[kind] <= set(EXAMPLES):
        return ""
    values = "".join(f", {name} = {value}" for name, value in EXAMPLES.items() if name in KEYS[kind])
    return f', such as {{ kind = "{kind}"{values} }}' if values else ""


def spec_from_graph(graph: nx.Graph, nodes: Sequence[Hashable]) -> dict[str, Any]:
    """The spec of any undirected networkx graph whose nodes are ``nodes`` themselves or their positions.

    Ids or names win where both readings are possible. Raises ConfigError for a directed graph, a loop, nodes
    that are neither, or a graph that is not connected.
    """
    if graph.is_directed() or graph.is_multigraph():
        raise ConfigError("couldn't use the graph: mixing goes both ways over one edge; pass a plain nx.Graph")
    places: dict[Hashable, int] = {node: place for place, node in enumerate(nodes)}
    if not set(graph.nodes) <= set(places):
        places = {place: place for place in range(len(nodes))}
    strangers = [node for node in graph.nodes if node not in places]
    if strangers:
        raise ConfigError(
            f"couldn't use the graph: its node {str(strangers[0])[:60]!r} is neither a site nor a position "
            f"from 0 to {len(nodes) - 1}; rename the nodes (networkx.convert_node_labels_to_integers)"
        )
    edges = sorted(sorted((places[one], places[other])) for one, other in graph.edges)
    spec = {"kind": "edges", "edges": edges}
    build_graph(spec, [PeerId(str(place)) for place in range(len(nodes))])
    return spec


def clusters_of(spec: Mapping[str, Any], sites: int) -> tuple[tuple[int, ...], ...]:
    """The clusters of a hierarchical spec, as positions. ConfigError unless they partition the sites."""
    clusters = spec["clusters"]
    if _is_whole(clusters):
        if not 1 <= clusters <= sites:
            raise ConfigError(f"{clusters} clusters for {sites} sites; choose a number from 1 to {sites}")
        starts = [place * sites // clusters for place in range(clusters + 1)]
        return tuple(tuple(range(one, two)) for one, two in pairwise(starts))
    if not _is_list(clusters) or not all(_is_list(cluster) and cluster for cluster in clusters):
        raise ConfigError('"clusters" must be a number or a list of lists of positions, none empty; write it so')
    members = [_position(place, sites, "a cluster") for cluster in clusters for place in cluster]
    if sorted(members) != list(range(sites)):
        raise ConfigError(f"the clusters must hold each of the {sites} sites exactly once; mend the lists")
    return tuple(tuple(cluster) for cluster in clusters)


def period_of(spec: Mapping[str, Any]) -> int:
    """Every how many rounds the heads of a hierarchical spec mix; 1 if it says nothing. ConfigError."""
    return shapes.whole_of({"period": 1, **spec}, "period", 1)


def ring_pairs(sites: Sequence[int]) -> list[Pair]:
    """The edges of the ring through ``sites``: none for one site, one for two, n for n from three on."""
    if len(sites) <= 2:
        return [(sites[0], sites[1])] if len(sites) == 2 else []
    return [(site, sites[(place + 1) % len(sites)]) for place, site in enumerate(sites)]


def full_pairs(sites: Sequence[int]) -> list[Pair]:
    """Every pair of ``sites``."""
    return [(one, other) for place, one in enumerate(sites) for other in sites[place + 1 :]]


def _ring(spec: Mapping[str, Any], sites: int) -> Iterable[Pair]:
    return ring_pairs(range(sites))


def _full(spec: Mapping[str, Any], sites: int) -> Iterable[Pair]:
    return full_pairs(range(sites))


def _hierarchical(spec: Mapping[str, Any], sites: int) -> Iterable[Pair]:
    """All edges that some round uses.

    When the heads meet for the t-th time the head of a cluster of size a is its member t mod a. Members i and j of
    neighbouring clusters of sizes a and b are heads together in some round exactly if i = j modulo gcd(a, b) (Chinese
    remainders).
    """
    clusters = clusters_of(spec, sites)
    period_of(spec)
    pairs = [pair for cluster in clusters for pair in full_pairs(cluster)]
    for one, other in ring_pairs(range(len(clusters))):
        first, second = clusters[one], clusters[other]
        step = gcd(len(first), len(second))
        pairs += [(a, b) for i, a in enumerate(first) for b in second[i % step :: step]]
    return pairs


def _of_all_rounds(spec: Mapping[str, Any], sites: int) -> Iterable[Pair]:
    changing = changing_of(spec, sites)
    assert changing is not None
    return [(one, other) for one, other in changing.union(None).tolist()]


def _edges(spec: Mapping[str, Any], sites: int) -> Iterable[Pair]:
    edges = spec["edges"]
    if not _is_list(edges) or not all(_is_list(edge) and len(edge) == 2 for edge in edges):
        raise ConfigError('"edges" must be a list of pairs of positions, as [[0, 1], [1, 2]]; write it so')
    pairs = []
    for edge in edges:
        one, other = (_position(place, sites, "an edge") for place in edge)
        if one == other:
            raise ConfigError(f"the edge [{one}, {other}] joins a site with itself; leave it out")
        pairs.append((one, other))
    return pairs


def _position(place: object, sites: int, where: str) -> int:
    if not _is_whole(place) or not 0 <= place < sites:  # type: ignore[operator]  # _is_whole says it is an int
        raise ConfigError(
            f"{where} names the site {str(place)[:40]!r}; there are {sites}: use positions 0 to {sites - 1}"
        )
    return int(place)  # type: ignore[call-overload, no-any-return]


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_list(value: object) -> bool:
    return isinstance(value, list | tuple)


def _listed(items: Sequence[object]) -> str:
    return ", ".join(map(str, items))


def _known() -> str:
    return _listed(list(KINDS))


KINDS: Mapping[str, Callable[[Mapping[str, Any], int], Iterable[Pair]]] = {
    "ring": _ring,
    "full": _full,
    "hierarchical": _hierarchical,
    "edges": _edges,
    "star": shapes.star,
    "chain": shapes.chain,
    "torus": shapes.torus,
    "hypercube": shapes.hypercube,
    "regular": shapes.regular,
    "erdos_renyi": random_graphs.erdos_renyi,
    "small_world": random_graphs.small_world,
    "two_clusters": trees.two_clusters,
    "tree": trees.tree,
    "double_tree": trees.double_tree,
    **dict.fromkeys(CHANGING, _of_all_rounds),
}
"""The known kinds; a new one is a new row here and in KEYS."""

KEYS: Mapping[str, frozenset[str]] = {
    "ring": frozenset(),
    "full": frozenset(),
    "hierarchical": frozenset({"clusters"}),
    "edges": frozenset({"edges"}),
    "star": frozenset(),
    "chain": frozenset(),
    "torus": frozenset({"rows", "columns"}),
    "hypercube": frozenset(),
    "regular": frozenset({"degree", "seed"}),
    "erdos_renyi": frozenset({"probability", "seed"}),
    "small_world": frozenset({"degree", "probability", "seed"}),
    "two_clusters": frozenset({"bridges"}),
    "tree": frozenset({"arity"}),
    "double_tree": frozenset(),
    "base": frozenset({"k"}),
    "matching": frozenset({"seed"}),
    "epidemic": frozenset({"degree", "seed"}),
    "exponential": frozenset(),
    "cyclic": frozenset(),
}
"""The keys each kind has beside ``kind``."""

EXAMPLES: Mapping[str, int | float] = {
    "arity": 2, "bridges": 1, "clusters": 2, "columns": 4, "degree": 4, "k": 1, "probability": 0.3, "rows": 4,
    "seed": 0,
}  # fmt: skip
"""Of options that a kind needs, for errors: those of docs/topology.md."""

OPTIONAL: Mapping[str, frozenset[str]] = {
    **{kind: frozenset({"closing", "weights"}) for kind in KINDS},
    "hierarchical": frozenset({"closing", "period", "weights"}),
    "epidemic": frozenset({"choice", "closing", "weights"}),
    "exponential": frozenset({"closing", "hops", "weights"}),
}
"""Further keys that a spec may have."""
