"""How fast a mixing matrix brings the sites together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import eigsh

DENSE_LIMIT = 500  # rows up to which a dense decomposition takes a fraction of a second


def spectral_gap(matrix: sparse.csr_array, shares: Sequence[float] | None = None) -> float:
    """1 - rho, where rho is the second largest absolute eigenvalue of W.

    ``shares`` is the stationary law pi (equal when None): W is similar to the symmetric D^1/2 W D^-1/2, D = diag(pi),
    because pi_i w_ij = pi_j w_ji. One site alone has gap 1.
    """
    n = matrix.shape[0]
    if n < 2:
        return 1.0
    root = np.sqrt(np.ones(n) / n if shares is None else np.asarray(shares, dtype=float))
    symmetric = sparse.diags_array(root) @ matrix @ sparse.diags_array(1.0 / root)
    symmetric = (symmetric + symmetric.T) / 2
    if n <= DENSE_LIMIT:
        values = np.sort(np.abs(np.linalg.eigvalsh(symmetric.toarray())))
        return float(1.0 - values[-2])
    ends = eigsh(symmetric, k=2, which="LA", return_eigenvectors=False), eigsh(
        symmetric, k=1, which="SA", return_eigenvectors=False
    )
    return float(1.0 - max(abs(ends[0].min()), abs(ends[1][0])))
