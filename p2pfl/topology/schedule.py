"""The schedule of a run: for each round the active sites and the mixings, in order, one after the other.

A pure function of spec, order of the sites, shares and round number; every mixing keeps sum_i pi_i x_i.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import networkx as nx
from scipy import sparse

from p2pfl.errors import ConfigError, IllegalStep
from p2pfl.topology.delays import with_delays
from p2pfl.topology.graphs import Pair, build_graph, clusters_of, full_pairs, ring_pairs
from p2pfl.topology.mixing import Mixing, stationary_weights
from p2pfl.topology.spectral import contraction
from p2pfl.types import PeerId

HEAD_MIXINGS_KEPT = 64  # rotations of the heads in memory; clusters of sizes 7, 8, 9 would have 504


@dataclass(frozen=True, slots=True)
class Round:
    """What happens in one round: who takes part, the mixings in their order, and if sites train first."""

    active: frozenset[PeerId]
    mixings: tuple[Mixing, ...]
    training: bool


class Schedule:
    """All rounds of a run: ``rounds`` with training, then ``closing_rounds`` that only mix.

    Static graphs mix once per round. Hierarchical ones mix twice: first all inside each cluster, then the
    heads of the clusters on a ring, the head of a cluster of size a in round t being its member t mod a.
    """

    def __init__(
        self,
        spec: Mapping[str, Any],
        nodes: Sequence[PeerId],
        shares: Mapping[PeerId, float],
        rounds: int,
        closing_rounds: int,
        staleness: int = 0,
    ) -> None:
        """``shares`` are sample shares, one per site. ConfigError for whatever does not fit together.

        ``staleness``: rounds that an edge may be mixed late; the weights of training rounds are smaller then.
        """
        if rounds < 1 or closing_rounds < 0:
            raise ConfigError(
                f"{rounds} rounds and {closing_rounds} closing rounds; give at least one round and no negative number"
            )
        self._spec, self._staleness = spec, staleness
        self.nodes = tuple(nodes)
        self.rounds = rounds
        self.closing_rounds = closing_rounds
        self.graph: nx.Graph = build_graph(spec, self.nodes)
        self._shares = {node: shares[node] for node in self.nodes if node in shares}
        self._active = frozenset(self.nodes)
        self._heads: OrderedDict[tuple[int, ...], Mixing] = OrderedDict()
        self._rounds: dict[tuple[bool, tuple[int, ...]], Round] = {}
        self._contraction: dict[bool, float] = {}
        self._clusters: tuple[tuple[int, ...], ...] = ()
        if staleness and spec["kind"] == "hierarchical":
            raise ConfigError(
                "asynchronous runs mix once per round, on the same graph in all rounds; a hierarchical topology mixes "
                "twice, with heads that change: choose another topology, or the synchronous policy"
            )
        if spec["kind"] == "hierarchical":
            self._clusters = clusters_of(spec, len(self.nodes))
            inside = [pair for cluster in self._clusters for pair in full_pairs(cluster)]
            self._static = self._mixing(inside)
        else:
            self._static = Mixing(self.nodes, stationary_weights(self.graph, self._shares))
        self._late = with_delays(self._static, staleness)  # the training rounds' mixing; the same one if staleness is 0

    @property
    def shares(self) -> tuple[float, ...]:
        """Sample share of each site, in the order of ``nodes``."""
        return tuple(self._shares[node] for node in self.nodes)

    @property
    def total(self) -> int:
        """Training and closing rounds together."""
        return self.rounds + self.closing_rounds

    @property
    def varying(self) -> bool:
        """Whether rounds mix more than once, or otherwise from round to round."""
        return len(self._clusters) > 1

    def closing_contraction(self, *, halved: bool = False) -> float:
        """How much of the disagreement the closing rounds leave at most, if nobody is absent: 0 to 1.

        With x_bar = sum_i pi_i x_i and D^2 = sum_i pi_i |x_i - x_bar|^2:  D(after) <= closing_contraction * D(before).
        ``halved``: of a rule that mixes with (I + W) / 2.
        """
        if halved not in self._contraction:
            mixings = [mixing.matrix for t in range(self.rounds, self.total) for mixing in self.round(t).mixings]
            if halved:
                mixings = [(matrix + sparse.eye_array(len(self.nodes), format="csr")) / 2 for matrix in mixings]
            self._contraction[halved] = contraction(mixings, [self._shares[node] for node in self.nodes])
        return self._contraction[halved]

    def stopped(self, rounds: int) -> Schedule:
        """The same with fewer training rounds, the closing rounds right after them."""
        return Schedule(self._spec, self.nodes, self._shares, rounds, self.closing_rounds, self._staleness)

    def round(self, t: int) -> Round:
        """Round ``t``, from 0; equal rounds share their objects. IllegalStep unless 0 <= t < total."""
        if not 0 <= t < self.total:
            raise IllegalStep(f"round {t} is not in this schedule; ask for 0 to {self.total - 1}")
        heads = tuple(cluster[t % len(cluster)] for cluster in self._clusters)
        training = t < self.rounds
        key = (training, heads)
        if key not in self._rounds:
            if len(self._rounds) >= 2 * HEAD_MIXINGS_KEPT:
                self._rounds.clear()
            self._rounds[key] = Round(self._active, self._mixings(heads, training), training)
        return self._rounds[key]

    def _mixings(self, heads: tuple[int, ...], training: bool) -> tuple[Mixing, ...]:
        if len(heads) < 2:
            return (self._late if training else self._static,)
        if heads not in self._heads:
            if len(self._heads) >= HEAD_MIXINGS_KEPT:
                self._heads.popitem(last=False)
            self._heads[heads] = self._mixing(ring_pairs(heads))
        among_heads = self._heads[heads]
        alone = len(heads) == len(self.nodes)  # clusters of one site each: nothing to mix inside
        return (among_heads,) if alone else (self._static, among_heads)

    def _mixing(self, pairs: Sequence[Pair]) -> Mixing:
        graph = nx.Graph()
        graph.add_nodes_from(self.nodes)
        graph.add_edges_from((self.nodes[one], self.nodes[other]) for one, other in pairs)
        return Mixing(self.nodes, stationary_weights(graph, self._shares))
