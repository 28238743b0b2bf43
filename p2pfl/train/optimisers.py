"""SGD, momentum and Adam as pure elementwise functions on ``[..., P]``, for peers and simulators alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

import torch
from torch import Tensor

from p2pfl.errors import ConfigError

OptimiserState = dict[str, Tensor]
_TRACED: ContextVar[bool] = ContextVar("traced", default=False)


@contextmanager
def traced() -> Iterator[None]:
    """Inside, optimisers use tensor operations alone, so that their steps can be traced and compiled."""
    token = _TRACED.set(True)
    try:
        yield
    finally:
        _TRACED.reset(token)


class Optimiser(Protocol):
    """An elementwise optimiser. ``step`` returns new tensors and changes none in place."""

    name: str

    def init(self, x: Tensor) -> OptimiserState:
        """State before the first step for ``x`` [..., P]."""
        ...

    def step(self, state: OptimiserState, x: Tensor, grad: Tensor, lr: float) -> tuple[OptimiserState, Tensor]:
        """One step from ``x`` along ``grad``, both [..., P]."""
        ...


class SGD:
    """x <- x - lr g."""

    name: str = "sgd"

    def init(self, x: Tensor) -> OptimiserState:
        """No state."""
        return {}

    def step(self, state: OptimiserState, x: Tensor, grad: Tensor, lr: float) -> tuple[OptimiserState, Tensor]:
        """One step; see the equation above."""
        return state, x.sub(grad, alpha=lr)


class Momentum:
    """v <- beta v + g;  x <- x - lr v. Heavy ball without dampening, as ``torch.optim.SGD`` has it."""

    name: str = "momentum"

    def __init__(self, beta: float = 0.9) -> None:
        self.beta = _unit_interval("beta", beta)

    def init(self, x: Tensor) -> OptimiserState:
        """Velocity 0, [..., P]."""
        return {"velocity": torch.zeros_like(x)}

    def step(self, state: OptimiserState, x: Tensor, grad: Tensor, lr: float) -> tuple[OptimiserState, Tensor]:
        """One step; see the equation above."""
        velocity = state["velocity"].mul(self.beta).add(grad)
        return {"velocity": velocity}, x.sub(velocity, alpha=lr)


class Adam:
    """Adam (Kingma and Ba 2015, algorithm 1), in the order of operations of ``torch.optim.Adam``.

    m <- m + (1 - b1)(g - m);  v <- b2 v + (1 - b2) g g;
    x <- x - (lr / (1 - b1^t)) m / (sqrt(v) / sqrt(1 - b2^t) + eps)

    Equal to ``torch.optim.Adam(foreach=False)`` bit for bit. Defaults are those of the paper.
    """

    name: str = "adam"

    def __init__(self, beta1: float = 0.9, beta2: float = 0.999, epsilon: float = 1e-8) -> None:
        self.beta1 = _unit_interval("beta1", beta1)
        self.beta2 = _unit_interval("beta2", beta2)
        if not 0.0 < epsilon < 1.0:
            raise ConfigError(f"optimiser option epsilon is {epsilon}; choose a small positive number such as 1e-8")
        self.epsilon = epsilon

    def init(self, x: Tensor) -> OptimiserState:
        """Moments 0, [..., P]; step count 0, [..., 1] float64."""
        count = torch.zeros((*x.shape[:-1], 1), dtype=torch.float64, device=x.device)
        return {"first": torch.zeros_like(x), "second": torch.zeros_like(x), "count": count}

    def step(self, state: OptimiserState, x: Tensor, grad: Tensor, lr: float) -> tuple[OptimiserState, Tensor]:
        """One step; see the equation above."""
        count = state["count"] + 1.0
        first = state["first"].lerp(grad, 1 - self.beta1)
        second = state["second"].mul(self.beta2).addcmul(grad, grad, value=1 - self.beta2)
        size = _each(count, lambda t: -(lr / (1 - self.beta1**t)), x.dtype)
        correction = _each(count, lambda t: (1 - self.beta2**t) ** 0.5, x.dtype)
        denominator = (second.sqrt() / correction).add(self.epsilon)
        # (size * first) / denominator, not size * (first / denominator): that is how addcdiv rounds.
        return {"first": first, "second": second, "count": count}, x + size * first / denominator


def _each(count: Tensor, function: Callable[[Any], Any], dtype: torch.dtype) -> Tensor:
    """``function`` of each count in Python's floats; torch's pow and number / tensor round otherwise.

    Where no numbers can be read (traced) or reading stalls (other devices), torch's rounding it is.
    """
    if _TRACED.get() or count.device.type != "cpu":
        values: Tensor = function(count)
        return values.to(dtype)
    return torch.tensor([function(t) for t in count.reshape(-1).tolist()], dtype=dtype).reshape(count.shape)


def _unit_interval(name: str, value: float) -> float:
    if not 0.0 <= value < 1.0:
        raise ConfigError(f"optimiser option {name} is {value}; choose a number from 0 up to, not including, 1")
    return value


OPTIMISERS: Mapping[str, type[SGD] | type[Momentum] | type[Adam]] = {
    "sgd": SGD,
    "momentum": Momentum,
    "adam": Adam,
}


def optimiser_named(name: str, options: Mapping[str, Any] | None = None) -> Optimiser:
    """The optimiser with this name and its options; ConfigError for an unknown name or option."""
    if name not in OPTIMISERS:
        raise ConfigError(f"unknown optimiser {name!r}; choose one of {', '.join(OPTIMISERS)}")
    try:
        return OPTIMISERS[name](**dict(options or {}))
    except TypeError as error:
        raise ConfigError(
            f"optimiser {name} does not take these options ({error}); see docs/update-rules.md"
        ) from error
