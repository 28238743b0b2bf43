"""Small worlds for the tests of train/: quadratic sites, mixing edges, plans as source text."""

from __future__ import annotations

import torch
from torch import Tensor

from p2pfl.train.mixing import PeerGraph, PeerInbox, VectorGraph, VectorInbox, VectorRelays
from p2pfl.train.relays import Relays, relay_size, relay_tag
from p2pfl.train.rules import Context, Gradient, Rule

QUADRATIC_PLAN = b"""
import torch
from torch import nn

SIZE = 4

def load(path):
    generator = torch.Generator().manual_seed(int(path.stem))
    root = torch.randn(SIZE, SIZE, generator=generator, dtype=torch.float64)
    curvature = torch.eye(SIZE, dtype=torch.float64) + root @ root.T / SIZE
    centre = 3 * torch.randn(SIZE, generator=generator, dtype=torch.float64)
    return {"train": (curvature[None], centre[None])}

class Point(nn.Module):
    def __init__(self):
        super().__init__()
        self.place = nn.Parameter(torch.zeros(SIZE))

def model():
    return Point()

def loss(model, batch):
    curvature, centre = batch
    gap = model.place - centre
    return 0.5 * torch.einsum("bi,bij,bj->b", gap, curvature, gap)
"""

CLASSIFIER_PLAN = b"""
import torch
from torch import nn

def load(path):
    generator = torch.Generator().manual_seed(int(path.stem))
    inputs = torch.randn(60, 6, generator=generator)
    labels = (inputs[:, 0] + 0.3 * torch.randn(60, generator=generator) > 0).long()
    return {"train": (inputs[:40], labels[:40]), "test": (inputs[40:], labels[40:])}

def model():
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))

def loss(model, batch):
    inputs, labels = batch
    return nn.functional.cross_entropy(model(inputs), labels, reduction="none")

def metrics(model, batch):
    inputs, labels = batch
    return {"accuracy": (model(inputs).argmax(-1) == labels).double().mean()}
"""


class Quadratic:
    """f_i(x) = (x - b_i)' A_i (x - b_i) / 2 for n sites of unequal shares."""

    def __init__(self, sites: int, seed: int = 0, size: int = 4) -> None:
        generator = torch.Generator().manual_seed(seed)
        root = torch.randn(sites, size, size, generator=generator, dtype=torch.float64)
        self.curvature = torch.eye(size, dtype=torch.float64) + root @ root.mT / size
        self.centre = 3 * torch.randn(sites, size, generator=generator, dtype=torch.float64)
        shares = 1.0 + torch.arange(sites, dtype=torch.float64)
        self.shares = shares / shares.sum()
        self.size = size

    @property
    def optimum(self) -> Tensor:
        """Where sum_i pi_i grad f_i = 0."""
        return weighted_optimum(self.curvature, self.centre, self.shares)

    def oracle(self, site: int | None = None):
        """Full gradient: of all sites on [n, P], or of one on [P]."""
        curvature = self.curvature if site is None else self.curvature[site]
        centre = self.centre if site is None else self.centre[site]

        def gradient(x: Tensor, k: int) -> Gradient:
            gap = (x - centre).unsqueeze(-1)
            grad = (curvature @ gap).squeeze(-1)
            return Gradient(grad, (grad * gap.squeeze(-1)).sum(-1) / 2)

        return gradient


def weighted_optimum(curvature: Tensor, centre: Tensor, shares: Tensor) -> Tensor:
    weight = shares[:, None, None] * curvature
    return torch.linalg.solve(weight.sum(0), (weight @ centre.unsqueeze(-1)).sum(0)).squeeze(-1)


def edges_of(kind: str, sites: int) -> list[tuple[int, int]]:
    """Undirected edges."""
    if kind == "ring":
        return sorted({tuple(sorted((i, (i + 1) % sites))) for i in range(sites) if sites > 1})
    if kind == "full":
        return [(i, j) for i in range(sites) for j in range(i + 1, sites)]
    return [((i - 1) // 2, i) for i in range(1, sites)]  # a binary tree


def stationary_edges(kind: str, shares: Tensor) -> list[tuple[int, int, float]]:
    """(receiver, sender, w_ij = pi_j / max(s_i, s_j)), s_i = the shares of i and its neighbours."""
    pairs = edges_of(kind, len(shares))
    share = shares.tolist()
    around = list(share)
    for i, j in pairs:
        around[i] += share[j]
        around[j] += share[i]
    both = pairs + [(j, i) for i, j in pairs]
    return [(i, j, share[j] / max(around[i], around[j])) for i, j in both]


def run_stacked(rule: Rule, world: Quadratic, graph: VectorGraph, rounds: int, lr: float, steps: int):
    """All sites as rows of [n, P]."""
    x = torch.zeros(graph.sites, world.size, dtype=torch.float64)
    state, relays = rule.init(x, graph), VectorRelays(graph)
    for number in range(rounds):
        context = Context(number, lr, steps)
        state, x = rule.local(state, x, context, world.oracle())
        state, messages = rule.send(state, x, context, graph)
        state, x = rule.merge(state, x, context, VectorInbox(graph, messages, relays))
    return state, x


def run_joined(
    rule: Rule, world: Quadratic, graph: VectorGraph, rounds: int, lr: float, steps: int, arrives=lambda i, j, t: True
) -> Tensor:
    """Each site alone in the [P] form, messages carried by hand; ``arrives`` (receiver, sender, round) of relays."""
    sites = range(graph.sites)
    listed = list(zip(graph.receiver.tolist(), graph.sender.tolist(), graph.weight.tolist(), strict=True))
    near = {i: [(sender, weight) for receiver, sender, weight in listed if receiver == i] for i in sites}
    local = [PeerGraph(float(graph.share[i])) for i in sites]
    tags = [relay_tag(bytes([i]) * 16, b"run") for i in sites]
    relays = [Relays("relay", relay_size(world.size), torch.float64, tags[i]) for i in sites]
    x = [torch.zeros(world.size, dtype=torch.float64) for _ in sites]
    state = [rule.init(x[i], local[i]) for i in sites]
    for number in range(rounds):
        context = Context(number, lr, steps)
        sent = []
        for i in sites:
            state[i], x[i] = rule.local(state[i], x[i], context, world.oracle(i))
            state[i], messages = rule.send(state[i], x[i], context, local[i])
            sent.append(messages)
        rows = [relays[i].encode(number, sent[i]["relay"]) if "relay" in sent[i] else {} for i in sites]
        for i in sites:
            pulls, totals = {}, {}
            for channel in rule.channels:
                own = sent[i][channel.name]
                if channel.relayed:
                    arrived = [j for j, _ in near[i] if arrives(i, j, number)]
                    for j in arrived:
                        relays[i].receive(f"{j}", rows[j]["payload"], rows[j]["result"])
                    totals[channel.name] = relays[i].take(number, [(f"{j}", f"{j}") for j in arrived])
                else:
                    pulls[channel.name] = sum(w * (sent[j][channel.name] - own) for j, w in near[i])
            state[i], x[i] = rule.merge(state[i], x[i], context, PeerInbox(pulls, totals))
    return torch.stack(x)
