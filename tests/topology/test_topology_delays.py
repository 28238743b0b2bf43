"""Mixing with delays: what the plain weights do, and what the smaller ones do, on real graphs."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest

from p2pfl.errors import ConfigError
from p2pfl.topology import Schedule
from p2pfl.topology.delays import delay_factor
from p2pfl.types import PeerId

Delay = Callable[[int, int, int], int]
"""(round, receiver, sender) -> rounds after which the receiver applies the edge of this round."""


def nodes(count: int) -> tuple[PeerId, ...]:
    return tuple(PeerId(f"site-{number:02}") for number in range(count))


def schedule(kind: str, shares: list[float], staleness: int) -> Schedule:
    names = nodes(len(shares))
    return Schedule({"kind": kind}, names, dict(zip(names, shares, strict=True)), 10, 2, staleness)


def mixed(weights: np.ndarray, rounds: int, delay: Delay) -> np.ndarray:
    """x [n] after so many rounds; the displacement of an edge in round t is applied in round t + delay."""
    n = len(weights)
    x = np.linspace(-1.0, 1.0, n) ** 3 + np.arange(n) % 2
    due: dict[int, list[tuple[int, float]]] = {}
    for t in range(rounds):
        for i, j in itertools.product(range(n), repeat=2):
            if i != j and weights[i, j]:
                due.setdefault(t + delay(t, i, j), []).append((i, weights[i, j] * (x[j] - x[i])))
        for i, displacement in due.pop(t, ()):
            x[i] += displacement
    return x


def spread(x: np.ndarray) -> float:
    return float(x.max() - x.min())


def test_plain_weights_diverge_on_a_ring_of_four_that_is_one_round_late() -> None:
    """Equal sites: the eigenvalue of I - W is 4/3, and a delay of one round takes less than 1."""
    plain = schedule("ring", [0.25] * 4, 0).round(0).mixings[0].matrix.toarray()
    small = schedule("ring", [0.25] * 4, 1).round(0).mixings[0].matrix.toarray()
    assert spread(mixed(plain, 200, lambda *place: 1)) > 1e6
    assert spread(mixed(small, 200, lambda *place: 1)) < 1e-6


@pytest.mark.parametrize("staleness", [1, 2, 3, 8])
@pytest.mark.parametrize("kind", ["ring", "full"])
@pytest.mark.parametrize("shares", [[0.25] * 4, [0.9, 0.05, 0.03, 0.02], [1 / 7] * 7])
def test_smaller_weights_converge_with_any_delays(kind: str, shares: list[float], staleness: int) -> None:
    """Constant, random, alternating, and different at the two ends of an edge."""
    small = schedule(kind, shares, staleness).round(0).mixings[0].matrix.toarray()
    rng = np.random.default_rng(staleness)
    delays: list[Delay] = [
        lambda t, i, j: staleness,
        lambda t, i, j: int(rng.integers(staleness + 1)),
        lambda t, i, j: staleness * (t // (staleness + 1) % 2),
        lambda t, i, j: staleness if i < j else 0,
        lambda t, i, j: staleness - t % (staleness + 1),  # a whole window's displacements strike at once
    ]
    for delay in delays:
        assert spread(mixed(small, 400 * (staleness + 1), delay)) < 1e-3


def test_a_site_that_is_ten_times_slower_settles_with_the_others() -> None:
    """It takes part in every tenth round, and applies what it got ten rounds later, with its next message."""
    small = schedule("ring", [0.25] * 4, 2).round(0).mixings[0].matrix.toarray()

    def run(rounds: int) -> np.ndarray:
        x = np.array([0.0, 1.0, -1.0, 5.0])
        due: dict[int, list[tuple[int, float]]] = {}
        for t in range(rounds):
            for i, j in itertools.product(range(4), repeat=2):
                if i != j and small[i, j] and (3 not in (i, j) or t % 10 == 0):
                    late = 10 if i == 3 else 1
                    due.setdefault(t + late, []).append((i, small[i, j] * (x[j] - x[i])))
            for i, displacement in due.pop(t, ()):
                x[i] += displacement
        return x

    assert spread(run(2000)) < 1e-6


def test_smaller_weights_keep_the_weighted_mean_and_closing_rounds_keep_the_plain_ones() -> None:
    shares = [0.4, 0.3, 0.2, 0.1]
    plain, late = schedule("ring", shares, 0), schedule("ring", shares, 2)
    small = late.round(0).mixings[0].matrix.toarray()
    np.testing.assert_allclose(np.array(shares) @ small, shares, rtol=0, atol=1e-16)
    np.testing.assert_allclose(small.sum(axis=1), 1.0, rtol=0, atol=1e-15)
    apart = ~np.eye(4, dtype=bool)
    full = plain.round(0).mixings[0].matrix.toarray()
    np.testing.assert_allclose(small[apart], full[apart] * delay_factor(2), rtol=1e-15)
    np.testing.assert_array_equal(late.round(10).mixings[0].matrix.toarray(), full)


def test_a_hierarchical_graph_is_refused() -> None:
    spec = {"kind": "hierarchical", "clusters": 2}
    names = nodes(4)
    with pytest.raises(ConfigError, match="of the kind hierarchical changes"):
        Schedule(spec, names, dict.fromkeys(names, 0.25), 10, 2, 1)
