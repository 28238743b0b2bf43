"""After how many rounds all sites have exactly the mean."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from scipy import sparse

from p2pfl.errors import ConfigError
from p2pfl.topology.pushing import readings
from p2pfl.topology.schedule import Schedule

EXACT = 1e-12  # rounding of some ten products
FAR = 1e-6  # fast is not exact: up to 1,000 sites only the full graph comes from here to there in one round
MOST_SITES = 1000  # the product is dense
MOST_ROUNDS = 64


def finite_time(rounds: Schedule | Sequence[Any], shares: Sequence[float] | None = None) -> int | None:
    """The least T with W_T ... W_1 = 1 pi', after which each site has sum_i pi_i x_i whatever it began with.

    None if there is none within 64 rounds and those of the schedule. Entries that are off by at most 1e-12 count as
    exact if they were off by 1e-6 or more a round before; those of a graph that is only fast are not. Of directed
    schedules it is what push-sum reads that has to be the mean. ``rounds``: a
    schedule, or matrices [n, n], the first one mixing first, to be repeated; ``shares`` [n] of these, equal if None.
    ConfigError for more than 1,000 sites.
    """
    given = _matrices(rounds) if isinstance(rounds, Schedule) else [sparse.csr_array(matrix) for matrix in rounds]
    law = np.array(rounds.law if isinstance(rounds, Schedule) else shares or [1.0] * _sites(given))
    law = law / law.sum()
    before, product = float(np.abs(np.eye(len(law)) - law).max()), np.eye(len(law))
    if before <= EXACT:
        return 0
    for t in range(MOST_ROUNDS):
        if isinstance(rounds, Schedule) and t >= rounds.total and not rounds.same_each_round:
            return None
        product = given[t % len(given)] @ product
        left = float(np.abs(product - law).max())
        if left <= EXACT:
            return t + 1 if before >= FAR else None
        before = left
    return None


def _matrices(schedule: Schedule) -> list[Any]:
    if len(schedule.nodes) > MOST_SITES:
        raise ConfigError(f"products of mixings are computed for up to {MOST_SITES} sites; take fewer")
    if schedule.same_each_round:
        return [schedule.round(0).mixings[0].matrix]
    if schedule.directed:
        pushed = (schedule.round(t).mixings[0].matrix for t in range(min(schedule.total, MOST_ROUNDS)))
        return list(readings(pushed, schedule.weights_before(0)))
    return [
        _one(mixing.matrix for mixing in schedule.round(t).mixings) for t in range(min(schedule.total, MOST_ROUNDS))
    ]


def _one(mixings: Iterable[Any]) -> Any:
    product: Any = None
    for matrix in mixings:
        product = matrix if product is None else matrix @ product
    return product


def _sites(matrices: Sequence[Any]) -> int:
    if not matrices:
        raise ConfigError("no mixing is given; give at least one matrix")
    if matrices[0].shape[0] > MOST_SITES:
        raise ConfigError(f"products of mixings are computed for up to {MOST_SITES} sites; take fewer")
    return int(matrices[0].shape[0])
