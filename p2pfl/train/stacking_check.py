"""Whether a plan's loss can be differentiated for many sites at once, asked before anything is trained."""

from __future__ import annotations

import torch

from p2pfl.train.keyed_dropout import key_dropout
from p2pfl.train.plan_code import Batch, PlanCode
from p2pfl.train.settings import Settings
from p2pfl.train.stacked import StackedBatch, StackedOracle, private_buffers

EXAMPLES = 4  # of the trial: batch norm needs more than one
SHOWN = 200  # characters of the reason


def stacking_problem(plan: PlanCode, settings: Settings, batch: Batch) -> str | None:
    """Why one gradient of two sites side by side fails on these examples, in words; None if it does not."""
    module = plan.model().to(settings.dtype).train()
    layout = settings.layout(module)
    x = layout.flatten(module).expand(2, layout.size).contiguous()
    private = private_buffers(module, layout, 2)
    dropout = key_dropout(module)
    tensors = tuple(torch.stack((tensor[:EXAMPLES], tensor[:EXAMPLES])) for tensor in batch)
    keys = None if dropout is None else torch.zeros(2, dtype=torch.int64)
    oracle = StackedOracle(
        plan, module, layout, lambda k: StackedBatch(tensors, None, keys), private=private, dropout=dropout
    )
    try:
        with torch.no_grad():
            oracle(x, 0)
    except Exception as error:  # whatever the plan's own code does under vmap
        return f"{type(error).__name__}: {' '.join(str(error).split())[:SHOWN]}"
    return None
