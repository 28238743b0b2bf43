"""Recorded graphs whose parameter vectors stay in parts, one for each layer, from the first local step to the last.

    f(cat(g_1, ..., g_m), x) = cat(f(g_1, x_1), ..., f(g_m, x_m))  for f that takes each entry by itself

Rules work on whole vectors: the layers' gradients are joined, the step is taken, and the next step's layers are cut out
again, which are two more walks through memory than the step itself needs. The numbers are the same to the bit.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, fx

from p2pfl.train.lean_graphs import in_place

MOST_PARTS = 24  # of a vector; models with more layers have larger ones on the whole, and compiling takes time for each
_ATEN = torch.ops.aten

Parts = list[tuple[int, int, fx.Node]]  # first column, behind the last, and what they are


def keep_parts(graph: fx.GraphModule) -> None:
    """Take apart what is joined by columns, as long as operations that take each entry by itself follow.

    The nodes need the tensors of their recording in ``meta["val"]``. Changes nothing in graphs that change tensors in
    place, or read memory by strides: there a part is not just a value.
    """
    if any(in_place(node) or node.target is _ATEN.as_strided.default for node in graph.graph.nodes):
        return
    apart: dict[fx.Node, Parts] = {}
    for node in list(graph.graph.nodes):
        if node.target is _ATEN.cat.default:
            _note_joined(node, apart)
        elif node.target is _ATEN.slice.Tensor:
            _take_part(node, apart)
        elif _by_entry(node) and (cuts := _cuts(node, apart)):
            _each_part(graph.graph, node, cuts, apart)
    graph.graph.eliminate_dead_code()
    graph.recompile()


def _by_entry(node: fx.Node) -> bool:
    return torch.Tag.pointwise in getattr(node.target, "tags", ()) and _columns(node) is not None


def _columns(node: fx.Node) -> int | None:
    value = node.meta.get("val")
    return value.shape[1] if isinstance(value, Tensor) and value.dim() == 2 else None


def _note_joined(node: fx.Node, apart: dict[fx.Node, Parts]) -> None:
    pieces, dimension = node.args[0], node.args[1] if len(node.args) > 1 else 0
    if dimension not in (1, -1) or _columns(node) is None or not isinstance(pieces, list | tuple):
        return
    parts: Parts = []
    for piece in pieces:
        width = _columns(piece) if isinstance(piece, fx.Node) else None
        if not isinstance(piece, fx.Node) or width is None or piece.meta["val"].dtype != node.meta["val"].dtype:
            return
        start = parts[-1][1] if parts else 0
        parts.append((start, start + width, piece))
    if len(parts) <= MOST_PARTS:
        apart[node] = parts


def _take_part(node: fx.Node, apart: dict[fx.Node, Parts]) -> None:
    whole, dimension, *ends = node.args
    answered = any(user.op == "output" for user in node.users)  # answers share no memory with what was given
    if dimension != 1 or len(ends) != 2 or not isinstance(whole, fx.Node) or answered:
        return
    for start, stop, piece in apart.get(whole, ()):
        if ends[0] == start and _columns(node) == stop - start:
            node.replace_all_uses_with(piece)


def _cuts(node: fx.Node, apart: dict[fx.Node, Parts]) -> list[tuple[int, int]]:
    """Where the operands are joined, if all that are say the same, and the others have as many columns or one."""
    found = {tuple((start, stop) for start, stop, _ in apart[one]) for one in node.all_input_nodes if one in apart}
    fits = all(_fits(operand, _columns(node)) for operand in node.all_input_nodes)
    return list(found.pop()) if fits and len(found) == 1 else []


def _fits(operand: fx.Node, width: int | None) -> bool:
    value = operand.meta.get("val")
    return isinstance(value, Tensor) and (value.dim() == 0 or (value.dim() == 2 and value.shape[1] in (1, width)))


def _each_part(graph: fx.Graph, node: fx.Node, cuts: list[tuple[int, int]], apart: dict[fx.Node, Parts]) -> None:
    parts: Parts = []
    with graph.inserting_before(node):
        for place, (start, stop) in enumerate(cuts):
            own = graph.node_copy(node, _cutter(graph, apart, place, start, stop))
            own.meta["val"] = node.meta["val"][:, start:stop]
            parts.append((start, stop, own))
        joined = graph.call_function(_ATEN.cat.default, ([piece for *_, piece in parts], 1))
    joined.meta["val"] = node.meta["val"]
    apart[joined] = parts
    node.replace_all_uses_with(joined)


def _cutter(
    graph: fx.Graph, apart: dict[fx.Node, Parts], place: int, start: int, stop: int
) -> Callable[[fx.Node], fx.Node]:
    def cut(operand: fx.Node) -> fx.Node:
        if operand in apart:
            return apart[operand][place][2]
        if _columns(operand) in (None, 1):
            return operand
        part = graph.call_function(_ATEN.slice.Tensor, (operand, 1, start, stop))
        part.meta["val"] = operand.meta["val"][:, start:stop]
        return part

    return cut
