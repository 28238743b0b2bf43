"""FedProx without a server: D-PSGD whose local steps are held near where the round began."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from p2pfl.train.optimisers import Optimiser
from p2pfl.train.rules.interface import (
    Channel,
    Context,
    Gradient,
    Graph,
    Inbox,
    Messages,
    Needs,
    Oracle,
    Setting,
    State,
)
from p2pfl.train.rules.local_steps import local_steps, optimiser_state


class FedProx:
    """Local steps on f_i plus a spring to the round's first parameters, then one gossip average.

        a_i = x_i;  K times: x_i <- optimiser(x_i, grad f_i(x_i) + mu (x_i - a_i))
        x_i <- x_i + sum_j w_ij (x_j - x_i)

    Sends: P per neighbour
    Keeps: 0 with sgd, P with momentum, 2 P + 1 with adam
    Use: as D-PSGD, where sites with many local steps drift apart and their corrections may not travel (K-GT doubles
    the messages). mu from 0.001 to 1; with K = 1 it is D-PSGD exactly.
    Source: Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith, "Federated Optimization in Heterogeneous Networks", MLSys 2020,
    arXiv 1812.06127
    Differs: the anchor a_i is what the site's own mixing left, since there is no server; always K steps in place of
    an inexact solution; mu is `proximal`.
    Verified: K = 1 equals D-PSGD; mu = 0 equals D-PSGD; with K = 5 its bias on quadratics is smaller than D-PSGD's, and
    the larger mu, the smaller; sum_i pi_i x_i is kept by the merge.
    """

    name: str = "fedprox"
    needs: Needs = Needs(mixing="doubly", optimisers=frozenset({"sgd", "momentum", "adam"}), linear=True, delays=True)
    channels: tuple[Channel, ...] = (Channel("x", "model"),)
    settings: Mapping[str, Setting] = {
        "proximal": Setting(0.0, 1000.0, default=0.01, meaning="mu, the strength of the spring; 0 is D-PSGD"),
    }

    def __init__(self, optimiser: Optimiser, *, proximal: float = settings["proximal"].default) -> None:
        self.optimiser, self.proximal = optimiser, proximal

    def init(self, x: Tensor, graph: Graph) -> State:
        """Only the optimiser's state."""
        return optimiser_state(self.optimiser, x)

    def local(self, state: State, x: Tensor, ctx: Context, oracle: Oracle) -> tuple[State, Tensor]:
        """K optimiser steps on the loss with its spring."""
        anchor = x

        def held(x: Tensor, k: int) -> Gradient:
            gradient = oracle(x, k)
            return gradient._replace(grad=gradient.grad + self.proximal * (x - anchor))

        return local_steps(self.optimiser, state, x, ctx, held)

    def send(self, state: State, x: Tensor, ctx: Context, graph: Graph) -> tuple[State, Messages]:
        """Channel x: the parameters after the local steps, [..., P]."""
        return state, {"x": x}

    def merge(self, state: State, x: Tensor, ctx: Context, inbox: Inbox) -> tuple[State, Tensor]:
        """x + pull(x)."""
        return state, x + inbox.pull("x")
