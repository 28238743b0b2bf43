"""Mixing matrices: with which weight a site takes a neighbour's message.

Stationary weights (DESIGN, "Weights"), for sample shares pi that sum to 1:

    s_i  = pi_i + sum of pi_j over the neighbours j of i
    w_ij = pi_j / max(s_i, s_j)   on edges;   w_ii = 1 - sum_j w_ij

so that pi_i w_ij = pi_j w_ji, hence sum_i pi_i x_i is conserved. Equal shares give Metropolis-Hastings weights
w_ij = 1 / (1 + max(deg_i, deg_j)) exactly, the full graph gives w_ij = pi_j (FedAvg) exactly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import networkx as nx
import numpy as np
from scipy import sparse

from p2pfl.errors import ConfigError
from p2pfl.types import PeerId


class Mixing:
    """One mixing step over the sites: a row-stochastic sparse matrix W [n, n], float64."""

    def __init__(self, nodes: Sequence[PeerId], matrix: sparse.csr_array) -> None:
        self.nodes = tuple(nodes)
        self.matrix = matrix
        self._rows = {node: number for number, node in enumerate(self.nodes)}
        self._neighbours: dict[PeerId, tuple[tuple[PeerId, float], ...]] = {}

    def neighbours(self, peer: PeerId) -> tuple[tuple[PeerId, float], ...]:
        """(neighbour, w_ij) of one site in peer-id order, without itself; empty for a site that does not mix."""
        known = self._neighbours.get(peer)
        if known is None:
            row = self._rows.get(peer)
            known = () if row is None else self._row(row)
            self._neighbours[peer] = known
        return known

    def _row(self, row: int) -> tuple[tuple[PeerId, float], ...]:
        low, high = self.matrix.indptr[row], self.matrix.indptr[row + 1]
        columns, values = self.matrix.indices[low:high], self.matrix.data[low:high]
        pairs = zip(columns, values, strict=True)
        return tuple(sorted((self.nodes[column], float(value)) for column, value in pairs if column != row))


def metropolis_hastings(graph: nx.Graph) -> sparse.csr_array:
    """w_ij = 1 / (1 + max(deg_i, deg_j)); symmetric, doubly stochastic, rows in the graph's node order."""
    share = 1.0 / max(len(graph), 1)
    return stationary_weights(graph, dict.fromkeys(graph.nodes, share))


def stationary_weights(graph: nx.Graph, shares: Mapping[PeerId, float]) -> sparse.csr_array:
    """The matrix of the module's equation, [n, n] float64, rows in the graph's node order. Raises ConfigError."""
    nodes = list(graph.nodes)
    pi = np.array([_share(shares, node) for node in nodes])
    equal = bool(np.all(pi == pi[0])) if len(pi) else True
    rows = {node: number for number, node in enumerate(nodes)}
    ends = [(rows[one], rows[other]) for one, other in graph.edges]
    left = np.array([one for one, _ in ends], dtype=np.intp)
    right = np.array([other for _, other in ends], dtype=np.intp)
    # equal shares cancel: counting neighbours instead gives Metropolis-Hastings without a rounding error
    weight = np.ones(len(nodes)) if equal else pi
    total = weight.copy()
    np.add.at(total, left, weight[right])
    np.add.at(total, right, weight[left])
    bottom = np.maximum(total[left], total[right])
    i = np.concatenate([left, right])
    j = np.concatenate([right, left])
    w = np.concatenate([weight[right] / bottom, weight[left] / bottom])
    off = sparse.csr_array((w, (i, j)), shape=(len(nodes), len(nodes)))
    kept = 1.0 - np.asarray(off.sum(axis=1)).ravel()
    matrix = (off + sparse.diags_array(kept)).tocsr()
    matrix.sort_indices()
    return matrix


def _share(shares: Mapping[PeerId, float], node: PeerId) -> float:
    share = shares.get(node)
    if share is None or not math.isfinite(share) or share <= 0:
        raise ConfigError(f"site {node} has no positive sample share; every participant needs data")
    return share
