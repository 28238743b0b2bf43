"""Edges of the classical shapes: star, chain, torus, hypercube, random regular; for the table of kinds in graphs.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from p2pfl.errors import ConfigError
from p2pfl.topology.regular import regular_pairs

Pair = tuple[int, int]
SEED_LIMIT = 2**32


def star(spec: Mapping[str, Any], sites: int) -> list[Pair]:
    """The first site with each other one."""
    return [(0, other) for other in range(1, sites)]


def chain(spec: Mapping[str, Any], sites: int) -> list[Pair]:
    """Each site with the next one."""
    return [(site, site + 1) for site in range(sites - 1)]


def torus(spec: Mapping[str, Any], sites: int) -> list[Pair]:
    """Rows x columns sites, row after row, each with the next in its row and in its column, around the ends.

    Two rows (or columns) give one edge where more would give two.
    """
    rows, columns = whole_of(spec, "rows", 2), whole_of(spec, "columns", 2)
    if rows * columns != sites:
        raise ConfigError(f"a torus of {rows} x {columns} has {rows * columns} sites, not {sites}; make both agree")
    pairs = set[Pair]()
    for site in range(sites):
        row, column = divmod(site, columns)
        for other in (row * columns + (column + 1) % columns, (row + 1) % rows * columns + column):
            pairs.add((min(site, other), max(site, other)))
    return sorted(pairs)


def hypercube(spec: Mapping[str, Any], sites: int) -> list[Pair]:
    """Two sites whose numbers differ in one binary digit; 1, 2, 4, 8, 16, ... sites."""
    if sites & (sites - 1):
        raise ConfigError(f"a hypercube has 2, 4, 8, 16, ... sites, not {sites}; take another topology")
    digits = sites.bit_length() - 1
    return [(site, site | 1 << digit) for site in range(sites) for digit in range(digits) if not site >> digit & 1]


def regular(spec: Mapping[str, Any], sites: int) -> list[Pair]:
    """A random graph in which each site has ``degree`` neighbours; another one for each ``seed``."""
    return regular_pairs(sites, whole_of(spec, "degree", 1), seed_of(spec))


def seed_of(spec: Mapping[str, Any]) -> int:
    """The spec's ``seed``. ConfigError unless it is a whole number from 0 and below 2^32."""
    seed = whole_of(spec, "seed", 0)
    if seed >= SEED_LIMIT:
        raise ConfigError(f"the topology's seed is {seed}; give one below {SEED_LIMIT}")
    return seed


def whole_of(spec: Mapping[str, Any], key: str, least: int) -> int:
    """A whole number of the spec. ConfigError unless it is one, and at least ``least``."""
    value = spec[key]
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(f"the topology's {key} is {str(value)[:40]}; give a whole number from {least}")
    return value
