"""A device that is not there: its tensors hold real numbers, say that they lie elsewhere, and mix with the CPU's as CUDA's do.

What CUDA refuses is refused: operations on tensors of both devices, and numpy arrays of tensors that were not copied. What
it allows is allowed: scalars of the CPU (tensors without dimensions) in operations, and the CPU's indices into its own
tensors, each of which copies in silence and is counted, as are values that are read. An operation without a kernel for
CUDA, and how fast anything is, cannot be seen here.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map_only

NAME = "elsewhere"
DEVICE = f"{NAME}:0"
backend_registration._setup_privateuseone_for_python_backend(NAME)  # how torch's own tests make a device of Python
COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
INDEXED = (  # by CPU's indices, too: docs.pytorch.org, "Tensor Indexing API"; TensorIndexing.h moves them
    torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default, torch.ops.aten.index_put.default,
    torch.ops.aten._index_put_impl_.default,
)  # fmt: skip
READ = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)

seen: Counter[str] = Counter()
"""Operations on the device, indices that came from the CPU, and values that were read, since `elsewhere` began."""


class Elsewhere(Tensor):
    """A tensor of that device."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> Elsewhere:
        made = Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            device=DEVICE, requires_grad=held.requires_grad,
        )  # fmt: skip
        made.held = held
        return made  # type: ignore[no-any-return]

    def __repr__(self, **_: Any) -> str:
        return f"Elsewhere({self.held!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})

    __torch_function__ = torch._C._disabled_torch_function_impl


class _Factories(TorchDispatchMode):
    """What is made on the device from nothing."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})


@contextlib.contextmanager
def elsewhere() -> Iterator[Counter[str]]:
    """A block in which ``DEVICE`` is there."""
    seen.clear()
    before = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device=DEVICE) makes it here, then copies
    try:
        with _Factories():
            yield seen
    finally:
        torch._C._set_only_lift_cpu_tensors(before)


def computed(func: Any, args: Any, kwargs: Any) -> Any:
    """On the CPU, once it is clear that a device could have done it."""
    given, _ = tree_flatten((args, kwargs))
    tensors = [value for value in given if isinstance(value, Tensor)]
    there = any(isinstance(tensor, Elsewhere) for tensor in tensors)
    if there:
        _check(func, tensors)
    wanted = kwargs.get("device")
    result_there = there if wanted is None else torch.device(wanted).type == NAME
    inner, named = tree_map_only(Elsewhere, lambda tensor: tensor.held, (args, dict(kwargs)))
    if wanted is not None:
        named["device"] = "cpu"
    if func is torch.ops.aten.copy_.default:
        inner[0].copy_(inner[1])
        return args[0]
    if func is torch.ops.aten._to_copy.default and wanted is not None and torch.device(wanted).type != _kind(args[0]):
        inner = (inner[0].clone(), *inner[1:])  # to another device, so no longer the same numbers in memory
    found = func(*inner, **named)
    if not result_there:
        return found
    wrapped = tree_map_only(Tensor, Elsewhere, found)
    return return_and_correct_aliasing(func, args, kwargs, wrapped) if there else wrapped


def _kind(tensor: Tensor) -> str:
    return tensor.device.type


def _check(func: Any, tensors: list[Tensor]) -> None:
    seen["operations"] += 1
    seen["read"] += func in READ
    others = [tensor for tensor in tensors if not isinstance(tensor, Elsewhere) and tensor.dim() > 0]
    if not others or func in COPIES:
        return
    if func in INDEXED and isinstance(tensors[0], Elsewhere) and all(not t.is_floating_point() for t in others):
        seen["indices"] += 1
        return
    raise RuntimeError(f"{func}: expected all tensors to be on the same device, found {DEVICE} and cpu")
