"""Sites with fewer examples than the batch: may they be padded, and if not, who trains one after the other."""

from __future__ import annotations

import torch

from p2pfl.data import Parts
from p2pfl.errors import ConfigError
from p2pfl.sim.population import Holdings
from p2pfl.train.padding_check import EXAMPLES, padding_problem
from p2pfl.train.plan_code import Batch, PlanCode

FEW = "sites have fewer examples than the batch: padding would enter its statistics"


def check_padding(plan: PlanCode, module: torch.nn.Module, data: Batch, holdings: Holdings) -> None:
    """ConfigError if padding would change what real examples do; asked where it is about to be used."""
    largest = holdings.rows_of(int(holdings.counts.argmax()))[:EXAMPLES]
    problem = padding_problem(plan, module, tuple(tensor[largest] for tensor in data))
    if problem is not None:
        raise ConfigError(refusal(problem))


def refusal(problem: str) -> str:
    """The sentence of the refusal."""
    return f'{problem}, and {FEW}; choose a smaller batch_size, GroupNorm, or execution = "loop"'


def without_padding(
    plan: PlanCode, module: torch.nn.Module, parts: Parts, data: Batch, batch_size: int, execution: str
) -> tuple[str, tuple[str, ...]]:
    """The way of execution, and a remark where "auto" becomes the loop. ConfigError for another way that would pad."""
    counts = [len(rows) for rows in parts.rows]
    if execution == "loop" or min(counts) >= min(batch_size, max(counts)):
        return execution, ()
    problem = padding_problem(plan, module, data)
    if problem is None:
        return execution, ()
    if execution != "auto":
        raise ConfigError(refusal(problem))
    return "loop", (f"{problem}, and {FEW}: the sites train one after the other",)
