"""Gradient tracking: each site follows an estimate of the mean gradient, which travels like the model."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from p2pfl.train.optimisers import Optimiser
from p2pfl.train.rules.interface import Channel, Context, Graph, Inbox, Messages, Needs, Oracle, Setting, State
from p2pfl.train.rules.local_steps import descended, taken


class GradientTracking:
    """One step along y_i, which is kept so that the y of all sites sum to their gradients.

        y_i <- y_i + g_i(x_i) - g_i(x_i of the round before);  x_i <- x_i - lr y_i
        x_i <- x_i + sum_j w_ij (x_j - x_i);  y_i <- y_i + sum_j w_ij (y_j - y_i)

    y_i = g_i in the first round. A site without a step sends y = 0 and keeps y - g as it was.

    Sends: 2 P per neighbour
    Keeps: 2 P with sgd
    Use: as the textbook's reference, and with graphs that change. K-GT is the same for K = 1, and may take more steps.
    lr smaller than for D-PSGD, about as the square of the spectral gap on sparse graphs.
    Source: Nedic, Olshevsky, Shi, "Achieving Geometric Convergence for Distributed Optimization over Time-Varying
    Graphs" (DIGing), SIAM Journal on Optimization 2017, arXiv 1607.03218; Xu, Zhu, Soh, Xie, "Augmented Distributed
    Gradient Methods for Multi-Agent Optimization Under Uncoordinated Constant Stepsizes", CDC 2015
    Differs: adapt-then-combine (the step is mixed with the model) as Xu et al. have it; pi_i w_ij = pi_j w_ji in place
    of a symmetric W, so that it ends at the weighted optimum.
    Verified: equals K-GT with K = 1 to 1e-12; sum_i pi_i y_i = sum_i pi_i g_i after each merge, and again when
    one-sided losses are taken back; ends at the weighted optimum of quadratics on ring, full graph and tree.
    """

    name: str = "gradient_tracking"
    needs: Needs = Needs(
        mixing="doubly",
        optimisers=frozenset({"sgd"}),
        linear=True,
        delays_reason="how its tracking reacts to displacements that come late is neither proven nor measured",
        reason="y tracks the mean gradient only if every step is lr times y",
        most_steps=1,
        steps_reason="its tracking sees one gradient per round; K-GT is the same with more steps",
    )
    channels: tuple[Channel, ...] = (Channel("x", "model"), Channel("y", "zero"))
    settings: Mapping[str, Setting] = {}

    def __init__(self, optimiser: Optimiser) -> None:
        self.optimiser = optimiser

    def init(self, x: Tensor, graph: Graph) -> State:
        """Tracked gradient y and own last gradient g, 0, [..., P] each."""
        return {"tracked": torch.zeros_like(x), "gradient": torch.zeros_like(x)}

    def local(self, state: State, x: Tensor, ctx: Context, oracle: Oracle) -> tuple[State, Tensor]:
        """One step along y; without one, y = 0 and g = g - y, so that y - g stays."""
        tracked, own = torch.zeros_like(x), state["gradient"] - state["tracked"]
        for k in range(ctx.steps):
            gradient = oracle(x, k)
            tracked = taken(gradient, gradient.grad - own, tracked)
            own = taken(gradient, gradient.grad, own)
            x = descended(self.optimiser, gradient, x, tracked, ctx.lr)
        return {**state, "tracked": tracked, "gradient": own}, x

    def send(self, state: State, x: Tensor, ctx: Context, graph: Graph) -> tuple[State, Messages]:
        """Channels x and y, [..., P] each."""
        return state, {"x": x, "y": state["tracked"]}

    def merge(self, state: State, x: Tensor, ctx: Context, inbox: Inbox) -> tuple[State, Tensor]:
        """x + pull(x), y + pull(y)."""
        return {**state, "tracked": state["tracked"] + inbox.pull("y")}, x + inbox.pull("x")
