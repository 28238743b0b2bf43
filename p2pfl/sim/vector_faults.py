"""Misfortune that has a vector form: sites that lie in what they send, and sites that are absent for some rounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite, pi
from typing import Protocol

import torch
from torch import Tensor

from p2pfl.errors import ConfigError
from p2pfl.train.integer_hash import combine, key_of, words

NOISE_PURPOSE = 3  # of keys; 1 and 2 are batches and dropout


@dataclass(frozen=True)
class Sending:
    """Where a message is going out: round, mixing step, channel (its place in the rule's list), and which columns."""

    round: int
    step: int
    channel: int
    first: int  # the first column of the block


class VectorFault(Protocol):
    """What is wrong with some sites, in rounds from ``since`` up to, not including, ``until`` (None: the end)."""

    @property
    def sites(self) -> Sequence[int]:
        """Their numbers."""
        ...

    @property
    def since(self) -> int:
        """The first round."""
        ...

    @property
    def until(self) -> int | None:
        """The round after the last."""
        ...

    @property
    def absent(self) -> bool:
        """The sites neither train nor mix meanwhile."""
        ...

    def sent(self, message: Tensor, sites: Tensor, sending: Sending) -> Tensor:
        """What goes out in place of the sites' honest messages [s, p]."""
        ...


@dataclass(frozen=True)
class Absent:
    """The sites are away: they do not train, and nobody mixes with them. Both ends know, so nothing is biased."""

    sites: Sequence[int]
    since: int = 0
    until: int | None = None
    absent: bool = True

    def sent(self, message: Tensor, sites: Tensor, sending: Sending) -> Tensor:
        """Nothing is."""
        return message


@dataclass(frozen=True)
class Scaled:
    """The sites train honestly and send ``factor`` times their messages; -1 flips the sign."""

    sites: Sequence[int]
    factor: float = -1.0
    since: int = 0
    until: int | None = None
    absent: bool = False

    def __post_init__(self) -> None:
        if not isfinite(self.factor):
            raise ConfigError(f"messages scaled by {self.factor}; choose a finite factor")

    def sent(self, message: Tensor, sites: Tensor, sending: Sending) -> Tensor:
        """factor m."""
        return self.factor * message


@dataclass(frozen=True)
class Noise:
    """The sites send Gaussian noise of this standard deviation in place of their messages."""

    sites: Sequence[int]
    deviation: float = 1.0
    seed: int = 0
    since: int = 0
    until: int | None = None
    absent: bool = False

    def __post_init__(self) -> None:
        if not (isfinite(self.deviation) and self.deviation >= 0):
            raise ConfigError(f"noise of standard deviation {self.deviation}; choose 0 or more")

    def sent(self, message: Tensor, sites: Tensor, sending: Sending) -> Tensor:
        """Box-Muller on keyed words: the same noise whatever the blocks and chunks."""
        key = key_of(self.seed, NOISE_PURPOSE, sending.round, sending.step, sending.channel)
        own = combine(torch.full_like(sites, key), sites).unsqueeze(-1)
        column = words((message.shape[-1],), message.device) + sending.first
        one, two = (combine(combine(own, column), half).double() for half in (1, 2))
        radius = (-2.0 * torch.log((one + 0.5) / 2.0**32)).sqrt()
        return (self.deviation * radius * torch.cos(2.0 * pi / 2.0**32 * two)).to(message.dtype)


def check_faults(faults: Sequence[VectorFault], sites: int) -> None:
    """ConfigError for a site that does not exist, or rounds that end before they begin."""
    for fault in faults:
        strangers = [site for site in fault.sites if not 0 <= site < sites]
        if strangers:
            raise ConfigError(f"a fault names site {strangers[0]}; there are {sites}: use 0 to {sites - 1}")
        if fault.until is not None and fault.until <= fault.since:
            raise ConfigError(f"a fault lasts from round {fault.since} to {fault.until}; let it end after it begins")


def in_round(faults: Sequence[VectorFault], round: int) -> list[VectorFault]:
    """The faults of a round."""
    return [f for f in faults if f.since <= round and (f.until is None or round < f.until)]
