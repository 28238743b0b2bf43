"""Which absences a graph survives."""

from __future__ import annotations

from itertools import combinations

import networkx as nx

from p2pfl.errors import ConfigError
from p2pfl.types import PeerId


def absences_that_disconnect(graph: nx.Graph, size: int) -> list[frozenset[PeerId]]:
    """The sets of ``size`` (1 or 2) sites without which the remaining sites no longer hang together.

    Pairs that contain a site which disconnects alone are listed, too: they are absences to know about.
    """
    if size not in (1, 2):
        raise ConfigError("absences can be examined for one or two sites; choose 1 or 2")
    found = []
    for gone in combinations(graph.nodes, size):
        rest = graph.subgraph(node for node in graph if node not in gone)
        if len(rest) > 1 and not nx.is_connected(rest):
            found.append(frozenset(gone))
    return found
