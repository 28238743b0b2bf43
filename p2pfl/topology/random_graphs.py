"""Random graphs that every peer computes alike: Erdos-Renyi and small worlds, from keyed integers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import log
from typing import Any

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from p2pfl.errors import ConfigError
from p2pfl.keyed_stream import KeyedStream
from p2pfl.topology.shapes import Pair, seed_of, whole_of

MOST_ATTEMPTS = 100
MOST_SITES = 20_000  # each pair is drawn: 2 x 10^8 numbers
ROWS = 1 << 22  # numbers drawn at a time


def erdos_renyi(spec: Mapping[str, Any], sites: int) -> list[Pair]:
    """Each pair with the same ``probability``, drawn again until the graph is connected.

    Source: Gilbert, "Random graphs", 1959; connected for many sites from about ln n / n on (Erdos and Renyi, "On random
    graphs I", 1959). ConfigError if no draw of 100 is connected.
    """
    probability, seed = probability_of(spec), seed_of(spec)
    if sites > MOST_SITES:
        raise ConfigError(f"the topology erdos_renyi is drawn for up to {MOST_SITES} sites, not {sites}; take regular")
    name = ("p2pfl erdos renyi graph", seed, sites, probability.hex())
    enough = log(sites) / sites
    return _connected(
        sites,
        lambda attempt: _each_pair(sites, probability, KeyedStream(*name, attempt)),
        f"among {sites} sites with probability {probability:g}; above some {enough:.2g} (ln n / n) most are: take more",
    )


def small_world(spec: Mapping[str, Any], sites: int) -> list[Pair]:
    """A ring on which each site knows its ``degree`` nearest; one end of each edge is rewired with ``probability``.

    The edges to the next site first, then those to the one after, and so on; the new end is any site that is not yet a
    neighbour. Drawn again until the graph is connected. Source: Watts and Strogatz, "Collective dynamics of
    'small-world' networks", 1998.
    """
    degree, probability, seed = whole_of(spec, "degree", 2), probability_of(spec), seed_of(spec)
    if degree % 2 or (degree >= sites > 1):
        raise ConfigError(
            f"a small world of {sites} sites cannot begin with {degree} neighbours each; give an even degree below that"
        )
    name = ("p2pfl small world", seed, sites, degree, probability.hex())
    return _connected(
        sites,
        lambda attempt: _rewired(sites, degree, probability, KeyedStream(*name, attempt)),
        f"among {sites} sites with {degree} neighbours rewired with probability {probability:g}; take a larger degree, "
        "a smaller probability or another seed",
    )


def probability_of(spec: Mapping[str, Any]) -> float:
    """The spec's ``probability``. ConfigError unless it is a number from 0 to 1."""
    value = spec["probability"]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ConfigError(f"the topology's probability is {str(value)[:40]}; give a number from 0 to 1")
    return float(value)


def _connected(sites: int, draw: Callable[[int], list[Pair]], where: str) -> list[Pair]:
    for attempt in range(MOST_ATTEMPTS):
        pairs = draw(attempt)
        ends = np.array(pairs, dtype=np.int64).reshape(-1, 2)
        joined = sparse.coo_array((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(sites, sites))
        if connected_components(joined, directed=False)[0] <= 1:
            return pairs
    raise ConfigError(f"none of {MOST_ATTEMPTS} draws gave a connected graph {where}")


def _each_pair(sites: int, probability: float, stream: KeyedStream) -> list[Pair]:
    """Row after row of the pairs (one, other) with one < other, some rows at a time."""
    pairs: list[Pair] = []
    first = 0
    while first < sites - 1:
        last = min(sites - 1, first + max(1, ROWS // sites))
        lengths = [sites - 1 - one for one in range(first, last)]
        drawn = stream.uniforms(sum(lengths)) < probability
        starts = np.cumsum([0, *lengths])
        hits = np.flatnonzero(drawn)
        rows = np.searchsorted(starts, hits, side="right") - 1
        ones = rows + first
        pairs += zip(ones.tolist(), (hits - starts[rows] + ones + 1).tolist(), strict=True)
        first = last
    return pairs


def _other_than(site: int, near: set[int], sites: int, stream: KeyedStream) -> int:
    """Uniform among the sites that are neither this one nor near it."""
    if 2 * len(near) > sites:  # few are free: most draws would be in vain
        free = [other for other in range(sites) if other != site and other not in near]
        return free[int(stream.below(len(free), 1)[0])]
    new = site
    while new == site or new in near:
        new = int(stream.below(sites, 1)[0])
    return new


def _rewired(sites: int, degree: int, probability: float, stream: KeyedStream) -> list[Pair]:
    near: list[set[int]] = [set() for _ in range(sites)]
    if sites == 1:
        return []
    for hop in range(1, degree // 2 + 1):
        for site in range(sites):
            other = (site + hop) % sites
            near[site].add(other)
            near[other].add(site)
    for hop in range(1, degree // 2 + 1):
        chosen = (stream.uniforms(sites) < probability).tolist()
        for site in range(sites):
            other = (site + hop) % sites
            if not chosen[site] or len(near[site]) >= sites - 1 or other not in near[site]:
                continue
            new = _other_than(site, near[site], sites, stream)
            near[site].remove(other)
            near[other].remove(site)
            near[site].add(new)
            near[new].add(site)
    return sorted((site, other) for site in range(sites) for other in near[site] if site < other)
