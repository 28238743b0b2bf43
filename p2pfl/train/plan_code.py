"""A plan's code (plan.py): loading the approved bytes, and calling them with errors in plain words."""

from __future__ import annotations

import importlib.abc
import importlib.util
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from p2pfl.errors import DataError, P2PFLError, PlanError

PARTS = ("train", "test")
ERROR_TEXT_LIMIT = 300  # characters of a plan's own exception that are passed on; enough for one sentence
EVALUATION_BATCH = 1024  # examples per forward pass of an evaluation; bounds its memory, not its result

Batch = tuple[Tensor, ...]


class _BytesLoader(importlib.abc.SourceLoader):
    """Loads a module from the approved bytes, never from a file that could have changed since."""

    def __init__(self, source: bytes, name: str) -> None:
        self._source = source
        self._name = name

    def get_filename(self, fullname: str) -> str:
        return self._name

    def get_data(self, path: str | bytes) -> bytes:
        return self._source

    def get_code(self, fullname: str) -> CodeType:
        # The inherited one looks for cached bytecode on disk first.
        return self.source_to_code(self._source, self._name)


def load_plan_module(source: bytes, name: str = "plan.py") -> ModuleType:
    """Run the plan's top level as a module of its own; PlanError, with the line, if that fails."""
    loader = _BytesLoader(source, name)
    spec = importlib.util.spec_from_loader(name.removesuffix(".py"), loader, origin=name)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    with plan_errors(name, "does not load"):
        loader.exec_module(module)
    return module


@contextmanager
def plan_errors(name: str, what: str, *, data: bool = False) -> Iterator[None]:
    """Turn whatever a plan's code raises into PlanError, or DataError where it reads the site's file."""
    try:
        yield
    except P2PFLError:
        raise
    except (Exception, SystemExit) as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == name]
        line = error.lineno if isinstance(error, SyntaxError) else (lines[-1] if lines else None)
        where = f"{name}, line {line}" if line else name
        text = " ".join(str(error).split())[:ERROR_TEXT_LIMIT]
        kind = DataError if data else PlanError
        advice = "check the registered file against what the plan reads" if data else "mend the plan"
        raise kind(f"{where}: {what}: {type(error).__name__}: {text}; {advice}") from error


@contextmanager
def unchanged(name: str, data: Batch) -> Iterator[None]:
    """PlanError where the plan changes these examples in place: all figures after it would be of other data.

    Batches of local steps are copies, which a plan may change.
    """
    before = [tensor._version for tensor in data]  # torch counts changes in place, also those through parts of it
    yield
    if [tensor._version for tensor in data] != before:
        raise PlanError(
            f"{name}: loss() or metrics() changes the examples that it is given, so what comes after it would be of "
            "other data; write x = x / 255 in place of x.div_(255) or x /= 255"
        )


class PlanCode:
    """The functions of one plan (docs/plans.md has the contract). PlanError where one is missing."""

    def __init__(self, source: bytes, name: str = "plan.py") -> None:
        self.name = name
        self._module = load_plan_module(source, name)
        for function in ("model", "loss", "load"):
            if not callable(getattr(self._module, function, None)):
                raise PlanError(f"{name} has no function {function}; write one as docs/plans.md describes")

    def model(self) -> nn.Module:
        """A fresh module."""
        with plan_errors(self.name, "model() failed"):
            module = self._module.model()
        if not isinstance(module, nn.Module):
            raise PlanError(f"{self.name}: model() returned {type(module).__name__}; return a torch.nn.Module")
        if any(is_lazy(parameter) for parameter in (*module.parameters(), *module.buffers())):
            raise PlanError(
                f"{self.name}: model() has layers without sizes before the first batch (LazyLinear and the like), so "
                "sites could not begin with the same parameters; give their sizes"
            )
        return module

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Losses [B], one per example of the batch."""
        with plan_errors(self.name, "loss() failed"):
            losses = self._module.loss(model, batch)
        if not isinstance(losses, Tensor) or losses.shape != batch[0].shape[:1]:
            got = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
            raise PlanError(
                f"{self.name}: loss() returned {got} for {len(batch[0])} examples; return a tensor with one "
                f'loss per example (reduction="none")'
            )
        if not losses.is_floating_point():
            raise PlanError(f"{self.name}: loss() returned {losses.dtype}; return real numbers, which have a gradient")
        return losses

    @property
    def has_metrics(self) -> bool:
        """Whether the plan has figures of its own."""
        return getattr(self._module, "metrics", None) is not None

    @property
    def lower_is_better(self) -> frozenset[str]:
        """The figures that the plan's LOWER_IS_BETTER names; PlanError if that is no collection of names."""
        names = getattr(self._module, "LOWER_IS_BETTER", ())
        if not isinstance(names, (set, frozenset, tuple, list)) or not all(isinstance(name, str) for name in names):
            raise PlanError(f'{self.name}: LOWER_IS_BETTER must be a set of names, such as {{"brier"}}; mend the plan')
        return frozenset(names)

    def metrics(self, model: nn.Module, batch: Batch) -> dict[str, float]:
        """The plan's figures on ``batch``; empty if the plan has no metrics()."""
        function = getattr(self._module, "metrics", None)
        if function is None:
            return {}
        with plan_errors(self.name, "metrics() failed"):
            figures = function(model, batch)
            if not isinstance(figures, dict):
                raise TypeError(f"it returned {type(figures).__name__}, not a dict of numbers")
            return {str(name): float(value) for name, value in figures.items()}

    def evaluate(self, model: nn.Module, data: Batch) -> dict[str, float]:
        """The plan's figures on ``data``, with the mean "loss" and the number of "examples"."""
        starts = range(0, len(data[0]), EVALUATION_BATCH)
        with torch.no_grad(), unchanged(self.name, data):
            pieces = [tuple(tensor[start : start + EVALUATION_BATCH] for tensor in data) for start in starts]
            loss = torch.cat([self.loss(model, piece) for piece in pieces]).mean()
            figures = self.metrics(model, data)
        return {**figures, "loss": float(loss), "examples": len(data[0])}

    def load(self, path: str, dtype: torch.dtype) -> dict[str, Batch]:
        """The site's tensors by part, floats in ``dtype``; DataError if the file does not fit."""
        with plan_errors(self.name, "load() failed", data=True):
            parts: Any = self._module.load(Path(path))
        if not isinstance(parts, dict) or "train" not in parts or not set(parts) <= set(PARTS):
            raise PlanError(f'{self.name}: load() must return a dict with "train" and perhaps "test"; mend the plan')
        return {part: self._batch(part, tensors, dtype) for part, tensors in parts.items()}

    def _batch(self, part: str, tensors: Any, dtype: torch.dtype) -> Batch:
        if not isinstance(tensors, (tuple, list)) or not tensors or not all(isinstance(t, Tensor) for t in tensors):
            raise PlanError(f'{self.name}: load()["{part}"] must be a tuple of tensors; mend the plan')
        lengths = {len(tensor) if tensor.dim() else -1 for tensor in tensors}
        if len(lengths) != 1 or -1 in lengths:
            raise PlanError(
                f'{self.name}: the tensors of load()["{part}"] differ in their first dimension; '
                f"give each one row per example"
            )
        if lengths == {0} and part == "train":
            raise DataError(f"{self.name} found no training examples in the registered file; check the file")
        for tensor in tensors:
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise DataError(
                    f'load()["{part}"] has missing or infinite values; fill them in the plan or in the file'
                )
        return tuple(t.detach().to(dtype) if t.is_floating_point() else t.detach() for t in tensors)
