"""Products of many small matrices by oneDNN's kernel: the numbers of bmm, whatever the strides, and what is said."""

from __future__ import annotations

import itertools
from functools import cache

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from p2pfl.train import kernels, small_products

HERE = torch.backends.cpu.get_cpu_capability() == "AVX512"  # elsewhere BLAS is kept, which is tested below
SHAPES = [
    (5, 20, 64, 10),
    (3, 64, 20, 64),
    (2, 1, 7, 3),
    (4, 3, 1, 5),
    (2, 5, 9, 1),
    (1, 17, 33, 31),
    (2, 128, 128, 128),
]


def rows(n: int, m: int, k: int) -> Tensor:
    return torch.randn(n, m, k)


def columns(n: int, m: int, k: int) -> Tensor:
    return torch.randn(n, k, m).transpose(1, 2)


def part(n: int, m: int, k: int) -> Tensor:
    """Within longer rows of a larger matrix, as layers lie in a parameter vector."""
    return torch.randn(n, 5 + m * k + 3)[:, 5 : 5 + m * k].view(n, m, k)


def part_turned(n: int, m: int, k: int) -> Tensor:
    return part(n, k, m).transpose(1, 2)


def every_other(n: int, m: int, k: int) -> Tensor:
    return torch.randn(n, m, 2 * k)[:, :, ::2]


def the_same(n: int, m: int, k: int) -> Tensor:
    return torch.randn(m, k).expand(n, m, k)


def same_columns(n: int, m: int, k: int) -> Tensor:
    return torch.randn(n, m, 1).expand(n, m, k)


LAYOUTS = [rows, columns, part, part_turned, every_other, the_same, same_columns]


def with_kernel(a: Tensor, b: Tensor) -> tuple[str, Tensor]:
    """The recorded product's operation, and what it gives."""
    graph = make_fx(lambda a, b: torch.bmm(a, b))(a, b)
    assert small_products.use_small_products(graph) is None
    (name,) = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    return name, graph(a, b)


@pytest.mark.parametrize(("n", "m", "k", "p"), SHAPES)
def test_it_is_the_product_for_every_layout(n: int, m: int, k: int, p: int) -> None:
    torch.manual_seed(0)
    for left, right in itertools.product(LAYOUTS, LAYOUTS):
        a, b = left(n, m, k), right(n, k, p)
        before = a.clone(), b.clone()
        name, product = with_kernel(a, b)
        assert name == ("p2pfl.products.default" if HERE else "aten.bmm.default")
        torch.testing.assert_close(product.double(), a.double() @ b.double(), rtol=1e-5, atol=1e-5 * k**0.5)
        assert torch.equal(a, before[0]) and torch.equal(b, before[1])


def test_single_rows_may_have_any_stride() -> None:
    a = torch.randn(4, 7, 30)[:, 3:4].as_strided((4, 1, 30), (210, 7, 1))
    b = torch.randn(4, 30, 6)
    torch.testing.assert_close(with_kernel(a, b)[1], a.contiguous() @ b)


def test_each_product_is_its_own() -> None:
    """Chunks change nothing: the same bits for one matrix and for many."""
    a, b = torch.randn(9, 20, 64), torch.randn(9, 10, 64).transpose(1, 2)
    together = with_kernel(a, b)[1]
    assert torch.equal(together, torch.cat([with_kernel(a[i : i + 1], b[i : i + 1])[1] for i in range(9)]))


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (torch.randn(2, 3, 4, dtype=torch.float64), torch.randn(2, 4, 5, dtype=torch.float64)),
        (torch.randn(2, 129, 4), torch.randn(2, 4, 5)),
        (torch.randn(2, 3, 200), torch.randn(2, 200, 5)),
    ],
    ids=["float64", "many rows", "long sums"],
)
def test_other_products_stay_with_blas(a: Tensor, b: Tensor) -> None:
    name, product = with_kernel(a, b)
    assert name == "aten.bmm.default" and torch.equal(product, torch.bmm(a, b))


@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (2, 0, 4, 5), (2, 3, 0, 5), (2, 3, 4, 0)])
def test_nothing_gives_nothing(shape: tuple[int, int, int, int]) -> None:
    n, m, k, p = shape
    assert torch.equal(with_kernel(torch.randn(n, m, k), torch.randn(n, k, p))[1], torch.zeros(n, m, p))


def test_without_its_processor_blas_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert with_kernel(torch.randn(2, 3, 4), torch.randn(2, 4, 5))[0] == "aten.bmm.default"


def test_a_kernel_that_cannot_be_compiled_is_said_and_not_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor.codecache import CppCodeCache

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no compiler\nhere")

    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(CppCodeCache, "load", fail)
    monkeypatch.setattr(small_products, "_load", cache(small_products._load.__wrapped__))
    monkeypatch.setattr(kernels, "_load", kernels._load.__wrapped__)
    a, b = torch.randn(2, 3, 4), torch.randn(2, 4, 5)
    graph = make_fx(lambda a, b: torch.bmm(a, b))(a, b)
    why = small_products.use_small_products(graph)
    assert why == "the kernel for small products is not possible (RuntimeError: no compiler here)"
    assert torch.equal(graph(a, b), torch.bmm(a, b))
