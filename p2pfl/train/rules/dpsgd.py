"""D-PSGD with local steps (decentralised FedAvg)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from p2pfl.train.optimisers import Optimiser
from p2pfl.train.rules.interface import Channel, Context, Graph, Inbox, Messages, Needs, Oracle, Setting, State
from p2pfl.train.rules.local_steps import local_steps, optimiser_state


class DPSGD:
    """Local steps, then one gossip average.

        K times: x_i <- optimiser(x_i, grad f_i(x_i))
        x_i <- x_i + sum_j w_ij (x_j - x_i)

    Sends: P per neighbour
    Keeps: 0 with sgd, P with momentum, 2 P + 1 with adam
    Use: sites whose data look alike, any local optimiser, and the asynchronous policy. lr 0.1 to 0.3, 1 to 5 local
    epochs; momentum 0.9 only when the sites are alike.
    Source: Lian, Zhang, Zhang, Hsieh, Zhang, Liu, "Can Decentralized Algorithms Outperform Centralized Algorithms?",
    NeurIPS 2017, arXiv 1705.09056; with K > 1 it is decentralised FedAvg (Sun, Li, Wang, IEEE TPAMI 2023, arXiv
    2104.11375)
    Differs: the step is mixed with the model (adapt, then combine); pi_i w_ij = pi_j w_ji in place of a symmetric W.
    Verified: the weighted optimum of quadratics for K = 1 on the full graph; else a bias, measured in
    docs/update-rules.md; sum_i pi_i x_i is kept by the merge.
    """

    name: str = "dpsgd"
    needs: Needs = Needs(mixing="doubly", optimisers=frozenset({"sgd", "momentum", "adam"}), linear=True, delays=True)
    channels: tuple[Channel, ...] = (Channel("x", "model"),)
    settings: Mapping[str, Setting] = {}

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
