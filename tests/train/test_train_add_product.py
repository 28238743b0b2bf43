"""x += A x in place by the kernel: to the bit what torch's embedding_bag and a sum make of it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor

from p2pfl.train import add_product, kernels
from p2pfl.train.add_product import CACHE, LINE, WIDEST, Addition, addition, panel_width
from p2pfl.train.sparse import SparseProduct

BITS = {torch.float32: torch.int32, torch.float64: torch.int64}


@pytest.fixture(scope="module")
def quick() -> Addition:
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        pytest.skip("a processor that the kernel is not for")
    loaded, why_not = addition()
    assert loaded is not None, why_not
    return loaded


def matrix(sites: int, entries: int, seed: int) -> SparseProduct:
    """Directed; entries at random places, so some rows have none, some several, some their diagonal."""
    rng = np.random.default_rng(seed)
    rows, columns = rng.integers(sites, size=(2, entries))
    return SparseProduct((rows, columns, rng.normal(size=entries)), (sites, sites), "cpu")


def same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.view(BITS[a.dtype]), b.view(BITS[b.dtype]))


@pytest.mark.parametrize("dtype", BITS)
@pytest.mark.parametrize(
    ("sites", "entries"),
    [(1, 0), (1, 1), (2, 1), (5, 0), (7, 12), (40, 30), (64, 4096), (300, 2700)],
)
def test_the_bits_of_torch(quick: Addition, sites: int, entries: int, dtype: torch.dtype) -> None:
    """Widths around a register (8 or 16 numbers), a panel (64 or 128), and several of them."""
    for seed, size in enumerate((0, 1, 7, 15, 16, 17, 63, 64, 65, 127, 128, 129, 200, 513)):
        product = matrix(sites, entries, seed)
        x = torch.randn(sites, size, generator=torch.Generator().manual_seed(seed), dtype=dtype)
        wanted = x + product(x)
        assert quick.fits(product, x)
        quick(product, x)
        assert same_bits(x, wanted), size


@pytest.mark.parametrize("dtype", BITS)
@pytest.mark.parametrize("special", [-0.0, 0.0, 1e-40, 1e-320, float("inf"), float("nan")])
def test_the_bits_of_torch_where_numbers_are_special(quick: Addition, special: float, dtype: torch.dtype) -> None:
    product = matrix(9, 20, 3)
    x = torch.full((9, 150), special, dtype=dtype)
    wanted = x + product(x)
    quick(product, x)
    assert same_bits(x.nan_to_num(nan=5.0), wanted.nan_to_num(nan=5.0))


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_threads_change_no_bit(quick: Addition, threads: int) -> None:
    before = torch.get_num_threads()
    product, x = matrix(50, 400, 1), torch.randn(50, 700)
    wanted = x + product(x)
    try:
        torch.set_num_threads(threads)
        quick(product, x)
    finally:
        torch.set_num_threads(before)
    assert same_bits(x, wanted)


def test_rows_of_wide_panels_that_leave_the_cache(quick: Addition, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(add_product, "CACHE", 0)
    product, x = matrix(20, 100, 2), torch.randn(20, 700)
    wanted = x + product(x)
    quick(product, x)
    assert same_bits(x, wanted)


@pytest.mark.parametrize(
    "other",
    [
        lambda x: x.half(),
        lambda x: x.bfloat16(),
        lambda x: x.T.contiguous().T,
        lambda x: x[:, ::2],
        lambda x: x[:5],
        lambda x: x.to("meta"),
    ],
    ids=["half", "bfloat16", "by columns", "every other", "fewer sites", "another device"],
)
def test_what_does_not_fit_is_left_to_torch(quick: Addition, other: Callable[[Tensor], Tensor]) -> None:
    product, x = matrix(6, 12, 0), torch.randn(6, 40)
    assert quick.fits(product, x)
    assert not quick.fits(product, other(x))
    assert not quick.fits(SparseProduct(([0], [1], [1.0]), (6, 7), "cpu"), x)


@pytest.mark.parametrize("bytes_each", [4, 8])
@pytest.mark.parametrize("size", [1, 10, 130, 4810, 1_000_000])
def test_panels_are_whole_lines_and_a_small_part(size: int, bytes_each: int) -> None:
    for sites in (1, 100, 1000, 3000, 100_000):
        wide = panel_width(sites, size, bytes_each) * bytes_each
        assert wide % LINE == 0 and LINE <= wide <= WIDEST
        assert wide == LINE or sites * wide <= CACHE or wide <= size * bytes_each / 16
        assert wide - LINE < size * bytes_each, "no wider than the rows, up to a line"


def test_without_its_processor_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    assert addition() == (None, None)


def test_a_kernel_that_cannot_be_compiled_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor.codecache import CppCodeCache

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no compiler\nhere")

    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    monkeypatch.setattr(CppCodeCache, "load", fail)
    monkeypatch.setattr(kernels, "_load", cache(kernels._load.__wrapped__))
    assert addition() == (None, "the kernel for mixing is not possible (RuntimeError: no compiler here)")
