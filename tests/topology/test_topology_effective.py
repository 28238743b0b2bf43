"""Effective numbers of neighbours and rounds to consensus, against published values, definitions and measurements."""

from __future__ import annotations

from math import cos, pi
from typing import Any

import networkx as nx
import numpy as np
import pytest

from p2pfl.errors import ConfigError
from p2pfl.topology import (
    Schedule,
    build_graph,
    effective_neighbours,
    gap_of_cycle,
    metropolis_hastings,
    rounds_to_consensus,
    spectral_gap,
)
from p2pfl.types import PeerId


def weights(spec: dict[str, Any], count: int) -> Any:
    return metropolis_hastings(build_graph(spec, [PeerId(f"{place:04d}") for place in range(count)]))


def torus(side: int) -> dict[str, Any]:
    return {"kind": "torus", "rows": side, "columns": side}


GAPS = [
    *[({"kind": "ring"}, n, gap) for n, gap in [(9, 0.1559703713), (32, 0.0128098131), (100, 0.0013155144)]],
    *[({"kind": "chain"}, n, gap) for n, gap in [(9, 0.0402049195), (16, 0.0128098131), (100, 0.0003289598)]],
    *[(torus(k), k * k, gap) for k, gap in [(4, 0.4), (5, 0.2763932023), (8, 0.1171572875), (10, 0.0763932023)]],
    *[({"kind": "hypercube"}, 2**p, 2 / (p + 1)) for p in range(3, 8)],
    ({"kind": "star"}, 11, 1 / 11),
    ({"kind": "full"}, 12, 1.0),
]


@pytest.mark.parametrize(("spec", "count", "gap"), GAPS)
def test_the_gaps_of_table_r1_for_every_kind(spec: dict[str, Any], count: int, gap: float) -> None:
    matrix = weights(spec, count)
    assert spectral_gap(matrix) == pytest.approx(gap, abs=1e-10)
    assert gap_of_cycle([matrix]) == pytest.approx(gap, abs=1e-10)


def test_least_eigenvalues() -> None:
    for spec, count, least in (({"kind": "ring"}, 16, -1 / 3), ({"kind": "hypercube"}, 32, -4 / 6)):
        assert np.linalg.eigvalsh(weights(spec, count).toarray())[0] == pytest.approx(least, abs=1e-14)


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("ring", (6.632115, 8.781399, 17.075527)),
        ("hypercube", (19.636364, 24.170336, 30.009032)),
        ("star", (1.673581, 2.288880, 6.437949)),
        ("full", (32.0, 32.0, 32.0)),
    ],
)
def test_published_effective_neighbours_of_32_sites(kind: str, values: tuple[float, ...]) -> None:
    matrix = weights({"kind": kind}, 32)
    for gamma, value in zip((0.9, 0.95, 0.99), values, strict=True):
        assert effective_neighbours([matrix], gamma) == pytest.approx(value, abs=5e-7)
        # the same from the definition of the walk, which needs no symmetry: a cycle of one and the same round
        assert effective_neighbours([matrix, matrix], gamma) == pytest.approx(value, abs=5e-7)
        worst = effective_neighbours([matrix], gamma, worst=True)
        assert worst == pytest.approx(effective_neighbours([matrix, matrix], gamma, worst=True), rel=1e-9)
        assert worst <= value + 1e-6
        assert (kind == "star") == (worst < value - 1e-6)  # in the others all sites are alike


def test_a_directed_mixing_by_the_definition() -> None:
    """The directed exponential graph: steady variance by iterating the walk's covariance."""
    count, gamma = 8, 0.9
    matrix = sum(np.roll(np.eye(count), hop, axis=0) for hop in (0, 1, 2, 4)) / 4
    covariance = np.zeros((count, count))
    for _ in range(2000):
        covariance = matrix @ (gamma * covariance + np.eye(count)) @ matrix.T
    expected = 1 / ((1 - gamma) * np.diag(covariance).mean())
    assert effective_neighbours([matrix], gamma) == pytest.approx(expected, rel=1e-12)


def test_rounds_to_consensus_are_the_least_that_are_enough() -> None:
    for spec, count in (({"kind": "ring"}, 16), ({"kind": "star"}, 9), (torus(4), 16)):
        matrix = weights(spec, count)
        rounds = rounds_to_consensus([matrix])
        assert rounds is not None
        spread = matrix.toarray() - 1 / count
        assert np.linalg.norm(np.linalg.matrix_power(spread, rounds), 2) <= 0.01 * (1 + 1e-9)
        assert np.linalg.norm(np.linalg.matrix_power(spread, rounds - 1), 2) > 0.01
    assert rounds_to_consensus([weights({"kind": "full"}, 9)]) == 1
    assert rounds_to_consensus([np.eye(3)]) is None
    assert rounds_to_consensus([np.eye(3), np.eye(3)]) is None


def test_consensus_contracts_as_predicted() -> None:
    """Without training, from the slowest start: |x_t - mean| = (1 - gap)^t |x_0 - mean| to the digits of the table."""
    for spec, count, gap in GAPS:
        if gap == 1.0:
            continue
        matrix = weights(spec, count)
        values, vectors = np.linalg.eigh(matrix.toarray())
        start = vectors[:, np.argsort(np.abs(values))[-2]]
        x = start.copy()
        for _ in range(20):
            x = matrix @ x
        measured = (np.linalg.norm(x - x.mean()) / np.linalg.norm(start - start.mean())) ** (1 / 20)
        assert 1 - measured == pytest.approx(gap, abs=1e-10)


def test_a_hierarchical_schedule_is_a_cycle() -> None:
    nodes = [PeerId(f"{place:02d}") for place in range(12)]
    schedule = Schedule({"kind": "hierarchical", "clusters": 4}, nodes, dict.fromkeys(nodes, 1 / 12), 3, 0)
    cycle = []
    for t in range(3):
        inside, heads = (mixing.matrix.toarray() for mixing in schedule.round(t).mixings)
        cycle.append(heads @ inside)
    rounds = rounds_to_consensus(cycle)
    assert rounds is not None and rounds % 3 == 0
    spread = np.linalg.multi_dot(cycle[::-1]) - 1 / 12
    assert np.linalg.norm(np.linalg.matrix_power(spread, rounds // 3), 2) <= 0.01
    assert np.linalg.norm(np.linalg.matrix_power(spread, rounds // 3 - 1), 2) > 0.01
    rate = np.sort(np.abs(np.linalg.eigvals(spread)))[-1] ** (1 / 3)
    assert gap_of_cycle(cycle) == pytest.approx(1 - rate, abs=1e-9)
    assert 1 < effective_neighbours(cycle, 0.95) < 12


def test_larger_graphs_and_gamma_near_one() -> None:
    count = 1000
    values = (1 + 2 * np.cos(2 * pi * np.arange(count) / count)) / 3
    gamma = 0.999
    expected = 1 / ((1 - gamma) * np.mean(values**2 / (1 - gamma * values**2)))
    assert effective_neighbours([weights({"kind": "ring"}, count)], gamma) == pytest.approx(expected, rel=1e-9)
    assert cos(0) == values[0]


def test_misuse_is_refused() -> None:
    ring = weights({"kind": "ring"}, 5)
    for gamma in (0.0, 1.0, -1.0, float("nan")):
        with pytest.raises(ConfigError, match="between 0 and 1"):
            effective_neighbours([ring], gamma)
        with pytest.raises(ConfigError, match="between 0 and 1"):
            rounds_to_consensus([ring], gamma)
    large = metropolis_hastings(nx.cycle_graph(3001))
    with pytest.raises(ConfigError, match="up to 3000 sites, not 3001"):
        effective_neighbours([large], 0.9)
    with pytest.raises(ConfigError, match="up to 300 sites"):
        effective_neighbours([large, large], 0.9)
    with pytest.raises(ConfigError, match="up to 300 sites"):
        gap_of_cycle([large, large])
