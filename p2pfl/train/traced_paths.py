"""The K local steps of a chunk of sites as one list of tensor operations, recorded once: run as it is, or compiled.

The plan's code runs while it is recorded, twice; afterwards only what it did with tensors is left. That spares vmap's
and the interpreter's work in every round; compiling also joins the operations, and needs a C++ compiler.
"""

from __future__ import annotations

import random
import threading
import warnings
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as trees

from p2pfl.errors import IllegalStep, PlanError
from p2pfl.train.chunk_paths import Chunk, Done, EagerPath
from p2pfl.train.layout import Layout
from p2pfl.train.optimisers import traced
from p2pfl.train.plan_code import Batch, PlanCode
from p2pfl.train.rules import Context, Rule

Options = dict[str, str | int | bool | Callable[..., Any]]
COMPILING: Options = {"guard_filter_fn": torch.compiler.skip_all_guards_unsafe}  # shapes and dtypes are looked up here
ON_CPU: Options = {"cpp_wrapper": True}  # one call without the interpreter's lock, so that threads run side by side


class TracedPath:
    """Recorded, once for each shape of chunk, K and learning rate. Serves all threads."""

    def __init__(
        self, plan: PlanCode, module: nn.Module, layout: Layout, rule: Rule, *, keyed: bool, size: int
    ) -> None:
        """``size``: sites of a chunk; smaller ones are filled up."""
        self._eager = EagerPath(plan, module, layout, rule, keyed=keyed)
        self._plan, self._size = plan, size
        self._made: dict[Any, Any] = {}
        self._making = threading.Lock()

    def compute(self, chunk: Chunk, data: Batch, context: Context) -> Done:
        """See `Done`. Raises at the first call whatever recording raises, and PlanError for a plan that did not do the
        same twice."""
        count, chunk = len(chunk.x), chunk.padded(self._size)
        inputs, spec = trees.tree_flatten((chunk, data))
        key = (context.steps, context.lr, spec, tuple((t.shape, t.dtype) for t in inputs if t is not None))
        with torch.no_grad():
            with self._making:
                made = self._made.get(key) or self._make(inputs, spec, context)
                self._made[key] = made
            function, out = made
            done: Done = trees.tree_unflatten(function(*_tensors(inputs)), out)
        return Done(*trees.tree_map(lambda tensor: tensor[:count], done))

    def _make(self, inputs: list[Any], spec: Any, context: Context) -> tuple[Any, Any]:
        outputs: list[Any] = []
        places = [place for place, value in enumerate(inputs) if value is not None]

        def flat(*tensors: Tensor) -> list[Tensor]:
            values = list(inputs)
            for place, tensor in zip(places, tensors, strict=True):
                values[place] = tensor
            chunk, data = trees.tree_unflatten(values, spec)
            done = self._eager.steps(chunk, data, cast(Context, _TracedContext(context)))
            leaves, out = trees.tree_flatten(done)
            outputs[:] = [out]
            return [leaf.clone() if any(leaf is tensor for tensor in tensors) else leaf for leaf in leaves]

        given = _tensors(inputs)
        with traced(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch about its own insides
            before = _random_states()
            graph, again = (make_fx(flat)(*given) for _ in range(2))
            if _random_states() != before or not _same(graph, again):
                raise PlanError(
                    f"{self._plan.name}: the loss does not do the same each time it runs (does it count calls, or draw "
                    f"numbers outside torch?); let it depend on the model and the batch alone"
                )
            return self._ready(graph, given), outputs[0]

    def _ready(self, graph: fx.GraphModule, given: list[Tensor]) -> Callable[..., list[Tensor]]:
        graph.graph.eliminate_dead_code()
        graph.recompile()
        return graph


class CompiledPath(TracedPath):
    """Recorded and compiled by torch."""

    def _ready(self, graph: fx.GraphModule, given: list[Tensor]) -> Callable[..., list[Tensor]]:
        options = COMPILING | (ON_CPU if given[0].device.type == "cpu" else {})
        function: Callable[..., list[Tensor]] = torch.compile(graph, fullgraph=True, dynamic=False, options=options)
        function(*given)  # compiles
        return function


class _TracedContext:
    """The context without the round's number: a rule that reads it would have it frozen into what is recorded."""

    def __init__(self, context: Context) -> None:
        self.lr, self.steps, self.each = context.lr, context.steps, context.each

    @property
    def round(self) -> int:
        raise IllegalStep("the rule reads the number of the round, so its local steps cannot be recorded once for all")


def _random_states() -> tuple[Any, bytes, int]:
    """Of Python's and numpy's generators: they change where the plan draws from them."""
    _, words, place, *_ = np.random.get_state()
    return random.getstate(), np.asarray(words).tobytes(), int(place)


def _same(one: fx.GraphModule, other: fx.GraphModule) -> bool:
    """Whether both did the same, with the same constants."""
    if one.code != other.code:
        return False
    names = [str(node.target) for node in one.graph.nodes if node.op == "get_attr"]
    constants = [(getattr(one, name), getattr(other, name)) for name in names]
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in constants)


def _tensors(values: list[Any]) -> list[Tensor]:
    return [value for value in values if value is not None]
