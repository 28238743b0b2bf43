"""D-PSGD with local steps (decentralised FedAvg)."""

from __future__ import annotations

from torch import Tensor

from p2pfl.train.optimisers import Optimiser
from p2pfl.train.rules.interface import Channel, Context, Graph, Inbox, Messages, Needs, Oracle, State
from p2pfl.train.rules.local_steps import local_steps, optimiser_state


class DPSGD:
    """Local steps, then one gossip average.

    y_i = K optimiser steps from x_i on f_i;  x_i <- y_i + sum_j w_ij (y_j - y_i)

    Lian et al., "Can Decentralized Algorithms Outperform Centralized Algorithms?", NeurIPS 2017; with K > 1
    it is DFedAvg. sum_i pi_i x_i is kept by the merge. With unequal sites the fixed point is the weighted
    optimum only for K = 1 on the full graph; docs/update-rules.md has the measured bias on the ring.
    Known good: lr .1 to .3, 1 to 5 local epochs; momentum .9 only when the sites' data look alike.
    """

    name: str = "dpsgd"
    needs: Needs = Needs(mixing="doubly", optimisers=frozenset({"sgd", "momentum", "adam"}), linear=True, delays=True)
    channels: tuple[Channel, ...] = (Channel("x", "model"),)

    def __init__(self, optimiser: Optimiser) -> None:
        self.optimiser = optimiser

    def init(self, x: Tensor, graph: Graph) -> State:
        """Only the optimiser's state."""
        return optimiser_state(self.optimiser, x)

    def local(self, state: State, x: Tensor, ctx: Context, oracle: Oracle) -> tuple[State, Tensor]:
        """K optimiser steps."""
        return local_steps(self.optimiser, state, x, ctx, oracle)

    def send(self, state: State, x: Tensor, ctx: Context, graph: Graph) -> tuple[State, Messages]:
        """Channel x: the parameters after the local steps, [..., P]."""
        return state, {"x": x}

    def merge(self, state: State, x: Tensor, ctx: Context, inbox: Inbox) -> tuple[State, Tensor]:
        """x + pull(x)."""
        return state, x + inbox.pull("x")
