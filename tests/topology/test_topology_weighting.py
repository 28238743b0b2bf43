"""The choice of weights: formulas against dense matrices written down once more, the law of each, and what is refused."""

from __future__ import annotations

from typing import Any

import networkx as nx
import numpy as np
import pytest

from p2pfl.errors import ConfigError
from p2pfl.governance.topologies import WEIGHTS, topology_problem, weights_in_words
from p2pfl.topology import Schedule, build_graph, speed_of, uniform_weights
from p2pfl.topology.weighting import NAMED
from p2pfl.types import PeerId

Array = np.ndarray[Any, Any]
SITES = 8
NODES = [PeerId(name) for name in "hfbgaced"]
SHARES = {node: number / 36 for number, node in enumerate(NODES, start=1)}
SPECS: list[dict[str, Any]] = [
    {"kind": "ring"},
    {"kind": "full"},
    {"kind": "star"},
    {"kind": "chain"},
    {"kind": "torus", "rows": 2, "columns": 4},
    {"kind": "hypercube"},
    {"kind": "regular", "degree": 3, "seed": 1},
    {"kind": "erdos_renyi", "probability": 0.5, "seed": 2},
    {"kind": "small_world", "degree": 2, "probability": 0.3, "seed": 1},
    {"kind": "two_clusters", "bridges": 1},
    {"kind": "tree", "arity": 2},
    {"kind": "double_tree"},
    {"kind": "edges", "edges": [[0, 1], [1, 2], [2, 0], [2, 3], [3, 4], [4, 5], [5, 6], [6, 7], [7, 3]]},
]
WANTED = np.array([5.0, 1.0, 2.0, 3.0, 1.0, 4.0, 2.0, 6.0])  # what the sites are to count by listed weights


def schedule_with(spec: dict[str, Any], weights: Any = None, rounds: int = 3, staleness: int = 0) -> Schedule:
    own = {} if weights is None else {"weights": weights}
    return Schedule(spec | own, NODES, SHARES, rounds, 1, staleness)


def near(spec: dict[str, Any]) -> Array:
    return np.array(nx.to_numpy_array(build_graph(spec, NODES), nodelist=NODES))


def rows_of(spec: dict[str, Any], counts: Array = WANTED) -> list[list[Any]]:
    """Metropolis weights for the wanted counts with slack, (n - 1) proposals: w_ij = min(1, c_j / c_i) / n."""
    edges = np.argwhere(np.triu(near(spec))).tolist()
    return [[i, j, min(1, counts[j] / counts[i]) / SITES, min(1, counts[i] / counts[j]) / SITES] for i, j in edges]


def with_diagonal(matrix: Array) -> Array:
    return matrix + np.diag(1 - matrix.sum(axis=1))


def dense(spec: dict[str, Any], weights: Any) -> tuple[Array, Array]:
    """Matrix and law, entry by entry."""
    linked, shares = near(spec), np.array([SHARES[node] for node in NODES])
    degree = linked.sum(axis=1)
    matrix = np.zeros((SITES, SITES))
    for i, j in np.argwhere(linked).tolist():
        if weights == "shares":
            around = [shares[k] + linked[k] @ shares for k in (i, j)]
            matrix[i, j] = shares[j] / max(around)
        elif weights == "metropolis":
            matrix[i, j] = 1 / (1 + max(degree[i], degree[j]))
        elif weights == "uniform":
            matrix[i, j] = 1 / (1 + degree[i])
    law = {"shares": shares, "metropolis": np.ones(SITES), "uniform": degree + 1.0}.get(str(weights), WANTED)
    for i, j, there, back in () if isinstance(weights, str) else weights:
        matrix[i, j], matrix[j, i] = there, back
    return with_diagonal(matrix), law / law.sum()


CASES = [(spec, weights) for spec in SPECS for weights in (*NAMED, "listed")]
IDS = [f"{spec['kind']}-{weights}" for spec, weights in CASES]


@pytest.mark.parametrize(("spec", "weights"), CASES, ids=IDS)
def test_matrix_and_law_are_those_of_the_formulas(spec: dict[str, Any], weights: Any) -> None:
    weights = rows_of(spec) if weights == "listed" else weights
    schedule = schedule_with(spec, weights)
    matrix, law = dense(spec, weights)
    found = schedule.round(0).mixings[0].matrix.toarray()
    assert np.abs(found - matrix).max() < 1e-15
    assert np.abs(np.array(schedule.law) - law).max() < 1e-15
    assert np.abs(np.array(schedule.law) @ found - schedule.law).max() < 1e-15
    flows = np.array(schedule.law)[:, None] * found
    assert np.abs(flows - flows.T).max() < 1e-15, "or an edge taken back would move the mean"
    assert found.min() >= 0 and np.abs(found.sum(axis=1) - 1).max() < 1e-15
    assert schedule.shares == tuple(SHARES[node] for node in NODES) and schedule.by_shares == (weights == "shares")
    assert schedule.round(0).mixings[0] is schedule.round(3).mixings[0]


@pytest.mark.parametrize("spec", SPECS, ids=[spec["kind"] for spec in SPECS])
def test_shares_by_name_are_what_is_mixed_without_a_choice(spec: dict[str, Any]) -> None:
    named, silent = schedule_with(spec, "shares"), schedule_with(spec)
    assert named.law == silent.law == silent.shares
    both = [schedule.round(0).mixings[0].matrix for schedule in (named, silent)]
    assert (both[0].toarray() == both[1].toarray()).all() and both[0].nnz == both[1].nnz


@pytest.mark.parametrize(("spec", "weights"), CASES, ids=IDS)
def test_the_sites_go_to_the_mean_of_the_law_at_the_speed_that_is_told(spec: dict[str, Any], weights: Any) -> None:
    schedule = schedule_with(spec, rows_of(spec) if weights == "listed" else weights)
    matrix, law = schedule.round(0).mixings[0].matrix.toarray(), np.array(schedule.law)
    x = np.sin(np.arange(SITES) ** 2.0)
    rounds = speed_of(schedule).rounds
    assert rounds is not None
    after = np.linalg.matrix_power(matrix, rounds) @ x
    assert np.sqrt(law @ (after - law @ x) ** 2) <= 0.01 * np.sqrt(law @ (x - law @ x) ** 2) * (1 + 1e-9)
    late = np.linalg.matrix_power(matrix, 20 * rounds) @ x
    assert np.abs(late - law @ x).max() < 1e-12
    assert speed_of(schedule).gap > 1e-3
    root = np.sqrt(law)
    even = root[:, None] * matrix / root - np.outer(root, root)
    assert schedule.closing_contraction() == pytest.approx(np.linalg.norm(even, 2), abs=1e-14)


@pytest.mark.parametrize("weights", ["metropolis", "uniform"])
@pytest.mark.parametrize("more", [{}, {"period": 2}], ids=str)
def test_clusters_and_heads_keep_the_plain_mean(weights: str, more: dict[str, Any]) -> None:
    """Also with clusters of unlike sizes: inside one, and among the heads, all have equally many neighbours."""
    clusters = [[0, 1, 2, 3], [4, 5], [6, 7]]
    schedule = schedule_with({"kind": "hierarchical", "clusters": clusters, **more}, weights, rounds=6)
    assert schedule.law == (1 / SITES,) * SITES
    for t in range(schedule.total):
        inside, *heads = [mixing.matrix.toarray() for mixing in schedule.round(t).mixings]
        assert np.abs(inside[0] - np.array([1, 1, 1, 1, 0, 0, 0, 0]) / 4).max() < 1e-15
        assert len(heads) == (t % more.get("period", 1) == 0)
        for matrix in (inside, *heads):
            assert np.abs(matrix.sum(axis=0) - 1).max() < 1e-15
            assert set(np.round(matrix[matrix > 0] * 12)) <= {3, 4, 6, 12}


def test_uniform_of_a_small_graph_by_hand() -> None:
    matrix = uniform_weights(nx.Graph([(0, 1), (1, 2), (1, 3), (2, 3)])).toarray()
    expected = [[6, 6, 0, 0], [3, 3, 3, 3], [0, 4, 4, 4], [0, 4, 4, 4]]
    assert np.abs(matrix - np.array(expected) / 12).max() < 1e-15


def test_the_full_graph_has_the_mean_of_the_law_after_one_round() -> None:
    """By shares, alike or by the full graph's degrees, which are equal; slower weights never have it exactly."""
    full = {"kind": "full"}
    assert [speed_of(schedule_with(full, weights)).exact_after for weights in NAMED] == [1, 1, 1]
    assert speed_of(schedule_with(full, rows_of(full))).exact_after is None
    cube = [speed_of(schedule_with({"kind": "hypercube"}, weights)).gap for weights in ("metropolis", "uniform")]
    assert cube == pytest.approx([0.5, 0.5], abs=1e-12), "2 / (p + 1) for 2^p sites"


def test_one_site_and_two() -> None:
    for weights in NAMED:
        alone = Schedule({"kind": "ring", "weights": weights}, NODES[:1], SHARES, 1, 0)
        assert alone.round(0).mixings[0].matrix.toarray().tolist() == [[1.0]]
        pair = Schedule({"kind": "ring", "weights": weights}, NODES[:2], SHARES, 1, 0)
        assert sum(pair.law) == pytest.approx(1 if weights != "shares" else 3 / 36, abs=1e-15)
    listed = Schedule({"kind": "ring", "weights": [[1, 0, 0.75, 0.25]]}, NODES[:2], SHARES, 1, 0)
    assert np.abs(np.array(listed.law) - [0.75, 0.25]).max() < 1e-15
    assert np.abs(listed.round(0).mixings[0].matrix.toarray() - [[0.75, 0.25], [0.75, 0.25]]).max() < 1e-15


def test_a_stopped_schedule_and_late_edges_keep_the_law() -> None:
    for weights in ("metropolis", "uniform", rows_of(SPECS[2])):
        schedule = schedule_with(SPECS[2], weights, rounds=9, staleness=2)
        stopped = schedule.stopped(2)
        law = np.array(schedule.law)
        assert stopped.law == schedule.law and stopped.shares == schedule.shares and stopped.rounds == 2
        plain, small = (schedule.round(t).mixings[0].matrix.toarray() for t in (9, 0))
        assert np.abs(law @ small - law).max() < 1e-15
        assert np.abs((small - plain * 0.25)[~np.eye(SITES, dtype=bool)]).max() < 1e-15
        assert (stopped.round(2).mixings[0].matrix.toarray() == plain).all()


# --- what is refused

SQUARE = {"kind": "ring"}
GOOD: list[list[Any]] = [[0, 1, 0.25, 0.5], [1, 2, 0.25, 0.25], [2, 3, 0.25, 0.125], [3, 0, 0.25, 0.25]]


def changed(place: int, row: list[Any] | None) -> list[Any]:
    return [*GOOD[:place], *([row] if row else []), *GOOD[place + 1 :]]


def test_the_list_that_the_refusals_change_is_good() -> None:
    """Also for charters and plans; positions in either order, and the site that keeps nothing of its own is no harm."""
    found = Schedule(SQUARE | {"weights": GOOD}, NODES[:4], SHARES, 1, 0)
    assert np.abs(np.array(found.law) * 6 - [2, 1, 1, 2]).max() < 1e-15
    assert topology_problem(SQUARE | {"weights": GOOD}) is None
    turned = [[j, i, back, there] for i, j, there, back in reversed(GOOD)]
    again = Schedule(SQUARE | {"weights": turned}, NODES[:4], SHARES, 1, 0)
    assert again.round(0).mixings[0].matrix.toarray().tolist() == found.round(0).mixings[0].matrix.toarray().tolist()
    full = [[0, 1, 0.5, 0.5], [1, 2, 0.5, 0.5], [2, 0, 0.5, 0.5]]
    assert speed_of(Schedule(SQUARE | {"weights": full}, NODES[:3], SHARES, 1, 0)).gap == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ("degree", "weights are degree; give shares, metropolis, uniform, or of each edge"),
        (None, "weights are None; give shares"),
        (3, "weights are 3; give shares"),
        ([[0, 1, 0.5]], "give shares, metropolis, uniform, or of each edge"),
        (changed(0, [0, 4, 0.25, 0.5]), "name the site '4'; there are 4: use positions 0 to 3"),
        (changed(0, [0, True, 0.25, 0.5]), "name the site 'True'"),
        (changed(0, [0, "1", 0.25, 0.5]), "name the site '1'"),
        (changed(0, [0, 2, 0.25, 0.5]), r"the edge \[0, 2\], which the graph does not have; leave it out"),
        (changed(0, [0, 0, 0.25, 0.5]), r"the edge \[0, 0\], which the graph does not have"),
        ([*GOOD, [1, 0, 0.1, 0.1]], r"the edge \[1, 0\] twice; give each edge once"),
        (changed(3, None), r"leave out the edge \[0, 3\]; give each edge its two weights"),
        ([], r"leave out the edge \[0, 1\]"),
        (changed(0, [0, 1, 0.0, 0.5]), r"weight of the edge \[0, 1\] is 0.0; give a number above 0 and below 1"),
        (changed(0, [0, 1, 0.25, 1.0]), "is 1.0; give a number above 0"),
        (changed(0, [0, 1, -0.25, 0.5]), "is -0.25; give a number"),
        (changed(0, [0, 1, float("nan"), 0.5]), "is nan; give a number"),
        (changed(0, [0, 1, float("inf"), 0.5]), "is inf; give a number"),
        (changed(0, [0, 1, 1, 0.5]), "is 1; give a number"),
        (changed(0, [0, 1, "0.5", 0.5]), "is 0.5; give a number"),
        (changed(0, [0, 1, 0.25, 0.8]), r"site number 1 .* add up to 1.05; make them smaller"),
        (
            changed(2, [2, 3, 0.25, 0.25]),
            r"those on a cycle .* \[2, 3\] do not balance; give it 0.125 as second weight",
        ),
        (changed(2, [2, 3, 0.25, 0.125 * (1 + 1e-9)]), r"those on a cycle .* do not balance; give it 0.125 as second"),
        ([[0, 1, 0.5, 0.5], [1, 2, 0.5, 0.5], [2, 3, 0.5, 0.5], [3, 0, 0.5, 0.5]], "swap their parameters for good"),
        (changed(0, [0, 1, 1e-12, 0.5]), "site number 1 .* counts with less than 1e-09 of the mean"),
        (changed(0, [0, 1, 0.5, 1e-12]), "site number 0 .* counts with less than 1e-09 of the mean"),
        (changed(0, [0, 1, 0.5, 5e-324]), "counts with less than 1e-09 of the mean"),
    ],
)
def test_lists_that_do_not_fit_are_refused(weights: Any, says: str) -> None:
    spec = SQUARE | {"weights": weights}
    for call in (lambda: build_graph(spec, NODES[:4]), lambda: Schedule(spec, NODES[:4], SHARES, 1, 0)):
        with pytest.raises(ConfigError, match=says):
            call()


@pytest.mark.parametrize("column", range(5))
@pytest.mark.parametrize("place", range(4))
def test_nothing_but_a_refusal_comes_of_strange_rows(place: int, column: int) -> None:
    """They come from other peers: whatever stands in a cell, or in the place of a row (column 4)."""
    for strange in (
        None,
        "x",
        "0",
        b"\x00",
        [],
        [0],
        {},
        {0: 1},
        True,
        -1,
        4,
        2**70,
        -0.5,
        1e400,
        float("nan"),
        1 + 2j,
    ):
        row: Any = [*GOOD[place][:column], strange, *GOOD[place][column + 1 :]] if column < 4 else strange
        spec = SQUARE | {"weights": changed(place, row if row else [row])}
        with pytest.raises(ConfigError, match="; "):
            build_graph(spec, NODES[:4])
        assert topology_problem(spec) is not None or (column < 2 and type(strange) is int and strange < 64)


def test_the_weight_that_a_refusal_asks_for_is_taken() -> None:
    """On the cycle that does not balance, with numbers that no float holds exactly."""
    rows = [[0, 1, 0.3, 0.1], [1, 2, 0.1, 0.7], [2, 0, 0.2, 0.4]]
    with pytest.raises(ConfigError, match="do not balance") as caught:
        build_graph(SQUARE | {"weights": rows}, NODES[:3])
    said = str(caught.value)
    one, other = (int(part) for part in said.split("edge [")[1].split("]")[0].split(","))
    place = next(k for k, row in enumerate(rows) if row[:2] == [one, other])
    rows[place][3] = float(said.split("give it ")[1].split()[0])
    found = Schedule(SQUARE | {"weights": rows}, NODES[:3], SHARES, 1, 0)
    law = np.array(found.law)
    assert np.abs(law @ found.round(0).mixings[0].matrix.toarray() - law).max() < 1e-15


def test_long_lists_of_one_law_are_taken() -> None:
    """A chain of 300 sites that count between 1 and 7: rounding along the path stays below what is allowed."""
    nodes = [PeerId(f"{number:03d}") for number in range(300)]
    counts = [1.0 + number * number % 7 for number in range(300)]
    edges = [(number, (number + 1) % 300) for number in range(300)]
    rows = [[i, j, counts[j] / 20, counts[i] / 20] for i, j in edges]
    found = Schedule({"kind": "ring", "weights": rows}, nodes, dict.fromkeys(nodes, 1.0), 1, 0)
    assert np.abs(np.array(found.law) * sum(counts) / counts - 1).max() < 1e-12


@pytest.mark.parametrize("kind", ["base", "matching", "epidemic"])
def test_topologies_that_change_keep_one_law_in_all_rounds(kind: str) -> None:
    more = {"base": {"k": 1}, "matching": {"seed": 0}, "epidemic": {"degree": 2, "seed": 0}}[kind]
    alike = Schedule({"kind": kind, **more, "weights": "metropolis"}, NODES, SHARES, 12, 0)
    assert topology_problem({"kind": kind, **more, "weights": "metropolis"}) is None
    assert set(alike.law) == {1 / len(NODES)} and not alike.by_shares
    for t in range(12):
        matrix = alike.round(t).mixings[0].matrix.toarray()
        assert np.abs(matrix - matrix.T).max() == 0 and np.abs(matrix.sum(axis=0) - 1).max() < 1e-15
    for weights in ("uniform", [[0, 1, 0.5, 0.5]]):
        spec = {"kind": kind, **more, "weights": weights}
        assert "write one of shares, metropolis" in str(topology_problem(spec))
        with pytest.raises(ConfigError, match="give the weights shares or metropolis"):
            build_graph(spec, NODES)


def test_clusters_take_names_only() -> None:
    spec = {"kind": "hierarchical", "clusters": 2, "weights": [[0, 1, 0.5, 0.5]]}
    assert "write one of shares, metropolis, uniform" in str(topology_problem(spec))
    with pytest.raises(ConfigError, match="mixes on several graphs"):
        Schedule(spec, NODES, SHARES, 1, 0)


@pytest.mark.parametrize(
    "weights",
    ["", "Shares", 1, None, {}, [], [[0, 1, 0.5]], [[0, 64, 0.5, 0.5]], [[0, 1, 0.5, 1]], [[0, 1, 0.5, 1.0]],
     [[0, 1, 0.5, float("nan")]], [[0, 1, 0.0, 0.5]], [[0, True, 0.5, 0.5]], [["0", 1, 0.5, 0.5]], [[0, 1, 0.5, 0.5]] * 2017],
)  # fmt: skip
def test_charters_and_plans_refuse_other_shapes(weights: Any) -> None:
    said = str(topology_problem({"kind": "ring", "weights": weights}))
    assert "topology weights is" in said and "; write shares, metropolis, uniform, or of each edge" in said


def test_both_rooms_know_the_same_names_and_say_what_they_mean() -> None:
    assert tuple(WEIGHTS) == NAMED
    for name in NAMED:
        assert topology_problem({"kind": "ring", "weights": name}) is None
        assert weights_in_words({"kind": "ring", "weights": name}).startswith(f"{name}: each site counts ")
    assert weights_in_words({"kind": "ring"}) == weights_in_words({"kind": "ring", "weights": "shares"})
    assert weights_in_words({"kind": "ring", "weights": GOOD}).startswith("listed: each site counts as ")
