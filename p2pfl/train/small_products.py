"""Products of many small float32 matrices on the CPU by oneDNN's micro-kernel, in place of one call of BLAS for each.

    c_i = a_i b_i  for i < n,  a [n, M, K], b [n, K, N] float32 -> c [n, M, N]

torch multiplies float32 batches with MKL, which packs both operands of every product and on processors that are not
Intel's uses half of their vector width: at 20 x 64 x 64 a third of what `at::native::cpublas::brgemm` of the same torch
reaches, at 20 x 64 x 10 a quarter. That function has no name in Python, so `small_products.cpp` is compiled when
it is first needed, in some 10 s, and kept where torch keeps what it compiles.
"""

from __future__ import annotations

import threading
from functools import cache
from typing import Any

import torch
from torch import Tensor, fx

from p2pfl.train.kernels import load

LARGEST = 128  # rows, columns and inner size up to which the kernel was measured to be ahead of MKL
KERNEL_SECONDS = 10.0  # what compiling is expected to take, where it was not done before
_SOURCE = "small_products.cpp"
_loading = threading.Lock()


def use_small_products(graph: fx.GraphModule) -> str | None:
    """Let the recorded ``graph`` multiply small float32 matrices by the kernel, on processors that have it (AVX-512).

    The nodes need the tensors of their recording in ``meta["val"]``. Returns why it stays with BLAS where the kernel
    could be used but not be compiled, in words.
    """
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return None
    found = [node for node in graph.graph.nodes if node.target is torch.ops.aten.bmm.default and _small(node)]
    if not found:
        return None
    with _loading:
        products, why_not = _load()
    for node in found:
        node.target = products or node.target
    graph.recompile()
    return why_not


def _small(node: fx.Node) -> bool:
    values = [argument.meta.get("val") for argument in node.args if isinstance(argument, fx.Node)]
    return len(values) == 2 and all(
        isinstance(value, Tensor)
        and value.dtype == torch.float32
        and value.device.type == "cpu"
        and max(value.shape[1:]) <= LARGEST
        for value in values
    )


@cache
def _load() -> tuple[Any, str | None]:
    """The operation, or None and why."""
    library, why_not = load(_SOURCE, "small products", "-DUSE_FBGEMM")
    if library is None:
        return None, why_not
    torch.library.register_fake("p2pfl::products", _shape_of)
    return torch.ops.p2pfl.products.default, None


def _shape_of(a: Tensor, b: Tensor) -> Tensor:
    return a.new_empty((a.shape[0], a.shape[1], b.shape[2]))
