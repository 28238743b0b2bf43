"""Quasi-global momentum: momentum along what the mixed model did, not along the own gradients."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from p2pfl.train.optimisers import Optimiser
from p2pfl.train.rules.interface import Channel, Context, Graph, Inbox, Messages, Needs, Oracle, Setting, State
from p2pfl.train.rules.local_steps import descended


class QuasiGlobal:
    """Nesterov steps whose momentum is what the site moved by in past rounds, mixing included.

        a_i = x_i;  K times: h = b m_i + g_i(x_i);  x_i <- x_i - lr (g_i(x_i) + b h)
        x_i <- x_i + sum_j w_ij (x_j - x_i)
        m_i <- mu m_i + (1 - mu) (a_i - x_i) / (lr K)

    Sends: P per neighbour
    Keeps: 2 P + 1 with sgd
    Use: deep networks on unlike sites, where plain momentum amplifies what drives the sites apart. b = mu = 0.9, lr as
    for plain SGD with momentum, GroupNorm in place of batch norm. It does not remove the bias of D-PSGD.
    Source: Lin, Karimireddy, Stich, Jaggi, "Quasi-Global Momentum: Accelerating Decentralized Deep Learning on
    Heterogeneous Data", ICML 2021, arXiv 2102.04761 (the form with Nesterov's step)
    Differs: K local steps with m held during the round, and m divided by lr K; m is in units of a gradient, with the
    learning rate of the round it was measured in, so that another rate later needs no rescaling; no weight decay.
    Verified: its fixed point on quadratics is that of D-PSGD with learning rate (1 + b) lr for K = 1, so the weighted
    optimum on the full graph; b = 0 equals D-PSGD; closing rounds leave m as it is.
    """

    name: str = "quasi_global"
    needs: Needs = Needs(
        mixing="doubly",
        optimisers=frozenset({"sgd"}),
        linear=True,
        delays_reason="its momentum would take displacements that come late for progress, which is not measured",
        reason="it is its own momentum, and a second one on top would count every gradient twice",
    )
    channels: tuple[Channel, ...] = (Channel("x", "model"),)
    settings: Mapping[str, Setting] = {
        "beta": Setting(0.0, 1.0, below=True, default=0.9, meaning="b, how much of the momentum enters each step"),
        "mu": Setting(0.0, 1.0, below=True, default=0.9, meaning="how much of the momentum a round leaves"),
    }

    def __init__(
        self, optimiser: Optimiser, *, beta: float = settings["beta"].default, mu: float = settings["mu"].default
    ) -> None:
        self.optimiser, self.beta, self.mu = optimiser, beta, mu

    def init(self, x: Tensor, graph: Graph) -> State:
        """Momentum m = 0 and the round's first parameters a, [..., P] each; whether a round is under way, [..., 1]."""
        return {"momentum": torch.zeros_like(x), "start": x, "under_way": torch.zeros_like(x[..., :1])}

    def local(self, state: State, x: Tensor, ctx: Context, oracle: Oracle) -> tuple[State, Tensor]:
        """K steps with the momentum of the rounds before."""
        start = x
        for k in range(ctx.steps):
            gradient = oracle(x, k)
            look_ahead = gradient.grad + self.beta * (self.beta * state["momentum"] + gradient.grad)
            x = descended(self.optimiser, gradient, x, look_ahead, ctx.lr)
        return {**state, "start": start, "under_way": torch.ones_like(state["under_way"])}, x

    def send(self, state: State, x: Tensor, ctx: Context, graph: Graph) -> tuple[State, Messages]:
        """Channel x: the parameters after the local steps, [..., P]."""
        return state, {"x": x}

    def merge(self, state: State, x: Tensor, ctx: Context, inbox: Inbox) -> tuple[State, Tensor]:
        """x + pull(x), and m from what the round moved; a merge without a round, or to close, leaves m."""
        merged = x + inbox.pull("x")
        if ctx.closing:
            return state, merged
        steps = max(ctx.steps, 1) if ctx.each is None else ctx.each.clamp(min=1)
        seen = (state["start"] - merged) / (ctx.lr * steps)
        share = (1.0 - self.mu) * state["under_way"]
        momentum = state["momentum"] + share * (seen - state["momentum"])
        return {**state, "momentum": momentum, "under_way": torch.zeros_like(state["under_way"])}, merged
