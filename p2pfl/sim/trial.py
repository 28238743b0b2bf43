"""The plan tried on the examples before anything is trained: what the first evaluation would refuse is told now."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import nn

from p2pfl.data import Examples, Parts
from p2pfl.data.examples import is_classes
from p2pfl.errors import ConfigError, PlanError
from p2pfl.sim.tensors import tensors
from p2pfl.train.plan_code import ERROR_TEXT_LIMIT, EVALUATION_BATCH, Batch, PlanCode, unchanged
from p2pfl.train.settings import Settings

COLUMNS = {
    "site", "examples", "share", "law", "neighbours", "local_steps", "seconds", "bytes", "heartbeat_bytes", "setting",
    "seed", "loss",
}  # fmt: skip
"""Of the tables over sites, beside the plan's figures."""


def _check_figures(names: Iterable[str]) -> None:
    """ConfigError for a figure of the plan's metrics() that would be lost in, or replace, a column of the tables."""
    taken = sorted(COLUMNS & set(names))
    if taken:
        raise ConfigError(
            f"the plan's figure {taken[0]!r} has the name of a column of the result's tables; rename it in metrics()"
        )


def check_evaluation(code: PlanCode, dtype: torch.dtype, examples: Examples) -> None:
    """The loss and the figures of an untrained model on what will be evaluated, the loss of one example of each class.

    Raises ConfigError for labels and values that the loss does not take, and for names of figures; PlanError.
    """
    module = code.model().to(dtype).eval()
    name, arrays = ("test", examples.test) if examples.test else ("training", examples.train)
    data = tuple(tensor.clone() for tensor in tensors(arrays, dtype))  # those of the caller stay as they are
    with torch.no_grad(), unchanged(code.name, data):
        for start in range(0, len(data[0]), EVALUATION_BATCH):
            _check_loss(code, module, tuple(tensor[start : start + EVALUATION_BATCH] for tensor in data), name)
        if examples.test and is_classes(examples.labels):
            _, firsts = np.unique(examples.labels, return_index=True)
            _check_loss(code, module, tensors([array[firsts] for array in examples.train], dtype), "training")
        _check_figures(code.metrics(module, data))


def check_smallest(code: PlanCode, settings: Settings, examples: Examples, parts: Parts, training: np.ndarray) -> None:
    """The loss in training mode of the smallest batch that any site will have: batch norm takes none of one example.

    ``training`` bool [n]: which sites have any local steps. ConfigError names the site.
    """
    sizes = np.array([min(len(rows), settings.batch_size) for rows in parts.rows])
    site = int(np.where(training, sizes, sizes.max() + 1).argmin())
    rows = parts.rows[site][: settings.batch_size]
    try:
        code.loss(
            code.model().to(settings.dtype).train(), tensors([array[rows] for array in examples.train], settings.dtype)
        )
    except PlanError as error:
        if error.__cause__ is None or len(rows) > 1:
            raise
        if settings.batch_size == 1:
            where, advice = "batches of one example are", "take a larger batch_size"
        else:
            where = f"site {site} has one example, and a batch of one is"
            advice = "give every site more (fewer peers, or another partition)"
        raise ConfigError(
            f"{where} nothing that the plan's loss() takes ({said_by(error.__cause__)}); {advice}, or use GroupNorm in "
            "place of batch norm"
        ) from error


def _check_loss(code: PlanCode, module: nn.Module, batch: Batch, name: str) -> None:
    try:
        code.loss(module, batch)
    except PlanError as error:
        if error.__cause__ is None:  # of a wrong form, whatever the examples
            raise
        raise ConfigError(
            f"the plan's loss() does not take the {name} examples ({said_by(error.__cause__)}); check their labels and "
            "values against the plan's model()"
        ) from error


def said_by(error: BaseException) -> str:
    """What torch, or the plan, said, as a part of a sentence."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:ERROR_TEXT_LIMIT].rstrip('.;')}"
