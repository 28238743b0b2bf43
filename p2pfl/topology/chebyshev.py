"""Chebyshev gossip: several mixings whose weights grow, for far faster agreement on slow graphs.

    x_1 = W x_0        x_(t+1) = w_(t+1) W x_t + (1 - w_(t+1)) x_(t-1)
    w_1 = 1            w_2 = 1 / (1 - rho^2 / 2)            w_(t+1) = 1 / (1 - rho^2 w_t / 4)

Where rho is the second largest |eigenvalue|, after T mixings at most c_T = 2 c^T / (1 + c^(2 T)) is left of the
distance from the mean, c = (1 - sqrt(1 - rho^2)) / rho. No polynomial of degree T in W with p(1) = 1 guarantees less
for eigenvalues in [-rho, rho]; plain mixing leaves rho^T. Each site keeps one more vector and must know rho. With b_t =
w_t - 1 the same is a momentum of displacements,

    f_t = w_t (W - I) x_(t-1) + b_t f_(t-1)        x_t = x_(t-1) + f_t        f_0 = 0

and so runs close where their topology says ``closing = "chebyshev"`` (`Schedule`). Source: Golub and Varga, "Chebyshev
semi-iterative methods, successive overrelaxation iterative methods, and second order Richardson iterative methods",
1961.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import floor, sqrt
from typing import Any

import numpy as np
from scipy import sparse

from p2pfl.errors import ConfigError
from p2pfl.topology.changing import CHANGING
from p2pfl.topology.spectral import spectral_gap

CLOSINGS = ("plain", "chebyshev")
NOTHING = 1e-9  # an eigenvalue of 0 as it comes out of any eigenvalue routine: one mixing is exact then
STEP = 1e-6  # of the rho that all sites compute alike
OFFSET = 0.381966  # of a step: where rho goes up by one more, no eigenvalue that is a simple fraction lies
MOST_RHO = 0.95
"""What runs take for a larger rho. Near 1 the weights come near 2, where W stretched alone is unstable and the momentum
has to make up for it to the digit; edges that come and go then push the sites apart without a bound. Measured on chains
of 12 to 32 and rings of 12 to 64, edges away half of the time or as one site likes: at 0.95 nothing grew, at 0.97 some
did, at 0.99 and above most, up to 1e9 times."""


def chebyshev_weights(rho: float, rounds: int) -> list[float]:
    """w_1 ... w_T for T = ``rounds``; ``rho`` = 1 - `spectral_gap`, the second largest |eigenvalue|.

    ConfigError unless 0 <= rho < 1 and rounds >= 1.
    """
    _check(rho, rounds)
    weights = [1.0, 1 / (1 - rho**2 / 2)]
    while len(weights) < rounds:
        weights.append(1 / (1 - rho**2 * weights[-1] / 4))
    return weights[:rounds]


def chebyshev_factors(rho: float, rounds: int) -> list[float]:
    """c_1 ... c_T: which part of the distance from the mean is left at most. ConfigError as `chebyshev_weights`."""
    _check(rho, rounds)
    if rho == 0.0:
        return [0.0] * rounds
    c = (1 - sqrt(1 - rho**2)) / rho
    return [2 * c**t / (1 + c ** (2 * t)) for t in range(1, rounds + 1)]


def accelerates(spec: Mapping[str, Any]) -> bool:
    """Whether the closing rounds of a topology are accelerated."""
    return bool(spec.get("closing", "plain") == "chebyshev")


def check_closing(spec: Mapping[str, Any]) -> None:
    """ConfigError unless ``closing``, if there is one, is known and goes with the kind."""
    closing = spec.get("closing", "plain")
    if closing not in CLOSINGS:
        raise ConfigError(f"the topology's closing is {str(closing)[:40]!r}; give {' or '.join(CLOSINGS)}")
    if accelerates(spec) and (spec["kind"] in CHANGING or spec["kind"] == "hierarchical"):
        raise ConfigError(
            "closing rounds are accelerated where all mix by one matrix, and a topology of the kind "
            f"{spec['kind']} has several; "
            'give closing = "plain" or another kind'
        )


def common_rho(matrix: Any, law: Sequence[float]) -> float:
    """The second largest |eigenvalue| of W [n, n] that keeps ``law`` [n], rounded up by 0.6 to 1.6 millionths.

    Up, since the bound c_T holds for eigenvalues in [-rho, rho]; to a grid, so that sites with different eigenvalue
    routines compute the same weights. At most `MOST_RHO`: directions with larger eigenvalues fade more slowly than c_T
    then, and still faster than by plain mixing. 0 where one mixing is exact.
    """
    rest = 1.0 - spectral_gap(matrix, law)
    if rest <= NOTHING:
        return 0.0
    return min((floor(rest / STEP + OFFSET) + 1) * STEP, MOST_RHO)


def accelerated_contraction(matrix: Any, weights: Sequence[float], shares: Sequence[float]) -> float:
    """|| D^1/2 p(W) D^-1/2 - s s^T ||_2 with p(W) = x_T of the recurrence from x_0 = I, as `contraction` for plain W^T.

    D = diag(shares), s_i = sqrt(share_i / sum of shares); at most c_T of their rho. 1 without a round, 0 for one site.
    """
    law = np.asarray(shares, dtype=np.float64)
    root = np.sqrt(law / law.sum())
    if len(root) == 1:
        return 0.0
    even = sparse.csr_array(sparse.diags_array(root) @ matrix @ sparse.diags_array(1 / root))
    now = np.eye(len(root)) - np.outer(root, root)
    moved = np.zeros_like(now)
    for weight in weights:
        moved = weight * (even @ now - now) + (weight - 1.0) * moved
        now = now + moved
    return float(np.linalg.norm(now, 2))


def _check(rho: float, rounds: int) -> None:
    if not 0 <= rho < 1:
        raise ConfigError(f"the second largest eigenvalue is {rho}; give one from 0 and below 1: 1 - the spectral gap")
    if rounds < 1:
        raise ConfigError(f"{rounds} mixings; give at least 1")
