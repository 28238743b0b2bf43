"""Random regular graphs that every peer computes alike: unions of random Hamiltonian cycles, from keyed integers.

A random d-regular graph for fixed even d >= 4 and many sites is contiguous to the union of d / 2 independent uniform
Hamiltonian cycles without a common edge, for odd d with a perfect matching added: what almost surely holds for one
holds for the other (Kim and Wormald, "Random matchings which induce Hamilton cycles and Hamiltonian decompositions of
random regular graphs", 2001). Edges that cycles have in common are replaced by 2-opt moves; that departs
from independence by a few edges per cycle. One cycle in it makes the graph connected. Above half of all degrees the
complement is drawn.
"""

from __future__ import annotations

from collections.abc import Iterator

from p2pfl.errors import ConfigError
from p2pfl.keyed_stream import KeyedStream

MOST_ATTEMPTS = 1000  # small crowded graphs need up to some ten; see the tests
MOVES_PER_EDGE = 200  # tried before an attempt is given up
DRAWS = 1024  # random numbers fetched at a time


def regular_pairs(sites: int, degree: int, seed: int) -> list[tuple[int, int]]:
    """The edges of a connected simple graph in which each of ``sites`` has ``degree`` neighbours.

    A pure function of its arguments. ConfigError if there is no such graph.
    10,000 sites with 8 neighbours take about 0.1 s.
    """
    if degree == 1 and sites > 2:
        raise ConfigError("with one neighbour each only pairs are connected; give a degree of 2 or more")
    return drawn_regular(sites, degree, "p2pfl regular graph", seed, sites, degree)


def drawn_regular(sites: int, degree: int, *name: object) -> list[tuple[int, int]]:
    """The same from the stream of this name; with one neighbour each a perfect matching. ConfigError."""
    check_degree(sites, degree)
    dense = 2 * degree >= sites  # then every such graph is connected (Dirac, 1952), and its complement is sparse
    drawn = sites - 1 - degree if dense else degree
    for attempt in range(MOST_ATTEMPTS):
        edges = _edges(sites, drawn, KeyedStream(*name, attempt))
        if edges is not None:
            break
    else:
        raise ConfigError(f"found no graph of {sites} sites with {degree} neighbours each; take another seed or degree")
    if dense:
        return [(one, other) for one in range(sites) for other in range(one + 1, sites) if (one, other) not in edges]
    return sorted(edges)


def check_degree(sites: int, degree: int) -> None:
    """ConfigError unless there is a graph in which each of ``sites`` has ``degree`` neighbours."""
    if not 1 <= degree < sites:
        raise ConfigError(f"{sites} sites cannot have {degree} neighbours each; give a degree from 1 to {sites - 1}")
    if sites % 2 and degree % 2:
        raise ConfigError(
            f"{sites} sites cannot have {degree} neighbours each (every edge has two ends); "
            f"give {degree - 1} or {degree + 1}"
        )


def _edges(sites: int, degree: int, stream: KeyedStream) -> set[tuple[int, int]] | None:
    """Edges as (smaller, larger); None if the attempt got stuck."""
    edges: set[tuple[int, int]] = set()
    draws = _draws(stream, sites)
    for _ in range(degree // 2):
        order = stream.permutation(sites).tolist()
        if not _without_common_edges(order, edges, draws):
            return None
        edges.update(_edge(one, other) for one, other in zip(order, [*order[1:], order[0]], strict=True))
    if degree % 2:
        order = stream.permutation(sites).tolist()
        if not _matched(order, edges, draws):
            return None
        edges.update(_edge(*order[place : place + 2]) for place in range(0, sites, 2))
    return edges


def _without_common_edges(order: list[int], edges: set[tuple[int, int]], draws: Iterator[int]) -> bool:
    """Turn parts of the cycle around until it shares no edge with ``edges``; False if that fails.

    Turning order[low + 1 .. high] replaces the edges after ``low`` and after ``high`` and keeps all others, so what
    lies behind stays good.
    """
    last = len(order) - 1
    for place in range(len(order)):
        for _ in range(MOVES_PER_EDGE):
            if _edge(order[place], order[place - last]) not in edges:
                break
            low, high = sorted((place, next(draws)))
            after = order[high - last]  # the one after the last is the first
            if high - low < 2 or high - low == last:
                continue
            if _edge(order[low], order[high]) not in edges and _edge(order[low + 1], after) not in edges:
                order[low + 1 : high + 1] = order[low + 1 : high + 1][::-1]
        else:
            return False
    return True


def _matched(order: list[int], edges: set[tuple[int, int]], draws: Iterator[int]) -> bool:
    """Exchange partners until no pair (order[2 k], order[2 k + 1]) is in ``edges``; False if that fails."""
    for place in range(0, len(order), 2):
        for _ in range(MOVES_PER_EDGE):
            if _edge(order[place], order[place + 1]) not in edges:
                break
            other = next(draws) // 2 * 2
            swapped = _edge(order[place], order[other + 1]), _edge(order[other], order[place + 1])
            if other != place and not edges.intersection(swapped):
                order[place + 1], order[other + 1] = order[other + 1], order[place + 1]
        else:
            return False
    return True


def _edge(one: int, other: int) -> tuple[int, int]:
    return (one, other) if one < other else (other, one)


def _draws(stream: KeyedStream, limit: int) -> Iterator[int]:
    while True:
        yield from stream.below(limit, DRAWS).tolist()
