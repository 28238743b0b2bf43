"""The vectorised engine: all sites' parameters as one matrix [n, P], the deployed rules, mixing as sparse products.

A round is local steps (`p2pfl.train.local_phase`), then the schedule's mixings one after the other; closing rounds mix
the model channel alone, accelerated where the topology says so. Results depend neither on chunks and threads nor on the
way of execution, but for rounding.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from p2pfl.errors import ConfigError, IllegalStep, PlanError
from p2pfl.sim.decisions import Decisions, no_adoptions
from p2pfl.sim.padding import check_padding
from p2pfl.sim.population import Holdings, Population, batch_on
from p2pfl.sim.vector_faults import VectorFault, in_round
from p2pfl.sim.vector_mixing import LinearMixing, ScheduledPulls
from p2pfl.sim.vector_replay import Replay
from p2pfl.sim.vector_setup import check_run, drawn_model, draws_of, first_vectors, no_oracle, own_steps
from p2pfl.topology import Schedule
from p2pfl.train.adopting import keep_walking
from p2pfl.train.local_phase import Execution, LocalPhase, await_device
from p2pfl.train.mixing import VectorGraph, VectorInbox, VectorRelays
from p2pfl.train.plan_code import PlanCode
from p2pfl.train.rules import Context
from p2pfl.train.settings import Settings
from p2pfl.train.stacked import private_buffers
from p2pfl.train.stacked_sampling import DeployedKeys, Draws


@dataclass(frozen=True)
class RoundFacts:
    """What one round was."""

    round: int
    training: bool
    loss: float  # mean over the sites that trained, weighted by their shares; nan if none did
    losses: Tensor  # [n] mean over each site's own local steps, nan where it did not train
    trained: int  # number of sites
    seconds: dict[str, float] = field(default_factory=dict)  # real time of "local" and "mixing"


class VectorisedRun:
    """One run of n sites, the nodes of ``schedule`` in their order.

    ``train`` are the common examples, ``rows`` each site's positions in them. ``initial``: a vector [P] or [n, P], the
    bytes of an initial file, or None: the plan's model drawn with ``seed``. ``sampling``: "counter", or `DeployedKeys`.
    ``steps``: local steps of each site where they differ from the settings'. ``decisions``: mix what was recorded in
    place of the whole schedule; they may have one round more, of what is taken back at the end. Raises ConfigError or
    PlanError before anything is trained.
    """

    def __init__(
        self,
        plan: PlanCode,
        settings: Settings,
        train: Sequence[Tensor],
        rows: Sequence[Any],
        schedule: Schedule,
        *,
        seed: int,
        initial: Tensor | bytes | None = None,
        sampling: str | DeployedKeys = "counter",
        execution: str = "auto",
        device: str = "cpu",
        chunk: int | None = None,
        kernel: bool = True,
        steps: Sequence[int] | None = None,
        decisions: Decisions | None = None,
        faults: Sequence[VectorFault] = (),
    ) -> None:
        self.settings, self.schedule, self.sites = settings, schedule, len(schedule.nodes)
        self._device, self._rule = torch.device(device), settings.rule
        if len(rows) != self.sites:
            raise ConfigError(f"data of {len(rows)} sites for a schedule of {self.sites}; partition over as many")
        module = drawn_model(plan, settings.dtype, seed)
        self.layout = settings.layout(module)
        first = first_vectors(initial, module, self.layout, self.sites)
        self.module = module = module.to(self._device)
        self.data = batch_on(train, settings.dtype, self._device)
        holdings = Holdings(rows, len(self.data[0]), self._device)
        draws: Draws = draws_of(sampling, seed)
        self._faults = tuple(faults)
        self._each = own_steps(steps, schedule, settings.local_steps)
        self._most = int(max((int(r.steps.max()) for r in decisions.rounds), default=0)) if decisions else 0
        self._most = self._most or int(self._each.max())
        self._total = check_run(settings, self.layout, schedule, decisions, self._faults, most=self._most)
        self._scheduled = ScheduledPulls(self.sites, self._device)
        betas = dict(schedule.inertias(schedule.total))
        self.replay = None if decisions is None else Replay(decisions, self.sites, self._device, betas)
        self.shares = torch.tensor(schedule.shares, dtype=torch.float64)
        self.shares = (self.shares / self.shares.sum()).to(self._device)
        x = first.to(self._device).expand(self.sites, self.layout.size).clone(memory_format=torch.contiguous_format)
        self._graph = self._first_graph()
        state = {name: value.clone() for name, value in self._rule.init(x, self._graph).items()}
        private = private_buffers(module, self.layout, self.sites)
        self.population = Population(x, state, private, holdings, draws, settings.batch_size)
        if self.population.unequal and execution != "loop":
            check_padding(plan, module, self.data, holdings)
        inputs = self.population.width * sum(tensor[0].numel() for tensor in self.data)
        self._local = LocalPhase(
            plan, module, self.layout, self._rule, way=execution, chunk=chunk, inputs=inputs, device=device,
            deployed=draws.deployed, kernel=kernel,
        )  # fmt: skip
        self.linear = self._linear_mixing()
        self.population.quicker = self.linear.quicken
        self.relays = VectorRelays(self._graph)
        self.round = 0

    # --- what came of it

    @property
    def x(self) -> Tensor:
        """[n, P]: the sites' parameters."""
        return self.population.x

    @property
    def state(self) -> dict[str, Tensor]:
        """The rule's state of all sites."""
        return self.population.state

    @property
    def execution(self) -> Execution:
        """How the local steps are computed."""
        return self._local.execution

    @property
    def done(self) -> bool:
        """Whether all rounds are over."""
        return self.round >= self._total

    # --- rounds

    def step(self) -> RoundFacts:
        """The next round of the schedule. IllegalStep after the last one, PlanError if training diverges."""
        t = self.round
        if self.done:
            raise IllegalStep(f"the run has {self._total} rounds, and all are over")
        training = t < self.schedule.rounds
        active, each = self._who(t, training)
        began = time.perf_counter()
        context = self._train(t, active, each)
        await_device(self._device)
        trained = time.perf_counter()
        self._mix(t, context, closing=not training)
        await_device(self._device)
        mixed = time.perf_counter()
        self.round += 1
        facts = self._facts(t, training, active & (each > 0))
        facts.seconds.update(local=trained - began, mixing=mixed - trained)
        return facts

    def _who(self, t: int, training: bool) -> tuple[Any, Any]:
        """Which sites take part in round t, and with how many local steps."""
        if self.replay is not None:
            recorded = self.replay.at(t)
            return recorded.takes_part(t) & training, recorded.steps
        if not training:
            return np.zeros(self.sites, dtype=bool), self._each
        nodes = self.schedule.round(t).active
        active = np.array([node in nodes for node in self.schedule.nodes]) if len(nodes) < self.sites else None
        active = np.ones(self.sites, dtype=bool) if active is None else active
        active[self._absent(t)] = False
        return active & training, self._each

    def _train(self, t: int, active: Any, each: Any) -> Context:
        population = self.population
        rows = np.flatnonzero(active & (each > 0))
        idle = np.flatnonzero(active & (each == 0))
        on_device = torch.from_numpy(each.astype(np.int64)).to(self._device)
        population.round, population.steps = t, self._most
        population.each = on_device if bool((each[rows] != self._most).any()) else None
        differ = bool((each[active] != self._most).any())
        column = on_device.unsqueeze(-1).to(self.x.dtype) if differ else None
        training = t < self.schedule.rounds
        context = Context(t, self.settings.learning_rate, self._most if training else 0, column, not training)
        if len(idle) and training:
            self._stand_still(idle, t)
        for wave in self._waves(t, rows):
            sites = torch.from_numpy(wave)
            self._local.run(population, sites, self.data, context, max(1, self.schedule.rounds - t))
        return context

    def _stand_still(self, idle: Any, t: int) -> None:
        """Sites that take part without a step: the rule says what that is. Nothing happens to those who are away."""
        population = self.population
        at = torch.from_numpy(idle).to(self._device)
        own = {name: value[at] for name, value in population.state.items() if len(value) == self.sites}
        after, x = self._rule.local(own, self.x[at], Context(t, self.settings.learning_rate, 0), no_oracle)
        self.x[at] = x
        for name, value in after.items():
            if value is not own.get(name):
                population.state[name][at] = value

    def _waves(self, t: int, rows: Any) -> Any:
        """The sites that train, in an order in which everybody's states are known before they are taken in."""
        adopted = self.replay.at(t).adopted if self.replay is not None else no_adoptions()
        if not len(adopted):
            yield rows
            return
        waiting = set(np.unique(adopted["receiver"]).tolist())
        yield rows[~np.isin(rows, list(waiting))]
        while waiting:
            blocked = {int(r["receiver"]) for r in adopted if int(r["round"]) == t and int(r["sender"]) in waiting}
            ready = sorted(waiting - blocked)
            if not ready:
                raise ConfigError(f"in round {t} sites take in each other's states; that cannot have been recorded")
            for site in ready:
                self._adopt(site, adopted[adopted["receiver"] == site], t)
            waiting -= set(ready)
            yield rows[np.isin(rows, ready)]

    def _adopt(self, site: int, states: Any, t: int) -> None:
        assert self.replay is not None
        own, x = float(states["own"][0]), self.x
        mean = sum(float(row["weight"]) * self.replay.state_of(row, x, t, self.linear.model) for row in states)
        moved = own * x[site] + (1.0 - own) * mean
        if self._rule.needs.mixing == "walk":
            state = {name: value[site] for name, value in self.state.items() if len(value) == self.sites}
            after, moved = keep_walking(state, x[site], moved)
            self.state["rest"][site] = after["rest"]
        x[site] = moved if self._shared is None else torch.where(self._shared > 0, moved, x[site])

    # --- mixing

    def _mix(self, t: int, context: Context, *, closing: bool) -> None:
        population = self.population
        inertia = self.schedule.round(t).inertia if t < self.schedule.total else None
        if not self._rule.needs.linear and not closing:
            self._relay(context)
        elif self.replay is not None:
            names = tuple(channel.name for channel in self._rule.channels)
            self.linear.round(
                self.x, population.state, context, self.replay.pulls(t), closing=closing, lying=self._lying(t),
                keep=self.replay.keep(t, self.x, names), more=self.replay.more(t),
                inertia=inertia, lost=self.replay.lost(t),
            )  # fmt: skip
        else:
            absent = self._absent(t)
            pulls = [self._scheduled.of(mixing, absent) for mixing in self.schedule.round(t).mixings]
            self.linear.round(
                self.x, population.state, context, pulls, closing=closing, lying=self._lying(t), inertia=inertia
            )

    def _relay(self, context: Context) -> None:
        """Rules with a relayed channel, on a graph that stays the same."""
        population = self.population
        state, messages = self._rule.send(population.state, self.x, context, self._graph)
        inbox = VectorInbox(self._graph, messages, self.relays)
        population.state, population.x = self._rule.merge(state, self.x, context, inbox)

    def _absent(self, t: int) -> Any:
        away = {site for fault in in_round(self._faults, t) if fault.absent for site in fault.sites}
        return np.array(sorted(away), dtype=np.int64)

    def _lying(self, t: int) -> list[tuple[VectorFault, Tensor]]:
        return [
            (fault, torch.tensor(sorted(set(fault.sites)), dtype=torch.int64, device=self._device))
            for fault in in_round(self._faults, t)
            if not fault.absent
        ]

    def _facts(self, t: int, training: bool, trained: Any) -> RoundFacts:
        if self.done and not bool(torch.isfinite(self.x).all()):
            raise PlanError(f"training diverged: the parameters are not finite; {self._way_out(t)}")
        here = torch.from_numpy(trained).to(self._device)
        losses = torch.where(here, self.population.losses, torch.nan)
        if not trained.any():
            return RoundFacts(t, training, float("nan"), losses, 0)
        wrong = here & ~torch.isfinite(losses)
        if bool(wrong.any()):
            site = int(wrong.nonzero()[0])
            raise PlanError(f"training diverged in round {t} at site {site}; {self._way_out(t)}")
        weight = self.shares * here
        loss = float((torch.where(here, losses, 0.0).double() * weight).sum() / weight.sum())
        return RoundFacts(t, training, loss, losses, int(trained.sum()))

    def _way_out(self, t: int) -> str:
        """What to do where training diverged by round ``t``."""
        lying = sorted(
            {site for fault in self._faults if not fault.absent and fault.since <= t for site in fault.sites}
        )
        if not lying:
            return "lower learning_rate in the plan"
        many = f"{len(lying)} sites lie" if len(lying) > 1 else f"site {lying[0]} lies"
        return f"{many} about the parameters: give that fault a smaller size, or lower learning_rate in the plan"

    # --- setting up

    def _first_graph(self) -> VectorGraph:
        mixing = self.schedule.round(0).mixings[0]
        law = torch.tensor(self.schedule.law, dtype=torch.float64)
        law = (law / law.sum()).to(self.settings.dtype)
        if mixing.directed:  # rules see what sites count alone of it; edges are for relays
            graph = VectorGraph(self.sites, [], law, self._device)
            first = torch.tensor(self.schedule.weights_before(0), dtype=law.dtype)
            graph.first_weight = first.reshape(-1, 1).to(self._device)
            return graph
        return VectorGraph.from_matrix(mixing.matrix, law, self._device)

    def _linear_mixing(self) -> LinearMixing:
        mask = self.layout.shared_mask.to(self._device)
        self._shared = None if bool(mask.all()) else mask.to(self.settings.dtype)
        return LinearMixing(self._rule, self._graph, self._shared)
