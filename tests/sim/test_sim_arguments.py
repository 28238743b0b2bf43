"""Topologies as callers of `simulate` write them."""

from __future__ import annotations

from pathlib import Path

import networkx as nx
import pytest

from p2pfl.errors import ConfigError
from p2pfl.sim.arguments import spec_of


def test_a_graph_file_is_read_as_the_graph_itself(tmp_path: Path) -> None:
    graph = nx.barbell_graph(3, 1)
    nx.write_graphml(graph, tmp_path / "g.graphml")
    (tmp_path / "g.edges").write_text("\n".join(f"{one} {other}" for one, other in graph.edges))
    for name in ("g.graphml", "g.edges"):
        assert spec_of(str(tmp_path / name), 7) == spec_of(graph, 7)
    assert spec_of("ring", 7) == {"kind": "ring"}
    with pytest.raises(ConfigError, match="not connected"):
        spec_of(str(tmp_path / "g.edges"), 8)
    with pytest.raises(ConfigError, match="check the name"):
        spec_of(str(tmp_path / "none.edges"), 8)
