"""The choice of weights: what the ``weights`` of a spec say, and the law pi that mixing then keeps.

    "shares", or nothing        w_ij = pi_j / max(s_i, s_j)                 pi: the sample shares
    "metropolis"                w_ij = 1 / (1 + max(degree_i, degree_j))    pi_i = 1 / n
    "uniform"                   w_ij = 1 / (degree_i + 1)                   pi_i in proportion to degree_i + 1
    [[i, j, w_ij, w_ji], ...]   each edge once, by positions of the sites   pi_i w_ij = pi_j w_ji

All four are reversible: what an edge moves at one end and what it moves at the other are of equal weight under pi. So
mixing keeps sum_i pi_i x_i, and an edge that one end missed can be taken back at the other. Other matrices are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import fsum, isfinite
from typing import Any

import networkx as nx
import numpy as np

from p2pfl.errors import ConfigError
from p2pfl.topology.changing import CHANGING
from p2pfl.topology.mixing import given_on_pairs, uniform_on_pairs, weights_on_pairs

NAMED = ("shares", "metropolis", "uniform")
BALANCE = 1e-12  # relative; rounding along a path of some thousand edges
LEAST = 1e-9  # of the law, that a site counts at all: less would be lost in the rounding of float32

Rows = Sequence[Sequence[Any]]


@dataclass(frozen=True)
class Weighting:
    """A law, one positive number per site, and the mixing of edges (int64 [m, 2]) that keeps it, a csr array [n, n]."""

    law: list[float]
    matrix: Callable[[Any], Any]


def weighting_of(spec: Mapping[str, Any], shares: list[float], pairs: Any) -> Weighting:
    """The weighting of a checked spec; ``pairs``: all edges, None of kinds with more than one mixing.

    There "uniform" keeps the uniform law, since everybody in a cluster, and each head, has equally many neighbours.
    ConfigError for listed weights that do not fit.
    """
    choice, sites = spec.get("weights", "shares"), len(shares)
    if choice == "shares":
        return Weighting(shares, lambda pairs: weights_on_pairs(pairs, shares))
    equal = [1.0 / sites] * sites
    if choice == "metropolis":
        return Weighting(equal, lambda pairs: weights_on_pairs(pairs, [1.0] * sites))
    if choice == "uniform":
        law = equal if pairs is None else _by_degree(pairs, sites)
        return Weighting(law, lambda pairs: uniform_on_pairs(pairs, sites))
    law, matrix = listed(choice, pairs, sites)
    return Weighting(law, lambda _: matrix)


def by_shares(spec: Mapping[str, Any]) -> bool:
    """Whether each site counts with its sample share."""
    return bool(spec.get("weights", "shares") == "shares")


def check_choice(spec: Mapping[str, Any]) -> None:
    """ConfigError unless ``weights``, if there are any, are a known name, or rows on a graph that stays the same."""
    choice = spec.get("weights", "shares")
    if spec["kind"] in CHANGING and choice not in ("shares", "metropolis"):
        raise ConfigError(
            f"the graph of a topology of the kind {spec['kind']} changes from round to round, and one law must hold "
            "in all of them; give the weights shares or metropolis"
        )
    if isinstance(choice, str) and choice in NAMED:
        return
    if not isinstance(choice, list | tuple) or not all(
        isinstance(row, list | tuple) and len(row) == 4 for row in choice
    ):
        raise ConfigError(
            f"the topology's weights are {str(choice)[:40]}; give {', '.join(NAMED)}, or of each edge its positions "
            "and two weights, as [[0, 1, 0.25, 0.5]]"
        )
    if spec["kind"] == "hierarchical":
        raise ConfigError(
            "a hierarchical topology mixes on several graphs, and listed weights are for one; give shares, metropolis "
            "or uniform"
        )


def listed(rows: Rows, pairs: Any, sites: int) -> tuple[list[float], Any]:
    """The law, summing to 1, and the matrix of rows (i, j, w_ij, w_ji) on the connected graph of the edges ``pairs``.

    ConfigError unless each edge comes once, no other does, 0 < w < 1, no site takes more than all, and the matrix
    W is that of a reversible chain whose powers converge: pi_i w_ij = pi_j w_ji with a pi above 0.
    """
    ends = [_ends(row, sites) for row in rows]
    _check_edges(ends, {(min(one, other), max(one, other)) for one, other in pairs})
    weights = [(_weight(row, 2), _weight(row, 3)) for row in rows]
    matrix = given_on_pairs(ends, weights, sites)
    _check_sums(ends, weights, sites)
    law = _balanced(ends, weights, sites)
    if matrix.diagonal().max(initial=0.0) <= BALANCE and nx.is_bipartite(nx.Graph(ends)):
        raise ConfigError(
            "with these weights the sites swap their parameters for good and never agree, since no site keeps a part "
            "of its own; make the weights of at least one site smaller"
        )
    return law, matrix


def _ends(row: Sequence[Any], sites: int) -> tuple[int, int]:
    for place in row[:2]:
        if not isinstance(place, int) or isinstance(place, bool) or not 0 <= place < sites:
            raise ConfigError(
                f"the weights name the site {str(place)[:40]!r}; there are {sites}: use positions 0 to {sites - 1}"
            )
    return row[0], row[1]


def _weight(row: Sequence[Any], column: int) -> float:
    value = row[column]
    if not isinstance(value, float) or not isfinite(value) or not 0.0 < value < 1.0:
        raise ConfigError(
            f"a weight of the edge [{row[0]}, {row[1]}] is {str(value)[:40]}; give a number above 0 and below 1"
        )
    return value


def _check_edges(ends: Sequence[tuple[int, int]], edges: set[tuple[int, int]]) -> None:
    found = set[tuple[int, int]]()
    for one, other in ends:
        edge = (min(one, other), max(one, other))
        if edge not in edges:
            raise ConfigError(
                f"the weights name the edge [{one}, {other}], which the graph does not have; leave it out"
            )
        if edge in found:
            raise ConfigError(f"the weights name the edge [{one}, {other}] twice; give each edge once")
        found.add(edge)
    if found != edges:
        one, other = min(edges - found)
        raise ConfigError(f"the weights leave out the edge [{one}, {other}]; give each edge its two weights")


def _check_sums(ends: Sequence[tuple[int, int]], weights: Sequence[tuple[float, float]], sites: int) -> None:
    given: list[list[float]] = [[] for _ in range(sites)]
    for (one, other), (first, second) in zip(ends, weights, strict=True):
        given[one].append(first)
        given[other].append(second)
    for site, values in enumerate(given):
        if fsum(values) > 1.0 + BALANCE:
            raise ConfigError(
                f"the weights with which site number {site} (counted from 0) takes from its neighbours add up to "
                f"{fsum(values):.6g}; make them smaller, so that they add up to at most 1"
            )


def _balanced(ends: Sequence[tuple[int, int]], weights: Sequence[tuple[float, float]], sites: int) -> list[float]:
    """The law, along the edges of a breadth-first tree from site 0; each other edge has to agree with it."""
    near: list[list[tuple[int, float]]] = [[] for _ in range(sites)]
    for (one, other), (first, second) in zip(ends, weights, strict=True):
        near[one].append((other, first / second))
        near[other].append((one, second / first))
    law, waiting = [0.0] * sites, [0]
    law[0] = 1.0
    for site in waiting:
        for other, ratio in sorted(near[site]):
            if law[other] == 0.0:
                law[other] = _counting(law[site] * ratio, 0, other)
                waiting.append(other)
    total = fsum(law)
    law = [part / total for part in law]
    _counting(min(law), law.index(max(law)), law.index(min(law)))
    for (one, other), (first, second) in zip(ends, weights, strict=True):
        if abs(law[one] * first - law[other] * second) > BALANCE * law[one] * first:
            raise ConfigError(
                f"the weights keep no weighted mean: those on a cycle through the edge [{one}, {other}] do not "
                f"balance; give it {law[one] * first / law[other]!r} as second weight, or each edge twice the same"
            )
    return law


def _counting(part: float, one: int, other: int) -> float:
    """What ``other`` counts beside ``one``. ConfigError if it, or ``one``, counts next to nothing."""
    if LEAST <= part <= 1.0 / LEAST:
        return part
    raise ConfigError(
        f"with these weights site number {other if part < LEAST else one} (counted from 0) counts with less than "
        f"{LEAST:g} of the mean; give weights that are nearer to each other"
    )


def _by_degree(pairs: Any, sites: int) -> list[float]:
    counts = np.bincount(np.array(pairs, dtype=np.int64).ravel(), minlength=sites) + 1
    return (counts / counts.sum()).tolist()  # type: ignore[no-any-return]  # numpy's tolist
