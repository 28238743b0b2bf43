"""The schedule: for each round the active sites and the mixing matrices.

It follows from the start record and the round number alone, so every peer computes the same one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import networkx as nx

from p2pfl.errors import ConfigError, LocalError
from p2pfl.topology.graphs import build_graph, clusters_of, head_ring
from p2pfl.topology.mixing import Mixing, stationary_weights
from p2pfl.types import PeerId


@dataclass(frozen=True, slots=True)
class Round:
    """One round: who trains, and the mixing steps in their order. ``training`` is False while closing."""

    active: frozenset[PeerId]
    mixings: tuple[Mixing, ...]
    training: bool


class Schedule:
    """Rounds 0 to ``total - 1``: first training rounds, then closing rounds that only mix. Raises ConfigError."""

    def __init__(
        self,
        spec: Mapping[str, Any],
        nodes: Sequence[PeerId],
        shares: Mapping[PeerId, float],
        rounds: int,
        closing_rounds: int,
    ) -> None:
        if rounds < 0 or closing_rounds < 0:
            raise ConfigError("rounds and closing rounds must be 0 or more")
        self.nodes = tuple(nodes)
        self.rounds = rounds
        self.closing_rounds = closing_rounds
        self.graph = build_graph(spec, self.nodes)
        self._shares = dict(shares)
        self._all = frozenset(self.nodes)
        self._clusters = clusters_of(spec, self.nodes) if spec.get("kind") == "hierarchical" else None
        self._mixing = lru_cache(maxsize=1024)(self._build)

    @property
    def total(self) -> int:
        """Training and closing rounds together."""
        return self.rounds + self.closing_rounds

    def round(self, number: int) -> Round:
        """The round with this number. Raises LocalError outside 0 to ``total - 1``."""
        if not 0 <= number < self.total:
            raise LocalError(f"round {number} is outside the run's {self.total} rounds")
        if self._clusters is None:
            mixings = (self._mixing(None),)
        else:
            heads = tuple(number % len(cluster) for cluster in self._clusters)
            mixings = (self._mixing(None), self._mixing(heads)) if len(heads) > 1 else (self._mixing(None),)
        return Round(self._all, mixings, number < self.rounds)

    def _build(self, heads: tuple[int, ...] | None) -> Mixing:
        graph = self.graph
        if self._clusters is not None:
            graph = nx.Graph()
            graph.add_nodes_from(self.nodes)
            if heads is None:
                for members in self._clusters:
                    graph.add_edges_from((one, other) for i, one in enumerate(members) for other in members[i + 1 :])
            else:
                chosen = [[cluster[head]] for cluster, head in zip(self._clusters, heads, strict=True)]
                graph.add_edges_from(head_ring(chosen, 0))
        return Mixing(self.nodes, stationary_weights(graph, self._shares))
