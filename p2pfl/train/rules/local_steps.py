"""The K local steps that several rules share: an elementwise optimiser on the oracle's gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from p2pfl.train.optimisers import Optimiser, OptimiserState
from p2pfl.train.rules.interface import Context, Gradient, Oracle, State

_PREFIX = "optimiser."


def optimiser_state(optimiser: Optimiser, x: Tensor) -> State:
    """The optimiser's first state under names that cannot collide with a rule's own."""
    return {_PREFIX + name: value for name, value in optimiser.init(x).items()}


def local_steps(optimiser: Optimiser, state: State, x: Tensor, ctx: Context, oracle: Oracle) -> tuple[State, Tensor]:
    """x <- optimiser(x, grad f(x; batch k)) for k = 0 .. K-1. Optimiser state stays with the site."""
    own: OptimiserState = {
        name.removeprefix(_PREFIX): value for name, value in state.items() if name.startswith(_PREFIX)
    }
    for k in range(ctx.steps):
        gradient = oracle(x, k)
        stepped, moved = optimiser.step(own, x, gradient.grad, ctx.lr)
        x = taken(gradient, with_buffers(moved, gradient), x)
        own = {name: taken(gradient, value, own[name]) for name, value in stepped.items()}
    return {**state, **{_PREFIX + name: value for name, value in own.items()}}, x


def descended(optimiser: Optimiser, gradient: Gradient, x: Tensor, along: Tensor, lr: float) -> Tensor:
    """x - lr along, of an optimiser without state, for the sites that take this step; buffers as measured."""
    _, moved = optimiser.step({}, x, along, lr)
    return taken(gradient, with_buffers(moved, gradient), x)


def taken(gradient: Gradient, after: Tensor, before: Tensor) -> Tensor:
    """``after`` for the sites that take this step, ``before`` for those that have taken all of theirs."""
    return after if gradient.active is None else torch.where(gradient.active, after, before)


def with_buffers(x: Tensor, gradient: Gradient) -> Tensor:
    """Running statistics are measured, not descended: their entries take the oracle's new values."""
    if gradient.buffers is None:
        return x
    return torch.cat((x[..., : -gradient.buffers.shape[-1]], gradient.buffers), dim=-1)
