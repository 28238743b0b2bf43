"""How fast a mixing matrix brings the sites together: the spectral gap, and closing rounds from it.

Without training, the distance of the sites from their weighted mean shrinks at least by 1 - gap per round.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil, log
from typing import Any

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import ArpackNoConvergence, eigs, eigsh

from p2pfl.errors import ConfigError

DENSE_SITES = 500  # up to here all eigenvalues take under 0.1 s; beyond, two sparse ones are cheaper
DENSE_SHARE = 0.1  # of non-zero entries; above, sparse factors would fill anyway
LANCZOS_RESTARTS, LANCZOS_VECTORS = 100, 40  # some 2,000 products, 1 s for 10,000 sites with 8 neighbours
SHIFT = 1e-9  # outside [-1, 1], where no eigenvalue lies, so that the shifted matrix is regular
SYMMETRY = 1e-12  # rounding of weights that are symmetric by their formula
MOST_CLOSING_ROUNDS = 10_000  # a graph that needs more is of no use for closing by gossip


def spectral_gap(matrix: Any, shares: Sequence[float] | Mapping[Any, float] | None = None) -> float:
    """1 - second largest |eigenvalue| of the mixing matrix [n, n] (sparse or dense); 1 for one site.

    ``shares`` [n], in the order of the rows (a mapping: of its values), are the stationary law of
    ``stationary_weights``: D^1/2 W D^-1/2 with D = diag(shares) is then symmetric with the same eigenvalues,
    which is faster and more exact. Any other matrix is taken as it is. ConfigError for a wrong number of
    shares.
    """
    matrix = sparse.csr_array(matrix, dtype=np.float64)
    sites = matrix.shape[0]
    if sites == 1:
        return 1.0
    values = list(shares.values()) if isinstance(shares, Mapping) else shares
    law = np.ones(sites) if values is None else np.asarray(values, dtype=np.float64)
    if law.shape != (sites,) or not (law > 0).all():
        raise ConfigError(f"{law.size} shares for {sites} sites; give one positive share per row of the matrix")
    root = np.sqrt(law)
    even = sparse.csr_array(sparse.diags_array(root) @ matrix @ sparse.diags_array(1 / root))
    symmetric = abs(even - even.T).max() <= SYMMETRY
    dense = sites <= DENSE_SITES or matrix.nnz > DENSE_SHARE * sites**2
    if symmetric:
        even = (even + even.T) / 2
        second = _dense_symmetric(even) if dense else _sparse_symmetric(even)
    else:
        second = _general(matrix, dense)
    return max(0.0, 1.0 - second)


def contraction(matrices: Sequence[Any], shares: Sequence[float], *, read: bool = False) -> float:
    """|| D^1/2 (W_k ... W_1) D^-1/2 - s s^T ||_2 with D = diag(shares), s_i = sqrt(share_i / sum of shares).

    The largest part of the disagreement D^2 = sum_i pi_i |x_i - x_bar|^2 (its root) that mixing with these matrices
    [n, n], first to last, can leave; each keeps sum_i share_i x_i. 1 without a matrix, 0 for one site. ``read``: they
    are what push-sum reads, which moves that mean, and s^T of the product stands for the last s^T.
    """
    law = np.asarray(shares, dtype=np.float64)
    root = np.sqrt(law / law.sum())
    if len(root) == 1:
        return 0.0
    product = np.eye(len(root))
    for matrix in matrices:
        product = sparse.csr_array(matrix, dtype=np.float64) @ product
    even = root[:, None] * product / root[None, :]
    even = even - np.outer(root, root @ even if read else root)
    return float(np.linalg.norm(even, 2)) if matrices else 1.0


def closing_rounds_for(matrix: Any, factor: float, shares: Sequence[float] | Mapping[Any, float] | None = None) -> int:
    """The least T with (1 - gap)^T <= factor: rounds without training that shrink disagreement to ``factor``.

    Raises ConfigError unless 0 < factor < 1, and if more than 10,000 rounds would be needed.
    """
    if not 0 < factor < 1:
        raise ConfigError(f"the factor {factor} is not between 0 and 1; say 0.01 for a hundredth")
    rest = 1.0 - spectral_gap(matrix, shares)
    if rest <= factor:
        return 1
    if rest >= 1.0 or (rounds := ceil(log(factor) / log(rest))) > MOST_CLOSING_ROUNDS:
        raise ConfigError("the graph mixes too slowly to close by gossip; add edges")
    return rounds


def _dense_symmetric(even: Any) -> float:
    values = np.sort(np.abs(np.linalg.eigvalsh(even.toarray())))
    return float(values[-2])


def _sparse_symmetric(even: Any) -> float:
    second = _end_of_spectrum(even, 2, "LA", 1 + SHIFT)
    size = even.diagonal()
    least = float((size - (abs(even).sum(axis=1) - abs(size))).min())  # no eigenvalue is below (Gershgorin, 1931)
    if -least <= second:
        return second
    return max(abs(second), abs(_end_of_spectrum(even, 1, "SA", -1 - SHIFT)))


def _end_of_spectrum(even: Any, count: int, which: str, outside: float) -> float:
    """The ``count``-th eigenvalue from one end.

    Plain Lanczos where it converges soon, as on random graphs, whose sparse factors fill; shift-and-invert where
    eigenvalues crowd at the end, as on long rings.
    """
    start = np.cos(np.arange(even.shape[0]) ** 2.0)  # fixed, and not close to any eigenvector of a regular graph
    plain = {"which": which, "maxiter": LANCZOS_RESTARTS, "ncv": LANCZOS_VECTORS}
    for options in (plain, {"sigma": outside}):
        matrix = even if options is plain else sparse.csc_array(even)
        try:
            values = eigsh(matrix, k=count, v0=start, return_eigenvectors=False, **options)
        except ArpackNoConvergence:
            continue
        return float(values.min() if which == "LA" else values.max())
    raise ConfigError("the graph's spectral gap could not be computed; take a graph with fewer sites")


def _general(matrix: Any, dense: bool) -> float:
    if dense:
        values = np.linalg.eigvals(matrix.toarray())
    else:
        start = np.cos(np.arange(matrix.shape[0]) ** 2.0)
        values = eigs(matrix, k=2, v0=start, return_eigenvectors=False)
    return float(np.sort(np.abs(values))[-2])
