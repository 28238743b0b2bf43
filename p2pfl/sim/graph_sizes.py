"""How many edges a topology will have, and whether this machine can hold them: asked before any edge is made."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from math import gcd
from pathlib import Path
from typing import Any

from p2pfl.errors import ConfigError
from p2pfl.topology import check_spec
from p2pfl.topology.graphs import clusters_of
from p2pfl.topology.random_graphs import probability_of
from p2pfl.topology.shapes import whole_of

# Measured on graphs of 1,000 to 3,000 peers: 410 (hierarchical) to 560 for the schedule alone, up to 1,070 for a full
# one in a run with [time]. Less than the least of it, so that nothing is refused that fits.
EDGE_BYTES = 400
CONTROL_GROUP = Path("/sys/fs/cgroup/memory.max")  # Linux, version 2: what a container may use


def check_graph_size(spec: Mapping[str, Any], peers: int) -> None:
    """Whether the memory of this machine holds the graph of a spec. Raises ConfigError, also for a wrong spec."""
    check_spec(spec)
    edges, memory = edges_of(spec, peers), memory_bytes()
    if edges * EDGE_BYTES > memory:
        raise ConfigError(
            f"the topology {spec['kind']} has {edges:,} edges among {peers} peers, {edges * EDGE_BYTES / 1e9:,.1f} GB "
            f"at least, and this machine has {memory / 1e9:.1f} GB (some {memory // EDGE_BYTES:,} edges); take fewer "
            'peers, or a graph with fewer edges such as { kind = "regular", degree = 8, seed = 0 }'
        )


def edges_of(spec: Mapping[str, Any], sites: int) -> int:
    """The edges of a checked spec's graph, of random ones the expected number; of graphs that change, in one round.

    Kinds whose edges grow with sites log(sites) at most, and those whose edges are given one by one, count as 0.
    Raises ConfigError for wrong values.
    """
    count = _COUNTS.get(spec["kind"])
    return 0 if count is None else min(_pairs(sites), count(spec, sites))


def memory_bytes() -> int:
    """What this machine, or the container, has."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(whole, int(CONTROL_GROUP.read_text()))
    except (OSError, ValueError):  # none, or "max"
        return whole


def _pairs(sites: int) -> int:
    return sites * (sites - 1) // 2


def _of_degree(spec: Mapping[str, Any], sites: int) -> int:
    return sites * whole_of(spec, "degree", 1) // 2


def _drawn(spec: Mapping[str, Any], sites: int) -> int:
    """Where each site chooses for itself, hardly two choose each other."""
    return _of_degree(spec, sites) * (2 if spec.get("choice") == "local" else 1)


def _of_clusters(spec: Mapping[str, Any], sites: int) -> int:
    """Inside, and between the members of neighbouring clusters that are heads together in some round."""
    sizes = [len(cluster) for cluster in clusters_of(spec, sites)]
    following = sizes[1:] + sizes[:1] if len(sizes) > 2 else sizes[1:]
    between = sum(one * other // gcd(one, other) for one, other in zip(sizes, following, strict=False))
    return sum(map(_pairs, sizes)) + between


def _of_halves(spec: Mapping[str, Any], sites: int) -> int:
    return _pairs(sites // 2) + _pairs(sites - sites // 2) + whole_of(spec, "bridges", 1)


_COUNTS: Mapping[str, Callable[[Mapping[str, Any], int], int]] = {
    "full": lambda spec, sites: _pairs(sites),
    "hierarchical": _of_clusters,
    "two_clusters": _of_halves,
    "regular": _of_degree,
    "small_world": _of_degree,
    "epidemic": _drawn,
    "erdos_renyi": lambda spec, sites: int(probability_of(spec) * _pairs(sites)),
}
