"""Which absent sites would split the others into parts that no longer hear each other."""

from __future__ import annotations

from itertools import combinations

import networkx as nx

from p2pfl.errors import ConfigError
from p2pfl.types import PeerId

MOST_SITES_FOR_PAIRS = 500  # pairs cost sites x edges steps: about 2 s for a ring of 500, minutes for 5,000


def absences_that_disconnect(graph: nx.Graph, size: int) -> list[frozenset[PeerId]]:
    """All sets of exactly ``size`` (1 or 2) sites without which the rest is not connected.

    ``graph`` is connected; the answer is in the order of its nodes. A pair is listed also where one of the
    two alone is enough. Of a hierarchical schedule pass the union graph; the answer then holds over a whole
    rotation of the heads. Source: articulation points (Tarjan, 1972), once for single sites and once per
    site for pairs. ConfigError for another size, or pairs of more than 500 sites.
    """
    if size == 1:
        cuts = set(nx.articulation_points(graph))
        return [frozenset({node}) for node in graph if node in cuts]
    if size != 2:
        raise ConfigError(f"absences of {size} sites are not looked at; ask for 1 or 2")
    if len(graph) > MOST_SITES_FOR_PAIRS:
        raise ConfigError(
            f"pairs of absent sites are looked at for up to {MOST_SITES_FOR_PAIRS} sites, not {len(graph)}; "
            "ask for single ones"
        )
    splitting = {node: _second_cuts(graph, node) for node in graph}
    return [frozenset(pair) for pair in combinations(graph, 2) if pair[1] in splitting[pair[0]]]


def _second_cuts(graph: nx.Graph, absent: PeerId) -> set[PeerId]:
    """The sites whose absence leaves the rest unconnected once ``absent`` is gone."""
    rest = graph.subgraph(node for node in graph if node != absent).copy()
    parts = list(nx.connected_components(rest))
    if len(parts) <= 1:
        return set(nx.articulation_points(rest))
    if len(parts) > 2:
        return set(rest)
    # Two parts become one only if the second absence is the whole of one of them.
    return {node for part in parts for node in part if len(part) > 1}
