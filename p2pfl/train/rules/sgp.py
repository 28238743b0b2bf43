"""Stochastic gradient push: models that mix as numerators beside a weight, so that directed graphs do as well."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from p2pfl.train.optimisers import Optimiser
from p2pfl.train.rules.interface import WEIGHT, Channel, Context, Graph, Inbox, Messages, Needs, Oracle, Setting, State
from p2pfl.train.rules.local_steps import local_steps, optimiser_state

LIGHTEST = 1.0 / 64  # of a charter's 64 sites none gets there by its share of samples alone


class SGP:
    """SGD at z_i = x_i / w_i, where push-sum mixes the numerators x_i and the weights w_i, which are 1 at first.

        K times: z_i <- optimiser(z_i, grad f_i(z_i));  x_i <- x_i + what z_i moved by
        x_i <- x_i + sum_j (w_ij x_j - g_ij x_i);  w_i <- w_i + sum_j (w_ij w_j - g_ij w_i);  z_i = x_i / w_i

    Sends: P + 1 per neighbour
    Keeps: P + 1 with sgd, 2 P + 1 with momentum, 3 P + 2 with adam
    Use: the topologies exponential and epidemic with the choice "local", where few messages mix fast; sites whose data
    look alike, any local optimiser. lr as for D-PSGD, which it is on every other graph.
    Source: Assran, Loizou, Ballas, Rabbat, "Stochastic Gradient Push for Distributed Deep Learning", ICML 2019, arXiv
    1811.10792
    Differs: sites of unlike size weigh P by their shares, so that the mean is the weighted one; z travels beside w, and
    the receiver multiplies; over each edge both ends exchange messages, which is how a lost one is settled. While a
    weight is under 1/64, as when much is taken back at once, z stays and what it misses is kept.
    Verified: the weighted optimum of quadratics for K = 1 on the full graph, and as near to it as the learning rate is
    small on directed graphs; sum_i pi_i w_i = 1 and sum_i pi_i x_i are kept by the merge, also with 5 % of all messages
    lost at one end.
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
        """Optimiser's state, the weight [..., 1], at first 1, and what z misses of x, w z + rest = x, [..., P]."""
        return {
            **optimiser_state(self.optimiser, x),
            "weight": torch.ones_like(x[..., :1]),
            "rest": torch.zeros_like(x),
        }

    def local(self, state: State, x: Tensor, ctx: Context, oracle: Oracle) -> tuple[State, Tensor]:
        """K optimiser steps, of which a heavy site's model moves the less and a light one's the more."""
        after, moved = local_steps(self.optimiser, state, x, ctx, oracle)
        weight, sound = _divisor(state["weight"])
        step = moved - x
        rest = torch.where(sound, after["rest"], after["rest"] + step)
        return {**after, "rest": rest}, torch.where(sound, x + step / weight, x)

    def send(self, state: State, x: Tensor, ctx: Context, graph: Graph) -> tuple[State, Messages]:
        """Channels x: z [..., P], and weight [..., 1]; what is mixed of x is their product."""
        return state, {"x": x, WEIGHT: state["weight"]}

    def merge(self, state: State, x: Tensor, ctx: Context, inbox: Inbox) -> tuple[State, Tensor]:
        """(w z + rest + pull(x)) / (w + pull(weight))."""
        total = state["weight"] * x + state["rest"] + inbox.pull("x")
        weight = state["weight"] + inbox.pull(WEIGHT)
        divisor, sound = _divisor(weight)
        rest = torch.where(sound, torch.zeros_like(total), total - weight * x)
        return {**state, "weight": weight, "rest": rest}, torch.where(sound, total / divisor, x)


def _divisor(weight: Tensor) -> tuple[Tensor, Tensor]:
    """The weight where it can be divided by, else 1; and where it can, [..., 1] bool."""
    sound = weight > LIGHTEST
    return torch.where(sound, weight, torch.ones_like(weight)), sound
