"""What a plan says about training (the run's settings), checked once, in plain words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from p2pfl.errors import ConfigError
from p2pfl.train.layout import DTYPES, Layout
from p2pfl.train.optimisers import Optimiser, optimiser_named
from p2pfl.train.rules import Rule, check_combination, rule_named

MAX_STALENESS = 8  # as in proposals (p2pfl.gossip.statements)
_REQUIRED = ("rule", "learning_rate", "local_steps", "batch_size")
_CHOICES: Mapping[str, tuple[Any, ...]] = {
    "dtype": tuple(DTYPES),
    "batch_norm": (None, "private", "shared"),
    "buffers": ("exclude", "share"),
}


@dataclass(frozen=True, slots=True)
class Settings:
    """Checked settings of one run."""

    rule: Rule
    optimiser: Optimiser
    learning_rate: float
    local_steps: int
    batch_size: int
    dtype: torch.dtype
    batch_norm: Literal["private", "shared"] | None
    buffers: Literal["exclude", "share"]
    staleness: int = 0  # own rounds that an edge may be mixed late; 0: synchronous

    def layout(self, module: torch.nn.Module) -> Layout:
        """Where the module's tensors lie in this run's vectors. Raises PlanError for a module that does not fit."""
        return Layout(module, dtype=self.dtype, buffers=self.buffers, batch_norm=self.batch_norm)


def read_settings(values: Mapping[str, Any]) -> Settings:
    """Settings from plain values; ConfigError names the first wrong one and what to write instead."""
    known = {*_REQUIRED, "optimiser", "rule_settings", "staleness", *_CHOICES}
    for name in values:
        if name not in known:
            raise ConfigError(f"unknown training setting {name!r}; known ones are {', '.join(sorted(known))}")
    for name in _REQUIRED:
        if name not in values:
            raise ConfigError(f"training setting {name} is missing; add it to the plan")
    for name, choices in _CHOICES.items():
        if values.get(name, choices[0]) not in choices:
            allowed = " or ".join(repr(choice) for choice in choices if choice)
            raise ConfigError(f"training setting {name} is {values[name]!r}; write {allowed}")
    for name in ("local_steps", "batch_size"):
        if type(values[name]) is not int or values[name] < 1:
            raise ConfigError(f"training setting {name} is {values[name]!r}; write a whole number of 1 or more")
    rate = values["learning_rate"]
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not (math.isfinite(rate) and rate > 0):
        raise ConfigError(f"training setting learning_rate is {rate!r}; write a positive number such as 0.1")
    if rate > torch.finfo(DTYPES[values.get("dtype", "float32")]).max:
        raise ConfigError(f"training setting learning_rate is {rate!r}, more than the run's numbers hold; lower it")
    optimiser = _optimiser(values.get("optimiser", {"name": "sgd"}))
    rule = rule_named(str(values["rule"]), optimiser, _numbers(values.get("rule_settings", {})))
    staleness = values.get("staleness", 0)
    if type(staleness) is not int or not 0 <= staleness <= MAX_STALENESS:
        raise ConfigError(f"training setting staleness is {staleness!r}; write a whole number of 0 to {MAX_STALENESS}")
    statistics = values.get("batch_norm") == "shared" or values.get("buffers") == "share"
    check_combination(
        rule.name, optimiser.name, staleness=staleness, steps=values["local_steps"], statistics=statistics
    )
    return Settings(
        rule=rule,
        optimiser=optimiser,
        learning_rate=float(rate),
        local_steps=values["local_steps"],
        batch_size=values["batch_size"],
        dtype=DTYPES[values.get("dtype", "float32")],
        batch_norm=values.get("batch_norm"),
        buffers=values.get("buffers", "exclude"),
        staleness=staleness,
    )


def _numbers(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"training setting rule_settings is {value!r}; write for example {{ proximal = 0.1 }}")
    return value


def _optimiser(value: Any) -> Optimiser:
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        raise ConfigError(f'training setting optimiser is {value!r}; write for example {{ name = "sgd" }}')
    return optimiser_named(value["name"], {name: option for name, option in value.items() if name != "name"})
