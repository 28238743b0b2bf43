"""Exact means after finitely many rounds, Chebyshev gossip and directed matrices, against tables R1, R2 and R3."""

from __future__ import annotations

from typing import Any

import networkx as nx
import numpy as np
import pytest

from p2pfl.errors import ConfigError
from p2pfl.topology import Schedule, metropolis_hastings, spectral_gap, speed_of
from p2pfl.topology.base import BaseGraph
from p2pfl.topology.chebyshev import chebyshev_factors, chebyshev_weights
from p2pfl.topology.directed import epidemic_local, one_peer_exponential, push_sum, static_exponential
from p2pfl.topology.finite import finite_time
from p2pfl.topology.spectral import contraction
from p2pfl.types import PeerId


def schedule(spec: dict[str, Any], count: int, *, equal: bool = True) -> Schedule:
    nodes = [PeerId(f"{place:04d}") for place in range(count)]
    parts = np.ones(count) if equal else np.arange(1.0, count + 1)
    return Schedule(spec, nodes, dict(zip(nodes, (parts / parts.sum()).tolist(), strict=True)), 100, 0)


@pytest.mark.parametrize(
    ("spec", "count", "expected"),
    [
        ({"kind": "full"}, 7, 1),
        ({"kind": "ring"}, 1, 0),
        ({"kind": "ring"}, 3, 1),
        ({"kind": "ring"}, 9, None),
        ({"kind": "hierarchical", "clusters": 1}, 5, 1),
        ({"kind": "base", "k": 1}, 99, 13),
        ({"kind": "base", "k": 3}, 25, 5),
        ({"kind": "matching", "seed": 0}, 9, None),
        ({"kind": "epidemic", "degree": 15, "seed": 0}, 32, None),
        ({"kind": "regular", "degree": 10, "seed": 0}, 12, None),
    ],
)
def test_after_how_many_rounds_all_have_the_mean(spec: dict[str, Any], count: int, expected: int | None) -> None:
    assert finite_time(schedule(spec, count)) == expected


def test_fast_is_not_finite_and_unequal_shares_count() -> None:
    assert finite_time(schedule({"kind": "full"}, 6, equal=False)) == 1
    halves = np.full((3, 3), 0.3) + 0.1 * np.eye(3)  # leaves 0.1 of the distance in each round
    assert finite_time([halves]) is None
    law = [0.2, 0.3, 0.5]
    assert finite_time([np.tile(law, (3, 1))], law) == 1 and finite_time([np.tile(law, (3, 1))]) is None
    with pytest.raises(ConfigError, match="at least one matrix"):
        finite_time([])
    with pytest.raises(ConfigError, match="up to 1000 sites"):
        finite_time(schedule({"kind": "chain"}, 1001))


@pytest.mark.parametrize("sites", range(1, 40))
def test_one_peer_exponential_graphs_are_exact_for_powers_of_two_alone(sites: int) -> None:
    hops = max(1, int(np.ceil(np.log2(sites))))
    rounds = [one_peer_exponential(sites, t) for t in range(hops)]
    found = finite_time(rounds)
    assert found == ({1: 0}.get(sites, hops) if sites & (sites - 1) == 0 else None)
    product = np.linalg.multi_dot([np.eye(sites), *(matrix.toarray() for matrix in reversed(rounds)), np.eye(sites)])
    error = np.abs(product - 1 / sites).max()
    if sites in (12, 16):
        assert error == pytest.approx({12: 0.0416667, 16: 0.0}[sites], abs=5e-8)  # table R2
    for matrix in rounds:
        assert np.abs(matrix.sum(axis=0) - 1).max() < 1e-15 and np.abs(matrix.sum(axis=1) - 1).max() < 1e-15


@pytest.mark.parametrize(("sites", "gap"), [(8, 0.5), (12, 0.4), (16, 0.4), (32, 1 / 3), (64, 2 / 7), (100, 0.25)])
def test_the_static_exponential_graph_of_table_r1(sites: int, gap: float) -> None:
    matrix = static_exponential(sites)
    assert spectral_gap(matrix) == pytest.approx(gap, abs=1e-10)
    assert np.linalg.norm(matrix.toarray() - 1 / sites, 2) == pytest.approx(1 - gap, abs=1e-10)


@pytest.mark.parametrize(
    ("sites", "degree", "factor"),
    [(96, 7, 0.13223883), (1000, 1, 0.63167182), pytest.param(1000, 10, 0.09899473, marks=pytest.mark.slow)],
)
def test_the_factors_of_local_epidemics_in_table_r3(sites: int, degree: int, factor: float) -> None:
    """About the old mean, within four standard errors over 40 fixed draws."""
    exact = (1 - (1 - degree / (sites - 1)) ** sites) / degree - 1 / (sites - 1)
    assert exact == pytest.approx(factor, abs=5e-9)
    start = np.where(np.arange(sites) % 2 == 0, 1.0, -1.0)
    shrunk = [float((epidemic_local(sites, degree, 3, t) @ start) @ (epidemic_local(sites, degree, 3, t) @ start)) / sites
              for t in range(40)]  # fmt: skip
    error = float(np.std(shrunk, ddof=1)) / 40**0.5
    assert abs(np.mean(shrunk) - factor) < 4 * error and error < 0.05 * factor


def test_push_sum_finds_the_mean_through_columns() -> None:
    x, mass = np.arange(20.0), np.ones(20)
    for t in range(80):
        matrix = push_sum(20, 2, 0, t)
        assert np.abs(matrix.sum(axis=0) - 1).max() < 1e-15
        assert (matrix.diagonal() == 1 / 3).all()
        x, mass = matrix @ x, matrix @ mass
    assert np.abs(x / mass - 9.5).max() < 1e-9 and mass.sum() == pytest.approx(20)
    assert np.abs(x - 9.5).max() > 0.1, "the mass is needed"


def test_the_speed_of_static_schedules_is_the_spectral_one_and_of_others_that_of_the_rounds() -> None:
    ring = speed_of(schedule({"kind": "ring"}, 9, equal=False))
    matrix = schedule({"kind": "ring"}, 9, equal=False).round(0).mixings[0].matrix
    law = np.arange(1.0, 10) / 45
    assert ring.gap == pytest.approx(spectral_gap(matrix, law.tolist())) and not ring.measured
    epidemic = speed_of(schedule({"kind": "epidemic", "degree": 5, "seed": 0}, 24))
    assert 1 - (1 - epidemic.gap) ** 2 == pytest.approx(1 - (1 - 5 / 23) / 6, abs=1e-12) and epidemic.measured == 100
    base = speed_of(schedule({"kind": "base", "k": 1}, 12))
    assert base.exact_after == base.rounds == 7


@pytest.mark.parametrize(
    "spec", [{"kind": "ring"}, {"kind": "matching", "seed": 1}, {"kind": "hierarchical", "clusters": 3}]
)
@pytest.mark.parametrize("equal", [True, False])
def test_rounds_until_a_hundredth_are_the_least_for_the_worst_start(spec: dict[str, Any], equal: bool) -> None:
    found = schedule(spec, 9, equal=equal)
    rounds = speed_of(found).rounds
    assert rounds is not None
    matrices = [[mixing.matrix for mixing in found.round(t).mixings] for t in range(rounds)]
    enough = contraction([matrix for one in matrices for matrix in one], found.shares)
    less = contraction([matrix for one in matrices[:-1] for matrix in one], found.shares)
    assert enough <= 0.01 * (1 + 1e-9) < less


CHEBYSHEV = [(16, 20, 0.3529, 2.974187e-3), (16, 50, 7.398e-2, 1.705603e-7), (64, 50, 0.8515, 3.619229e-2),
             (100, 50, 0.9363, 0.1527697)]  # fmt: skip


@pytest.mark.parametrize(("sites", "rounds", "plain", "factor"), CHEBYSHEV)
def test_chebyshev_gossip_of_table_r1(sites: int, rounds: int, plain: float, factor: float) -> None:
    """To the printed digits; and the recursion itself leaves just that of the slowest mode."""
    matrix = metropolis_hastings(nx.cycle_graph(sites))
    rho = 1 - spectral_gap(matrix)
    assert rho**rounds == pytest.approx(plain, rel=1e-4)
    assert chebyshev_factors(rho, rounds)[-1] == pytest.approx(factor, rel=2e-7)
    slowest = np.cos(2 * np.pi * np.arange(sites) / sites)
    before, now = slowest, matrix @ slowest
    for weight in chebyshev_weights(rho, rounds)[1:]:
        before, now = now, weight * (matrix @ now) + (1 - weight) * before
    assert np.linalg.norm(now) / np.linalg.norm(slowest) == pytest.approx(factor, rel=2e-7)


def test_chebyshev_gossip_is_never_slower_and_keeps_its_bound_for_all_modes() -> None:
    matrix = metropolis_hastings(nx.path_graph(12)).toarray()
    rho, x = 1 - spectral_gap(matrix), np.eye(12) - 1 / 12
    factors, before, now = chebyshev_factors(rho, 30), x, matrix @ x
    for t, weight in enumerate(chebyshev_weights(rho, 30)):
        if t:
            before, now = now, weight * (matrix @ now) + (1 - weight) * before
        assert np.linalg.norm(now, 2) <= factors[t] + 1e-12 <= rho ** (t + 1) + 2e-12
    assert chebyshev_factors(0.0, 2) == [0.0, 0.0] and chebyshev_weights(0.5, 1) == [1.0]


@pytest.mark.parametrize("call", [chebyshev_factors, chebyshev_weights])
def test_misuse_is_refused(call: Any) -> None:
    for rho, rounds, says in ((1.0, 3, "below 1"), (-0.1, 3, "from 0"), (0.5, 0, "at least 1")):
        with pytest.raises(ConfigError, match=says):
            call(rho, rounds)
    for wrong in (lambda: push_sum(5, 5, 0, 0), lambda: epidemic_local(1, 1, 0, 0), lambda: static_exponential(0)):
        with pytest.raises(ConfigError, match="give"):
            wrong()
    with pytest.raises(ConfigError, match="give a number from 1"):
        BaseGraph(4, 0)
