"""Gradients of a plan's mean loss for n sites at once: vmap(grad) over the layers. vmap lives here and nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from p2pfl.errors import PlanError
from p2pfl.train.keyed_dropout import DropoutKey
from p2pfl.train.layout import Entry, Layout
from p2pfl.train.plan_code import Batch, PlanCode
from p2pfl.train.rules.interface import Gradient

Buffers = dict[str, Tensor]


class StackedBatch(NamedTuple):
    """The batches of one local step of n sites."""

    tensors: Batch  # each [n, B, ...]
    weights: Tensor | None = None  # [n, B]: 1 for real examples, 0 for padding; None: all are real
    keys: Tensor | None = None  # [n] int64: keys of dropout
    active: Tensor | None = None  # [n, 1] bool: sites that take the step; None: all


class StackedOracle:
    """The gradient of (1/B_i) sum_b loss_ib at each row of ``x`` [n, P], on batches of B_i real examples.

    The plan sees the module itself with one site's tensors in it. ``private`` are the buffers that are not in the
    vector, [n, ...] each; batch norm and the like replace them in every step, as they do inside a site's module.
    """

    def __init__(
        self,
        plan: PlanCode,
        module: nn.Module,
        layout: Layout,
        batch: Callable[[int], StackedBatch],
        *,
        private: Buffers | None = None,
        dropout: DropoutKey | None = None,
    ) -> None:
        self._batch, self._layout = batch, layout
        self._trained = [e for e in layout.parameters if dict(module.named_parameters())[e.name].requires_grad]
        self._dropout = dropout
        self.private: Buffers = dict(private or {})
        self.losses: list[Tensor] = []
        self._whole = Loss(plan, module)
        if not self._trained:
            raise PlanError(f"{plan.name}: the loss has no gradient (all parameters are frozen); train at least one")

    def __call__(self, x: Tensor, k: int) -> Gradient:
        """Gradients [n, P], 0 at frozen parameters and buffers, and losses [n]."""
        batch = self._batch(k)
        views = self._layout.unflatten(x)
        trained = {entry.name: views.pop(entry.name) for entry in self._trained}
        buffers = {entry.name: views.pop(entry.name) for entry in self._layout.buffers}
        stacked = torch.func.vmap(
            torch.func.grad_and_value(self._mean, has_aux=True),
            in_dims=(0, 0, 0, 0, None if batch.weights is None else 0, None if batch.keys is None else 0),
        )
        grads, (loss, after) = stacked(
            trained, views, {**buffers, **self.private}, batch.tensors, batch.weights, batch.keys
        )
        self.losses.append(loss.detach())
        self.private = {name: self._kept(batch.active, after[name], old) for name, old in self.private.items()}
        shared = [after[entry.name].reshape(len(x), -1) for entry in self._layout.buffers]
        active = None if batch.active is None else batch.active
        return Gradient(self._joined(grads, x), loss, torch.cat(shared, -1) if shared else None, active)

    def _mean(
        self,
        trained: Buffers,
        fixed: Buffers,
        buffers: Buffers,
        tensors: Batch,
        weights: Tensor | None,
        key: Tensor | None,
    ) -> tuple[Tensor, Buffers]:
        """One site's mean loss and its buffers afterwards."""
        after = {name: value.clone() for name, value in buffers.items()}
        if self._dropout is not None and key is not None:
            self._dropout.begin(key)
        losses = self._whole.at({**trained, **fixed, **after}, tensors)
        mean = losses.mean() if weights is None else (losses * weights).sum() / weights.sum()
        return mean, after

    def _joined(self, grads: Buffers, x: Tensor) -> Tensor:
        """One vector per site."""

        def piece(entry: Entry) -> Tensor:
            if entry.name in grads:
                return grads[entry.name].reshape(len(x), -1)
            return x.new_zeros(len(x), entry.stop - entry.start)

        return torch.cat([piece(entry) for entry in self._layout.entries], dim=-1)

    def _kept(self, active: Tensor | None, after: Tensor, before: Tensor) -> Tensor:
        if active is None:
            return after
        return torch.where(active.reshape(len(after), *(1,) * (after.dim() - 1)), after, before)


class Loss(nn.Module):
    """The plan's loss as a module around the plan's model, so that its tensors can be swapped by name."""

    def __init__(self, plan: PlanCode, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._plan = plan
        self._places = _places(model)

    def at(self, tensors: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Losses [B] with these tensors in the model."""
        named = {f"model.{place}": tensor for name, tensor in tensors.items() for place in self._places[name]}
        # every place is named here: torch's own way with tied tensors leaves one of them in a layer that is used twice
        losses: Tensor = torch.func.functional_call(self, named, batch, tie_weights=False)
        return losses

    def forward(self, *batch: Tensor) -> Any:
        return self._plan.loss(self.model, batch)


def _places(model: nn.Module) -> dict[str, list[str]]:
    """Every place of each tensor, by the name under which it is listed: tied ones have more than one."""
    names = {id(tensor): name for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
    found: dict[str, list[str]] = {name: [] for name in names.values()}
    for prefix, layer in model.named_modules():  # each layer once, however often it is used
        for name, tensor in [*layer._parameters.items(), *layer._buffers.items()]:
            if tensor is not None:
                found[names[id(tensor)]].append(f"{prefix}.{name}" if prefix else name)
    return found


def private_buffers(module: nn.Module, layout: Layout, sites: int) -> Buffers:
    """The module's buffers that are not in the vector, once per site."""
    shared = {entry.name for entry in layout.buffers}
    return {
        name: buffer.detach().expand(sites, *buffer.shape).clone()
        for name, buffer in module.named_buffers()
        if name not in shared
    }
