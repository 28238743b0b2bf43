"""Exact diffusion: D-PSGD with a correction that removes its bias, at the price of no further message."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from p2pfl.train.optimisers import Optimiser
from p2pfl.train.rules.interface import Channel, Context, Graph, Inbox, Messages, Needs, Oracle, Setting, State
from p2pfl.train.rules.local_steps import descended


class ExactDiffusion:
    """One step, one correction by what the mixings before have moved, one gossip average with (I + W) / 2.

        psi_i = x_i - lr g_i(x_i)
        phi_i = psi_i + c_i
        d_i = sum_j w_ij (phi_j - phi_i) / 2;  x_i <- phi_i + d_i;  c_i <- c_i + d_i

    c_i is x_i(start of the round) - psi_i(round before), 0 in the first round: so the site needs to keep c_i alone.

    Sends: P per neighbour
    Keeps: P with sgd
    Use: small models on unlike sites, one full-batch step per round, where a message of 2 P (K-GT) is too much.
    lr as for D-PSGD.
    Source: Yuan, Ying, Zhao, Sayed, "Exact Diffusion for Distributed Optimization and Learning", parts I and II, IEEE
    Transactions on Signal Processing 2019, arXiv 1702.05122 and 1702.05142. With W in place of (I + W) / 2 it is D2
    (Tang et al., ICML 2018, arXiv 1803.07068), which needs eigenvalues above -1/3
    Differs: W is not symmetric but pi_i w_ij = pi_j w_ji, and the fixed point so the weighted optimum; written in c_i,
    which takes absences, parameters taken in from others, and displacements taken back as they come.
    Verified: ends at the weighted optimum of quadratics on ring, full graph and tree; sum_i pi_i c_i = 0 after each
    merge, and again when one-sided losses are taken back; converges on the hypercube where D2 diverges. Closing rounds
    mix with (I + W) / 2 as well, so they need about twice as many rounds as the other rules.
    """

    name: str = "exact_diffusion"
    needs: Needs = Needs(
        mixing="doubly",
        optimisers=frozenset({"sgd"}),
        linear=True,
        delays_reason="its convergence is proven for displacements that come in their round only",
        reason="its correction cancels the bias of a step of lr times a gradient, and of no other step",
        most_steps=1,
        steps_reason="with more steps exact diffusion stalls away from the optimum; K-GT does not",
        static=True,
        static_reason="its convergence is proven for a mixing that stays the same only",
        statistics=False,
        statistics_reason="its correction could push running variances below 0",
        halved=True,
        accelerated=False,
        closing_reason="it mixes with (I + W) / 2, and their weights are those for W",
        adds_pulls=True,
    )
    channels: tuple[Channel, ...] = (Channel("x", "model"),)
    settings: Mapping[str, Setting] = {}

    def __init__(self, optimiser: Optimiser) -> None:
        self.optimiser = optimiser

    def init(self, x: Tensor, graph: Graph) -> State:
        """Correction c = 0, [..., P]."""
        return {"correction": torch.zeros_like(x)}

    def local(self, state: State, x: Tensor, ctx: Context, oracle: Oracle) -> tuple[State, Tensor]:
        """phi. Without a step psi is x, and the correction moves x all the same: its sum belongs to all sites."""
        for k in range(ctx.steps):
            gradient = oracle(x, k)
            x = descended(self.optimiser, gradient, x, gradient.grad, ctx.lr)
        return state, x + state["correction"]

    def send(self, state: State, x: Tensor, ctx: Context, graph: Graph) -> tuple[State, Messages]:
        """Channel x: phi, [..., P]."""
        return state, {"x": x}

    def merge(self, state: State, x: Tensor, ctx: Context, inbox: Inbox) -> tuple[State, Tensor]:
        """phi + pull(x) / 2, c + pull(x) / 2; in closing rounds c is of no use any more and stays."""
        moved = inbox.pull("x") / 2
        after = state if ctx.closing else {**state, "correction": state["correction"] + moved}
        return after, x + moved
