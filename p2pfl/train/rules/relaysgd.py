"""RelaySGD: sums relayed along a tree, so that every site's model reaches every other unmixed."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from p2pfl.train.optimisers import Optimiser
from p2pfl.train.rules.interface import Channel, Context, Graph, Inbox, Messages, Needs, Oracle, Setting, State
from p2pfl.train.rules.local_steps import local_steps, optimiser_state


class RelaySGD:
    """Over each edge goes the weighted sum of all models on the sender's side of the tree.

        y_i = K optimiser steps from x_i
        known_i = (pi_i y_i, pi_i) + sum of the m_(k->i) last taken in, over all neighbours k
        m_(i->j) = known_i - m_(j->i), the one that known_i holds;   j computes it: i sends known_i to all
        (s, c) = sum of the m_(k->i) after this round's;  x_i <- (1 - c) y_i + s

    Sends: 2 P + 1 per neighbour
    Keeps: P + 2 with sgd, 2 P + 2 with momentum, 3 P + 3 with adam; a peer also P + 1 for each edge
    Use: chains, stars and other trees, with any local optimiser, K = 1 or few. lr about 3 times (tree) to 5 times
    (chain) that of gossip averaging.
    Source: Vogels, He, Koloskova, Lin, Karimireddy, Stich, Jaggi, "RelaySum for Decentralized Deep Learning on
    Heterogeneous Data", NeurIPS 2021, arXiv 2110.04175
    Differs: there the relayed pair is (y, 1) and the fixed point the unweighted optimum; relaying (pi y, pi) makes it
    the weighted one. While relays are still under way their share is filled with the own model, not the first one; in
    place of a relay that is lost the last one of that edge counts on. Closing rounds average as D-PSGD does.
    Verified: the weighted optimum of quadratics for K = 1 on chains, stars and trees, also with 5 % of all messages
    lost.
    """

    name: str = "relaysgd"
    needs: Needs = Needs(
        mixing="tree",
        optimisers=frozenset({"sgd", "momentum", "adam"}),
        linear=False,
        delays_reason="it counts each site once per round, and a late message would be counted twice or never",
        static=True,
        static_reason="its relays go round by round over the edges of one tree",
        by_shares=True,
        by_shares_reason="its relays count each site by its samples whatever the weights",
    )
    channels: tuple[Channel, ...] = (Channel("model", "model"), Channel("relay", "zero", relayed=True))
    settings: Mapping[str, Setting] = {}

    def __init__(self, optimiser: Optimiser) -> None:
        self.optimiser = optimiser

    def init(self, x: Tensor, graph: Graph) -> State:
        """Optimiser's state, the own share [..., 1], and the sum of the relays taken in [..., P+1], at first 0."""
        nothing = torch.zeros_like(torch.cat((x, graph.share), dim=-1))
        return {**optimiser_state(self.optimiser, x), "share": graph.share, "relay": nothing}

    def local(self, state: State, x: Tensor, ctx: Context, oracle: Oracle) -> tuple[State, Tensor]:
        """K optimiser steps."""
        return local_steps(self.optimiser, state, x, ctx, oracle)

    def send(self, state: State, x: Tensor, ctx: Context, graph: Graph) -> tuple[State, Messages]:
        """Channels model [..., P], and relay [..., P+1]: everything known here."""
        share = state["share"]
        return state, {"model": x, "relay": torch.cat((share * x, share), dim=-1) + state["relay"]}

    def merge(self, state: State, x: Tensor, ctx: Context, inbox: Inbox) -> tuple[State, Tensor]:
        """(1 - c) x + s; in a closing round x + pull(model)."""
        if ctx.closing:
            return state, x + inbox.pull("model")
        arrived = inbox.total("relay")
        merged = (1.0 - arrived[..., -1:]) * x + arrived[..., :-1]
        return {**state, "relay": arrived}, merged
