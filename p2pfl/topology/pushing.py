"""Push-sum on links that go both ways: column-stochastic mixings, weighed by the law, and what is read from them.

p_ij is the part of its message that j gives to i, sum_i p_ij = 1. With what sites count, pi, each mixes

    x_i <- x_i + sum_j (p_ij pi_j / pi_i x_j - p_ji x_i)          w_i <- the same of w, at first 1

numerators x and weights w alike, and reads x_i / w_i. What i gains over an edge, weighed by pi_i, is what j loses, so
sum_i pi_i x_i and sum_i pi_i w_i = 1 are kept whatever P is, and an edge that one end missed is taken back at the
other. With equal pi this is push-sum as published. Source: Kempe, Dobra, Gehrke, "Gossip-based computation of aggregate
information", 2003.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from scipy import sparse


def weighed(push: Any, law: Sequence[float]) -> Any:
    """w_ij = p_ij pi_j / pi_i, and p_ii as it is, of the csr array ``push`` [n, n]; so pi W = pi."""
    coo, pi = push.tocoo(), np.array(law, dtype=np.float64)
    return sparse.csr_array((coo.data * (pi[coo.col] / pi[coo.row]), (coo.row, coo.col)), shape=push.shape)


def given_up(push: Any) -> Any:
    """g_ij = p_ji off the diagonal, the csr array [n, n]: what i gives up of its own for j."""
    coo = push.tocoo()
    real = coo.row != coo.col
    return sparse.csr_array((coo.data[real], (coo.col[real], coo.row[real])), shape=push.shape)


def to_all(law: Sequence[float]) -> Any:
    """w_ij = pi_j, the csr array [n, n]: one mixing after which all have the same weight and the same model."""
    pi = np.array(law, dtype=np.float64) / sum(law)
    return sparse.csr_array(np.tile(pi, (len(pi), 1)))


def readings(matrices: Iterable[Any], weights: Sequence[float]) -> Iterator[Any]:
    """R_t = diag(W_t w_t)^-1 W_t diag(w_t) with w_0 = ``weights`` [n]: each mixing as the models x / w see it.

    Its rows sum to 1; a site without weight keeps the model that it read last.
    """
    weight: Any = np.array(weights, dtype=np.float64)
    for matrix in matrices:
        after = matrix @ weight
        empty = (after == 0.0).astype(np.float64)
        read = sparse.diags_array(1 / (after + empty)) @ matrix @ sparse.diags_array(weight)
        yield sparse.csr_array(read + sparse.diags_array(empty))
        weight = after
