"""Sites with their own number of local steps: a scenario's ``[[steps]]`` tables as one number per site."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from p2pfl.errors import ConfigError
from p2pfl.sim.compute import ComputeModel
from p2pfl.sim.profiles import chosen_sites
from p2pfl.sim.scenario import MOST_STEPS, StepsTable


def steps_of_sites(tables: Sequence[StepsTable], peers: int, seed: int, usual: int) -> np.ndarray:
    """Local steps of each site in a round, int64 [n]; ``usual`` where no table names it, the last table where two do.

    Shares are drawn by the seed, for each table anew. ConfigError for sites that do not exist, or if nobody trains.
    """
    if usual > MOST_STEPS:
        raise ConfigError(f"{usual} local steps are more than {MOST_STEPS}; choose fewer, and more rounds")
    each = np.full(peers, usual, dtype=np.int64)
    for place, table in enumerate(tables):
        each[list(chosen_sites(f"steps {place}", table.sites, peers, seed))] = table.local_steps
    if not each.any():
        raise ConfigError("all sites have 0 local steps, so nobody trains; leave some more in [[steps]]")
    return each


def with_steps(compute: ComputeModel, each: np.ndarray, usual: int) -> ComputeModel:
    """The model of work whose seconds are those of ``usual`` steps, for sites that take ``each`` of them, int64 [n]."""
    factors = dict(compute.factors)
    for site in np.flatnonzero(each != usual).tolist():
        factors[site] = factors.get(site, 1.0) * (int(each[site]) / usual)
    return replace(compute, factors=factors)
