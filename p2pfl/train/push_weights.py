"""The weights of push-sum between sites: which are told and which refused, and quotients by them.

With pi_i what sites count, the weights w_i mix as the models' numerators do and sum_i pi_i w_i = 1. So none is above
1 / pi_i as long as none is below 0. What is taken back may bring one below 0 for a while, and others then above. So

    told_i = min(max(w_i, 0), 2 / pi_i)

and a site keeps what it does not tell. Whoever tells another weight than one from 0 to 2 / pi_i lies. Where pi_i is
not known it is taken for the least that a site may count, 1e-9 (`p2pfl.topology.weighting`).

A lie within the bound adds at most the mass of two consortia, in each round anew; one that always tells 0 takes others'
weights away round by round, so that their rates lr / w_i rise until they diverge. Neither is told from what losses do,
and neither are the models sent beside it, by any rule that mixes without a robust merge.
"""

from __future__ import annotations

from math import isfinite

import torch
from torch import Tensor

from p2pfl.errors import MalformedMessage, PlanError
from p2pfl.types import WEIGHT

LEAST = 1e-6  # of a weight that is divided by: below it a quotient is what rounding left of sums that cancelled
MOST_MASS = 2.0  # of pi_i w_i; the sum over all sites is 1
LEAST_SHARE = 1e-9


def most_told(share: Tensor | float) -> Tensor:
    """2 / pi_i of sites that count ``share`` [..., 1], in its dtype."""
    return MOST_MASS / torch.as_tensor(share).clamp(min=LEAST_SHARE)


def told(weight: Tensor, most: Tensor | None = None) -> Tensor:
    """What is said of a weight [..., 1], 0 to ``most``."""
    least = weight.clamp(min=0.0)
    return least if most is None else torch.minimum(least, most)


def is_amount(weight: float, given: float) -> bool:
    """Whether a directed mixing may take and give so much. A light site may take much more than all of a heavy one's:
    what both count is not alike."""
    return weight >= 0.0 and isfinite(weight) and 0.0 <= given <= 1.0 and weight + given > 0.0


def quotient(numerator: Tensor, weight: Tensor, otherwise: Tensor) -> Tensor:
    """numerator / weight, and ``otherwise`` where the weight is not above `LEAST`; [..., P], weight [..., 1]."""
    readable = weight > LEAST
    return torch.where(readable, numerator / torch.where(readable, weight, torch.ones_like(weight)), otherwise)


def check_received(channel: str, value: Tensor, share: float | None) -> None:
    """Refuse a weight that no honest site tells, or a model [S] that has no finite product with weights.

    ``share``: what its sender counts, None if that is not known. Raises MalformedMessage.
    """
    if channel != WEIGHT:
        if not _has_products(value):
            raise MalformedMessage("a model that is too large to be weighed; refused, ask its sender")
        return
    # the sender's own bound is rounded in its dtype
    weight, most = float(value), float(most_told(0.0 if share is None else share)) * (1.0 + 1e-6)
    if not 0.0 <= weight <= most:
        raise MalformedMessage(f"a weight of {weight:.6g}, where it can be 0 to {most:.6g}; refused, ask its sender")


def check_own(value: Tensor) -> None:
    """Refuse to send a model [S] that others would refuse. Raises PlanError."""
    if not _has_products(value):
        raise PlanError("the own parameters are too large to be weighed; lower learning_rate in the plan")


def _has_products(value: Tensor) -> bool:
    """w_ij w_j <= 2 / pi_i <= 2e9, so that the square root of the largest number leaves room, in float32 as well."""
    return bool((value.abs() <= torch.finfo(value.dtype).max ** 0.5).all())
