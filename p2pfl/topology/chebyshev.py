"""Chebyshev gossip: several mixings whose weights grow, for far faster agreement on slow graphs.

    x_1 = W x_0        x_(t+1) = w_(t+1) W x_t + (1 - w_(t+1)) x_(t-1)
    w_1 = 1            w_2 = 1 / (1 - rho^2 / 2)            w_(t+1) = 1 / (1 - rho^2 w_t / 4)

After T mixings at most c_T = 2 c^T / (1 + c^(2 T)) is left of the distance from the mean, c = (1 - sqrt(1 - rho^2)) /
rho. No polynomial of degree T in W with p(1) = 1 guarantees less for eigenvalues in [-rho, rho]; plain mixing leaves
rho^T. Each site keeps one more vector and must know rho. Source: Golub and Varga, "Chebyshev semi-iterative methods,
successive overrelaxation iterative methods, and second order Richardson iterative methods", 1961.
"""

from __future__ import annotations

from math import sqrt

from p2pfl.errors import ConfigError


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


def _check(rho: float, rounds: int) -> None:
    if not 0 <= rho < 1:
        raise ConfigError(f"the second largest eigenvalue is {rho}; give one from 0 and below 1: 1 - the spectral gap")
    if rounds < 1:
        raise ConfigError(f"{rounds} mixings; give at least 1")
