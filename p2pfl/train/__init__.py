"""All tensor work of a run: plan code, local steps, update rules, mixing, the worker process.

Importing this package loads no torch; its modules do, except ``frames``. For plans with scikit-learn's linear
estimators it has `LinearEstimator` and `fitted`, loaded when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from p2pfl.train.linear_estimators import LinearEstimator, fitted

__all__ = ["LinearEstimator", "fitted"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module("p2pfl.train.linear_estimators"), name)
    raise AttributeError(f"module 'p2pfl.train' has no attribute {name!r}")
