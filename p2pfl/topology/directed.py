"""Matrices of directed graphs: those that runs push by (pushing.py), and others for tables and studies.

P_ij is what i takes of j. Rows that sum to 1 keep agreement, columns that sum to 1 keep the sum of all: push-sum
divides by a mass that is mixed alike, so that columns are enough (`push_sum`).
"""

from __future__ import annotations

from math import ceil, log2
from typing import Any

import numpy as np
from scipy import sparse

from p2pfl.errors import ConfigError
from p2pfl.keyed_stream import KeyedStream


def static_exponential(sites: int) -> Any:
    """Site i hears i - 2^j for j = 0, 1, ..., with equal weights: the csr array [n, n], doubly stochastic.

    Its gap is 2 / (1 + ceil(log2 n)). Source: Ying, Yuan, Chen, Hu, Pan, Yin, "Exponential graph is provably efficient
    for decentralized deep training", NeurIPS 2021.
    """
    _check(sites)
    steps = [0, *(2**power for power in range(exponential_hops(sites)))]
    return _mean([(site, (site - step) % sites) for site in range(sites) for step in steps], sites)


def one_peer_exponential(sites: int, t: int) -> Any:
    """Round ``t``: x_i <- (x_i + x_(i - 2^(t mod p))) / 2 with p = ceil(log2 n).

    The csr array [n, n], doubly stochastic. The exact mean after p rounds if and only if n is a power of two. Source as
    `static_exponential`.
    """
    _check(sites)
    step = 2 ** (t % max(1, exponential_hops(sites)))
    return _mean([(site, (site - back) % sites) for site in range(sites) for back in (0, step)], sites)


def epidemic_local(sites: int, degree: int, seed: int, t: int) -> Any:
    """Round ``t`` of EL-Local: each site sends to so many others, drawn uniformly, each receiver averages what it has.

    The csr array [n, n]; rows sum to 1, columns do not, so the mean moves. Source: de Vos et al., "Epidemic learning",
    NeurIPS 2023.
    """
    targets = _targets(sites, degree, seed, t)
    pairs = [(site, site) for site in range(sites)]
    return _mean(pairs + [(to, site) for site in range(sites) for to in targets[site]], sites)


def push_sum(sites: int, degree: int, seed: int, t: int) -> Any:
    """Round ``t`` of push-sum on the same draws: each site keeps 1 / (degree + 1) and sends as much to each target.

    The csr array [n, n]; columns sum to 1. x <- P x and w <- P w from w = 1, read as x / w: exact in the limit. Source:
    Kempe, Dobra, Gehrke, "Gossip-based computation of aggregate information", 2003.
    """
    return sparse.csr_array((epidemic_local(sites, degree, seed, t) > 0).astype(np.float64) / (degree + 1))


def handed_on(sites: int, t: int) -> Any:
    """Round ``t`` of a walk: site t modulo n gives all to the next one, and all others keep what they have.

    The csr array [n, n]; columns sum to 1. Source of the walk: Chang, Balachandar, Lam, Yi, Brown, Beers, Rosen, Rubin,
    Kalpathy-Cramer, "Distributed deep learning networks among institutions for medical imaging", JAMIA 2018.
    """
    _check(sites)
    to = np.arange(sites)
    to[t % sites] = (t + 1) % sites
    return sparse.csr_array(sparse.coo_array((np.ones(sites), (to, np.arange(sites))), shape=(sites, sites)))


def _targets(sites: int, degree: int, seed: int, t: int) -> list[list[int]]:
    _check(sites)
    if not 1 <= degree < sites:
        raise ConfigError(f"{sites} sites cannot send to {degree} others each; give a number from 1 to {sites - 1}")
    stream, found = KeyedStream("p2pfl epidemic local", seed, sites, degree, t), list[list[int]]()
    for site in range(sites):
        chosen = dict[int, None]()
        while len(chosen) < degree:
            other = int(stream.below(sites - 1, 1)[0])
            chosen[other + (other >= site)] = None
        found.append(list(chosen))
    return found


def _mean(pairs: list[tuple[int, int]], sites: int) -> Any:
    rows, columns = np.array(pairs, dtype=np.int64).T
    share = 1.0 / np.bincount(rows, minlength=sites)
    return sparse.csr_array(sparse.coo_array((share[rows], (rows, columns)), shape=(sites, sites)))


def exponential_hops(sites: int) -> int:
    """ceil(log2 n), how many hops there are."""
    return ceil(log2(sites))


def _check(sites: int) -> None:
    if sites < 1:
        raise ConfigError(f"a graph of {sites} sites; give at least 1")
