"""Recorded graphs without the operations that change nothing, or that are there twice.

vmap and its derivatives record a view, an expansion or a product with 1 for nearly every operation of the plan, half
of all there are; run one by one, each costs some microseconds of the interpreter's lock.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx
from torch._functorch.compile_utils import fx_graph_cse

_ATEN = torch.ops.aten
_VIEWS = (_ATEN.view.default, _ATEN._unsafe_view.default, _ATEN.expand.default, _ATEN.detach.default)


def make_lean(graph: fx.GraphModule) -> None:
    """Leave out what changes nothing, what is not used, and what is computed already.

    The nodes need the tensors of their recording in ``meta["val"]``. A graph that changes tensors in place is left as
    it is, but for what is not used: there, the same operation may mean another value.
    """
    graph.graph.eliminate_dead_code()
    if not any(in_place(node) for node in graph.graph.nodes):
        for node in list(graph.graph.nodes):
            same = _what_it_repeats(node)
            if same is not None:
                node.replace_all_uses_with(same)
                graph.graph.erase_node(node)
        graph.graph.eliminate_dead_code()
        graph.graph = fx_graph_cse(graph.graph)
    graph.recompile()


def in_place(node: fx.Node) -> bool:
    """Whether it changes a tensor that it is given."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and bool(schema.is_mutable)


def _what_it_repeats(node: fx.Node) -> fx.Node | None:
    """The node whose value this one has, too."""
    if not node.args or not isinstance(before := node.args[0], fx.Node):
        return None
    if any(user.op == "output" for user in node.users):
        return None  # answers share no memory with what was given
    if node.target is _ATEN.transpose.int:
        twice = before.target is _ATEN.transpose.int and set(before.args[1:]) == set(node.args[1:])
        first = before.args[0] if twice else None
        return first if isinstance(first, fx.Node) else None
    one, other = node.meta.get("val"), before.meta.get("val")
    if not isinstance(one, Tensor) or not isinstance(other, Tensor) or one.dtype != other.dtype:
        return None
    if node.target is _ATEN.mul.Scalar:
        return before if node.args[1] == 1 else None
    same = one.shape == other.shape and one.stride() == other.stride()
    return before if node.target in _VIEWS and same else None
