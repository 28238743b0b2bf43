"""Kinds whose graph is another one in each round, one mixing each: base, matching, epidemic, exponential, cyclic.

A round may leave sites alone or apart; over a run all must hear of all, so it is the union of the rounds that is
connected. Random rounds are drawn from keyed integers, so every peer computes the same ones on every machine. In
cyclic ones a single model walks from site to site.
Exponential graphs, and epidemic ones in which each site chooses for itself, are directed: push-sum alone mixes on them
(pushing.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from p2pfl.errors import ConfigError
from p2pfl.keyed_stream import KeyedStream
from p2pfl.topology.base import BaseGraph, check_equal
from p2pfl.topology.directed import (
    exponential_hops,
    handed_on,
    one_peer_exponential,
    push_sum,
    static_exponential,
)
from p2pfl.topology.mixing import weights_on_pairs
from p2pfl.topology.pushing import given_up, weighed
from p2pfl.topology.regular import check_degree, drawn_regular
from p2pfl.topology.shapes import seed_of, whole_of

Pairs = np.ndarray[Any, Any]  # int64 [m, 2] positions, the smaller first


@dataclass(frozen=True)
class Changing:
    """The rounds of one spec on so many sites."""

    sites: int
    cycle: int | None  # rounds after which they begin again; None: never
    pairs: Callable[[int], Pairs]  # the edges of round t
    matrix: Callable[[int, list[float]], Any]  # the mixing of round t for these shares, the csr array [n, n]
    given: Callable[[int], Any] | None = None  # of directed kinds: what sites give up in round t, the csr array [n, n]
    walks: bool = False  # one model walks: in round t it is at site t modulo n, which alone trains; all are partners

    def union(self, rounds: int | None) -> Pairs:
        """The edges of the first so many rounds, each once, sorted; None: of all rounds that there can be."""
        if self.walks or (self.cycle is None and rounds is None):
            return np.stack(np.triu_indices(self.sites, 1), axis=1).astype(np.int64)
        most, every = self._rounds(rounds), self.sites * (self.sites - 1) // 2
        found, waiting, count = np.empty(0, dtype=np.int64), list[Pairs](), 0
        for t in range(most if every else 0):
            ends = self.pairs(t)
            waiting.append(ends[:, 0] * self.sites + ends[:, 1])
            count += len(ends)
            # sorted once in a while, not in each round: the union of 10,000 sites is millions of edges
            if count >= max(len(found), 4 * self.sites) or t == most - 1:
                found, waiting, count = np.unique(np.concatenate([found, *waiting])), [], 0
                if len(found) == every:
                    break
        return np.stack([found // self.sites, found % self.sites], axis=1)

    def check_connected(self, rounds: int) -> None:
        """ConfigError unless so many rounds together join all sites."""
        if self.walks:
            self._check_visited(rounds)
            return
        parts = np.arange(self.sites)
        for t in range(self._rounds(rounds)):
            ends = parts[self.pairs(t)]
            joined = sparse.coo_array((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(self.sites, self.sites))
            _, labels = connected_components(joined, directed=False)
            parts = labels[parts]
            if len(np.unique(parts)) == 1:
                return
        if self.sites > 1:
            raise ConfigError(
                f"in {rounds} rounds of this topology some of the {self.sites} sites never hear of each other; take "
                "more rounds, or another topology"
            )

    def _check_visited(self, rounds: int) -> None:
        if rounds < self.sites:
            raise ConfigError(
                f"in {rounds} rounds the model does not come to all of the {self.sites} sites; take at least "
                f"{self.sites} rounds, or another topology"
            )

    def _rounds(self, rounds: int | None) -> int:
        if self.cycle is None:
            assert rounds is not None
            return rounds
        return self.cycle if rounds is None else min(rounds, self.cycle)


def changing_of(spec: Mapping[str, Any], sites: int) -> Changing | None:
    """The rounds of a checked spec; None for kinds whose graph stays. ConfigError for wrong values."""
    return CHANGING[spec["kind"]](spec, sites) if spec["kind"] in CHANGING else None


def is_directed(spec: Mapping[str, Any]) -> bool:
    """Whether sites give other amounts over an edge than they take, so that only push-sum reads a mean."""
    return bool(spec["kind"] in ("cyclic", "exponential") or spec.get("choice", "common") == "local")


def _base(spec: Mapping[str, Any], sites: int) -> Changing:
    graph = BaseGraph(sites, whole_of(spec, "k", 1))

    def pairs(t: int) -> Pairs:
        return _as_pairs([sorted(edge[:2]) for edge in graph.edges(t)])

    def matrix(t: int, law: list[float]) -> Any:
        check_equal(law)
        return graph.matrix(t)

    return Changing(sites, graph.length, pairs, matrix)


def _matching(spec: Mapping[str, Any], sites: int) -> Changing:
    """A random perfect matching in each round; of an odd number one site is alone. w_ij = pi_j / (pi_i + pi_j)."""
    seed = seed_of(spec)

    def pairs(t: int) -> Pairs:
        order = KeyedStream("p2pfl matching", seed, sites, t).permutation(sites)
        return np.sort(order[: sites // 2 * 2].reshape(-1, 2), axis=1)

    return _random(sites, pairs)


def _epidemic(spec: Mapping[str, Any], sites: int) -> Changing:
    """A random regular graph in each round; for equal shares w = 1 / (degree + 1).

    With the choice "local" each site gives 1 / (degree + 1) of its own to so many others that it draws for itself, and
    keeps as much. Source: de Vos, Farhadkhani, Guerraoui, Kermarrec, Pires, Sharma, "Epidemic learning: boosting
    decentralized learning with randomized communication", NeurIPS 2023 (EL-Oracle; EL-Local).
    """
    degree, seed = whole_of(spec, "degree", 1), seed_of(spec)
    if _one_of(spec, "choice", ("common", "local")) == "local":
        return _directed(sites, None, lambda t: push_sum(sites, degree, seed, t))
    if sites > 1:
        check_degree(sites, degree)

    def pairs(t: int) -> Pairs:
        name = ("p2pfl epidemic round", seed, sites, degree, t)
        return _as_pairs(drawn_regular(sites, degree, *name) if sites > 1 else [])

    return _random(sites, pairs)


def _exponential(spec: Mapping[str, Any], sites: int) -> Changing:
    """Site i takes half of what i - 2^(t mod p) has, p = ceil(log2 n); with all hops a part of each i - 2^j.

    Source: Ying, Yuan, Chen, Hu, Pan, Yin, "Exponential graph is provably efficient for decentralized deep training",
    NeurIPS 2021.
    """
    if _one_of(spec, "hops", ("one", "all")) == "all":
        return _directed(sites, 1, lambda t: static_exponential(sites))
    return _directed(sites, max(1, exponential_hops(sites)), lambda t: one_peer_exponential(sites, t))


def _cyclic(spec: Mapping[str, Any], sites: int) -> Changing:
    """In round t site t modulo n gives the next one all that it has: cyclic weight transfer.

    All are partners, though they do not all mix: who waits for its turn hears how far the others are, and closing
    rounds go from all to all (schedule.py).
    """
    found = _directed(sites, sites, lambda t: handed_on(sites, t))
    return replace(found, walks=True)


def _directed(sites: int, cycle: int | None, pushed: Callable[[int], Any]) -> Changing:
    """The rounds of column-stochastic matrices [n, n], both ends of an edge exchanging messages."""
    push = lru_cache(maxsize=2)(pushed if sites > 1 else lambda t: sparse.eye_array(1, format="csr"))

    def pairs(t: int) -> Pairs:
        coo = push(t).tocoo()
        ends = np.stack([np.minimum(coo.row, coo.col), np.maximum(coo.row, coo.col)], axis=1).astype(np.int64)
        return np.unique(ends[ends[:, 0] < ends[:, 1]], axis=0).reshape(-1, 2)

    return Changing(sites, cycle, pairs, lambda t, law: weighed(push(t), law), lambda t: given_up(push(t)))


def _one_of(spec: Mapping[str, Any], name: str, known: tuple[str, str]) -> str:
    """The spec's word; the first one where it says none. ConfigError for another."""
    value = spec.get(name, known[0])
    if value not in known:
        raise ConfigError(f"the topology's {name} is {str(value)[:40]!r}; give {' or '.join(known)}")
    return str(value)


def _random(sites: int, pairs: Callable[[int], Pairs]) -> Changing:
    return Changing(sites, None, pairs, lambda t, law: weights_on_pairs(pairs(t), law))


def _as_pairs(edges: Any) -> Pairs:
    return np.array(edges, dtype=np.int64).reshape(-1, 2)


CHANGING: Mapping[str, Callable[[Mapping[str, Any], int], Changing]] = {
    "base": _base,
    "matching": _matching,
    "epidemic": _epidemic,
    "exponential": _exponential,
    "cyclic": _cyclic,
}
"""The kinds that change; a new one is a new row here, and in KINDS and KEYS."""
