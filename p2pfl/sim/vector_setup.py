"""What a simulated run is made of, checked before anything is trained: model, first parameters, draws, local steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from p2pfl.errors import ConfigError, IllegalStep
from p2pfl.sim.decisions import Decisions
from p2pfl.sim.vector_faults import VectorFault, check_faults
from p2pfl.topology import Schedule
from p2pfl.train import model_files
from p2pfl.train.layout import Layout
from p2pfl.train.plan_code import PlanCode
from p2pfl.train.rules import check_combination, keeps_nothing
from p2pfl.train.settings import Settings
from p2pfl.train.stacked_sampling import CounterDraws, DeployedKeys, Draws
from p2pfl.types import WEIGHT


def check_run(
    settings: Settings, layout: Layout, schedule: Schedule, decisions: Decisions | None,
    faults: Sequence[VectorFault], *, most: int, recorded: bool = False,
) -> int:  # fmt: skip
    """The number of rounds; ``recorded``: decisions will come. ConfigError for what does not go together.

    ``most``: the most local steps of any site in a round.
    """
    sites, rule = len(schedule.nodes), settings.rule
    check_faults(faults, sites)
    same = schedule.same_each_round
    check_combination(
        rule.name, settings.optimiser.name, sites=sites, edges=schedule.graph.number_of_edges() if same else None,
        staleness=settings.staleness, steps=most, varying=not same, directed=schedule.directed, walks=schedule.walks,
        statistics=layout.buffer_size > 0,
        weighted=not schedule.by_shares,
        accelerated=schedule.accelerated,
    )  # fmt: skip
    linear = rule.needs.linear
    if not linear and (decisions is not None or recorded or faults):
        raise ConfigError(f"rule {rule.name} is simulated without losses and faults only; choose another rule")
    alike = not linear or any(channel.name == WEIGHT for channel in rule.channels)
    if alike and layout.shared_size != layout.size:
        raise ConfigError(keeps_nothing(rule.name, rule.needs))
    if decisions is None:
        return schedule.total
    total = len(decisions.rounds)
    if total not in (schedule.total, schedule.total + 1):  # one more: what is settled at the end
        raise ConfigError(f"decisions of {total} rounds for {schedule.total}; record the same schedule")
    if any(fault.absent for fault in faults):
        raise ConfigError("absences are part of recorded decisions; record them with the fault")
    return total


def own_steps(steps: Sequence[int] | None, schedule: Schedule, usual: int) -> Any:
    """Local steps of each site, int64 [n], where the schedule changes them as well. ConfigError."""
    sites = len(schedule.nodes)
    each = np.full(sites, usual, dtype=np.int64) if steps is None else np.asarray(steps, dtype=np.int64)
    if each.shape != (sites,) or (each < 0).any() or not each.any():
        raise ConfigError(f"local steps {each.tolist()[:8]} for {sites} sites; give a number of 0 or more each")
    return np.array([schedule.steps_of(node, int(own)) for node, own in zip(schedule.nodes, each, strict=True)])


def no_oracle(x: Tensor, k: int) -> Any:
    """Of sites that take no step."""
    raise IllegalStep("a site without local steps asks for a gradient")


def drawn_model(plan: PlanCode, dtype: torch.dtype, seed: int) -> torch.nn.Module:
    """The plan's module with the parameters of this seed. ConfigError, PlanError."""
    if not 0 <= seed < 2**63:
        raise ConfigError(f"seed {seed} is not in 0 to 2^63 - 1; choose another")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return plan.model().to(dtype)


def first_vectors(initial: Tensor | bytes | None, module: torch.nn.Module, layout: Layout, sites: int) -> Tensor:
    """[P] or [n, P]; buffers of a file go into the module. ConfigError, MalformedMessage."""
    if initial is None:
        return layout.flatten(module)
    if isinstance(initial, Tensor):
        if initial.shape not in ((layout.size,), (sites, layout.size)):
            raise ConfigError(
                f"initial parameters of shape {tuple(initial.shape)}; give [{layout.size}] or [{sites}, {layout.size}]"
            )
        return initial.to(layout.dtype)
    return model_files.load(bytes(initial), module, layout)


def draws_of(sampling: str | DeployedKeys, seed: int) -> Draws:
    """Where batches come from. ConfigError."""
    if isinstance(sampling, DeployedKeys):
        return sampling
    if sampling != "counter":
        raise ConfigError(f'sampling {sampling!r} is unknown; choose "counter" or give DeployedKeys')
    return CounterDraws(seed)
