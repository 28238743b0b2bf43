"""A plan tried out on a few of the site's examples before anything is signed."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn

from p2pfl.errors import LocalError
from p2pfl.train.layout import Layout
from p2pfl.train.oracle import ModuleOracle
from p2pfl.train.plan_code import Batch, PlanCode, unchanged


def plan_problems(
    plan: PlanCode, module: nn.Module, layout: Layout, parts: Mapping[str, Batch], batch_size: int
) -> list[str]:
    """What is wrong, one sentence each: loss shape, finite loss and gradient, metrics; empty if nothing."""
    batch = tuple(tensor[:batch_size] for tensor in parts["train"])
    problems = []
    with torch.random.fork_rng(devices=[]):
        try:
            oracle = ModuleOracle(plan, module.train(), layout, lambda step: batch)
            with unchanged(plan.name, batch):
                gradient = oracle(layout.flatten(module), 0)
            if not math.isfinite(float(gradient.loss)):
                problems.append(f"{plan.name}: the first loss is {float(gradient.loss)}; scale the inputs")
            elif not bool(torch.isfinite(gradient.grad).all()):
                problems.append(f"{plan.name}: the first gradient is not finite; mend the loss")
            elif not bool(gradient.grad.any()):
                problems.append(f"{plan.name}: the gradient is 0 everywhere; compute the loss from the model's output")
        except LocalError as error:
            problems.append(str(error))
        for part, data in parts.items():
            if len(data[0]):
                problems += _metric_problems(plan, module, part, data)
    return problems


def _metric_problems(plan: PlanCode, module: nn.Module, part: str, data: Batch) -> list[str]:
    try:
        with torch.no_grad(), unchanged(plan.name, data):
            figures = plan.metrics(module.eval(), data)
    except LocalError as error:
        return [f'{error} (on "{part}")']
    taken = {"loss", "examples"} & set(figures)
    return [f"{plan.name}: metrics() uses the reserved name {name}; choose another" for name in sorted(taken)]
