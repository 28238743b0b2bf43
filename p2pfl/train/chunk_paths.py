"""Two ways to compute the K local steps of a chunk of sites with the plan's code: site by site, or side by side.

Both take a `Chunk` and answer with a `Done`, and neither changes what it is given; the results agree up to rounding, as
do those of `p2pfl.train.traced_paths`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from p2pfl.train.keyed_dropout import key_dropout
from p2pfl.train.layout import Layout
from p2pfl.train.oracle import ModuleOracle
from p2pfl.train.plan_code import Batch, PlanCode
from p2pfl.train.rules import Context, Rule, State
from p2pfl.train.stacked import Buffers, StackedBatch, StackedOracle


class Chunk(NamedTuple):
    """The local phase of c sites: what it starts from and what it sees."""

    x: Tensor  # [c, P]
    state: State  # [c, ...] each: the entries that belong to sites
    private: Buffers  # [c, ...] each
    positions: Tensor  # [c, K, B] rows of the data
    weights: Tensor | None  # [c, B] 1 for real examples, 0 for padding; None: all are real
    keys: Tensor  # [c, K] of dropout
    steps: Tensor | None  # [c] local steps of each; None: K for all

    def padded(self, size: int) -> Chunk:
        """The same with copies of the last site up to ``size``."""
        missing = size - len(self.x)
        return self if missing == 0 else self._each(lambda t: torch.cat((t, t[-1:].expand(missing, *t.shape[1:]))))

    def part(self, piece: slice) -> Chunk:
        """Some of its sites, as views."""
        return self._each(lambda tensor: tensor[piece])

    def _each(self, change: Callable[[Tensor], Tensor]) -> Chunk:
        def perhaps(value: Tensor | None) -> Tensor | None:
            return None if value is None else change(value)

        state, private = ({n: change(v) for n, v in part.items()} for part in (self.state, self.private))
        return Chunk(
            change(self.x), state, private, change(self.positions), perhaps(self.weights), change(self.keys),
            perhaps(self.steps),
        )  # fmt: skip


class Done(NamedTuple):
    """What comes out: parameters, state and private buffers, and the mean loss over each site's own steps, [c]."""

    x: Tensor
    state: State
    private: Buffers
    losses: Tensor


class Path(Protocol):
    """One way. Those that run the plan's code change the module as they go: a path for each thread."""

    def compute(self, chunk: Chunk, data: Batch, context: Context) -> Done: ...


class EagerPath:
    """vmap over the sites, operation by operation."""

    def __init__(self, plan: PlanCode, module: nn.Module, layout: Layout, rule: Rule, *, keyed: bool) -> None:
        self._plan, self._module, self._layout, self._rule = plan, module.train(), layout, rule
        self._dropout = key_dropout(module) if keyed else None

    def compute(self, chunk: Chunk, data: Batch, context: Context) -> Done:
        """See `Done`."""
        with torch.no_grad():
            return self.steps(chunk, data, context)

    def steps(self, chunk: Chunk, data: Batch, context: Context) -> Done:
        """`compute` where torch records no gradients already."""
        steps = None if chunk.steps is None else chunk.steps.unsqueeze(-1)

        def batch(k: int) -> StackedBatch:
            chosen = chunk.positions[:, k]
            # copies whole rows; by brackets torch looks up each number, four times as slow
            rows = chosen.flatten()
            tensors = tuple(t.index_select(0, rows).reshape(*chosen.shape, *t.shape[1:]) for t in data)
            active = None if steps is None else k < steps
            keys = None if self._dropout is None else chunk.keys[:, k]
            return StackedBatch(tensors, chunk.weights, keys, active)

        oracle = StackedOracle(
            self._plan, self._module, self._layout, batch, private=chunk.private, dropout=self._dropout
        )
        state, x = self._rule.local(chunk.state, chunk.x, context, oracle)
        losses = torch.stack(oracle.losses)  # [K, c]
        mean = losses.mean(0)
        if steps is not None:
            number = torch.arange(len(losses), device=losses.device).unsqueeze(-1)
            mean = torch.where(number < steps.T, losses, 0.0).sum(0) / steps.squeeze(-1)
        return Done(x, state, oracle.private, mean)


class LoopPath:
    """One site after the other with a module, as deployed sites do."""

    def __init__(self, plan: PlanCode, module: nn.Module, layout: Layout, rule: Rule, *, keyed: bool) -> None:
        self._plan, self._module, self._layout, self._rule = plan, module.train(), layout, rule
        self._dropout = key_dropout(module) if keyed else None

    def compute(self, chunk: Chunk, data: Batch, context: Context) -> Done:
        """See `Done`."""
        device = chunk.x.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            done = [self._one(chunk, site, data, context) for site in range(len(chunk.x))]
        state, private = (
            {name: torch.stack([part[at][name] for part in done]) for name in getattr(done[0], field)}
            for at, field in ((1, "state"), (2, "private"))
        )
        return Done(torch.stack([one.x for one in done]), state, private, torch.stack([one.losses for one in done]))

    def _one(self, chunk: Chunk, site: int, data: Batch, context: Context) -> Done:
        steps = context.steps if chunk.steps is None else int(chunk.steps[site])
        examples = None if chunk.weights is None else int(chunk.weights[site].sum())
        seeds = chunk.keys[site].cpu().tolist()
        seed = torch.default_generator.manual_seed if chunk.x.device.type == "cpu" else torch.manual_seed

        def batch(k: int) -> Batch:
            seed(seeds[k])  # dropout that is no layer
            if self._dropout is not None:
                self._dropout.begin(chunk.keys[site, k])
            chosen = chunk.positions[site, k, :examples]
            return tuple(tensor.index_select(0, chosen) for tensor in data)

        buffers = dict(self._module.named_buffers())
        with torch.no_grad():
            for name, value in chunk.private.items():
                buffers[name].copy_(value[site])
        oracle = ModuleOracle(self._plan, self._module, self._layout, batch)
        own = {name: value[site] for name, value in chunk.state.items()}
        state, x = self._rule.local(own, chunk.x[site], Context(context.round, context.lr, steps), oracle)
        private = {name: buffers[name].detach().clone() for name in chunk.private}
        loss = torch.stack(oracle.losses).mean() if oracle.losses else chunk.x.new_zeros(())
        return Done(x, state, private, loss)
