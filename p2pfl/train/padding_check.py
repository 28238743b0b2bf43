"""Whether padding a batch changes what its real examples do, asked before anything is trained.

Side by side, sites with fewer examples than the batch are padded with copies, which weigh nothing in the loss. That is
right only where each example's loss is its own: batch norm, or a loss that looks at the whole batch, sees the padding.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from p2pfl.train.keyed_dropout import DropoutKey, key_dropout
from p2pfl.train.plan_code import Batch, PlanCode

EXAMPLES = 8  # of the trial; half of them are the padding
SEEDS = (1, 2)  # of torch's generator; what differs between them was drawn, not caused by padding


def padding_problem(plan: PlanCode, module: nn.Module, batch: Batch) -> str | None:
    """Why these examples must not be padded, in words; None if they may be, or if the plan draws for itself.

    Losses, gradients and buffers of the first half of ``batch`` [B] in training mode, with and without the second half.
    A plan that draws without a layer does not run side by side at all. PlanError from the plan's code.
    """
    module = copy.deepcopy(module).train()
    dropout = key_dropout(module)
    several = tuple(tensor[:EXAMPLES] for tensor in batch)
    if len(several[0]) < 3:  # batch norm needs two real ones, and one is the padding
        several = tuple(torch.cat((tensor, tensor[:1], tensor[:1])) for tensor in several)
    real = max(2, len(several[0]) // 2)
    alone = tuple(tensor[:real] for tensor in several)
    found, again = (_outcome(plan, module, dropout, alone, real, seed) for seed in SEEDS)
    if not _same(found, again):
        return None
    if _same(found, _outcome(plan, module, dropout, several, real, SEEDS[0])):
        return None
    return "the loss of an example depends on the others of its batch, as with batch norm"


def _outcome(
    plan: PlanCode, module: nn.Module, dropout: DropoutKey | None, batch: Batch, real: int, seed: int
) -> list[Tensor]:
    """Losses of the first ``real`` examples, the gradients of their sum, and the buffers afterwards."""
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    with torch.enable_grad(), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        if dropout is not None:
            dropout.begin(torch.zeros((), dtype=torch.int64, device=batch[0].device))
        losses = plan.loss(module, batch)[:real]
        gradient = losses.new_zeros(0)
        if trained and losses.requires_grad:
            pieces = torch.autograd.grad(losses.sum(), trained, allow_unused=True, materialize_grads=True)
            gradient = torch.cat([piece.reshape(-1) for piece in pieces])
    found = [tensor.detach().clone() for tensor in (losses, gradient, *module.buffers())]
    with torch.no_grad():
        for name, value in before.items():
            module.get_buffer(name).copy_(value)
    return found


def _same(one: list[Tensor], other: list[Tensor]) -> bool:
    """Equal but for rounding, which differs with the size of a batch."""

    def close(a: Tensor, b: Tensor) -> bool:
        if not a.is_floating_point():
            return torch.equal(a, b)
        slack = torch.finfo(a.dtype).eps ** 0.5
        return torch.allclose(a, b, rtol=slack, atol=slack * float(a.abs().max() if a.numel() else 0.0), equal_nan=True)

    return all(close(a, b) for a, b in zip(one, other, strict=True))
