"""How good the models of a simulated run are: the mean model, the worst site, a sample of the sites or all of them.

Evaluating every site in every round costs as much as training them, so what is evaluated is chosen, and the time that
it took is told apart from the run's. All figures are on one common set of examples.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from p2pfl.errors import ConfigError, PlanError
from p2pfl.sim.directions import lower_is_better
from p2pfl.sim.population import batch_on
from p2pfl.sim.vectorised import VectorisedRun
from p2pfl.train.integer_hash import key_of
from p2pfl.train.oracle import put
from p2pfl.train.plan_code import EVALUATION_BATCH, Batch, PlanCode, unchanged
from p2pfl.train.stacked import Loss
from p2pfl.train.stacked_sampling import floyd
from p2pfl.train.threads import dealt, on_threads

SAMPLE_PURPOSE = 4  # of keys; 1 to 3 are batches, dropout and noise
FORWARD_NUMBERS = 1 << 16  # examples times sites of one forward pass; bounds the memory, not the result


@dataclass(frozen=True)
class Consensus:
    """How far the sites are apart: D^2 = sum_i pi_i |x_i - x_bar|^2 over the shared entries."""

    distance: float  # D
    relative: float  # D / |x_bar|


@dataclass(frozen=True)
class Evaluation:
    """Figures after some rounds; "loss" is always among them."""

    rounds: int  # how many were over
    mean: Mapping[str, float]  # of the mean model x_bar
    sites: Any  # int64 [s]: the sites that were evaluated
    figures: Mapping[str, Any]  # float64 [s] each
    consensus: Consensus
    seconds: Mapping[str, float] = field(default_factory=dict)  # real time of "mean", "sites" and "consensus"
    lower_is_better: frozenset[str] = frozenset()  # figures of which the plan says so

    def worst(self, figure: str) -> tuple[int, float]:
        """The site with the worst value of a figure, and that value. ValueError where no site has one."""
        values = self.figures[figure]
        lower = lower_is_better(figure, self.lower_is_better)
        place = int(np.nanargmax(values) if lower else np.nanargmin(values))
        return int(self.sites[place]), float(values[place])


LEAST_MASS = 1.0 / 8  # of a model that walks; else the mean of what sites had last


class Evaluator:
    """Evaluates the sites of one run."""

    def __init__(
        self, plan: PlanCode, run: VectorisedRun, test: Sequence[Tensor], *, sample: int | None = 16, seed: int = 0
    ) -> None:
        """``sample``: how many sites, drawn anew for each evaluation; None: all. ConfigError for what does not fit."""
        if sample is not None and sample < 0:
            raise ConfigError(f"a sample of {sample} sites; give 0 or more, or None for all")
        self._plan, self._run, self._seed = plan, run, seed
        self._data = batch_on(test, run.settings.dtype, run.x.device)
        if not len(self._data[0]):
            raise ConfigError("there are no test examples to evaluate on; give some")
        self._sample = run.sites if sample is None else min(sample, run.sites)
        self._module = copy.deepcopy(run.module).eval()
        self._with_metrics = plan.has_metrics

    def evaluate(self) -> Evaluation:
        """All figures now."""
        times = [time.perf_counter()]
        run = self._run
        mean = self._mean_model()
        figures = self._one(
            self._module, mean, {name: _average(v, run.shares) for name, v in run.population.private.items()}
        )
        times.append(time.perf_counter())
        sites = self._chosen()
        found = self._of_sites(sites)
        times.append(time.perf_counter())
        apart = consensus(run, mean)
        times.append(time.perf_counter())
        spent = np.diff(times)
        seconds = dict(zip(("mean", "sites", "consensus"), spent.tolist(), strict=True))
        return Evaluation(run.round, figures, sites.cpu().numpy(), found, apart, seconds, self._plan.lower_is_better)

    def _mean_model(self) -> Tensor:
        return mean_model(self._run)

    def _chosen(self) -> Tensor:
        """The sample of this round, sorted: a pure function of seed and round."""
        run = self._run
        if self._sample == 0 or self._sample == run.sites:
            return torch.arange(self._sample, device=run.x.device)
        key = torch.tensor([[key_of(self._seed, SAMPLE_PURPOSE, run.round)]], dtype=torch.int64)
        return floyd(key, torch.tensor([run.sites]), self._sample).reshape(-1).sort().values.to(run.x.device)

    def _of_sites(self, sites: Tensor) -> dict[str, Any]:
        """Side by side where there is the loss alone and the plan allows it, else one after the other."""
        if not len(sites):
            return {"loss": np.empty(0)}
        if not self._with_metrics:
            try:
                return self._side_by_side(sites)
            except (RuntimeError, PlanError):  # the plan does not run under vmap
                pass
        rows = [self._site(site) for site in sites.tolist()]
        return {name: np.array([row.get(name, np.nan) for row in rows]) for name in rows[0]}

    def _site(self, site: int) -> dict[str, float]:
        private = {name: value[site] for name, value in self._run.population.private.items()}
        return self._one(self._module, self._run.x[site], private)

    def _one(self, module: nn.Module, x: Tensor, private: Mapping[str, Tensor]) -> dict[str, float]:
        """The figures of one vector [P]."""
        put(x, module, self._run.layout)
        with torch.no_grad():
            for name, value in private.items():
                module.get_buffer(name).copy_(value)
            figures = self._plan.evaluate(module, self._data)
        figures.pop("examples")
        return figures

    def _side_by_side(self, sites: Tensor) -> dict[str, Any]:
        run = self._run
        found = torch.zeros(len(sites), dtype=torch.float64, device=run.x.device)
        examples = min(EVALUATION_BATCH, len(self._data[0]))
        width = max(1, FORWARD_NUMBERS // examples)
        parts = [slice(first, first + width) for first in range(0, len(sites), width)]

        def share(mine: range) -> None:
            module = copy.deepcopy(self._module)
            for at in mine:
                found[parts[at]] = self._chunk(module, sites[parts[at]], examples)

        shares = dealt(len(parts), torch.get_num_threads() if run.x.device.type == "cpu" else 1)
        if run.x.device.type == "cpu":
            on_threads([partial(share, part) for part in shares])
        else:
            share(range(len(parts)))
        return {"loss": found.cpu().numpy()}

    def _chunk(self, module: nn.Module, sites: Tensor, examples: int) -> Tensor:
        """Mean losses [c]."""
        run, whole = self._run, Loss(self._plan, module)
        tensors = {**run.layout.unflatten(run.x[sites]), **{n: v[sites] for n, v in run.population.private.items()}}

        def summed(own: dict[str, Tensor], piece: Batch) -> Tensor:
            return whole.at(own, piece).double().sum()

        with torch.no_grad(), unchanged(self._plan.name, self._data):
            sums = [
                torch.func.vmap(summed, in_dims=(0, None))(tensors, piece) for piece in _pieces(self._data, examples)
            ]
        total: Tensor = torch.stack(sums).sum(0) / len(self._data[0])
        return total


def mean_model(run: VectorisedRun) -> Tensor:
    """x_bar = sum_i pi_i x_i, [P]; of a model that walks x_i = w_i z_i + rest_i, which is that model."""
    if run.schedule.walks:
        law = torch.tensor(run.schedule.law, dtype=run.x.dtype, device=run.x.device)
        law = law / law.sum()
        mass = law @ run.state["weight"]
        if float(mass) > LEAST_MASS:  # it may be on its way, where a message was lost
            return (law @ (run.state["weight"] * run.x + run.state["rest"])) / mass
        return law @ run.x
    share = run.shares.to(run.x.dtype)
    return share @ run.x


def consensus(run: VectorisedRun, mean: Tensor | None = None) -> Consensus:
    """See `Consensus`; a block of sites at a time."""
    mean = mean_model(run) if mean is None else mean
    mask = run.layout.shared_mask.to(run.x.device)
    total, block = mean.new_zeros((), dtype=torch.float64), max(1, FORWARD_NUMBERS * 16 // run.layout.size)
    for first in range(0, run.sites, block):
        part = (run.x[first : first + block] - mean)[:, mask].double()
        total += (part.square().sum(-1) * run.shares[first : first + block]).sum()
    distance, norm = float(total) ** 0.5, float(torch.linalg.vector_norm(mean[mask].double()))
    return Consensus(distance, distance / norm if norm else float("nan"))


def _pieces(data: Batch, size: int) -> list[Batch]:
    return [tuple(tensor[at : at + size] for tensor in data) for at in range(0, len(data[0]), size)]


def _average(value: Tensor, shares: Tensor) -> Tensor:
    """Of the sites' buffers [n, ...], weighted as the parameters are; counters are the first site's."""
    return torch.tensordot(shares.to(value.dtype), value, dims=1) if value.is_floating_point() else value[0]
