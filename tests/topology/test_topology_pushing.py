"""Directed schedules: column-stochastic mixings whose edges both ends keep books of, and what push-sum reads of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from p2pfl.errors import ConfigError
from p2pfl.topology import Mixing, Schedule, finite_time, speed_of
from p2pfl.topology.directed import one_peer_exponential, push_sum, static_exponential
from p2pfl.types import PeerId

ONE, ALL = {"kind": "exponential"}, {"kind": "exponential", "hops": "all"}
LOCAL = {"kind": "epidemic", "degree": 2, "seed": 5, "choice": "local"}
SPECS = [ONE, ALL, LOCAL, {**LOCAL, "weights": "metropolis"}]


def nodes(count: int) -> list[PeerId]:
    return [PeerId(f"{place:03d}") for place in range(count)]


def schedule(spec: dict[str, Any], sites: int, *, equal: bool = False, rounds: int = 20, closing: int = 0) -> Schedule:
    parts = np.ones(sites) if equal else np.arange(1, sites + 1) ** 1.3
    shares = dict(zip(nodes(sites), (parts / parts.sum()).tolist(), strict=True))
    return Schedule(spec, nodes(sites), shares, rounds, closing)


def mixing(found: Schedule, t: int) -> Mixing:
    (only,) = found.round(t).mixings
    return only


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("sites", [2, 3, 7, 16])
def test_what_one_end_takes_the_other_gives(spec: dict[str, Any], sites: int) -> None:
    if sites == 2 and "degree" in spec:
        spec = {**spec, "degree": 1}
    found = schedule(spec, sites)
    law = dict(zip(found.nodes, found.law, strict=True))
    for t in range(found.total):
        step = mixing(found, t)
        assert step.directed
        assert np.abs(np.array(found.law) @ step.matrix.toarray() - found.law).max() < 1e-15
        taken = {(one, other): weight for one in found.nodes for other, weight in step.neighbours(one)}
        given = {(one, other): amount for one in found.nodes for other, amount in step.given(one).items()}
        assert set(taken) == set(given) == {(other, one) for one, other in taken}
        for (one, other), weight in taken.items():
            assert law[one] * weight == pytest.approx(law[other] * given[other, one], rel=1e-14)
            assert 0 <= given[one, other] < 1 and (weight or given[one, other])
        rows, columns, weights, amounts = step.entries
        listed = {
            (found.nodes[i], found.nodes[j]): (w, g) for i, j, w, g in zip(rows, columns, weights, amounts, strict=True)
        }
        assert listed == {edge: (taken[edge], given[edge]) for edge in taken}


@pytest.mark.parametrize("t", range(5))
def test_for_equal_shares_they_are_the_published_matrices(t: int) -> None:
    for spec, wanted in (
        (ONE, one_peer_exponential(7, t)),
        (ALL, static_exponential(7)),
        (LOCAL, push_sum(7, 2, 5, t)),
    ):
        found = mixing(schedule(spec, 7, equal=True), t).matrix.toarray()
        assert np.abs(found - wanted.toarray()).max() < 1e-15
        assert np.abs(found.sum(axis=0) - 1).max() < 1e-15


def test_each_site_chooses_for_itself_in_each_round() -> None:
    found = schedule(LOCAL, 9)
    for t in range(found.total):
        step = mixing(found, t)
        for site in found.nodes:
            amounts = [amount for amount in step.given(site).values() if amount]
            assert amounts == [pytest.approx(1 / 3)] * 2
    choices = [tuple(mixing(found, t).given(found.nodes[0])) for t in range(found.total)]
    assert len(set(choices)) > 10
    assert any(len(mixing(found, t).neighbours(site)) > 4 for t in range(20) for site in found.nodes), (
        "or none is popular"
    )


def read(found: Schedule, x: np.ndarray, first: int, last: int, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numerators and weights after these rounds; what is read is their quotient."""
    for t in range(first, last):
        matrix = mixing(found, t).matrix
        x, weight = matrix @ x, matrix @ weight
    return x, weight


def apart(found: Schedule, z: np.ndarray) -> float:
    law = np.array(found.law)[:, None]
    return float(np.sqrt((law * (z - (law * z).sum(axis=0)) ** 2).sum()))


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("equal", [True, False])
def test_push_sum_reads_the_mean_by_the_law(spec: dict[str, Any], equal: bool) -> None:
    found = schedule(spec, 7, equal=equal, rounds=120)
    x = np.random.default_rng(1).normal(size=(7, 3))
    ended, weight = read(found, x, 0, 120, np.ones(7))
    assert np.abs(ended / weight[:, None] - np.array(found.law) @ x).max() < 1e-12
    assert float(np.array(found.law) @ weight) == pytest.approx(1.0, rel=1e-14)
    doubly = equal or spec.get("weights") == "metropolis"
    assert (np.abs(weight - 1).max() < 1e-12) == (spec["kind"] == "exponential" and doubly)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_speed_and_closing_say_what_is_read(spec: dict[str, Any]) -> None:
    found = schedule(spec, 7, rounds=40, closing=4)
    random = np.random.default_rng(2)
    _, weight = read(found, np.ones(7), 0, 40, np.ones(7))
    worst = 0.0
    for _ in range(2000):
        z = random.normal(size=(7, 1))
        ended, last = read(found, z * weight[:, None], 40, 44, weight)
        worst = max(worst, apart(found, ended / last[:, None]) / apart(found, z))
    assert 0.5 * found.closing_contraction() < worst <= found.closing_contraction() * (1 + 1e-12)
    rounds = speed_of(found).rounds
    assert rounds is not None
    far = []
    for last_round in (rounds - 1, rounds):
        ended, weight = read(found, np.eye(7), 0, last_round, np.ones(7))
        law = np.array(found.law)
        product = ended / weight[:, None]
        product = product - law @ product
        far.append(np.linalg.norm(np.sqrt(law)[:, None] * product / np.sqrt(law), 2))
    assert far[1] <= 0.01 < far[0]


@pytest.mark.parametrize("equal", [True, False])
def test_one_peer_is_exact_after_as_many_rounds_as_powers_of_two(equal: bool) -> None:
    for sites, wanted in ((2, 1), (4, 2), (8, 3), (16, 4), (6, None), (12, None)):
        assert finite_time(schedule(ONE, sites, equal=equal)) == wanted


def test_rounds_begin_again_and_mix_with_few() -> None:
    found = schedule(ONE, 12, rounds=20)
    assert all(found.round(t) is found.round(t + 4) for t in range(8))
    assert all(len(mixing(found, t).neighbours(site)) <= 2 for t in range(4) for site in found.nodes)
    assert len(schedule(ALL, 12).edges) == len(found.edges) == 36, "4 forth is 8 back"


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ({"kind": "exponential", "hops": "two"}, "hops is 'two'; give one or all"),
        ({**LOCAL, "choice": "mine"}, "choice is 'mine'; give common or local"),
        ({**LOCAL, "degree": 6}, "give a number from 1 to 5"),
        ({**LOCAL, "weights": "uniform"}, "give the weights shares or metropolis"),
        ({"kind": "exponential", "seed": 1}, "if you like"),
    ],
)
def test_wrong_words_are_refused(spec: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        schedule(spec, 6)


@pytest.mark.parametrize("spec", [ONE, LOCAL])
def test_asynchronous_runs_take_no_directed_schedule(spec: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="changes: choose another topology"):
        Schedule(spec, nodes(4), dict.fromkeys(nodes(4), 0.25), 5, 1, 2)


def test_other_kinds_give_what_they_take() -> None:
    found = schedule({"kind": "ring"}, 5)
    step = mixing(found, 0)
    assert not found.directed and not step.directed and not step.given(found.nodes[0])
    rows, columns, weights, amounts = step.entries
    assert len(rows) == 10 and (weights == amounts).all() and (weights == step.matrix.toarray()[rows, columns]).all()
