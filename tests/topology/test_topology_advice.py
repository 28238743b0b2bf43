"""Advice on graphs: which candidates, what is said of absences, which is recommended; graphs as figures."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from p2pfl.errors import ConfigError
from p2pfl.figures import to_svg
from p2pfl.topology import (
    advise,
    build_graph,
    effective_neighbours,
    graph_figure,
    graph_layout,
    spectral_gap,
    stationary_weights,
)
from p2pfl.topology.base import BaseGraph
from p2pfl.types import PeerId


def nodes(count: int) -> list[PeerId]:
    return [PeerId(f"{place:04d}") for place in range(count)]


@pytest.mark.parametrize(
    ("peers", "degree", "kinds"),
    [
        (2, 1, {"full"}),
        (3, 2, {"full", "star", "chain"}),  # the ring of 3 is full
        (4, 2, {"hypercube", "ring", "hierarchical", "chain"}),
        (7, 2, {"ring", "chain"}),
        (12, 3, {"regular", "hierarchical", "ring", "chain"}),
        (12, 4, {"regular", "torus", "hierarchical", "ring", "chain"}),
        (12, 11, {"full", "torus", "hierarchical", "ring", "chain", "star"}),
        (16, 4, {"hypercube", "torus", "regular", "hierarchical", "ring", "chain"}),
        (400, 3, {"regular", "ring", "chain"}),
    ],
)
def test_candidates_keep_the_largest_degree(peers: int, degree: int, kinds: set[str]) -> None:
    advice = advise(peers, degree)
    found = {str(candidate.spec["kind"]) for candidate in advice.candidates}
    assert found == kinds
    for candidate in advice.candidates:
        graph = build_graph(candidate.spec, nodes(peers))
        assert max(count for _, count in graph.degree) == candidate.degree <= degree
    assert advice.reason.startswith(f"Take {advice.recommended.name}: ") and advice.reason.count(".") >= 1


@pytest.mark.parametrize(("peers", "degree"), [(8, 1), (9, 1), (12, 3), (15, 2)])
def test_graphs_that_change_are_compared_where_asked_for(peers: int, degree: int) -> None:
    found = {str(one.spec["kind"]): one for one in advise(peers, degree, changing=True).candidates}
    base = found["base"]
    assert base.gap == 1.0 and base.rounds == BaseGraph(peers, degree).length and base.degree <= degree
    assert ("epidemic" in found) == (degree * peers % 2 == 0)
    assert all(one.degree <= degree for one in found.values())
    if degree > 1:
        same = {str(one.spec["kind"]) for one in advise(peers, degree).candidates}
        assert same == set(found) - {"base", "epidemic"}


def test_what_is_said_of_a_static_graph() -> None:
    for candidate in advise(9, 8, gamma=0.9).candidates:
        if candidate.spec["kind"] == "hierarchical":
            continue
        graph = build_graph(candidate.spec, nodes(9))
        matrix = stationary_weights(graph, dict.fromkeys(graph, 1 / 9))
        assert candidate.gap == pytest.approx(spectral_gap(matrix), abs=1e-12)
        assert candidate.effective_neighbours == pytest.approx(effective_neighbours([matrix], 0.9))
        assert candidate.messages_per_round == 2 * graph.number_of_edges()
        assert candidate.messages == candidate.rounds * candidate.messages_per_round


def test_messages_of_a_hierarchical_graph() -> None:
    """12 sites in 6 pairs: one edge inside each, and a ring of the 6 heads; both ends send."""
    found = {str(candidate.spec["kind"]): candidate for candidate in advise(12, 3).candidates}["hierarchical"]
    assert found.spec["clusters"] == 6 and found.messages_per_round == 2 * (6 + 6)


@pytest.mark.parametrize("kind", ["ring", "torus", "regular", "chain"])
def test_absences_are_the_worst_of_all(kind: str) -> None:
    """Against all sets of absent sites, tried one by one; the shortcut for graphs whose sites are all alike included."""
    found = {str(candidate.spec["kind"]): candidate for candidate in advise(12, 4).candidates}[kind]
    graph = build_graph(found.spec, nodes(12))
    whole = stationary_weights(graph, dict.fromkeys(graph, 1 / 12)).toarray()
    for size, said in ((1, found.one_absent), (2, found.two_absent)):
        assert said is not None
        gaps = []
        for gone in combinations(range(12), size):
            left = np.delete(np.delete(whole, gone, 0), gone, 1)
            np.fill_diagonal(left, left.diagonal() + 1 - left.sum(axis=1))
            gaps.append(spectral_gap(left))
        assert said.sets == said.computed == len(gaps)
        assert said.gap == pytest.approx(min(gaps), abs=1e-9)
        assert said.disconnecting == sum(gap < 1e-9 for gap in gaps)


def test_the_recommended_graph_holds_without_any_single_site() -> None:
    for peers, degree in ((5, 2), (8, 3), (12, 3), (12, 11)):
        advice = advise(peers, degree)
        assert advice.recommended.one_absent.disconnecting == 0
        whole = [one for one in advice.candidates if not one.one_absent.disconnecting]
        assert advice.recommended.effective_neighbours >= 0.99 * max(one.effective_neighbours for one in whole)


def test_of_nearly_equal_graphs_the_cheaper_one_is_taken() -> None:
    advice = advise(16, 4)
    assert advice.recommended.name in ("hypercube", "torus 4 x 4")
    rival = next(one for one in advice.candidates if one.spec["kind"] == "regular")
    assert rival.effective_neighbours > advice.recommended.effective_neighbours
    assert rival.messages > advice.recommended.messages
    assert "within 1 %" in advice.reason and "for fewer messages" in advice.reason


def test_many_peers_are_sampled_and_pairs_left_out() -> None:
    advice = advise(300, 4)
    for candidate in advice.candidates:
        assert candidate.two_absent is None and candidate.one_absent.sets == 300
    regular = next(one for one in advice.candidates if one.spec["kind"] == "regular")
    assert regular.one_absent.computed == 33 and 0 < regular.one_absent.gap <= regular.gap


@pytest.mark.parametrize(
    ("peers", "degree", "says"),
    [
        (0, 1, "2 to 1000 peers, not 0"),
        (1, 1, "2 to 1000 peers, not 1"),
        (1001, 2, "not 1001"),
        (5, 0, "1 to 4, not 0"),
        (5, 5, "1 to 4, not 5"),
        (5, 1, "allow 2 or more"),
    ],
)
def test_misuse_is_refused(peers: int, degree: int, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        advise(peers, degree)
    with pytest.raises(ConfigError, match=r"gamma is 1\.5"):
        advise(5, 2, gamma=1.5)


@pytest.mark.parametrize(("kind", "count"), [("ring", 1), ("ring", 2), ("star", 9), ("chain", 200)])
def test_figures_of_graphs(kind: str, count: int) -> None:
    pytest.importorskip("matplotlib", reason="figures need the extra sim")
    graph = build_graph({"kind": kind}, nodes(count))
    assert graph_layout(graph, kind).shape == (count, 2)
    values = {node: place / count for place, node in enumerate(graph)}
    svg = to_svg(graph_figure(graph, kind=kind, values=values, value_name="accuracy", title="a $graph", limits=(0, 1)))
    assert "</svg>" in svg and svg == to_svg(
        graph_figure(graph, kind=kind, values=values, value_name="accuracy", title="a $graph", limits=(0, 1))
    )
    with pytest.raises(ConfigError, match="give one per site"):
        graph_figure(graph, values=[0.5] * (count + 1))
