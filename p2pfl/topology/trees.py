"""Trees and what is made of two of them or of two clusters; for the table of kinds in graphs.py."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any

from p2pfl.errors import ConfigError
from p2pfl.topology.shapes import Pair, whole_of


def tree(spec: Mapping[str, Any], sites: int) -> list[Pair]:
    """Site 0 is the root; site k >= 1 hangs on (k - 1) // ``arity``."""
    arity = whole_of(spec, "arity", 1)
    return [((site - 1) // arity, site) for site in range(1, sites)]


def double_tree(spec: Mapping[str, Any], sites: int) -> list[Pair]:
    """The union of two binary trees of which no site is an inner node of both, so that nobody does the work of two.

    Source: Sanders, Speck, Traeff, "Two-tree algorithms for full bandwidth broadcast, reduction and scan", 2009. The
    first tree holds the sites in symmetric order, so those with even positions (from 0) are leaves; the second one is
    the same tree shifted by one site, around the end, so those with odd positions are. At most four neighbours.
    """
    first, second = two_trees(sites)
    return sorted({(min(pair), max(pair)) for pair in (*first, *second)})


def two_trees(sites: int) -> tuple[list[Pair], list[Pair]]:
    """(parent, child) of each edge of both trees."""
    first = _in_order(sites)
    return first, [((parent + 1) % sites, (child + 1) % sites) for parent, child in first]


def _in_order(sites: int) -> list[Pair]:
    """(parent, child) of the binary tree in symmetric order. Counted from 1 the site odd * 2^h has height h.

    Its parent has height h + 1; where that lies past the end, the parent's parent is taken, and so on.
    """
    pairs = []
    for child in range(1, sites + 1):
        parent = child
        while (size := parent & -parent) <= sites:
            parent = (parent & ~size) | 2 * size
            if parent <= sites:
                pairs.append((parent - 1, child - 1))
                break
    return pairs


def two_clusters(spec: Mapping[str, Any], sites: int) -> list[Pair]:
    """Two full clusters of consecutive sites, the first one larger by one if need be, joined by so many ``bridges``.

    Of clusters of a and c sites bridge b joins site b mod a of the one and (b mod a + b // a) mod c of the other.
    ConfigError for more bridges than there are such pairs.
    """
    bridges = whole_of(spec, "bridges", 1)
    if sites == 1:
        return []
    one = (sites + 1) // 2
    other = sites - one
    if bridges > one * other:
        raise ConfigError(
            f"clusters of {one} and {other} sites have {one * other} pairs between them, not {bridges}; take fewer"
        )
    inside = [*combinations(range(one), 2), *combinations(range(one, sites), 2)]
    return inside + [_bridge(number, one, other) for number in range(bridges)]


def _bridge(number: int, one: int, other: int) -> Pair:
    place, turn = number % one, number // one
    return place, one + (place + turn) % other
