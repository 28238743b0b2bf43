"""How fast a schedule agrees: what it can guarantee where the rounds repeat, what is measured where they are drawn."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, log
from typing import Any

import numpy as np
from scipy import sparse

from p2pfl.topology.finite import finite_time
from p2pfl.topology.pushing import readings
from p2pfl.topology.schedule import Schedule
from p2pfl.topology.spectral import spectral_gap

MOST_SITES = 1000  # dense products


@dataclass(frozen=True)
class Speed:
    """In the norm D^2 = sum_i pi_i |x_i - x_bar|^2 of disagreement."""

    gap: float  # 1 - the factor per round: of static graphs in the long run, of others the mean over rounds and starts
    measured: int  # rounds over which that mean is taken; 0 for a static graph, whose gap is exact
    exact_after: int | None  # rounds after which all have the mean itself; None: never
    rounds: int | None  # until D is a hundredth, from the worst start; None: not within the schedule, or too many sites


def speed_of(schedule: Schedule, factor: float = 0.01) -> Speed:
    """Gap and rounds to agreement of a schedule, if nobody is absent.

    Where rounds change, the gap is 1 - sqrt(mean over the run's rounds of (|D^1/2 W D^-1/2|_F^2 - 1) / (n - 1)) with
    D = diag(pi): from what one round leaves of D^2 in the mean over all directions of the start. Of directed schedules
    W is how the models that push-sum reads change, less what that moves their mean by.
    """
    exact = finite_time(schedule) if len(schedule.nodes) <= MOST_SITES else None
    if schedule.same_each_round:
        matrix = schedule.round(0).mixings[0].matrix
        rest = 1.0 - spectral_gap(matrix, schedule.law)
        needed = 1 if rest <= factor else ceil(log(factor) / log(rest) - 1e-9) if rest < 1 else None
        return Speed(1.0 - rest, 0, exact, needed)
    root = np.sqrt(np.array(schedule.law) / sum(schedule.law))
    left = [_left(matrix, root, directed=schedule.directed) for matrix in _rounds(schedule, root)]
    return Speed(1.0 - float(np.mean(left)) ** 0.5, schedule.total, exact, _until(schedule, root, factor))


def _left(matrix: Any, root: Any, *, directed: bool) -> float:
    square = float((matrix**2).sum())
    if directed:
        return max(0.0, square - float(((root @ matrix) ** 2).sum())) / max(1, len(root) - 1)
    return max(0.0, square - 1.0) / max(1, len(root) - 1)


def _until(schedule: Schedule, root: Any, factor: float) -> int | None:
    if len(root) > MOST_SITES:
        return None
    product = np.eye(len(root)) - np.outer(root, root)
    for t, matrix in enumerate(_rounds(schedule, root)):
        product = matrix @ product
        if schedule.directed:
            product = product - np.outer(root, root @ product)
        # the spectral norm is at most Frobenius', and at least that over the root of n: it is computed where it matters
        size = float(np.linalg.norm(product))
        if size <= factor or (size <= factor * len(root) ** 0.5 and np.linalg.norm(product, 2) <= factor):
            return t + 1
    return None


def _rounds(schedule: Schedule, root: Any) -> Iterator[Any]:
    """D^1/2 W_t D^-1/2 of each round, its mixings one after the other."""
    products: Iterator[Any] = (_round(schedule, t) for t in range(schedule.total))
    for product in readings(products, schedule.weights_before(0)) if schedule.directed else products:
        yield sparse.csr_array(sparse.diags_array(root) @ product @ sparse.diags_array(1 / root))


def _round(schedule: Schedule, t: int) -> Any:
    product: Any = None
    for mixing in schedule.round(t).mixings:
        product = mixing.matrix if product is None else mixing.matrix @ product
    return product
