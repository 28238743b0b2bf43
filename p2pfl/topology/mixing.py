"""Mixing matrices: the weights with which a site moves towards each of its neighbours.

    x_i <- x_i + sum_j w_ij (x_j - x_i)        W = [w_ij], i receives, float64, every row sums to 1

A directed mixing takes and gives unlike amounts over an edge, and keeps sums alone (pushing.py):

    x_i <- x_i + sum_j (w_ij x_j - g_ij x_i)    g_ij = w_ji pi_j / pi_i: what i gives up is what j gets, weighed by pi

Sums are correctly rounded (``math.fsum``), so every processor computes the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from math import fsum, isfinite
from typing import Any

import networkx as nx
import numpy as np
from scipy import sparse

from p2pfl.errors import ConfigError
from p2pfl.types import PeerId


class Mixing:
    """One mixing: the sites in their order and the matrix [n, n] (scipy csr array, float64). Immutable.

    ``given`` [n, n], of a directed one alone: g_ij, without a diagonal; else a site gives what it takes.
    """

    def __init__(self, nodes: Sequence[PeerId], matrix: Any, given: Any = None) -> None:
        """Raises ConfigError if ``matrix`` is not [n, n] for the n ``nodes``."""
        self.nodes = tuple(nodes)
        if tuple(matrix.shape) != (len(self.nodes), len(self.nodes)):
            raise ConfigError(
                f"a mixing matrix of shape {tuple(matrix.shape)} for {len(self.nodes)} sites; make both agree"
            )
        self.matrix = sparse.csr_array(matrix, dtype=np.float64)
        self._given = None if given is None else sparse.csr_array(given, dtype=np.float64)

    @property
    def directed(self) -> bool:
        """Whether a site may give another amount over an edge than it takes; w_ij or g_ij may then be 0."""
        return self._given is not None

    def neighbours(self, peer: PeerId) -> tuple[tuple[PeerId, float], ...]:
        """(neighbour, w_ij) of one site, in peer-id order; empty for a site that this mixing leaves alone.

        Every world sums in this order, so results agree bit by bit. ConfigError for a stranger.
        """
        place = self._place_of(peer)
        taken = {other: weight for other, weight in _row(self.matrix, place) if other != place}
        if self._given is not None:
            taken = dict.fromkeys((other for other, _ in _row(self._given, place)), 0.0) | taken
        return tuple(sorted((self.nodes[other], weight) for other, weight in taken.items()))

    def given(self, peer: PeerId) -> Mapping[PeerId, float]:
        """g_ij of one site where the mixing is directed, for each of its `neighbours`; else nothing is said."""
        if self._given is None:
            return {}
        given = {self.nodes[other]: amount for other, amount in _row(self._given, self._place_of(peer))}
        return {other: given.get(other, 0.0) for other, _ in self.neighbours(peer)}

    @cached_property
    def entries(self) -> tuple[Any, Any, Any, Any]:
        """Each edge once from each of its ends: receivers i and senders j, int64 [E], w_ij and g_ij, float64 [E].

        Directed ones sorted by receiver, then by sender; others as the matrix has them, whose sums depend on it.
        """
        if self._given is None:
            rows, columns, weights = _off_diagonal(self.matrix)
            return rows, columns, weights, weights
        ends = [_off_diagonal(matrix) for matrix in (self.matrix, self._given)]
        places = np.unique(np.concatenate([row * len(self.nodes) + column for row, column, _ in ends]))
        amounts = np.zeros((2, len(places)))
        for amount, (row, column, values) in zip(amounts, ends, strict=True):
            amount[np.searchsorted(places, row * len(self.nodes) + column)] = values
        return places // len(self.nodes), places % len(self.nodes), amounts[0], amounts[1]

    def _place_of(self, peer: PeerId) -> int:
        if peer not in self._places:
            raise ConfigError(f"{peer} is not a site of this mixing; ask for one of its {len(self.nodes)} sites")
        return self._places[peer]

    @cached_property
    def _places(self) -> dict[PeerId, int]:
        return {node: place for place, node in enumerate(self.nodes)}


def _row(matrix: Any, place: int) -> list[tuple[int, float]]:
    row = slice(matrix.indptr[place], matrix.indptr[place + 1])
    entries = zip(matrix.indices[row].tolist(), matrix.data[row].tolist(), strict=True)
    return [(other, weight) for other, weight in entries if weight != 0.0]


def _off_diagonal(matrix: Any) -> tuple[Any, Any, Any]:
    coo = matrix.tocoo()
    real = (coo.row != coo.col) & (coo.data != 0.0)
    return coo.row[real].astype(np.int64), coo.col[real].astype(np.int64), coo.data[real]


def metropolis_hastings(graph: nx.Graph) -> Any:
    """w_ij = 1 / (1 + max(degree_i, degree_j)) on edges, w_ii the rest: symmetric, doubly stochastic.

    The csr array [n, n], float64, rows in the order of ``graph.nodes``. Source: Xiao, Boyd, "Fast linear
    iterations for distributed averaging", 2004, section 2 (local-degree weights).
    """
    return weights_on_pairs(_pairs(graph), [1.0] * len(graph))


def stationary_weights(graph: nx.Graph, shares: Mapping[PeerId, float]) -> Any:
    """w_ij = pi_j / max(s_i, s_j) on edges, w_ii the rest, s_i = sum of pi over i and its neighbours.

    pi_i w_ij is symmetric in i and j, so pi W = pi: mixing keeps sum_i pi_i x_i, the mean over all patients.
    For equal shares this is Metropolis-Hastings; on the full graph it is the weighted mean itself (FedAvg).
    ``shares`` need not sum to 1. The csr array [n, n], float64, rows in the order of ``graph.nodes``.
    ConfigError for a share that is missing or not positive. Source: Hastings, "Monte Carlo sampling methods
    using Markov chains", 1970, with stationary law pi and proposals within the neighbourhood.
    """
    return weights_on_pairs(_pairs(graph), law_of(list(graph), shares))


def uniform_weights(graph: nx.Graph) -> Any:
    """w_ij = 1 / (degree_i + 1) on edges, w_ii the rest: the plain mean over a site and its neighbours.

    It keeps sum_i (degree_i + 1) x_i, so where degrees differ it favours sites with many neighbours. On regular graphs
    it is Metropolis-Hastings. The csr array [n, n], float64, rows in the order of ``graph.nodes``. Source: the simple
    random walk with a loop at each site; Levin, Peres, Wilmer, "Markov chains and mixing times", 2009, example 1.12.
    """
    return uniform_on_pairs(_pairs(graph), len(graph))


def law_of(nodes: Sequence[PeerId], shares: Mapping[PeerId, float]) -> list[float]:
    """The shares in the order of ``nodes``. ConfigError for one that is missing or not positive."""
    for node in nodes:
        share = shares.get(node)
        if share is None or not isfinite(share) or share <= 0:
            raise ConfigError(f"the sample share of {node} is {share}; give every site a positive one")
    return [float(shares[node]) for node in nodes]


def weights_on_pairs(pairs: Any, law: Sequence[float]) -> Any:
    """The stationary weights on the undirected edges ``pairs``, int64 [m, 2] positions, each edge once.

    ``law`` [n]: positive, one per site. The csr array [n, n], float64, with its diagonal. 10,000 sites with 8
    neighbours each take 0.03 s.
    """
    pi, sites = np.array(law, dtype=np.float64), len(law)
    rows, columns, _ = _both_ways(pairs)
    bounds = [0, *np.cumsum(np.bincount(rows, minlength=sites)).tolist()]
    near = pi[columns].tolist()
    sums = np.array([fsum([law[i], *near[bounds[i] : bounds[i + 1]]]) for i in range(sites)])
    weights = pi[columns] / np.maximum(sums[rows], sums[columns])
    return with_rest(rows, columns, weights, sites)


def uniform_on_pairs(pairs: Any, sites: int) -> Any:
    """The plain means over closed neighbourhoods on the undirected edges ``pairs``, int64 [m, 2], each edge once."""
    rows, columns, _ = _both_ways(pairs)
    degrees = np.bincount(rows, minlength=sites)
    return with_rest(rows, columns, 1.0 / (degrees[rows] + 1.0), sites)


def given_on_pairs(pairs: Any, weights: Any, sites: int) -> Any:
    """``weights`` float64 [m, 2], (w_ij, w_ji) of each edge (i, j) of ``pairs``, int64 [m, 2]; w_ii the rest."""
    rows, columns, order = _both_ways(pairs)
    return with_rest(rows, columns, np.array(weights, dtype=np.float64).reshape(-1, 2).T.ravel()[order], sites)


def stretched(matrix: Any, factor: float) -> Any:
    """I + factor (W - I): every displacement times ``factor``; its diagonal may be below 0. The csr array [n, n]."""
    rest = sparse.eye_array(matrix.shape[0], format="csr") * (1.0 - factor)
    return sparse.csr_array(matrix * factor + rest)


def with_rest(rows: Any, columns: Any, weights: Any, sites: int) -> Any:
    """The csr array [n, n] of these entries off the diagonal, sorted by rows, and w_ii = 1 - sum_j w_ij."""
    bounds, values = [0, *np.cumsum(np.bincount(rows, minlength=sites)).tolist()], weights.tolist()
    # Rounding must not leave -1e-17 on the diagonal where the neighbourhood takes all but nothing.
    rest = [max(0.0, 1.0 - fsum(values[bounds[i] : bounds[i + 1]])) for i in range(sites)]
    here = np.arange(sites)
    places = np.concatenate([rows, here]), np.concatenate([columns, here])
    return sparse.csr_array((np.concatenate([weights, rest]), places), shape=(sites, sites))


def _both_ways(pairs: Any) -> tuple[Any, Any, Any]:
    """Rows and columns of both entries of each edge, sorted; and the order that sorts them."""
    ends = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    rows, columns = ends.T.ravel(), ends[:, ::-1].T.ravel()
    order = np.lexsort((columns, rows))
    return rows[order], columns[order], order


def _pairs(graph: nx.Graph) -> list[tuple[int, int]]:
    places = {node: place for place, node in enumerate(graph)}
    return [(places[one], places[other]) for one, other in graph.edges]
