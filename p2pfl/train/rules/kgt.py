"""K-GT: local steps with gradient tracking, the peer-to-peer form of SCAFFOLD."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from p2pfl.train.optimisers import Optimiser
from p2pfl.train.rules.interface import Channel, Context, Graph, Inbox, Messages, Needs, Oracle, Setting, State
from p2pfl.train.rules.local_steps import descended


class KGT:
    """Each site corrects its gradient by c_i, what the others' gradients would have added.

        a_i = x_i;  K times: x_i <- x_i - lr (g_i(x_i) + c_i)
        z_i = (a_i - x_i) / (lr K)
        c_i <- c_i + sum_j w_ij (z_j - z_i);  x_i <- x_i + sum_j w_ij (x_j - x_i)

    Sends: 2 P per neighbour
    Keeps: 2 P with sgd
    Use: unlike sites, any number of local steps: the rule to take where D-PSGD's bias matters. lr as for D-PSGD or
    somewhat less, K = 5 to 20.
    Source: Liu, Lin, Koloskova, Stich, "Decentralized Gradient Tracking with Local Steps", arXiv 2301.01313
    Differs: mixing step 1, c_i = 0 at the start; pi_i w_ij = pi_j w_ji in place of a symmetric W; a site with fewer
    steps divides by its own K.
    Verified: the weighted optimum of quadratics for any K, on ring, full graph and tree; sum_i pi_i c_i = 0 after every
    merge in which both ends of an edge count it, and again once a one-sided displacement is taken back, so also with
    5 % of all messages lost.
    """

    name: str = "kgt"
    needs: Needs = Needs(
        mixing="doubly",
        optimisers=frozenset({"sgd"}),
        linear=True,
        delays_reason="how its correction reacts to displacements that come late is neither proven nor measured",
        reason="z is the mean gradient only if every local step is lr times a gradient",
    )
    channels: tuple[Channel, ...] = (Channel("x", "model"), Channel("z", "zero"))
    settings: Mapping[str, Setting] = {}

    def __init__(self, optimiser: Optimiser) -> None:
        self.optimiser = optimiser

    def init(self, x: Tensor, graph: Graph) -> State:
        """Correction c = 0 and the round's first parameters, [..., P] each."""
        return {"correction": torch.zeros_like(x), "start": x}

    def local(self, state: State, x: Tensor, ctx: Context, oracle: Oracle) -> tuple[State, Tensor]:
        """K corrected SGD steps."""
        start = x
        for k in range(ctx.steps):
            gradient = oracle(x, k)
            x = descended(self.optimiser, gradient, x, gradient.grad + state["correction"], ctx.lr)
        return {**state, "start": start}, x

    def send(self, state: State, x: Tensor, ctx: Context, graph: Graph) -> tuple[State, Messages]:
        """Channels x and z, [..., P] each; z = 0 for a site that took no step."""
        steps = max(ctx.steps, 1) if ctx.each is None else ctx.each.clamp(min=1)
        return state, {"x": x, "z": (state["start"] - x) / (ctx.lr * steps)}

    def merge(self, state: State, x: Tensor, ctx: Context, inbox: Inbox) -> tuple[State, Tensor]:
        """x + pull(x), c + pull(z)."""
        return {**state, "correction": state["correction"] + inbox.pull("z")}, x + inbox.pull("x")
