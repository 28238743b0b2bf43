"""How many neighbours a site effectively averages over, and rounds to consensus, of one mixing or a cycle of them.

Source: Vogels, Hendrikx, Jaggi, "Beyond spectral gap: the role of the topology in decentralized learning", 2022. A walk
x <- W (sqrt(gamma) x + noise) that forgets at the rate of ``gamma`` has a smaller steady variance the more sites share
their noise; n_W(gamma) is by how much, against a site alone. It predicts the largest learning rate that can be used
and the speed-up of training, which the spectral gap does not. gamma close to 1: slow learning profits from far sites.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, log
from typing import Any

import numpy as np
from scipy import sparse

from p2pfl.errors import ConfigError
from p2pfl.topology.finite import finite_time
from p2pfl.topology.spectral import SYMMETRY, spectral_gap

MOST_SITES = 3000  # all eigenvalues: about 5 s, 200 MB
MOST_SITES_OF_CYCLES = 300  # products of dense matrices, some hundred of them
MOST_ROUNDS = 10**9  # a rate this close to 1 is rounding
Matrix = np.ndarray[Any, Any]


def effective_neighbours(rounds: Sequence[Any], gamma: float, *, worst: bool = False) -> float:
    """n_W(gamma) of a cycle of rounds, each one mixing matrix [n, n]; 1 (alone) to n (full graph).

    For one symmetric W:  1 / ((1 - gamma) mean_i lambda_i^2 / (1 - gamma lambda_i^2)). For several, one after the
    other in a cycle, the steady variance averaged over the cycle. ``worst``: of the worst site (and moment).
    ConfigError unless 0 < gamma < 1, and for more than 3,000 sites (300 for a cycle or a W that is not symmetric).
    """
    if not 0 < gamma < 1:
        raise ConfigError(f"gamma is {gamma}; give a number between 0 and 1, such as 0.95")
    first = sparse.csr_array(rounds[0], dtype=np.float64)
    symmetric = len(rounds) == 1 and abs(first - first.T).max() <= SYMMETRY
    most = MOST_SITES if symmetric else MOST_SITES_OF_CYCLES
    if first.shape[0] > most:
        raise ConfigError(f"effective neighbours are computed for up to {most} sites, not {first.shape[0]}; take fewer")
    if symmetric:
        values, vectors = _eigen(first, worst)
        parts = values**2 / (1 - gamma * values**2)
        variance = (vectors**2 @ parts).max() if worst else parts.mean()
    else:
        variances = _cycle_variances([_dense(matrix) for matrix in rounds], gamma)
        variance = variances.max() if worst else variances.mean()
    return float(1 / ((1 - gamma) * variance))


def gap_of_cycle(rounds: Sequence[Any]) -> float:
    """1 - the factor per round by which disagreement shrinks in the long run; of one symmetric W its spectral gap.

    ConfigError for a cycle of more than 300 sites.
    """
    if len(rounds) == 1:
        return spectral_gap(rounds[0])
    product = _product(rounds)
    if finite_time(rounds) is not None:
        return 1.0  # what is left is rounding, and its root of the cycle's length would be no small number
    sizes = np.sort(np.abs(np.linalg.eigvals(product)))
    return 1.0 - float(sizes[-2] ** (1 / len(rounds))) if len(sizes) > 1 else 1.0


def rounds_to_consensus(rounds: Sequence[Any], factor: float = 0.01) -> int | None:
    """The least number of rounds after which disagreement is at most ``factor`` of what it was, whatever it was.

    Equal shares. None if never: the graph is not connected. Of one symmetric W exactly ceil(log factor / log rho), of a
    cycle the least multiple of its length. ConfigError unless 0 < factor < 1.
    """
    if not 0 < factor < 1:
        raise ConfigError(f"the factor {factor} is not between 0 and 1; say 0.01 for a hundredth")
    if len(rounds) == 1:
        rest = 1.0 - spectral_gap(rounds[0])
        if rest <= factor:
            return 1
        needed = ceil(log(factor) / log(rest) - 1e-9) if rest < 1 else MOST_ROUNDS
        return needed if needed < MOST_ROUNDS else None
    product = _product(rounds)
    product -= 1 / len(product)
    cycles = _least_power(product, factor)
    return None if cycles is None else cycles * len(rounds)


def _least_power(matrix: Matrix, factor: float) -> int | None:
    """The least k with || matrix^k ||_2 <= factor, the norms falling with k; by doubling, then bit by bit."""
    powers = [matrix]
    while np.linalg.norm(powers[-1], 2) > factor:
        if 2 ** len(powers) > MOST_ROUNDS:
            return None
        powers.append(powers[-1] @ powers[-1])
    reached, steps = np.eye(len(matrix)), 0
    for place in reversed(range(len(powers) - 1)):
        further = reached @ powers[place]
        if np.linalg.norm(further, 2) > factor:
            reached, steps = further, steps + 2**place
    return steps + 1


def _cycle_variances(rounds: list[Matrix], gamma: float) -> Matrix:
    """Steady variances [rounds, sites] of x <- W_t (sqrt(gamma) x + noise)."""
    sites = len(rounds[0])
    linear, added = np.eye(sites), np.zeros((sites, sites))
    for matrix in rounds:
        linear = np.sqrt(gamma) * matrix @ linear
        added = matrix @ (gamma * added + np.eye(sites)) @ matrix.T
    # C = linear C linear' + added, as sum_k linear^k added linear'^k, twice as many terms each time
    steady = added
    while np.abs(linear).max() > 1e-18:
        steady = steady + linear @ steady @ linear.T
        linear = linear @ linear
    variances = []
    for matrix in rounds:
        steady = matrix @ (gamma * steady + np.eye(sites)) @ matrix.T
        variances.append(np.diag(steady).copy())
    return np.array(variances)


def _eigen(matrix: Any, vectors: bool) -> tuple[Matrix, Matrix]:
    dense = matrix.toarray()
    if vectors:
        values, found = np.linalg.eigh((dense + dense.T) / 2)
        return values, found
    return np.linalg.eigvalsh((dense + dense.T) / 2), np.empty((0, 0))


def _product(rounds: Sequence[Any]) -> Matrix:
    product = _dense(rounds[0])
    if len(product) > MOST_SITES_OF_CYCLES:
        raise ConfigError(f"cycles of rounds are looked at for up to {MOST_SITES_OF_CYCLES} sites; take fewer")
    for matrix in rounds[1:]:
        product = _dense(matrix) @ product
    return product


def _dense(matrix: Any) -> Matrix:
    dense: Matrix = sparse.csr_array(matrix, dtype=np.float64).toarray()
    return dense
