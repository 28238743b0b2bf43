"""RelaySGD: sums relayed along a tree, so that every site's model reaches every other unmixed."""

from __future__ import annotations

import torch
from torch import Tensor

from p2pfl.train.optimisers import Optimiser
from p2pfl.train.rules.interface import Channel, Context, Graph, Inbox, Messages, Needs, Oracle, State
from p2pfl.train.rules.local_steps import local_steps, optimiser_state


class RelaySGD:
    """Each edge carries the weighted sum of all models on the sender's side of the tree.

    y_i = K optimiser steps from x_i
    m_(i->j) = (pi_i y_i, pi_i) + sum of m_(k->i) of the last round over the neighbours k other than j
    (s, c) = sum of the arriving m;  x_i <- (1 - c) y_i + s

    Vogels et al., "RelaySum for Decentralized Deep Learning on Heterogeneous Data", NeurIPS 2021; there the
    relayed pair is (y, 1) and the fixed point the unweighted optimum. Relaying (pi y, pi) makes it the
    weighted one, for K = 1. While relays are still under way their share is filled with the own model.
    Known good: lr about 3 times (tree) to 5 times (chain) that of gossip averaging.
    """

    name: str = "relaysgd"
    needs: Needs = Needs(
        mixing="tree",
        optimisers=frozenset({"sgd", "momentum", "adam"}),
        linear=False,
        adopts=False,
        delays_reason="it counts each site once per round, and a late message would be counted twice or never",
    )
    channels: tuple[Channel, ...] = (Channel("relay", "zero", per_edge=True),)

    def __init__(self, optimiser: Optimiser) -> None:
        self.optimiser = optimiser

    def init(self, x: Tensor, graph: Graph) -> State:
        """Optimiser's state, the own share [..., 1], and the last relays [E, P+1], at first 0."""
        pair = torch.cat((x, graph.share), dim=-1)
        relays = torch.zeros_like(graph.at_sender(pair))
        return {**optimiser_state(self.optimiser, x), "share": graph.share, "relays": relays}

    def local(self, state: State, x: Tensor, ctx: Context, oracle: Oracle) -> tuple[State, Tensor]:
        """K optimiser steps."""
        return local_steps(self.optimiser, state, x, ctx, oracle)

    def send(self, state: State, x: Tensor, ctx: Context, graph: Graph) -> tuple[State, Messages]:
        """Channel relay, [E, P+1]: everything known here but what came along that edge."""
        share, relays = state["share"], state["relays"]
        known = torch.cat((share * x, share), dim=-1) + graph.total(relays)
        sent = graph.at_sender(known) - graph.rev(relays)
        return state, {"relay": sent}

    def merge(self, state: State, x: Tensor, ctx: Context, inbox: Inbox) -> tuple[State, Tensor]:
        """(1 - c) x + s."""
        arrived = inbox.total("relay")
        merged = (1.0 - arrived[..., -1:]) * x + arrived[..., :-1]
        return {**state, "relays": inbox.edges("relay")}, merged
