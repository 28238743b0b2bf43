"""The schedule of a run: for each round the active sites and the mixings, in order, one after the other.

A pure function of spec, order of the sites, shares and round number; every mixing keeps sum_i pi_i x_i, where pi are
the sample shares unless the spec chooses other weights (weighting.py). Directed ones keep that sum and not agreement:
there rules mix a weight alike and divide by it (pushing.py).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

import networkx as nx
import numpy as np
from scipy import sparse

from p2pfl.errors import ConfigError, IllegalStep
from p2pfl.topology.chebyshev import accelerated_contraction, accelerates, chebyshev_weights, common_rho
from p2pfl.topology.delays import with_delays
from p2pfl.topology.graphs import (
    Pair,
    build_graph,
    check_sites,
    clusters_of,
    full_pairs,
    graph_of,
    pairs_of,
    period_of,
    ring_pairs,
)
from p2pfl.topology.mixing import Mixing, law_of, stretched
from p2pfl.topology.pushing import given_up, readings, to_all
from p2pfl.topology.spectral import contraction
from p2pfl.topology.weighting import by_shares, weighting_of
from p2pfl.types import PeerId

WEIGHTS_FORGET = 256  # rounds after which push-sum's weights do not depend on the first ones, by far
MIXINGS_KEPT = 64  # of rounds that differ; the heads of clusters of sizes 7, 8, 9 would have 504


@dataclass(frozen=True, slots=True)
class Round:
    """What happens in one round: who takes part, the mixings in their order, and if sites train first.

    ``inertia``: in accelerated closing rounds, the part of the last round's displacement that each site adds once more.
    """

    active: frozenset[PeerId]
    mixings: tuple[Mixing, ...]
    training: bool
    inertia: float | None = None


class Schedule:
    """All rounds of a run: ``rounds`` with training, then ``closing_rounds`` that only mix.

    Static graphs mix once per round, and so do the kinds whose graph is another one in each round (changing.py).
    Hierarchical ones mix twice: first all inside each cluster, then, in each round whose number the spec's ``period``
    divides, the heads of the clusters on a ring; when they mix for the t-th time the head of a cluster of size a is its
    member t mod a.

    Of the kind cyclic one model walks: in training round t site t modulo n is active, and gives all to the next one; in
    closing rounds each site takes pi_j of each other one, so that one round brings the model to all.

    With ``closing = "chebyshev"`` in the spec closing round k mixes with I + w_k (W - I) and has the inertia w_k - 1
    (chebyshev.py): W is that of the training rounds, its rho is rounded up to a grid.
    """

    def __init__(
        self,
        spec: Mapping[str, Any],
        nodes: Sequence[PeerId],
        shares: Mapping[PeerId, float],
        rounds: int,
        closing_rounds: int,
        staleness: int = 0,
        *,
        linked_over: int | None = None,
    ) -> None:
        """``shares`` are sample shares, one per site. ConfigError for whatever does not fit together.

        ``staleness``: rounds that an edge may be mixed late; the weights of training rounds are smaller then.
        ``linked_over``: rounds whose union ``graph`` is, where the graph changes; None: those of this run.
        """
        if rounds < 1 or closing_rounds < 0:
            raise ConfigError(
                f"{rounds} rounds and {closing_rounds} closing rounds; give at least one round and no negative number"
            )
        self._spec, self._staleness = spec, staleness
        self.nodes = tuple(nodes)
        self.rounds = rounds
        self.closing_rounds = closing_rounds
        self._changing = check_sites(spec, self.nodes)
        met_in = rounds if self.walks else self.total
        self._linked_over = met_in if linked_over is None else linked_over
        hierarchical = spec["kind"] == "hierarchical"
        self.same_each_round = self._changing is None and not hierarchical  # one mixing, on one graph
        self.changes = self._changing is not None or (hierarchical and period_of(spec) > 1)  # some meet seldom
        if staleness and not self.same_each_round:
            raise ConfigError(
                "asynchronous runs mix once per round, on the same graph in all rounds; that of a topology of the kind "
                f"{spec['kind']} changes: choose another topology, or the synchronous policy"
            )
        self.accelerated = accelerates(spec)  # the closing rounds
        if staleness and self.accelerated:
            raise ConfigError(
                "asynchronous runs close plainly: a site may still be training while the others close; give closing = "
                '"plain", or the synchronous policy'
            )
        self._shares = law_of(self.nodes, shares)
        self._everybody = frozenset(self.nodes)
        self._kept: OrderedDict[Hashable, Mixing] = OrderedDict()
        self._rounds: dict[tuple[bool, Hashable], Round] = {}
        self._contraction: dict[bool, float] = {}
        self._clusters: tuple[tuple[int, ...], ...] = ()
        self._period = 1
        if hierarchical:
            self._clusters, self._period = clusters_of(spec, len(self.nodes)), period_of(spec)
        self._prepare()

    def _prepare(self) -> None:
        """What is the same in all rounds, if anything is, and what no round can be computed without."""
        pairs = pairs_of(self.graph) if self.same_each_round else None
        self._weighting = weighting_of(self._spec, self._shares, pairs)
        if self._changing is not None:
            self._changing.check_connected(self._linked_over)
            self.round(0)  # refuses shares that the kind does not go with
            return
        inside = [pair for cluster in self._clusters for pair in full_pairs(cluster)]
        self._static = self._mixing(inside if pairs is None else pairs)
        self._late = with_delays(self._static, self._staleness)  # the training rounds' mixing; the same one if it is 0
        self._growing: list[float] = []
        if self.accelerated and self.closing_rounds:
            self._growing = chebyshev_weights(common_rho(self._static.matrix, self.law), self.closing_rounds)

    @cached_property
    def graph(self) -> nx.Graph:
        """The union over all rounds: whom each site mixes with some time. Not to be changed."""
        if self._changing is None:
            return build_graph(self._spec, self.nodes)
        return graph_of(self.nodes, self.edges.tolist())

    @cached_property
    def edges(self) -> Any:
        """The edges of ``graph`` as positions, int64 [m, 2]: of thousands of sites the graph itself takes gigabytes."""
        if self._changing is not None:
            return self._changing.union(self._linked_over)
        return np.array(pairs_of(self.graph), dtype=np.int64).reshape(-1, 2)

    @property
    def degrees(self) -> Any:
        """How many others each site mixes with some time, int64 [n]."""
        return np.bincount(self.edges.ravel(), minlength=len(self.nodes))

    @property
    def directed(self) -> bool:
        """Whether sites may give other amounts over an edge than they take: push-sum alone goes with that."""
        return self._changing is not None and self._changing.given is not None

    @property
    def walks(self) -> bool:
        """Whether one model walks from site to site, so that in each round one of them alone has it and trains."""
        return self._changing is not None and self._changing.walks

    def weights_before(self, t: int) -> tuple[float, ...]:
        """Push-sum's weight that each site begins with if round ``t`` is the first one, in the order of ``nodes``.

        1, or where one model walks 1 / pi_i at the site that has it, and 0 at all others: sum_i pi_i w_i = 1.
        """
        if not self.walks:
            return (1.0,) * len(self.nodes)
        place = min(t, self.rounds) % len(self.nodes)
        return tuple(sum(self.law) / pi if site == place else 0.0 for site, pi in enumerate(self.law))

    def steps_of(self, peer: PeerId, usual: int) -> int:
        """Local steps of a site in a round in which it trains, at least 1, where ``usual`` are the plan's (0 stays 0).

        The same of all; of a model that walks n pi_i times as many, since it is as often at each site, and the steps
        decide what each one counts.
        """
        if not self.walks or peer not in self._everybody or not usual:
            return usual
        return max(1, round(usual * len(self.nodes) * self.law[self.nodes.index(peer)] / sum(self.law)))

    @property
    def shares(self) -> tuple[float, ...]:
        """Sample share of each site, in the order of ``nodes``."""
        return tuple(self._shares)

    @property
    def law(self) -> tuple[float, ...]:
        """What each site counts in the mean that mixing keeps, and in the loss that training minimises, in that order.

        The shares themselves, or numbers that sum to 1 where the spec's weights are others.
        """
        return tuple(self._weighting.law)

    @property
    def by_shares(self) -> bool:
        """Whether the law is the sample shares by the choice of weights."""
        return by_shares(self._spec)

    @property
    def total(self) -> int:
        """Training and closing rounds together."""
        return self.rounds + self.closing_rounds

    def closing_contraction(self, *, halved: bool = False) -> float:
        """How much of the disagreement the closing rounds leave at most, if nobody is absent: 0 to 1, if what they mix
        keeps the law; above 1 where directed ones bring next to nothing together.

        With the law pi, x_bar = sum_i pi_i x_i and D^2 = sum_i pi_i |x_i - x_bar|^2:

            D(after) <= closing_contraction * D(before)

        ``halved``: of a rule that mixes with (I + W) / 2. Of directed schedules x is what push-sum reads, whose weights
        are those of a run in which nobody was absent before either, so many rounds back that they do not know more.
        """
        if self.accelerated and halved:
            raise ConfigError('a rule that mixes with (I + W) / 2 closes plainly; give closing = "plain"')
        if self.accelerated and halved not in self._contraction:
            self._contraction[halved] = accelerated_contraction(self._static.matrix, self._growing, self.law)
        if halved not in self._contraction and self.directed:
            first = max(0, self.rounds - WEIGHTS_FORGET)
            pushed = (self.round(t).mixings[0].matrix for t in range(first, self.total))
            read = readings(pushed, self.weights_before(first))
            self._contraction[halved] = contraction(list(islice(read, self.rounds - first, None)), self.law, read=True)
        if halved not in self._contraction:
            mixings = [mixing.matrix for t in range(self.rounds, self.total) for mixing in self.round(t).mixings]
            if halved:
                mixings = [(matrix + sparse.eye_array(len(self.nodes), format="csr")) / 2 for matrix in mixings]
            self._contraction[halved] = contraction(mixings, self.law)
        return self._contraction[halved]

    def inertias(self, until: int) -> tuple[tuple[int, float], ...]:
        """(round, inertia) of the closing rounds before ``until``; empty where they are not accelerated."""
        if not self.accelerated:
            return ()
        return tuple((self.rounds + k, self._growing[k] - 1.0) for k in range(min(until, self.total) - self.rounds))

    def stopped(self, rounds: int) -> Schedule:
        """The same with fewer training rounds, the closing rounds right after them; sites stay linked as they were."""
        shares = dict(zip(self.nodes, self._shares, strict=True))
        return Schedule(
            self._spec, self.nodes, shares, rounds, self.closing_rounds, self._staleness, linked_over=self._linked_over
        )

    def round(self, t: int) -> Round:
        """Round ``t``, from 0; equal rounds share their objects. IllegalStep unless 0 <= t < total."""
        if not 0 <= t < self.total:
            raise IllegalStep(f"round {t} is not in this schedule; ask for 0 to {self.total - 1}")
        training = t < self.rounds
        key = (training, self._kind_of_round(t))
        if key not in self._rounds:
            if len(self._rounds) >= 2 * MIXINGS_KEPT:
                self._rounds.clear()
            inertia = None if training or not self.accelerated else self._growing[t - self.rounds] - 1.0
            self._rounds[key] = Round(self._active(t), self._mixings(t, training), training, inertia)
        return self._rounds[key]

    def _active(self, t: int) -> frozenset[PeerId]:
        if self.walks and t < self.rounds:
            return frozenset({self.nodes[t % len(self.nodes)]})
        return self._everybody

    def _kind_of_round(self, t: int) -> Hashable:
        """Equal for equal rounds."""
        if self.walks and t >= self.rounds:
            return "closing"
        if self._changing is not None:
            return t % self._changing.cycle if self._changing.cycle else t
        if self.accelerated and t >= self.rounds:
            return t
        return self._heads(t)

    def _heads(self, t: int) -> tuple[int, ...]:
        """Who mixes for the clusters in round t; nobody between the rounds in which they mix."""
        if len(self._clusters) < 2 or t % self._period:
            return ()
        return tuple(cluster[t // self._period % len(cluster)] for cluster in self._clusters)

    def _mixings(self, t: int, training: bool) -> tuple[Mixing, ...]:
        if self._changing is not None:
            return (self._known(self._kind_of_round(t), t),)
        if self.accelerated and not training and self._growing[t - self.rounds] != 1.0:
            return (Mixing(self.nodes, stretched(self._static.matrix, self._growing[t - self.rounds])),)
        heads = self._heads(t)
        if not heads:
            return (self._late if training else self._static,)
        alone = len(heads) == len(self.nodes)  # clusters of one site each: nothing to mix inside
        return (self._known(heads, t),) if alone else (self._static, self._known(heads, t))

    def _known(self, kind: Hashable, t: int) -> Mixing:
        if kind not in self._kept:
            if len(self._kept) >= MIXINGS_KEPT:
                self._kept.popitem(last=False)
            if self.walks and t >= self.rounds:
                everywhere = to_all(self._weighting.law)
                self._kept[kind] = Mixing(self.nodes, everywhere, given_up(everywhere.T))
            elif self._changing is not None:
                given = self._changing.given(t) if self._changing.given is not None else None
                self._kept[kind] = Mixing(self.nodes, self._changing.matrix(t, self._weighting.law), given)
            else:
                self._kept[kind] = self._mixing(ring_pairs(self._heads(t)))
        return self._kept[kind]

    def _mixing(self, pairs: Sequence[Pair]) -> Mixing:
        return Mixing(self.nodes, self._weighting.matrix(np.array(pairs, dtype=np.int64)))
