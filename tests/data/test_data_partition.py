"""Divisions of a dataset over peers: every row once, the same on every machine, what is said holds, misuse is refused."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pfl.data import (
    PARTITIONS,
    Examples,
    Partition,
    Parts,
    by_column,
    dirichlet,
    feature_shift,
    holdings,
    iid,
    labels_per_peer,
    partition_named,
    quantity,
)
from p2pfl.errors import ConfigError, DataError


def some(count: int, classes: int = 10) -> Examples:
    """Examples with a fixed, uneven pattern of labels; no random generator of any library is involved."""
    places = np.arange(count)
    labels = (places * places * 7 + places // 3) % 97 % classes
    inputs = np.stack([places, labels], axis=1).astype(np.float32)
    return Examples((inputs, labels), columns={"hospital": places % 5})


def digest(parts: Parts) -> str:
    text = ";".join(",".join(map(str, rows.tolist())) for rows in parts.rows)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


WAYS: dict[str, Partition] = {
    "iid": iid(),
    "dirichlet .1": dirichlet(0.1),
    "dirichlet 5": dirichlet(5.0),
    "two labels": labels_per_peer(2),
    "quantity": quantity(0.5),
    "shift": feature_shift(noise=0.1),
    "column": by_column("hospital"),
}


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("seed", [0, 7])
def test_every_example_belongs_to_one_peer_and_every_peer_has_one(name: str, seed: int) -> None:
    parts = WAYS[name](some(203), 5, seed)
    assert parts.peers == 5
    assert sorted(np.concatenate(parts.rows).tolist()) == list(range(203))
    assert all(len(rows) and rows.dtype == np.int64 and (np.diff(rows) > 0).all() for rows in parts.rows)


@settings(max_examples=150, deadline=None)
@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=60),
    peers=st.integers(1, 12),
    seed=st.integers(0, 2**63),
    way=st.sampled_from(
        [iid(), dirichlet(0.01), dirichlet(100.0), labels_per_peer(1), labels_per_peer(3), quantity(0.1)]
    ),
)
def test_any_labels_are_divided_whole_or_refused(labels: list[int], peers: int, seed: int, way: Partition) -> None:
    examples = Examples((np.zeros((len(labels), 1)), np.array(labels)))
    by_labels = way in (labels_per_peer(1), labels_per_peer(3))
    try:
        parts = way(examples, peers, seed)
    except ConfigError:
        parts = None
    if parts is None:
        assert by_labels or peers > len(labels)
        return
    assert sorted(np.concatenate(parts.rows).tolist()) == list(range(len(labels)))
    assert all(len(rows) for rows in parts.rows)
    if by_labels:
        wanted = 1 if way == labels_per_peer(1) else 3
        assert {len(set(np.array(labels)[rows])) for rows in parts.rows} == {wanted}


PINNED = {
    "iid": "d1bf1f99dc88cdd7",
    "dirichlet .1": "3f8cff047d06e18a",
    "dirichlet 5": "c077cc654e454639",
    "two labels": "e47aee045965a29a",
    "quantity": "bd5800e29eb0af81",
    "shift": "d1bf1f99dc88cdd7",
    "column": "88d68179869cd434",
}


@pytest.mark.parametrize("name", PINNED)
def test_the_same_on_every_machine(name: str) -> None:
    assert digest(WAYS[name](some(1000), 5, 11)) == PINNED[name]


@pytest.mark.parametrize("name", ["iid", "dirichlet .1", "two labels", "quantity"])
def test_seed_and_number_of_peers_matter(name: str) -> None:
    examples = some(500)
    digests = {digest(WAYS[name](examples, peers, seed)) for peers in (9, 10) for seed in (0, 1, 2)}
    assert len(digests) == 6


def test_iid_and_dirichlet_give_equal_sizes() -> None:
    for way in (iid(), dirichlet(0.3)):
        sizes = {len(rows) for rows in way(some(1003), 10, 3).rows}
        assert sizes == {100, 101}


def test_dirichlet_follows_its_law() -> None:
    """Mean and variance of a peer's share of one class, over many peers.

    q_k of Dirichlet(alpha p) has the variance p (1 - p) / (alpha + 1); m draws of a multinomial with it p (1 - p)
    (1 + (m - 1) / (alpha + 1)) / m. The last peers meet a class that is used up, well within the tolerance.
    """
    peers, size, alpha, share = 2000, 5, 0.5, 0.25
    examples = Examples((np.zeros((peers * size, 1)), np.arange(peers * size) % 4 // 3))  # classes of 3/4 and 1/4
    shares = [
        [examples.labels[rows].mean() for rows in dirichlet(alpha)(examples, peers, seed).rows] for seed in range(3)
    ]
    expected = share * (1 - share) * (1 + (size - 1) / (alpha + 1)) / size
    assert np.mean(shares) == pytest.approx(share)  # all rows are dealt: exact
    assert np.mean(np.var(shares, axis=1)) == pytest.approx(expected, rel=0.1)


def one_after_the_other(labels: np.ndarray, alpha: float, peers: int, generator: np.random.Generator) -> np.ndarray:
    """Hsu, Qi and Brown's procedure as they write it: each peer's mix drawn, then its examples, of what is left."""
    left = np.bincount(labels).astype(float)
    shares = left / left.sum()
    counts = np.zeros((peers, len(left)))
    for row in counts:
        mix = generator.dirichlet(alpha * shares)
        for _ in range(len(labels) // peers):
            open_mix = np.where(left > 0, mix, 0.0)
            if open_mix.sum() < 1e-300:  # all that this peer would have is used up
                open_mix = np.where(left > 0, shares, 0.0)
            kind = generator.choice(len(left), p=open_mix / open_mix.sum())
            row[kind] += 1
            left[kind] -= 1
    return counts


@pytest.mark.parametrize("alpha", [0.1, 0.3, 1.0, 10.0])
def test_dirichlet_separates_as_much_as_the_procedure_of_its_paper(alpha: float) -> None:
    """The largest class's share at each of 16 peers, and the peers' shares of one class, though classes run out."""
    examples, generator = some(1440), np.random.default_rng(0)
    seeds = range(12)
    found = [holdings(dirichlet(alpha)(examples, 16, seed), examples)[1] for seed in seeds]
    expected = [one_after_the_other(examples.labels, alpha, 16, generator) for _ in seeds]

    def figures(divisions: list[np.ndarray]) -> tuple[float, float]:
        shares = np.concatenate([counts / counts.sum(axis=1, keepdims=True) for counts in divisions])
        return float(shares.max(axis=1).mean()), float(shares.var(axis=0).mean())

    assert figures(found) == pytest.approx(figures(expected), rel=0.08)


def test_a_small_alpha_separates_classes_and_a_large_one_mixes_them() -> None:
    examples = some(20_000)

    def classes_held(alpha: float) -> float:
        _, counts = holdings(dirichlet(alpha)(examples, 50, 1), examples)
        return float((counts.max(axis=1) / counts.sum(axis=1)).mean())

    assert classes_held(1e-9) > 0.8
    assert 0.3 < classes_held(1.0) < 0.8
    assert classes_held(1e9) < 0.2


def test_labels_per_peer_shares_each_class_evenly_among_its_holders() -> None:
    examples = some(6000)
    classes, counts = holdings(labels_per_peer(3)(examples, 20, 2), examples)
    assert len(classes) == 10
    assert ((counts > 0).sum(axis=1) == 3).all()
    for column in counts.T:
        held = column[column > 0]
        assert held.max() - held.min() <= 1


def test_quantity_skews_sizes_by_its_law() -> None:
    """Dirichlet-multinomial sizes: variance of one peer's share (m - 1)/m-fold of q's and that of the draws."""
    peers, alpha, count = 2000, 0.5, 22_000
    free = count - peers
    sizes = np.array([len(rows) for rows in quantity(alpha)(some(count), peers, 4).rows])
    assert sizes.min() == 1
    share = 1 / peers
    expected = free * share * (1 - share) * (free + peers * alpha) / (1 + peers * alpha)
    assert sizes.var() == pytest.approx(expected, rel=0.15)
    even = np.array([len(rows) for rows in quantity(1e9)(some(count), peers, 4).rows])
    assert even.var() == pytest.approx(free * share, rel=0.15)


def test_a_column_gives_one_peer_to_each_value() -> None:
    examples = Examples(
        (np.zeros((5, 2)), np.arange(5.0)), columns={"hospital": np.array(["Lille", "Caen", "Lille", "Rouen", "Caen"])}
    )
    rows = by_column("hospital")(examples, 3, 0).rows
    assert [part.tolist() for part in rows] == [[1, 4], [0, 2], [3]]


REAL = Examples((np.zeros((6, 1)), np.linspace(0, 1, 6)), columns={"gap": np.array([1, np.nan, 1, 2, 2, 2])})
REFUSED: list[tuple[Any, Any, int, type[Exception], str]] = [
    (lambda: iid(), some(5), 0, ConfigError, "0 peers"),
    (lambda: iid(), some(5), 6, ConfigError, "5 examples are too few for 6 peers"),
    (lambda: dirichlet(0.0), some(5), 2, ConfigError, "alpha is 0.0; give a positive"),
    (lambda: dirichlet(float("nan")), some(5), 2, ConfigError, "alpha is nan"),
    (lambda: quantity(-1.0), some(5), 2, ConfigError, "alpha is -1.0"),
    (lambda: quantity(float("inf")), some(5), 2, ConfigError, "alpha is inf"),
    (lambda: dirichlet(1.0), REAL, 2, DataError, "no classes"),
    (lambda: labels_per_peer(1), REAL, 2, DataError, "no classes"),
    (lambda: labels_per_peer(0), some(5), 2, ConfigError, "labels per peer: 0"),
    (lambda: labels_per_peer(1.5), some(50), 2, ConfigError, "labels per peer: 1.5"),
    (lambda: labels_per_peer(True), some(50), 2, ConfigError, "labels per peer: True"),
    (lambda: dirichlet(True), some(50), 2, ConfigError, "alpha is True"),
    (lambda: labels_per_peer(11), some(300), 3, ConfigError, "11 labels per peer, but the data have 10 classes"),
    (lambda: labels_per_peer(2), some(300), 4, ConfigError, "cannot hold all 10 classes"),
    (lambda: labels_per_peer(3), some(12), 12, ConfigError, "need 36 shards, the classes allow 12"),
    (lambda: by_column("ward"), some(5), 2, DataError, "no column 'ward'; choose one of: hospital"),
    (lambda: by_column("hospital"), some(50), 4, ConfigError, "5 different values, not 4; simulate 5 peers"),
    (lambda: by_column("gap"), REAL, 2, DataError, "missing values"),
    (lambda: feature_shift(), some(5), 2, ConfigError, "needs a scale"),
    (lambda: feature_shift(scale=1.0), some(5), 2, ConfigError, "below 1"),
    (lambda: feature_shift(noise=-0.1), some(5), 2, ConfigError, "noise of a feature shift is -0.1"),
    (lambda: feature_shift(offset=float("nan")), some(5), 2, ConfigError, "offset of a feature shift is nan"),
    (lambda: feature_shift(quarter_turns=True), some(5), 2, DataError, "square images"),
]


@pytest.mark.parametrize(("way", "examples", "peers", "kind", "says"), REFUSED, ids=[row[4] for row in REFUSED])
def test_refused_in_one_sentence(way: Any, examples: Examples, peers: int, kind: type[Exception], says: str) -> None:
    with pytest.raises(kind, match=says):
        way()(examples, peers, 0)


def test_partitions_by_name() -> None:
    assert partition_named("dirichlet", {"alpha": 1}) == dirichlet(1.0)
    assert partition_named("by_column", {"column": "hospital"}) == by_column("hospital")
    assert partition_named("feature_shift", {"scale": 0.2, "quarter_turns": True}) == feature_shift(0.2, 0, 0, True)
    for name in ("iid", "labels_per_peer", "quantity"):
        assert name in PARTITIONS


@pytest.mark.parametrize(
    ("name", "values", "says"),
    [
        ("shards", {}, "unknown partition 'shards'; choose one of iid, dirichlet"),
        ("iid", {"alpha": 1}, "has no setting 'alpha'; its settings: none"),
        ("dirichlet", {}, "needs alpha"),
        ("dirichlet", {"alpha": "small"}, "is no int or float"),
        ("dirichlet", {"alpha": True}, "is no int or float"),
        ("labels_per_peer", {"labels": 2.5}, "is no int"),
        ("feature_shift", {"quarter_turns": 1}, "is no bool"),
        ("by_column", {"column": 3}, "is no str"),
    ],
)
def test_a_wrong_name_or_setting_is_refused(name: str, values: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        partition_named(name, values)
