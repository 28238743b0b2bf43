"""Dropout whose mask is a pure function of (key, layer, call, element), in place of nn.Dropout.

The key is that of (seed, site, round, step), so a mask depends neither on chunking and order nor on compiling. Element
is the position in the layer's input [B, ...], row by row: padding a batch changes no mask of its real examples.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from p2pfl.train.integer_hash import combine, words

PER_CHANNEL = (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
SCALE = 1 << 32


class DropoutKey:
    """What all layers of one module draw from; ``begin`` gives the key of the next forward pass."""

    def __init__(self) -> None:
        self._key: Tensor | None = None
        self._calls = 0

    def begin(self, key: Tensor) -> None:
        """``key``: int64 of 0 to 2^32 - 1, without dimensions (under vmap: one for each site)."""
        self._key, self._calls = key, 0

    def next(self, layer: int) -> Tensor:
        """The key of the next call of a layer; a layer may be called more than once."""
        assert self._key is not None, "begin gives the key before the model is called"
        self._calls += 1
        return combine(combine(self._key, layer), self._calls)


class KeyedDropout(nn.Module):
    """x / (1 - p) where the element is kept, else 0; ``dims`` leading dimensions have masks of their own (0: all)."""

    def __init__(self, source: DropoutKey, layer: int, probability: float, dims: int = 0) -> None:
        super().__init__()
        self._source, self._layer, self._dims = source, layer, dims
        self._probability = probability

    def forward(self, x: Tensor) -> Tensor:
        """As nn.Dropout; the input itself in evaluation."""
        if not self.training or self._probability == 0.0:
            return x
        if self._probability >= 1.0:
            return x * 0.0
        shape = x.shape[: self._dims] + (1,) * (x.dim() - self._dims) if self._dims else x.shape
        element = words(shape, x.device)
        kept = combine(self._source.next(self._layer), element) >= int(self._probability * SCALE)
        return x * kept.to(x.dtype) / (1.0 - self._probability)


def key_dropout(module: nn.Module) -> DropoutKey | None:
    """Replace every dropout layer of ``module`` in place; where their keys go in, None if it has none.

    Dropout that is called as a function, or inside attention layers, is not a layer and stays as it is.
    """
    source, found = DropoutKey(), 0
    for parent, name, layer in list(_dropouts(module)):
        dims = 2 if isinstance(layer, PER_CHANNEL) else 0
        setattr(parent, name, KeyedDropout(source, found, float(layer.p), dims))
        found += 1
    return source if found else None


def _dropouts(module: nn.Module) -> Iterable[tuple[nn.Module, str, nn.Dropout]]:
    for parent in module.modules():
        for name, layer in parent.named_children():
            if isinstance(layer, (nn.Dropout, *PER_CHANNEL)):
                yield parent, name, layer  # type: ignore[misc]  # all of them have p


def has_dropout(module: nn.Module) -> bool:
    """Whether some layer is dropout."""
    return next(iter(_dropouts(module)), None) is not None


def seed_of(key: Tensor) -> int:
    """A seed for torch's generator from a key, for randomness that no layer shows."""
    return int(key) & (SCALE - 1)


def no_key(device: torch.device) -> Tensor:
    """Where no layer asks for one."""
    return torch.zeros((), dtype=torch.int64, device=device)
