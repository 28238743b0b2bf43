"""Three ways to compute the K local steps of a chunk of sites: site by site, side by side, side by side and compiled.

All take a `Chunk` and answer with a `Done`, and none changes what it is given; the results agree up to rounding.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from p2pfl.errors import IllegalStep
from p2pfl.train.keyed_dropout import key_dropout
from p2pfl.train.layout import Layout
from p2pfl.train.optimisers import traced
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
    """One way. All but the compiled one change the module as they go: a path for each thread."""

    def compute(self, chunk: Chunk, data: Batch, context: Context) -> Done: ...


class EagerPath:
    """vmap over the sites, operation by operation."""

    def __init__(self, plan: PlanCode, module: nn.Module, layout: Layout, rule: Rule, *, keyed: bool) -> None:
        self._plan, self._module, self._layout, self._rule = plan, module.train(), layout, rule
        self._dropout = key_dropout(module) if keyed else None

    def compute(self, chunk: Chunk, data: Batch, context: Context) -> Done:
        """See `Done`."""
        with torch.no_grad():
            return self._compute(chunk, data, context)

    def _compute(self, chunk: Chunk, data: Batch, context: Context) -> Done:
        steps = None if chunk.steps is None else chunk.steps.unsqueeze(-1)

        def batch(k: int) -> StackedBatch:
            tensors = tuple(tensor[chunk.positions[:, k]] for tensor in data)
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


class CompiledPath:
    """The eager way traced over all K steps and compiled, once for each shape of chunk, K and learning rate."""

    def __init__(
        self, plan: PlanCode, module: nn.Module, layout: Layout, rule: Rule, *, keyed: bool, size: int
    ) -> None:
        self._eager = EagerPath(plan, module, layout, rule, keyed=keyed)
        self._size = size
        self._made: dict[Any, Any] = {}
        self._making = threading.Lock()

    def compute(self, chunk: Chunk, data: Batch, context: Context) -> Done:
        """See `Done`. Raises whatever tracing or compiling raises at the first call."""
        count, chunk = len(chunk.x), chunk.padded(self._size)
        inputs, spec = torch.utils._pytree.tree_flatten((chunk, data))
        key = (context.steps, context.lr, spec, tuple((t.shape, t.dtype) for t in inputs if t is not None))
        with torch.no_grad():
            with self._making:
                made = self._made.get(key) or self._make(inputs, spec, context)
                self._made[key] = made
            function, out = made
            done: Done = torch.utils._pytree.tree_unflatten(function(*_tensors(inputs)), out)
        return Done(*torch.utils._pytree.tree_map(lambda tensor: tensor[:count], done))

    def _make(self, inputs: list[Any], spec: Any, context: Context) -> tuple[Any, Any]:
        """Plan code runs once while it is traced; afterwards only what it did with tensors is left."""
        outputs: list[Any] = []
        places = [place for place, value in enumerate(inputs) if value is not None]

        def flat(*tensors: Tensor) -> list[Tensor]:
            values = list(inputs)
            for place, tensor in zip(places, tensors, strict=True):
                values[place] = tensor
            chunk, data = torch.utils._pytree.tree_unflatten(values, spec)
            done = self._eager._compute(chunk, data, cast(Context, _TracedContext(context)))
            leaves, out = torch.utils._pytree.tree_flatten(done)
            outputs[:] = [out]
            return [leaf.clone() if any(leaf is tensor for tensor in tensors) else leaf for leaf in leaves]

        with traced(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch about its own insides
            function = torch.compile(make_fx(flat)(*_tensors(inputs)), fullgraph=True, dynamic=False)
            function(*_tensors(inputs))  # compiles
        return function, outputs[0]


class _TracedContext:
    """The context without the round's number: a rule that reads it would have it frozen into the compiled code."""

    def __init__(self, context: Context) -> None:
        self.lr, self.steps, self.each = context.lr, context.steps, context.each

    @property
    def round(self) -> int:
        raise IllegalStep("the rule reads the number of the round, so its local steps cannot be compiled once for all")


class LoopPath:
    """One site after the other with a module, as deployed sites do."""

    def __init__(self, plan: PlanCode, module: nn.Module, layout: Layout, rule: Rule, *, keyed: bool) -> None:
        self._plan, self._module, self._layout, self._rule = plan, module.train(), layout, rule
        self._dropout = key_dropout(module) if keyed else None

    def compute(self, chunk: Chunk, data: Batch, context: Context) -> Done:
        """See `Done`."""
        before = torch.get_rng_state()
        try:
            done = [self._one(chunk, site, data, context) for site in range(len(chunk.x))]
        finally:
            torch.set_rng_state(before)
        state, private = (
            {name: torch.stack([part[at][name] for part in done]) for name in getattr(done[0], field)}
            for at, field in ((1, "state"), (2, "private"))
        )
        return Done(torch.stack([one.x for one in done]), state, private, torch.stack([one.losses for one in done]))

    def _one(self, chunk: Chunk, site: int, data: Batch, context: Context) -> Done:
        steps = context.steps if chunk.steps is None else int(chunk.steps[site])
        examples = None if chunk.weights is None else int(chunk.weights[site].sum())

        def batch(k: int) -> Batch:
            key = chunk.keys[site, k]
            torch.default_generator.manual_seed(int(key))  # dropout that is no layer
            if self._dropout is not None:
                self._dropout.begin(key)
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


def _tensors(values: list[Any]) -> list[Tensor]:
    return [value for value in values if value is not None]
