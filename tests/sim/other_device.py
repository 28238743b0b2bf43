"""A device that is not the CPU, pretended: its tensors hold numbers on the CPU and say that they lie elsewhere.

What CUDA refuses fails here, too: an operation on tensors of both devices, and numpy on a tensor of the device. Tensors
without dimensions may stay on the CPU in elementwise operations, and indices may lie there, as with CUDA. What makes
the CPU wait for the device is counted. Kernels are the CPU's: nothing is said of their speed, or of CUDA's rounding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = "lazy"  # torch's own device of this name is not used: all its operations are caught
_ATEN = torch.ops.aten
_COPIES = (_ATEN.copy_.default, _ATEN._foreach_copy_.default)  # from one device to another
_INDEXED = (_ATEN.index.Tensor, _ATEN.index_put_.default, _ATEN.index_put.default, _ATEN._index_put_impl_.default)
_WAITING = (
    _ATEN._local_scalar_dense.default, _ATEN.nonzero.default, _ATEN.equal.default, _ATEN.masked_select.default,
)  # fmt: skip


_waits_seen: Counter[str] = Counter()
torch.library.define("p2pfl_tests::there", "(Tensor value) -> Tensor")  # a new tensor, as recordings name it


class Elsewhere(Tensor):
    """A tensor of the pretended device; views share the memory of ``held``."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> Elsewhere:
        made: Elsewhere = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            device=torch.device(DEVICE, 0),
        )  # fmt: skip
        made.held = held
        return made

    def numpy(self, *, force: bool = False) -> Any:
        """As CUDA's tensors say it."""
        raise TypeError(f"can't convert {DEVICE}:0 device type tensor to numpy. Use Tensor.cpu() first.")

    def tolist(self) -> Any:
        """Torch has it for no subclass."""
        return self.cpu().tolist()

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"Elsewhere({self.held!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {})

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]


class OtherDevice(TorchDispatchMode):
    """While it is entered, ``device=DEVICE`` gives such tensors; ``waits`` counts by operation what waits for them."""

    def __init__(self) -> None:
        super().__init__()
        self.waits = _waits_seen
        self.waits.clear()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if get_proxy_mode() is None:
            return _compute(func, args, kwargs)
        # torch asks this mode first and what records after it, which has to see the tensors as the caller knows them
        if _named(kwargs) != DEVICE:
            return func(*args, **kwargs)
        if any(isinstance(leaf, Elsewhere) for leaf in tree_leaves(args)):  # new_zeros(device=...) and the like
            return func(*args, **{name: value for name, value in kwargs.items() if name != "device"})
        return torch.ops.p2pfl_tests.there.default(func(*args, **{**kwargs, "device": "cpu"}))


def _named(kwargs: dict[str, Any]) -> str | None:
    """The kind of device that is asked for, if one is."""
    asked = kwargs.get("device")
    return None if asked is None else torch.device(asked).type


@torch.library.impl("p2pfl_tests::there", "CPU")
def _there(value: Tensor) -> Tensor:
    return Elsewhere(value.clone())


@contextmanager
def other_device() -> Iterator[OtherDevice]:
    """The device, for as long as it is there."""
    before = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(device=...) asks the mode only after that
    try:
        with OtherDevice() as device:
            yield device
    finally:
        torch._C._set_only_lift_cpu_tensors(before)


def _compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    there = [leaf for leaf in leaves if isinstance(leaf, Elsewhere)]
    here = [leaf for leaf in leaves if not isinstance(leaf, Elsewhere)]
    wanted = _named(kwargs)
    if there and here:
        _check_mixed(func, args, here)
    if there and _waits(func, args, wanted, bool(here)):
        _waits_seen[func.__name__] += 1
    known = {id(leaf.held): leaf for leaf in there}
    own = {**kwargs, "device": "cpu"} if wanted == DEVICE else kwargs
    plain_args, plain = tree_map(lambda leaf: leaf.held if isinstance(leaf, Elsewhere) else leaf, (args, own))
    result = func(*plain_args, **plain)
    if there and torch.Tag.inplace_view in func.tags:
        _turn(func, args, kwargs)
        return args[0]
    if func in _COPIES:
        elsewhere = isinstance(tree_leaves(args)[0], Elsewhere)
    else:
        elsewhere = bool(there) if wanted is None else wanted == DEVICE
    return tree_map(lambda leaf: _put(leaf, known) if elsewhere and isinstance(leaf, Tensor) else leaf, result)


def _turn(func: Any, args: Any, kwargs: dict[str, Any]) -> None:
    """Give the outer tensor the new shape, too; it has no memory of its own."""
    before = torch._C._meta_in_tls_dispatch_include()
    torch._C._set_meta_in_tls_dispatch_include(True)
    try:
        with no_dispatch():
            func(*args, **kwargs)
    finally:
        torch._C._set_meta_in_tls_dispatch_include(before)


def _put(value: Tensor, known: dict[int, Elsewhere]) -> Tensor:
    if isinstance(value, Elsewhere):
        return value
    return known[id(value)] if id(value) in known else Elsewhere(value)  # in place: the tensor that was given


def _check_mixed(func: Any, args: Any, here: list[Tensor]) -> None:
    """RuntimeError where CUDA would raise one."""
    if func in _COPIES:
        return
    if func in _INDEXED:
        allowed = {id(index) for index in args[1] if index is not None}
        allowed |= {id(value) for value in args[2:] if isinstance(value, Tensor) and value.dim() == 0}
        wrong = [leaf for leaf in here if id(leaf) not in allowed] or ([args[0]] if _is_here(args[0]) else [])
    else:
        elementwise = torch.Tag.pointwise in func.tags
        wrong = [leaf for leaf in here if not (elementwise and leaf.dim() == 0)]
    if wrong:
        shapes = [tuple(leaf.shape) for leaf in wrong]
        raise RuntimeError(f"Expected all tensors to be on the same device: {func} has CPU tensors of shapes {shapes}")


def _is_here(value: Any) -> bool:
    return isinstance(value, Tensor) and not isinstance(value, Elsewhere)


def _waits(func: Any, args: Any, wanted: str | None, mixed: bool) -> bool:
    if func in _INDEXED:  # a mask's places are counted first; indices from the CPU are copied
        masks = [index for index in args[1] if index is not None and index.dtype in (torch.bool, torch.uint8)]
        return bool(masks) or mixed
    return func in _WAITING or (wanted is not None and wanted != DEVICE) or (func in _COPIES and mixed)
