"""From a plan's code and a model file to a torch module, for whoever uses the result of a run."""

from __future__ import annotations

import safetensors.torch
from safetensors import SafetensorError
from torch import nn

from p2pfl.errors import DataError
from p2pfl.train.plan_code import PlanCode


def load_model(source: bytes, model_file: bytes) -> nn.Module:
    """The plan's model with the tensors of a safetensors file (all of ``state_dict``), in evaluation mode.

    Runs the plan's code in this process: use it for plans you approved. Raises PlanError or DataError.
    """
    module = PlanCode(source).model()
    try:
        module.load_state_dict(safetensors.torch.load(model_file))
    except (SafetensorError, RuntimeError, ValueError, KeyError) as error:
        first = str(error).splitlines()[0]
        raise DataError(f"this file does not hold the plan's model: {first}; use the plan of its run") from error
    return module.eval()
