"""Catching up: the own parameters replaced in part by a weighted mean of other sites' parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from p2pfl.errors import IllegalStep
from p2pfl.train.rules import State
from p2pfl.train.rules.cyclic import holds

WEIGHT_ERROR = 1e-9  # of weights that sum to 1: rounding of as many doubles as a consortium has members


class StateOf(NamedTuple):
    """One site's parameters to take in: its weight in the mean, its channel, and the key they were received under."""

    origin: str
    weight: float
    channel: str
    key: str


def read_states(rows: Sequence[Sequence[Any]], own: float, channel: str) -> list[StateOf]:
    """The states that plain values (origin, weight, {channel: key}) name. Raises IllegalStep, see `Session.adopt`."""
    states = []
    for origin, weight, keys in rows:
        named: Mapping[str, str] = dict(keys)
        if list(named) != [channel]:
            raise IllegalStep(f"channels {sorted(named)} from {origin}; a state is of the channel {channel} alone")
        states.append(StateOf(str(origin), float(weight), channel, named[channel]))
    if not 0.0 <= own < 1.0:
        raise IllegalStep(f"own weight {own}; it is at least 0, and at 1 there is nothing to take in")
    if not states or len({state.origin for state in states}) < len(states):
        raise IllegalStep("states of no site, or two of one; give one of each")
    if not all(state.weight > 0.0 for state in states) or abs(sum(s.weight for s in states) - 1.0) > WEIGHT_ERROR:
        raise IllegalStep("weights of states must be above 0 and sum to 1")
    return states


def keep_walking(state: State, before: Tensor, moved: Tensor) -> tuple[State, Tensor]:
    """Of the rule `cyclic`, where a site takes others' parameters in: state and parameters [..., P] afterwards.

    The site that has the model keeps it. At others x = w z + rest stays, or the sum over all sites would change.
    """
    here = holds(state)
    rest = state["rest"] + state["weight"] * (before - moved)
    return {**state, "rest": torch.where(here, state["rest"], rest)}, torch.where(here, before, moved)


def adopt(x: Tensor, own: float, states: Sequence[tuple[float, Tensor]]) -> Tensor:
    """own x + (1 - own) sum_j weight_j m_j on vectors [S], summed in the given order."""
    weight, first = states[0]
    mean = weight * first
    for weight, state in states[1:]:
        mean = mean + weight * state
    return own * x + (1.0 - own) * mean
