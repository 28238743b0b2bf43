"""The Base-(k+1) graph: at most k neighbours per round, and the exact mean after at most 2 log_{k+1} n + 2 rounds.

Source: Takezawa, Sato, Bao, Niwa, Yamada, "Beyond exponential graph: communication-efficient topologies for
decentralized learning via finite-time convergence", NeurIPS 2023 (its simple Base-(k+1) graph).

If no prime factor of n is above k + 1, then n = f_1 ... f_m with f_r <= k + 1, and in round r all sites average that
differ in the r-th digit of their number alone (mixed radix f_1 ... f_m). Else n = sum_l a_l (k+1)^p_l with falling p_l
and 1 <= a_l <= k: block V_l has a_l parts of (k+1)^p_l sites. First each block averages so within itself; then block by
block each site i behind V_m meets one site j of every part of V_m, so that i ends with what is the mean of V_m and of
all behind it if i itself stands for the latter:

    w_ij = w_ji = |V_m| / (a_m S_m)        S_m = |V_m| + |V_m+1| + ...

and last each part averages within itself once more. This needs equal shares: with pi_i w_ij = pi_j w_ji four sites in
two rounds of pairs, (0, 1), (2, 3) and then (0, 2), (1, 3), come to their mean only if pi_0 pi_3 = pi_1 pi_2.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import combinations
from math import isclose
from typing import Any

import numpy as np

from p2pfl.errors import ConfigError
from p2pfl.topology.mixing import with_rest

Weighted = tuple[int, int, float]  # two sites and the weight of the edge, the same in both directions


@dataclass(frozen=True)
class _Block:
    """Sites ``first`` to ``first`` + ``parts`` * ``size`` - 1: so many parts of so many sites each."""

    first: int
    parts: int
    size: int

    @property
    def sites(self) -> int:
        return self.parts * self.size


@dataclass
class BaseGraph:
    """The rounds of the Base-(``neighbours`` + 1) graph of n ``sites``; after ``length`` rounds it begins again."""

    sites: int
    neighbours: int
    _blocks: list[_Block] = field(default_factory=list)

    def __post_init__(self) -> None:
        """ConfigError unless 1 <= ``neighbours``; 10,000 sites take no time, the edges are computed round by round."""
        if self.neighbours < 1:
            raise ConfigError(f"each site meets {self.neighbours} others per round; give a number from 1")
        self._whole = radices(self.sites, self.neighbours + 1)
        if self._whole is None:
            self._blocks = _blocks(self.sites, self.neighbours + 1)

    @property
    def length(self) -> int:
        """Rounds after which all have the mean; 1 for one site alone."""
        if self._whole is not None:
            return max(1, len(self._whole))
        return self._alone + 1 + len(self._inside(self._blocks[0]))

    def edges(self, t: int) -> list[Weighted]:
        """Of round ``t``, from 0."""
        t %= self.length
        if self._whole is not None:
            return averaging(0, self._whole, t)
        if t < self._alone:
            return [edge for block in self._blocks for edge in averaging(block.first, self._together(block), t)]
        meeting = t - self._alone
        found = self._meeting(meeting) if meeting < len(self._blocks) - 1 else []
        last = len(self._blocks) - 2
        for place, block in enumerate(self._blocks):
            since = meeting - min(place, last) - 1
            if since >= 0:
                for part in range(block.parts):
                    found += averaging(block.first + part * block.size, self._inside(block), since)
        return found

    def matrix(self, t: int) -> Any:
        """The mixing matrix of round ``t``, for equal shares: the csr array [n, n], float64, symmetric."""
        edges = np.array(self.edges(t), dtype=np.float64).reshape(-1, 3)
        ends = edges[:, :2].astype(np.int64)
        rows, columns = np.concatenate([ends[:, 0], ends[:, 1]]), np.concatenate([ends[:, 1], ends[:, 0]])
        order = np.lexsort((columns, rows))
        return with_rest(rows[order], columns[order], np.tile(edges[:, 2], 2)[order], self.sites)

    @property
    def _alone(self) -> int:
        """Rounds in which the blocks average by themselves: as many as the largest one needs."""
        return len(self._together(self._blocks[0]))

    def _together(self, block: _Block) -> tuple[int, ...]:
        return (*self._inside(block), *((block.parts,) if block.parts > 1 else ()))

    def _inside(self, block: _Block) -> tuple[int, ...]:
        radix, digits, size = self.neighbours + 1, 0, block.size
        while size > 1:
            digits, size = digits + 1, size // radix
        return (radix,) * digits

    def _meeting(self, place: int) -> list[Weighted]:
        """All behind block ``place`` meet it."""
        block = self._blocks[place]
        behind = range(block.first + block.sites, self.sites)
        weight = block.size / (block.sites + len(behind))
        return [
            (block.first + part * block.size + at, guest, weight)
            for at, guest in enumerate(behind)
            for part in range(block.parts)
        ]


def radices(sites: int, largest: int) -> tuple[int, ...] | None:
    """The fewest factors of ``sites``, none above ``largest``; None if a prime factor is. () for one site."""
    best: dict[int, tuple[int, ...] | None] = {1: ()}

    def fewest(rest: int) -> tuple[int, ...] | None:
        if rest not in best:
            divisors = [factor for factor in range(min(largest, rest), 1, -1) if rest % factor == 0]
            tails = [(factor, *tail) for factor in divisors if (tail := fewest(rest // factor)) is not None]
            best[rest] = min(tails, key=len, default=None)
        return best[rest]

    return fewest(sites)


def averaging(first: int, factors: tuple[int, ...], t: int) -> list[Weighted]:
    """Edges among prod(factors) sites from ``first`` on: in round t those average that differ in one digit alone."""
    if not factors:
        return []
    place = t % len(factors)
    step, radix = int(np.prod(factors[:place], dtype=np.int64)), factors[place]
    groups = [
        [first + high + low + digit * step for digit in range(radix)]
        for high in range(0, int(np.prod(factors, dtype=np.int64)), step * radix)
        for low in range(step)
    ]
    return [(one, other, 1.0 / radix) for group in groups for one, other in combinations(group, 2)]


def check_equal(law: list[float]) -> None:
    """ConfigError unless all shares are the same."""
    if not all(isclose(share, law[0], rel_tol=1e-9) for share in law):
        raise ConfigError(
            "the topology base comes to the exact mean only if all sites count alike, and these have different shares; "
            'write weights = "metropolis" in the topology, or choose epidemic or matching'
        )


def _blocks(sites: int, radix: int) -> list[_Block]:
    found, first, size = [], 0, 1
    while size * radix <= sites:
        size *= radix
    while first < sites:
        parts = (sites - first) // size
        if parts:
            found.append(_Block(first, parts, size))
            first += parts * size
        size //= radix
    return found
