"""Gradients of a plan's mean loss for one site's module; `p2pfl.train.stacked` has the form for n sites at once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from p2pfl.errors import PlanError
from p2pfl.train.layout import Layout
from p2pfl.train.plan_code import Batch, PlanCode
from p2pfl.train.rules.interface import Gradient


class ModuleOracle:
    """grad of (1/B) sum_b loss_b at ``x`` [P] on the batch of step k; keeps the losses of its steps.

    Works on the module itself: on a small model ``functional_call`` costs as much as the gradient.
    Private buffers (batch norm kept at the site) change inside the module, as in plain training.
    """

    def __init__(self, plan: PlanCode, module: nn.Module, layout: Layout, batch: Callable[[int], Batch]) -> None:
        self._plan = plan
        self._module = module
        self._layout = layout
        self._batch = batch
        self._parameters = [parameter for _, parameter in module.named_parameters()]
        self._trained = [parameter.requires_grad for parameter in self._parameters]
        self.losses: list[Tensor] = []
        self.examples = 0

    def __call__(self, x: Tensor, k: int) -> Gradient:
        """The gradient [P], 0 at frozen parameters and buffers. Raises PlanError if it cannot be taken."""
        batch = self._batch(k)
        put(x, self._module, self._layout)
        loss = self._plan.loss(self._module, batch).mean()
        self.losses.append(loss.detach())
        self.examples += len(batch[0])
        return Gradient(self._gradient(loss), loss.detach(), take_buffers(self._module, self._layout))

    def _gradient(self, loss: Tensor) -> Tensor:
        wanted = [p for p, trained in zip(self._parameters, self._trained, strict=True) if trained]
        try:
            found = iter(torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True))
        except RuntimeError as error:
            raise PlanError(f"{self._plan.name}: the loss has no gradient ({error}); compute it with torch") from error
        pieces = [
            next(found).reshape(-1) if trained else torch.zeros(p.numel(), dtype=p.dtype, device=p.device)
            for p, trained in zip(self._parameters, self._trained, strict=True)
        ]
        if self._layout.buffer_size:
            pieces.append(torch.zeros(self._layout.buffer_size, dtype=self._layout.dtype, device=loss.device))
        return torch.cat(pieces)


def put(x: Tensor, module: nn.Module, layout: Layout) -> None:
    """Copy ``x`` [P] into the module's parameters and shared buffers."""
    views = layout.unflatten(x)
    with torch.no_grad():
        torch._foreach_copy_([p for _, p in module.named_parameters()], [views[e.name] for e in layout.parameters])
        for entry in layout.buffers:
            module.get_buffer(entry.name).copy_(views[entry.name])


def take_buffers(module: nn.Module, layout: Layout) -> Tensor | None:
    """The module's shared buffers [B] as they are now, None if the layout has none."""
    if not layout.buffers:
        return None
    return torch.cat([module.get_buffer(entry.name).detach().reshape(-1) for entry in layout.buffers])
