"""Recorded graphs: what changes nothing is left out, what is there twice is there once, values stay."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from p2pfl.train.lean_graphs import make_lean

CASES: list[tuple[str, Callable[[Tensor], Tensor], int]] = [
    ("views of the same shape", lambda x: x.view(4, 4).expand(4, 4).detach() + 1, 1),
    ("another shape stays", lambda x: x.view(16) + 1, 2),
    ("another number of rows stays", lambda x: x[:1].expand(4, 4) + 1, 3),
    ("turned twice", lambda x: x.transpose(0, 1).transpose(1, 0) + 1, 1),
    ("turned once", lambda x: x.transpose(0, 1) + 1, 2),
    ("times one", lambda x: torch.ops.aten.mul.Scalar(x, 1) + 1, 1),
    ("times two", lambda x: torch.ops.aten.mul.Scalar(x, 2) + 1, 2),
    ("twice the same", lambda x: x.exp() + x.exp(), 2),
    ("unused", lambda x: (x.exp(), x + 1)[1], 1),
    ("the answer itself", lambda x: torch.ops.aten.mul.Scalar(x, 1), 1),
    ("in place", lambda x: torch.zeros(4, 4).add_(x.view(4, 4)), 3),
]


@pytest.mark.parametrize(("function", "operations"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_fewer_operations_and_the_same_value(function: Callable[[Tensor], Tensor], operations: int) -> None:
    x = torch.arange(16.0).reshape(4, 4)
    graph = make_fx(function)(x)
    make_lean(graph)
    assert len([node for node in graph.graph.nodes if node.op == "call_function"]) == operations
    assert torch.equal(graph(x), function(x))
    assert graph(x).data_ptr() != x.data_ptr(), "answers share no memory with what was given"


def test_what_changes_in_between_is_computed_again() -> None:
    """x + 1 before and after x changed: the graph is left as it is."""

    def function(x: Tensor) -> Tensor:
        y = x.clone()
        before = y + 1
        y.mul_(2)
        return before - (y + 1)

    x = torch.arange(3.0)
    graph = make_fx(function)(x)
    make_lean(graph)
    assert graph(x).tolist() == [0.0, -1.0, -2.0]
