"""Everything of a vectorised run that its later rounds read, by name, and a run that goes on from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from p2pfl.errors import ConfigError
from p2pfl.sim.vector_mixing import Kept
from p2pfl.sim.vectorised import VectorisedRun

STATE, PRIVATE, KEPT, FLOW, RELAYS = "state/", "private/", "kept/", "flow", "relays"


def held(run: VectorisedRun) -> dict[str, Tensor]:
    """The run's own tensors, between two rounds: parameters, the rule's state, what mixing keeps for later rounds."""
    tensors = _of_sites(run)
    if run.linear.flow is not None:
        tensors[FLOW] = run.linear.flow
    if run.relays.last is not None:
        tensors[RELAYS] = run.relays.last
    for (round_, step), kept in run.replay.kept.items() if run.replay is not None else ():
        place = f"{KEPT}{round_}/{step}/"
        tensors |= {place: kept.rows, **{place + name: value for name, value in kept.channels.items()}}
    return tensors


def _of_sites(run: VectorisedRun) -> dict[str, Tensor]:
    population = run.population
    return {
        "x": population.x,
        "losses": population.losses,
        **{STATE + name: value for name, value in population.state.items()},
        **{PRIVATE + name: value for name, value in population.private.items()},
    }


def go_on(run: VectorisedRun, round_: int, arrays: Mapping[str, Any]) -> None:
    """Take a run that has not begun to where another one of the same settings was after ``round_`` rounds.

    ConfigError for what another run held.
    """
    device = run.x.device
    tensors = {name: torch.from_numpy(array.copy()).to(device) for name, array in arrays.items()}
    mixing = {name for name in tensors if name in (FLOW, RELAYS) or name.startswith(KEPT)}
    own = _of_sites(run)
    if {name: _kind(tensor) for name, tensor in tensors.items() if name not in mixing} != {
        name: _kind(tensor) for name, tensor in own.items()
    } or (run.replay is None and any(name.startswith(KEPT) for name in mixing)):
        raise ConfigError(
            "the checkpoint is of another run, and is removed; with --resume this one begins again from round 0"
        )
    population = run.population
    population.x, population.losses = tensors["x"], tensors["losses"]
    population.state.update({name: tensors[STATE + name] for name in population.state})
    population.private.update({name: tensors[PRIVATE + name] for name in population.private})
    run.linear.flow, run.relays.last = tensors.get(FLOW), tensors.get(RELAYS)
    if run.replay is not None:
        run.replay.kept = _kept({name: tensors[name] for name in mixing if name.startswith(KEPT)})
    run.round = round_


def _kept(tensors: Mapping[str, Tensor]) -> dict[tuple[int, int], Kept]:
    found: dict[tuple[int, int], tuple[dict[str, Tensor], dict[str, Tensor]]] = {}
    for name, tensor in tensors.items():
        round_, step, channel = name.removeprefix(KEPT).split("/", 2)
        rows, channels = found.setdefault((int(round_), int(step)), ({}, {}))
        (channels if channel else rows)[channel] = tensor
    return {place: Kept(rows[""], channels) for place, (rows, channels) in found.items()}


def _kind(tensor: Tensor) -> tuple[torch.Size, torch.dtype]:
    return tensor.shape, tensor.dtype
