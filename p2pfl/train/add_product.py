"""x += A x in place by a kernel, where mixing is that and nothing else.

    x_i <- x_i + sum_j a_ij x_j,  A sparse [n, n], x [n, P] float32 or float64 on the CPU

The bits are those of ``x + A(x)`` with a `SparseProduct` A, in 40 % of the time for float32 and a third for float64
(n = 1,000, P = 4,810, 9 entries per row): torch copies a block of columns, multiplies, adds and copies back; here each
number is read from memory once and written once.
"""

from __future__ import annotations

import ctypes
from functools import partial
from typing import Any

import torch
from torch import Tensor

from p2pfl.train.kernels import load
from p2pfl.train.sparse import SparseProduct
from p2pfl.train.threads import dealt, on_threads

LINE, WIDEST = 64, 512  # bytes of a panel's rows; the fastest of 64 to 9,620 for 100 to 10,000 sites
CACHE = 1 << 20  # bytes of a core's cache; a panel may always fill it
SMALL_PART = 16  # panels beyond the cache are at most this part of x: 100,000 sites need memory for them
_NAMES = {torch.float32: "add_product_float32", torch.float64: "add_product_float64"}


class Addition:
    """The kernel, loaded."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library

    def fits(self, product: SparseProduct, x: Tensor) -> bool:
        """Whether it can add this product."""
        return (
            x.device.type == "cpu"
            and x.dtype in _NAMES
            and x.is_contiguous()
            and product.shape == (len(x), len(x))
            and product.columns.dtype == torch.int32
        )

    def __call__(self, product: SparseProduct, x: Tensor) -> None:
        """x += product(x), [n, P], which has to fit. On as many threads as torch may use."""
        width = panel_width(len(x), x.shape[1], x.element_size())
        panels = -(-x.shape[1] // width)
        parts = dealt(panels, torch.get_num_threads())
        on_threads([partial(self._share, product, x, width, part) for part in parts])

    def _share(self, product: SparseProduct, x: Tensor, width: int, part: range) -> None:
        scratch = x.new_zeros(len(x), width)
        arrays = product.starts, product.columns, product.values(x.dtype), x, scratch
        kernel: Any = getattr(self._library, _NAMES[x.dtype])
        kernel(
            *(ctypes.c_void_p(array.data_ptr()) for array in arrays),
            *(ctypes.c_int64(number) for number in (*x.shape, width, part.start, part.step)),
        )


def addition() -> tuple[Addition | None, str | None]:
    """The kernel; or None, and why, in words, where it could be compiled but was not. Some 2 s once per machine.

    None without a word on processors where embedding_bag rounds in another way.
    """
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        return None, None
    library, why_not = load("add_product.cpp", "mixing", "-fsigned-zeros")  # torch's flags let -0 become 0
    return (None if library is None else Addition(library)), why_not


def panel_width(sites: int, size: int, bytes_each: int) -> int:
    """Columns of a panel, a multiple of a line of the cache."""
    row = size * bytes_each
    widest = WIDEST if sites * WIDEST <= CACHE else min(WIDEST, row // SMALL_PART)
    return max(LINE, min(widest, row + LINE - 1) // LINE * LINE) // bytes_each
