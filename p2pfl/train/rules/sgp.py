"""Stochastic gradient push: models that mix as numerators beside a weight, so that directed graphs do as well."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from p2pfl.train.optimisers import Optimiser, OptimiserState
from p2pfl.train.push_weights import LEAST, most_told, quotient, told
from p2pfl.train.rules.interface import WEIGHT, Channel, Context, Graph, Inbox, Messages, Needs, Oracle, Setting, State
from p2pfl.train.rules.local_steps import local_steps, optimiser_state

LIGHT = 1.0 / 8  # of the site's usual weight: at a lighter one local steps would be so much longer than its rate bears
CLOSING_LIGHT = (
    1.0 / 32
)  # of it: lighter ones are what is left of sums that cancelled, more often than what mixing gave
MEMORY = 3.0 / 4  # of the usual weight, per round; a site with many samples halves its weight for the first few rounds


class SGP:
    """SGD at z_i = x_i / w_i, where push-sum mixes the numerators x_i and the weights w_i, which are 1 at first.

        K times: x_i <- x_i + what the optimiser's step with lr and grad f_i(z_i) moves;  z_i = x_i / w_i
        x_i <- x_i + sum_j (w_ij x_j - g_ij x_i);  w_i <- w_i + sum_j (w_ij w_j - g_ij w_i);  z_i = x_i / w_i

    So with sgd z_i <- z_i - (lr / w_i) grad f_i(z_i).

    Sends: P + 1 per neighbour
    Keeps: P + 3 with sgd, 2 P + 3 with momentum, 3 P + 4 with adam
    Use: the topologies exponential and epidemic with the choice "local", where few messages mix fast; sites whose data
    look alike, any local optimiser. The rate of site i is lr / w_i, on balanced graphs such as exponential about
    n pi_i lr: choose lr for the heaviest site. On every other graph it is D-PSGD.
    Source: Assran, Loizou, Ballas, Rabbat, "Stochastic Gradient Push for Distributed Deep Learning", ICML 2019, arXiv
    1811.10792
    Differs: sites of unlike size weigh P by their shares, so that the mean is the weighted one; z travels beside w, and
    the receiver multiplies; over each edge both ends exchange messages, which is how a lost one is settled. In training
    rounds with less than 1/8 of a site's usual weight, as in 1 % of the rounds of EL-Local with one neighbour, or where
    much is taken back at once, z stays, local steps have the rate lr, and what z misses is read later, from 1/32 on in
    closing rounds. A site that lies about its weight can make others diverge (decision 0025).
    Verified: the weighted optimum of quadratics for K = 1 on the full graph, and as near to it as the learning rate is
    small on directed graphs, also for K = 16 and a site with 3/4 of all samples; sum_i pi_i w_i = 1 and
    sum_i pi_i x_i are kept by the merge, also with 5 % of all messages lost at one end.
    """

    name: str = "sgp"
    needs: Needs = Needs(
        mixing="columns",
        optimisers=frozenset({"sgd", "momentum", "adam"}),
        linear=True,
        delays_reason="how its weights react to displacements that come late is neither proven nor measured",
        statistics=False,
        statistics_reason="a light weight could push running variances below 0",
        accelerated=False,
        closing_reason="how its weights take a momentum of their own is neither proven nor measured",
    )
    channels: tuple[Channel, ...] = (Channel("x", "model"), Channel(WEIGHT, "zero"))
    settings: Mapping[str, Setting] = {}

    def __init__(self, optimiser: Optimiser) -> None:
        self.optimiser = optimiser

    def init(self, x: Tensor, graph: Graph) -> State:
        """Optimiser's state; weight [..., 1] and its running mean, at first 1, and the most that is told of it; and
        what z misses of x, w z + rest = x, [..., P]."""
        return {
            **optimiser_state(self.optimiser, x),
            "weight": torch.ones_like(x[..., :1]),
            "usual": torch.ones_like(x[..., :1]),
            "most": most_told(graph.share).to(x),
            "rest": torch.zeros_like(x),
        }

    def local(self, state: State, x: Tensor, ctx: Context, oracle: Oracle) -> tuple[State, Tensor]:
        """K optimiser steps, of which a heavy site's model moves the less and a light one's the more."""
        steady = _steady(state["weight"], state["usual"])
        divisor = torch.where(steady, state["weight"], torch.ones_like(state["weight"]))
        after, moved = local_steps(_Divided(self.optimiser, divisor), state, x, ctx, oracle)
        rest = torch.where(steady, after["rest"], after["rest"] + (moved - x))
        return {**after, "rest": rest}, torch.where(steady, moved, x)

    def send(self, state: State, x: Tensor, ctx: Context, graph: Graph) -> tuple[State, Messages]:
        """Channels x: z [..., P], and weight [..., 1]; what is mixed of x is their product."""
        return state, {"x": x, WEIGHT: told(state["weight"], state["most"])}

    def merge(self, state: State, x: Tensor, ctx: Context, inbox: Inbox) -> tuple[State, Tensor]:
        """(w z + rest + pull(x)) / (w + pull(weight)), where it can be read.

        What was taken back leaves sums of unlike signs, and their quotients by light weights are far from all models:
        gradients there would spoil the mean. In closing rounds none follows, and lighter ones are read; but the last
        reading is the site's model, so not by weights that are next to nothing.
        """
        weight = state["weight"] + inbox.pull(WEIGHT)
        usual = torch.where(weight > LEAST, state["usual"].lerp(weight, 1.0 - MEMORY), state["usual"])
        read = _steady(weight, usual, CLOSING_LIGHT if ctx.closing else LIGHT)
        total = state["weight"] * x + state["rest"] + inbox.pull("x")
        z = torch.where(read, quotient(total, weight, x), x)
        rest = torch.where(read, torch.zeros_like(total), total - weight * x)
        return {**state, "weight": weight, "usual": usual, "rest": rest}, z


def _steady(weight: Tensor, usual: Tensor, light: float = LIGHT) -> Tensor:
    """Whether models are divided by these weights, [..., 1] bool."""
    return (weight > LEAST) & (weight > light * usual)


class _Divided:
    """An optimiser each of whose steps is divided by the weight [..., 1]."""

    def __init__(self, optimiser: Optimiser, weight: Tensor) -> None:
        self.name, self._optimiser, self._weight = optimiser.name, optimiser, weight

    def init(self, x: Tensor) -> OptimiserState:
        return self._optimiser.init(x)

    def step(self, state: OptimiserState, x: Tensor, grad: Tensor, lr: float) -> tuple[OptimiserState, Tensor]:
        after, moved = self._optimiser.step(state, x, grad, lr)
        return after, x + (moved - x) / self._weight
