"""How many rounds the rules need on random quadratics, beside the figures of the RelaySGD paper's own code.

    python benchmarks/quadratic_race.py                        # n = 6, 12, 24, a minute
    python benchmarks/quadratic_race.py --sites 48 --json

f(x) = mean_i |A_i x - b_i|^2 in 10 dimensions, singular values of A_i from 0.5 to 1, mean_i |grad f_i(x*)|^2 = 1, start
at distance 100 of the optimum, no noise, one step per round. Counted: rounds until f(mean x) - f* < 1e-6, for each
instance with the learning rate that needs fewest, of a geometric grid. The rules are those of `p2pfl.train.rules`, run
on all instances and learning rates at once, [instances, rates, n, P].
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, islice
from typing import Any, cast

import networkx as nx
import numpy as np
import torch
from torch import Tensor

from p2pfl.topology import Schedule, stationary_weights
from p2pfl.train.rules import (
    DPSGD,
    SGP,
    WEIGHT,
    Context,
    ExactDiffusion,
    Gradient,
    GradientTracking,
    Graph,
    Inbox,
    Messages,
    RelaySGD,
    State,
)
from p2pfl.types import PeerId

SIZE, DISTANCE, UNLIKE, ENOUGH, MOST = 10, 100.0, 1.0, 1e-6, 20_000
RATES = tuple(2.0 ** (k / 3) for k in range(-24, 10))  # 0.004 to 8
COARSE = RATES[::3]  # ratio 2


class PaddedRelays(RelaySGD):
    """As the paper has it: while relays are under way their share is filled with the first model, which is 0 here."""

    def merge(self, state: State, x: Tensor, ctx: Context, inbox: Inbox) -> tuple[State, Tensor]:
        """pi x + s."""
        arrived = inbox.total("relay")
        return {**state, "relay": arrived}, state["share"] * x + arrived[..., :-1]


@dataclass(frozen=True)
class Column:
    """One rule on one graph. ``doubled``: with 2 W - I in place of W, which makes exact diffusion D2.

    On the graph "exponential" two rounds of one peer each follow one step, as in the paper.
    """

    rule: Any
    graph: str
    doubled: bool = False
    rates: Sequence[float] = RATES


COLUMNS: Mapping[str, Column] = {
    "all-reduce": Column(DPSGD, "full"),
    "relay tree": Column(RelaySGD, "tree"),
    "relay chain": Column(RelaySGD, "chain"),
    "relay chain, as published": Column(PaddedRelays, "chain"),
    "D2 ring": Column(ExactDiffusion, "ring", doubled=True, rates=COARSE),
    "D2 ring, finer rates": Column(ExactDiffusion, "ring", doubled=True),
    "exact diffusion ring": Column(ExactDiffusion, "ring"),
    "GT ring": Column(GradientTracking, "ring"),
    "GT tree": Column(GradientTracking, "tree"),
    "SGP": Column(SGP, "exponential"),
}
COMPARED = ("all-reduce", "relay tree", "relay chain, as published", "D2 ring", "GT ring", "GT tree", "SGP")
PUBLISHED: Mapping[int, Mapping[str, float]] = {
    6: dict(zip(COMPARED, (8.9, 15.2, 20.8, 19.6, 49.0, 156.0, 1078.9), strict=True)),
    12: dict(zip(COMPARED, (7.5, 20.9, 38.1, 43.1, 199.0, 406.2, 1237.8), strict=True)),
    24: dict(zip(COMPARED, (6.8, 26.8, 70.1, 79.3, 699.7, 883.2, 617.4), strict=True)),
    48: dict(zip(COMPARED, (6.2, 32.8, 127.6, 179.6, 2539.0, 1750.7, 539.8), strict=True)),
}
"""Mean rounds of ten instances, run with the notebooks of github.com/epfml/relaysgd (paper-figures)."""


class Race:
    """Instances [s, 1, n, ...] of n sites."""

    def __init__(self, sites: int, seeds: Sequence[int], distance: float = DISTANCE) -> None:
        drawn = zip(*(self._instance(sites, seed, distance) for seed in seeds), strict=True)
        self.curvature, self.centre, self.optimum = (torch.stack(parts).unsqueeze(1) for parts in drawn)
        self.mean = self.curvature.mean(2)

    @staticmethod
    def _instance(sites: int, seed: int, distance: float) -> tuple[Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        u, _, v = torch.linalg.svd(torch.randn(sites, SIZE, SIZE, generator=generator, dtype=torch.float64))
        a = u * torch.linspace(0.5, 1.0, SIZE, dtype=torch.float64) @ v
        curvature = a.mT @ a
        centre = torch.randn(sites, SIZE, generator=generator, dtype=torch.float64)
        pulled = (curvature @ centre.unsqueeze(-1)).sum(0)
        centre = centre - torch.linalg.solve(curvature.sum(0), pulled).squeeze(-1)
        unlike = (curvature @ centre.unsqueeze(-1)).squeeze(-1).square().sum(-1).mean()
        direction = torch.randn(SIZE, generator=generator, dtype=torch.float64)
        optimum = distance * direction / direction.norm()
        return curvature, centre * (UNLIKE / unlike).sqrt() + optimum, optimum

    def gradient(self, x: Tensor, k: int) -> Gradient:
        """A'(A x - b), without the factor 2."""
        grad = (self.curvature @ (x - self.centre).unsqueeze(-1)).squeeze(-1)
        return Gradient(grad, grad.new_zeros(grad.shape[:-1]))

    def error(self, x: Tensor) -> Tensor:
        """f(mean x) - f*, [instances, rates]."""
        gap = (x.mean(-2) - self.optimum).unsqueeze(-1)
        return (gap.mT @ self.mean @ gap).squeeze(-1).squeeze(-1)


class Rated:
    """SGD with a learning rate for each of many runs."""

    name = "sgd"

    def init(self, x: Tensor) -> dict[str, Tensor]:
        """No state."""
        return {}

    def step(self, state: dict[str, Tensor], x: Tensor, grad: Tensor, lr: Any) -> tuple[dict[str, Tensor], Tensor]:
        """x - lr g, lr [rates, 1, 1]."""
        return state, x - lr * grad


class Mixed:
    """Graph and inbox of many runs on one graph; messages are [..., n, p]."""

    def __init__(self, graph: nx.Graph, doubled: bool, pushes: Sequence[Tensor] = ()) -> None:
        """``pushes``: the matrices of the rounds of a directed graph, which are then mixed in place of the edges."""
        nodes = list(graph)
        share = 1.0 / len(nodes)
        weights = torch.from_numpy(stationary_weights(graph, dict.fromkeys(nodes, share)).toarray())
        weights.fill_diagonal_(0.0)
        moves = (2.0 if doubled else 1.0) * (weights - torch.diag(weights.sum(1)))
        self._moves = [push - torch.eye(len(nodes), dtype=torch.float64) for push in pushes] or [moves]
        self.share = torch.full((len(nodes), 1), share, dtype=torch.float64)
        edges = sorted([*graph.edges, *((j, i) for i, j in graph.edges)])
        self._senders = torch.tensor([i for i, _ in edges])
        self._opposite = torch.tensor([edges.index((j, i)) for i, j in edges])
        self._arrive = torch.zeros(len(nodes), len(edges), dtype=torch.float64)
        self._arrive[torch.tensor([j for _, j in edges]), torch.arange(len(edges))] = 1.0
        self._last: Tensor | None = None
        self._messages: Messages = {}
        self._round = -1

    def take(self, messages: Messages) -> Mixed:
        """The next round's."""
        self._messages, self._round = messages, self._round + 1
        return self

    def pull(self, channel: str) -> Tensor:
        """Displacements."""
        message = self._messages[channel]
        if WEIGHT in self._messages and channel != WEIGHT:
            message = message * self._messages[WEIGHT]
        return self._moves[self._round % len(self._moves)] @ message

    def total(self, channel: str) -> Tensor:
        """The relays' sums."""
        sent = self._messages[channel].index_select(-2, self._senders)
        self._last = sent if self._last is None else sent - self._last.index_select(-2, self._opposite)
        return self._arrive @ self._last


def graph_named(name: str, sites: int) -> nx.Graph:
    """The tree: node k >= 2 has the parent k // 2, and node 0 hangs on 1."""
    if name == "tree":
        parents = {node: node // 2 for node in range(2, sites)} | {1: 0}
        graph = nx.empty_graph(sites)
        graph.add_edges_from(parents.items())
        return graph
    if name == "hypercube":
        return nx.convert_node_labels_to_integers(nx.hypercube_graph(sites.bit_length() - 1))
    if name == "exponential":
        return nx.complete_graph(sites)
    return {"full": nx.complete_graph, "ring": nx.cycle_graph, "chain": nx.path_graph}[name](sites)


def pushes_of(column: Column, sites: int) -> list[Tensor]:
    """Of a directed graph what each step mixes, two rounds at once, until they begin again."""
    if column.graph != "exponential":
        return []
    nodes = [PeerId(f"{site:04d}") for site in range(sites)]
    rounds = 2 * (sites - 1).bit_length()
    schedule = Schedule({"kind": "exponential"}, nodes, dict.fromkeys(nodes, 1.0), rounds, 0)
    matrices = [torch.from_numpy(schedule.round(t).mixings[0].matrix.toarray()) for t in range(rounds)]
    return [later @ first for first, later in zip(matrices[::2], matrices[1::2], strict=True)]


def errors(race: Race, column: Column, sites: int, steps: int = 1) -> Iterator[Tensor]:
    """f(mean x) - f* after each round, [instances, rates]."""
    rule, world = (
        column.rule(Rated()),
        Mixed(graph_named(column.graph, sites), column.doubled, pushes_of(column, sites)),
    )
    rate = torch.tensor(column.rates, dtype=torch.float64).reshape(-1, 1, 1)
    x = torch.zeros(len(race.optimum), len(rate), sites, SIZE, dtype=torch.float64)
    world.share = world.share.expand(*x.shape[:-1], 1)
    state = rule.init(x, cast(Graph, world))
    for number in count():
        context = Context(number, cast(float, rate), steps)
        state, x = rule.local(state, x, context, race.gradient)
        state, messages = rule.send(state, x, context, cast(Graph, world))
        state, x = rule.merge(state, x, context, world.take(messages))
        yield race.error(x)


def rounds_needed(race: Race, column: Column, sites: int) -> list[int]:
    """Of each instance with its best learning rate; MOST + 1 where none comes that far."""
    needed = [MOST + 1] * len(race.optimum)
    for number, error in enumerate(islice(errors(race, column, sites), MOST)):
        for seed in (error < ENOUGH).any(1).nonzero().flatten().tolist():
            needed[seed] = min(needed[seed], number + 1)
        if max(needed) <= MOST:
            break
    return needed


def table(sites: Sequence[int], seeds: Sequence[int], columns: Sequence[str] = tuple(COLUMNS)) -> list[dict[str, Any]]:
    """One row for each number of sites and column."""
    rows = []
    for n in sites:
        race = Race(n, seeds)
        for name in columns:
            found = rounds_needed(race, COLUMNS[name], n)
            published = PUBLISHED.get(n, {}).get(name)
            mean = float(np.mean(found))
            row = {"sites": n, "column": name, "mean": mean, "least": min(found), "most": max(found)}
            rows.append({**row, "published": published, "ratio": None if published is None else mean / published})
    return rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=int, nargs="+", default=[6, 12, 24])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    rows = table(given.sites, range(given.seeds))
    if given.json:
        print(json.dumps(rows))
        return
    print("| n | rule and graph | rounds | least to most | published | ratio |\n|---|---|---|---|---|---|")
    for row in rows:
        published = "-" if row["published"] is None else f"{row['published']:.1f}"
        ratio = "-" if row["ratio"] is None else f"{row['ratio']:.2f}"
        print(
            f"| {row['sites']} | {row['column']} | {row['mean']:.1f} | {row['least']} to {row['most']} | {published} "
            f"| {ratio} |"
        )


if __name__ == "__main__":
    main()
