"""Cyclic weight transfer: one model walks from site to site, and whoever has it trains it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from p2pfl.train.optimisers import Optimiser
from p2pfl.train.push_weights import MOST_MASS, most_told, quotient, told
from p2pfl.train.rules.interface import WEIGHT, Channel, Context, Graph, Inbox, Messages, Needs, Oracle, Setting, State
from p2pfl.train.rules.local_steps import local_steps, optimiser_state

HOLDS = 1.0 / 8  # of the mass of all: a site with less has leftovers of what was lost on the way, not the model
CLOSING_HOLDS = 1.0 / 32  # of the own part of it, which one closing round gives to every site


class Cyclic:
    """SGD on one model, which is at one site at a time; sites give it on with push-sum's weights.

        where pi_i w_i > 1/8, K_i times: z_i <- optimiser(z_i, grad f_i(z_i));  x_i = w_i z_i
        x_i <- x_i + sum_j (w_ij x_j - g_ij x_i);  w_i <- w_i + sum_j (w_ij w_j - g_ij w_i);  z_i = x_i / w_i

    In the topology cyclic the first site begins with all of the weight, w = 1 / pi, in round t the site t modulo n
    gives all to the next one, and closing rounds give all sites the model. A site without weight keeps the model that
    it had last.

    Sends: P + 1 per neighbour
    Keeps: P + 2 with sgd, 2 P + 2 with momentum, 3 P + 3 with adam
    Use: to compare with, and where two models in a round are all that the links bear (word of it still goes to all).
    K_i is n pi_i times the plan's local steps, so that each site counts as the topology's weights say; short visits and
    small lr, since the model forgets what the sites before have taught it where their data differ. A round takes as
    long as the visit, and a cycle as all visits together.
    Source: Chang, Balachandar, Lam, Yi, Brown, Beers, Rosen, Rubin, Kalpathy-Cramer, "Distributed deep learning
    networks among institutions for medical imaging", JAMIA 2018
    Differs: the model is known by its weight, so that one that was lost on the way stays with its sender, and waits
    there until it is that site's turn again; both ends of a visit exchange messages, which is how a loss is settled.
    The optimiser's state stays with each site. What two sites have learnt at once, after a loss at one end, is added.
    Verified: the bits of plain SGD over the sites in turn, up to rounding of the weights; the weighted optimum of
    quadratics as near as the learning rate is small; sum_i pi_i w_i = 1 and sum_i pi_i x_i are kept by the merge, also
    with 5 % of all messages lost at one end.
    """

    name: str = "cyclic"
    needs: Needs = Needs(
        mixing="walk",
        optimisers=frozenset({"sgd", "momentum", "adam"}),
        linear=True,
        delays_reason="one model is at one site at a time, so that there is nothing to mix late",
        statistics=False,
        statistics_reason="what two sites add at once after a loss could push running variances below 0",
        accelerated=False,
        closing_reason="one closing round brings the model to all sites",
    )
    channels: tuple[Channel, ...] = (Channel("x", "model"), Channel(WEIGHT, "zero"))
    settings: Mapping[str, Setting] = {}

    def __init__(self, optimiser: Optimiser) -> None:
        self.optimiser = optimiser

    def init(self, x: Tensor, graph: Graph) -> State:
        """Optimiser's state; weight [..., 1], as the graph says, and the most that is told of it; and what z misses of
        x, w z + rest = x, [..., P]."""
        return {
            **optimiser_state(self.optimiser, x),
            "weight": torch.zeros_like(x[..., :1]) + graph.first_weight.to(x),
            "most": most_told(graph.share).to(x),
            "rest": torch.zeros_like(x),
        }

    def local(self, state: State, x: Tensor, ctx: Context, oracle: Oracle) -> tuple[State, Tensor]:
        """K optimiser steps, which are those of the model where it is, and nothing elsewhere."""
        after, moved = local_steps(self.optimiser, state, x, ctx, oracle)
        here = holds(state)
        kept = {name: torch.where(here, value, state[name]) for name, value in after.items()}
        return kept, torch.where(here, moved, x)

    def send(self, state: State, x: Tensor, ctx: Context, graph: Graph) -> tuple[State, Messages]:
        """Channels x: z [..., P], and weight [..., 1]; what is mixed of x is their product."""
        return state, {"x": x, WEIGHT: told(state["weight"], state["most"])}

    def merge(self, state: State, x: Tensor, ctx: Context, inbox: Inbox) -> tuple[State, Tensor]:
        """(w z + rest + pull(x)) / (w + pull(weight)), where the model is.

        In closing rounds (t z + pull(x)) / (t + pull(weight)) with the weight t that was told, so that all read the
        same: what a site learnt of a model that was taken back, and weights below 0, stay apart.
        """
        pulled, weight = inbox.pull("x"), state["weight"] + inbox.pull(WEIGHT)
        total = state["weight"] * x + state["rest"] + pulled
        if ctx.closing:
            known = told(state["weight"], state["most"])
            given = known + inbox.pull(WEIGHT)
            z = torch.where(given > CLOSING_HOLDS, quotient(known * x + pulled, given, x), x)
            return {**state, "weight": weight, "rest": total - weight * z}, z
        here = weight > _least(state)
        z = torch.where(here, quotient(total, weight, x), x)
        rest = torch.where(here, torch.zeros_like(total), total - weight * z)
        return {**state, "weight": weight, "rest": rest}, z


def holds(state: State) -> Tensor:
    """Whether a site has the model, [..., 1] bool."""
    return state["weight"] > _least(state)


def _least(state: State) -> Tensor:
    """1 / (8 pi_i): with 1 / pi_i a site has all, [..., 1]."""
    return state["most"] * (HOLDS / MOST_MASS)
