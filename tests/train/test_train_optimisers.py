"""Own optimisers against torch's, bit for bit."""

from __future__ import annotations

import pytest
import torch

from p2pfl.errors import ConfigError
from p2pfl.train.optimisers import Adam, optimiser_named


def torch_twin(name: str, parameters: list[torch.Tensor], lr: float) -> torch.optim.Optimizer:
    if name == "adam":
        return torch.optim.Adam(parameters, lr=lr, foreach=False)
    return torch.optim.SGD(parameters, lr=lr, momentum=0.9 if name == "momentum" else 0.0, foreach=False)


@pytest.mark.parametrize("name", ["sgd", "momentum", "adam"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("lr", [0.1, 0.003])
def test_equals_torch_bit_for_bit(name: str, dtype: torch.dtype, lr: float) -> None:
    generator = torch.Generator().manual_seed(3)
    shapes = [(7, 5), (5,), (3, 3, 3), (1,)]
    parameters = [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]
    x = torch.cat([p.reshape(-1) for p in parameters])
    twin, own = torch_twin(name, parameters, lr), optimiser_named(name)
    state = own.init(x)
    for _ in range(150):
        scale = 10 ** float(torch.randn((), generator=generator) * 3)
        for p in parameters:
            p.grad = scale * torch.randn(p.shape, generator=generator, dtype=dtype)
        twin.step()
        state, x = own.step(state, x, torch.cat([p.grad.reshape(-1) for p in parameters]), lr)
        assert torch.equal(x, torch.cat([p.reshape(-1) for p in parameters]))


@pytest.mark.parametrize("name", ["sgd", "momentum", "adam"])
def test_rows_of_a_stack_are_independent_sites(name: str) -> None:
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(3, 11, generator=generator, dtype=torch.float64)
    own = optimiser_named(name)
    stacked, rows = x, [x[i] for i in range(3)]
    state, states = own.init(x), [own.init(x[i]) for i in range(3)]
    for _ in range(20):
        grad = torch.randn(3, 11, generator=generator, dtype=torch.float64)
        state, stacked = own.step(state, stacked, grad, 0.01)
        for i in range(3):
            states[i], rows[i] = own.step(states[i], rows[i], grad[i], 0.01)
    assert torch.equal(stacked, torch.stack(rows))


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("rmsprop", {}, "sgd, momentum, adam"),
        ("sgd", {"beta": 0.9}, "does not take"),
        ("momentum", {"beta": 1.0}, "up to, not including, 1"),
        ("adam", {"epsilon": 0.0}, "small positive"),
    ],
)
def test_wrong_options_are_refused(name: str, options: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        optimiser_named(name, options)


def test_options_reach_the_optimiser() -> None:
    adam = optimiser_named("adam", {"beta1": 0.5})
    assert isinstance(adam, Adam) and adam.beta1 == 0.5
