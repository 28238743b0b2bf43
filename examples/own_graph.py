"""An own networkx graph as topology: look at its figures, then propose a run over it.

python examples/own_graph.py
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import networkx as nx
from patients import write_patients

import p2pfl
from p2pfl.topology import (
    absences_that_disconnect,
    build_graph,
    metropolis_hastings,
    spec_from_graph,
    spectral_gap,
)

PLAN = Path(__file__).parent / "own_plan"


def own_graph() -> nx.Graph:
    """Sites 0 and 1 are connected to everybody, 2 and 3 only to them: a ring with one chord."""
    graph = nx.cycle_graph([0, 2, 1, 3])
    graph.add_edge(0, 1)
    return graph


async def main() -> None:
    """Four peers over that graph."""
    with tempfile.TemporaryDirectory() as folder:
        files = [write_patients(Path(folder) / f"{seed}.csv", 60, seed) for seed in range(4)]
        async with p2pfl.local(PLAN, files, peers=4) as peers:
            nodes = peers[0].roster.peer_ids  # the charter's order; numbers in the graph are positions in it
            spec = spec_from_graph(own_graph(), nodes)
            print(f"topology: {spec}")
            graph = build_graph(spec, nodes)
            print(f"spectral gap: {spectral_gap(metropolis_hastings(graph)):.3f} (1 is full averaging)")
            print(f"absences that would disconnect the rest: {len(absences_that_disconnect(graph, 1))} of one site")
            runs = await peers.run(topology=spec, rounds=6, seed=3)
            for peer, run in zip(peers, runs, strict=True):
                report = run.report()
                print(f"{peer.name}: {len(graph[peer.peer_id])} neighbours, {report['bytes_sent']} bytes sent")


if __name__ == "__main__":
    asyncio.run(main())
