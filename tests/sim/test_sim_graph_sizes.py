"""Graphs that would not fit into memory: refused before anything is built, by the number of their edges."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sim_worlds import blobs, write_plan

from p2pfl.errors import ConfigError
from p2pfl.sim import graph_sizes, simulate
from p2pfl.sim.graph_sizes import EDGE_BYTES, edges_of, memory_bytes
from p2pfl.topology import build_graph
from p2pfl.types import PeerId


@pytest.mark.parametrize(
    "spec",
    [
        {"kind": "full"},
        {"kind": "hierarchical", "clusters": 1},
        {"kind": "hierarchical", "clusters": 2},
        {"kind": "hierarchical", "clusters": [[0, 1, 2, 3], [4, 5], [6, 7, 8], [9, 10, 11]]},
        {"kind": "two_clusters", "bridges": 3},
        {"kind": "regular", "degree": 5, "seed": 0},
        {"kind": "small_world", "degree": 4, "probability": 0.2, "seed": 0},
        {"kind": "erdos_renyi", "probability": 1.0, "seed": 0},
    ],
)
def test_the_edges_are_those_of_the_graph(spec: dict[str, Any]) -> None:
    graph = build_graph(spec, [PeerId(f"{site:02d}") for site in range(12)])
    assert edges_of(spec, 12) == graph.number_of_edges()


@pytest.mark.parametrize(
    "kind", ["ring", "star", "chain", "hypercube", "tree", "double_tree", "matching", "base", "exponential"]
)
def test_graphs_with_few_edges_are_never_too_large(kind: str) -> None:
    assert edges_of({"kind": kind}, 10**9) == 0


def test_a_full_graph_beyond_memory_is_refused_before_anything_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = write_plan(tmp_path / "plan")
    monkeypatch.setattr("p2pfl.sim.preparing.Schedule", lambda *arguments: pytest.fail("a graph was built"))
    with pytest.raises(ConfigError, match=r"full has 499,999,500,000 edges.*kind = \"regular\", degree = 8") as refused:
        simulate(plan, blobs(), topology="full", peers=1_000_000, rounds=1)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("spare", "fits"), [(0, True), (-1, False)])
def test_what_the_memory_holds_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spare: int, fits: bool
) -> None:
    plan = write_plan(tmp_path / "plan")
    monkeypatch.setattr(graph_sizes, "memory_bytes", lambda: 28 * EDGE_BYTES + spare)  # 8 peers have 28 pairs
    if fits:
        simulate(plan, blobs(), topology="full", peers=8, rounds=1, execution="loop")
    else:
        with pytest.raises(ConfigError, match="28 edges among 8 peers"):
            simulate(plan, blobs(), topology="full", peers=8, rounds=1, execution="loop")


@pytest.mark.parametrize(("text", "bound"), [("1000000\n", 1_000_000), ("max\n", None)])
def test_a_container_has_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, bound: int | None) -> None:
    monkeypatch.setattr(graph_sizes, "CONTROL_GROUP", tmp_path / "none")
    whole = memory_bytes()
    monkeypatch.setattr(graph_sizes, "CONTROL_GROUP", tmp_path / "memory.max")
    (tmp_path / "memory.max").write_text(text)
    assert memory_bytes() == (bound or whole)
