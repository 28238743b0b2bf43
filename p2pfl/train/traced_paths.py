"""The K local steps of a chunk of sites as one list of tensor operations, recorded once: run as it is, or compiled.

The plan's code runs while it is recorded, twice; afterwards only what it did with tensors is left. That spares vmap's
and the interpreter's work in every round; compiling also joins the operations, and needs a C++ compiler.
"""

from __future__ import annotations

import ctypes
import gc
import random
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

from p2pfl.errors import IllegalStep, PlanError
from p2pfl.train.chunk_paths import Chunk, Done, EagerPath
from p2pfl.train.layout import Layout
from p2pfl.train.lean_graphs import make_lean
from p2pfl.train.optimisers import traced
from p2pfl.train.plan_code import Batch, PlanCode
from p2pfl.train.rules import Context, Rule
from p2pfl.train.small_products import use_small_products
from p2pfl.train.vector_parts import keep_parts

ON_CPU = {"cpp_wrapper": True}  # one call without the interpreter's lock, so that threads run side by side


class Made(NamedTuple):
    """A recorded function of the leaves, and the names in the state and the private buffers that it answers with."""

    function: Callable[..., Sequence[Tensor]]
    state: tuple[str, ...]
    private: tuple[str, ...]


class TracedPath:
    """Recorded, once for each shape of chunk, K and learning rate. Serves all threads."""

    def __init__(
        self, plan: PlanCode, module: nn.Module, layout: Layout, rule: Rule, *, keyed: bool, size: int,
        kernel: bool = True,
    ) -> None:  # fmt: skip
        """``size``: sites of a chunk; smaller ones are filled up. ``kernel``: compile small products."""
        self._eager = EagerPath(plan, module, layout, rule, keyed=keyed)
        self._kernel = kernel
        self.notes: list[str] = []  # what makes it slower than it could be, in words
        self._plan, self._size = plan, size
        self._made: dict[Any, Made] = {}
        self._making = threading.Lock()

    def compute(self, chunk: Chunk, data: Batch, context: Context) -> Done:
        """See `Done`. Raises at the first call whatever recording raises, and PlanError for a plan that did not do the
        same twice."""
        count, chunk = len(chunk.x), chunk.padded(self._size)
        inputs = _leaves(chunk, data)
        shapes = tuple(None if t is None else (t.shape, t.dtype) for t in inputs)
        key = (context.steps, context.lr, *chunk.state, None, *chunk.private, shapes)
        with torch.no_grad():
            with self._making:
                made = self._made.get(key)
                if made is None:
                    made = self._made[key] = self._make(inputs, chunk, len(data), context)
                    give_back()
            function, names, others = made
            leaves: Iterator[Tensor] = iter(function(*_tensors(inputs)))
            if count < self._size:
                leaves = (leaf[:count] for leaf in leaves)
            x, losses = next(leaves), next(leaves)
            state = {name: next(leaves) for name in names}
            return Done(x, state, {name: next(leaves) for name in others}, losses)

    def _make(self, inputs: list[Tensor | None], like: Chunk, parts: int, context: Context) -> Made:
        places = [place for place, value in enumerate(inputs) if value is not None]
        names: list[tuple[str, ...]] = []

        def flat(*tensors: Tensor) -> list[Tensor]:
            values: list[Tensor | None] = list(inputs)
            for place, tensor in zip(places, tensors, strict=True):
                values[place] = tensor
            done = self._eager.steps(*_put_together(values, like, parts), cast(Context, _TracedContext(context)))
            leaves = [done.x, done.losses, *done.state.values(), *done.private.values()]
            names[:] = [tuple(done.state), tuple(done.private)]
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
            make_lean(graph)
            slower = use_small_products(graph) if self._kernel else None
            self.notes[:] = [slower] if slower else []
            keep_parts(graph)
            return Made(self._ready(graph, given), *names)

    def _ready(self, graph: fx.GraphModule, given: list[Tensor]) -> Callable[..., Sequence[Tensor]]:
        return graph


class CompiledPath(TracedPath):
    """Recorded and compiled by torch."""

    def _ready(self, graph: fx.GraphModule, given: list[Tensor]) -> Callable[..., Sequence[Tensor]]:
        for node in graph.graph.nodes:
            node.meta.clear()  # notes of the recording, which the compiler would take for its own
        options = ON_CPU if given[0].device.type == "cpu" else {}
        function: Callable[..., Sequence[Tensor]] = torch._inductor.compile(graph, list(given), options=options)
        function(*given)  # loads what was compiled
        return function


class _TracedContext:
    """The context without the round's number: a rule that reads it would have it frozen into what is recorded."""

    def __init__(self, context: Context) -> None:
        self.lr, self.steps, self.each = context.lr, context.steps, context.each

    @property
    def round(self) -> int:
        raise IllegalStep("the rule reads the number of the round, so its local steps cannot be recorded once for all")


def give_back() -> None:
    """What recording left: graphs that hold each other, and memory that the allocator keeps; 20 MB for small models."""
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc
        if trim is not None:
            trim(0)


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


def _leaves(chunk: Chunk, data: Batch) -> list[Tensor | None]:
    """In a fixed order: a general walk through nested containers takes a tenth of a small chunk's time."""
    one_each = chunk.x, chunk.positions, chunk.weights, chunk.keys, chunk.steps
    return [*one_each, *chunk.state.values(), *chunk.private.values(), *data]


def _put_together(leaves: Sequence[Any], like: Chunk, parts: int) -> tuple[Chunk, Batch]:
    """What `_leaves` took apart; ``parts``: tensors of the data."""
    x, positions, weights, keys, steps, *rest = leaves
    named, data = rest[: len(rest) - parts], tuple(rest[len(rest) - parts :])
    state = dict(zip(like.state, named, strict=False))
    private = dict(zip(like.private, named[len(state) :], strict=True))
    return Chunk(x, state, private, positions, weights, keys, steps), data


def _tensors(values: list[Tensor | None]) -> list[Tensor]:
    return [value for value in values if value is not None]
