"""Examples as the tensors that plans see."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from p2pfl.errors import ConfigError
from p2pfl.train.plan_code import Batch


def tensors(arrays: Sequence[np.ndarray], dtype: torch.dtype) -> Batch:
    """Arrays as the plan sees them: floats in the run's dtype, whole numbers and truth values as int64."""
    found = []
    for array in arrays:
        if array.dtype.kind not in "fiub":
            raise ConfigError(f"an array of {array.dtype} cannot be trained on; give numbers")
        own = np.ascontiguousarray(array)
        tensor = torch.from_numpy(own if own.flags.writeable else own.copy())  # torch warns of read-only ones
        found.append(tensor.to(dtype) if array.dtype.kind == "f" else tensor.to(torch.int64))
    return tuple(found)
