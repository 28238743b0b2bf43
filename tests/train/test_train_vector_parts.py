"""Vectors that stay in parts: fewer joined, the same bits, for every rule and optimiser."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from vector_worlds import PLAN, joined, schedule_of, settings_of, tables

from p2pfl.sim.vectorised import VectorisedRun
from p2pfl.train import traced_paths, vector_parts
from p2pfl.train.lean_graphs import make_lean
from p2pfl.train.plan_code import PlanCode
from p2pfl.train.rules import RULES
from p2pfl.train.settings import read_settings
from p2pfl.train.vector_parts import MOST_PARTS, keep_parts

ATEN = torch.ops.aten


def two_steps(x: Tensor) -> Tensor:
    """Layers cut out, gradients joined, a step; twice."""
    for _ in range(2):
        one, two = x[:, :6].reshape(-1, 2, 3), x[:, 6:]
        gradient = torch.cat(((one @ one.transpose(1, 2) @ one).reshape(-1, 6), two.cos()), -1)
        x = x.sub(gradient, alpha=0.1)
    return x


def with_column(x: Tensor) -> Tensor:
    return torch.cat((x[:, :2].exp(), x[:, 2:]), 1) * x.sum(1, keepdim=True) + torch.tensor(2.0)


def both_cut_alike(x: Tensor) -> Tensor:
    parts = x[:, :3].exp(), x[:, 3:]
    return torch.cat(parts, 1) * torch.cat((parts[0].cos(), parts[1]), 1)


def both_cut_otherwise(x: Tensor) -> Tensor:
    return torch.cat((x[:, :2], x[:, 2:].exp()), 1) * torch.cat((x[:, :5].cos(), x[:, 5:]), 1)


def across(x: Tensor) -> Tensor:
    return (torch.cat((x[:, :2].exp(), x[:, 2:]), 1) + 1)[:, 1:5]


def by_rows(x: Tensor) -> Tensor:
    return torch.cat((x[:2].exp(), x[2:]), 0) + x


def summed(x: Tensor) -> Tensor:
    return (torch.cat((x[:, :2].exp(), x[:, 2:]), 1) + x).sum(1)


def many(x: Tensor) -> Tensor:
    return torch.cat([x[:, :1] + number for number in range(MOST_PARTS + 1)], 1) + 1


def in_place(x: Tensor) -> Tensor:
    return (torch.cat((x[:, :2].exp(), x[:, 2:]), 1) + x).add_(1)


def the_part_itself(x: Tensor) -> Tensor:
    return torch.cat((x[:, :2], x[:, 2:]), 1)[:, :2]


CASES: list[tuple[Callable[[Tensor], Tensor], int, int]] = [  # function; cat and slice afterwards
    (two_steps, 1, 4), (with_column, 1, 2), (both_cut_alike, 1, 2), (both_cut_otherwise, 2, 4), (across, 1, 3),
    (by_rows, 1, 2), (summed, 1, 4), (many, 1, MOST_PARTS + 1), (in_place, 1, 2), (the_part_itself, 1, 3),
]  # fmt: skip


@pytest.mark.parametrize(("function", "cats", "slices"), CASES, ids=[case[0].__name__ for case in CASES])
def test_the_same_value_with_fewer_joined(function: Callable[[Tensor], Tensor], cats: int, slices: int) -> None:
    x = torch.randn(4, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    graph = make_fx(function)(x)
    if function is not many:  # where the same slice is there again and again
        make_lean(graph)
    keep_parts(graph)
    targets = [node.target for node in graph.graph.nodes]
    assert (targets.count(ATEN.cat.default), targets.count(ATEN.slice.Tensor)) == (cats, slices)
    assert torch.equal(graph(x), function(x))
    assert graph(x).data_ptr() != x.data_ptr()


@pytest.mark.parametrize(
    ("rule", "optimiser"),
    [
        pytest.param(rule, name, marks=pytest.mark.slow if rule != "dpsgd" and name != "sgd" else ())
        for rule in RULES
        if RULES[rule].needs.linear
        for name in sorted(RULES[rule].needs.optimisers)
    ],
)
def test_rules_have_the_same_bits_with_whole_vectors(
    rule: str, optimiser: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run as recorded, where nothing but the parts differs; two local steps, where the rule takes as many."""
    joined_before = []

    def run(prepare: Callable[[Any], None]) -> VectorisedRun:
        def ready(self: Any, graph: Any, given: list[Tensor]) -> Any:
            before = _cats(graph)
            prepare(graph)
            joined_before.append((before, _cats(graph)))
            return graph

        monkeypatch.setattr(traced_paths.TracedPath, "_ready", ready)
        settings = settings_of(
            rule, local_steps=min(2, RULES[rule].needs.most_steps or 2), optimiser={"name": optimiser},
            rule_settings={"fedprox": {"proximal": 0.5}}.get(rule, {}),
        )  # fmt: skip
        train, rows = joined(tables(5))
        topology = {"kind": "cyclic" if rule == "cyclic" else "ring"}
        found = VectorisedRun(
            PlanCode(PLAN.encode()), read_settings(settings), train, rows, schedule_of(topology, 5, 5, 0),
            seed=0, execution="traced",
        )  # fmt: skip
        for _ in range(3):
            found.step()
        return found

    whole, parts = run(lambda graph: None), run(vector_parts.keep_parts)
    assert torch.equal(whole.x, parts.x) and whole.execution.chosen == "traced"
    assert all(torch.equal(whole.state[name], parts.state[name]) for name in whole.state)
    (_, before), (_, after) = joined_before
    assert after <= max(before, 3) and before > 0


def _cats(graph: Any) -> int:
    return [node.target for node in graph.graph.nodes].count(ATEN.cat.default)
