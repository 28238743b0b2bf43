"""Any ``nn.Module`` as one flat vector: which entry is which, and which entries are shared with partners."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from p2pfl.errors import PlanError

DTYPES: Mapping[str, torch.dtype] = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor's place in the vector."""

    name: str
    shape: tuple[int, ...]
    start: int
    stop: int
    private: bool


class Layout:
    """Where each tensor of a module lies in the vector [P].

    Parameters come first, in ``named_parameters`` order (tied ones once), then the shared float buffers.

    * ``buffers="exclude"``: float buffers stay with the site; ``"share"``: they are averaged like parameters.
    * ``batch_norm`` must be said if the module has batch norm with running statistics: ``"private"`` keeps
      scale, shift and statistics at the site (FedBN, arXiv 2102.07623); ``"shared"`` averages all of them.
      The layers are found by their class, since names lie.

    Integer buffers (counters) are never in the vector. Raises PlanError for a module that does not fit.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        dtype: torch.dtype = torch.float32,
        buffers: Literal["exclude", "share"] = "exclude",
        batch_norm: Literal["private", "shared"] | None = None,
    ) -> None:
        self.dtype = dtype
        _check_kinds(module)
        norm_names = _batch_norm_names(module)
        if batch_norm is None and any(name in norm_names for name, _ in module.named_buffers()):
            raise PlanError(
                "the model has batch norm layers, whose statistics differ between sites; "
                'say batch_norm = "private" or "shared" in the plan, or use GroupNorm'
            )
        parameters = dict(module.named_parameters())
        shared_buffers = {
            name: tensor
            for name, tensor in module.named_buffers()
            if tensor.is_floating_point() and (batch_norm == "shared" if name in norm_names else buffers == "share")
        }
        self.parameters = _entries(parameters, 0, norm_names if batch_norm == "private" else frozenset())
        self.buffers = _entries(shared_buffers, _stop(self.parameters), frozenset())
        self.size = _stop(self.entries)
        self.buffer_size = self.size - _stop(self.parameters)
        if self.size == self.buffer_size:
            raise PlanError("the model has no parameters to train; return some from model()")
        mask = self.shared_mask
        self.shared_size = int(mask.sum())
        if self.shared_size == 0:
            raise PlanError('every tensor of the model is private; share at least one, or set batch_norm = "shared"')
        self._shared = None if self.shared_size == self.size else mask.nonzero().squeeze(-1)

    @property
    def entries(self) -> tuple[Entry, ...]:
        """All entries in the vector's order."""
        return self.parameters + self.buffers

    @property
    def shared_mask(self) -> Tensor:
        """Boolean [P]: True where the entry takes part in messages."""
        mask = torch.ones(self.size, dtype=torch.bool)
        for entry in self.entries:
            mask[entry.start : entry.stop] = not entry.private
        return mask

    def flatten(self, module: nn.Module) -> Tensor:
        """A copy of the module's tensors, [P]."""
        tensors = dict(itertools.chain(module.named_parameters(), module.named_buffers()))
        with torch.no_grad():
            return torch.cat([tensors[entry.name].detach().reshape(-1).to(self.dtype) for entry in self.entries])

    def unflatten(self, vector: Tensor) -> dict[str, Tensor]:
        """Views into ``vector`` [..., P] by name, each [..., *shape]; nothing is copied."""
        head = vector.shape[:-1]
        return {entry.name: vector[..., entry.start : entry.stop].view(head + entry.shape) for entry in self.entries}

    def select_shared(self, vector: Tensor) -> Tensor:
        """The entries that travel: [..., P] -> [..., S]; the vector itself when nothing is private."""
        return vector if self._shared is None else vector.index_select(-1, self._shared)

    def spread_shared(self, values: Tensor) -> Tensor:
        """[..., S] -> [..., P] with 0 at private entries: a displacement leaves those alone."""
        if self._shared is None:
            return values
        return values.new_zeros((*values.shape[:-1], self.size)).index_copy(-1, self._shared, values)

    def replace_shared(self, vector: Tensor, values: Tensor) -> Tensor:
        """``vector`` [P] with the travelling entries replaced by ``values`` [S]."""
        return values if self._shared is None else vector.index_copy(-1, self._shared, values)


def _entries(tensors: Mapping[str, Tensor], offset: int, private: frozenset[str]) -> tuple[Entry, ...]:
    entries = []
    for name, tensor in tensors.items():
        stop = offset + tensor.numel()
        entries.append(Entry(name, tuple(tensor.shape), offset, stop, name in private))
        offset = stop
    return tuple(entries)


def _stop(entries: tuple[Entry, ...]) -> int:
    return entries[-1].stop if entries else 0


def _batch_norm_names(module: nn.Module) -> frozenset[str]:
    """Names of all tensors of layers that keep running statistics (batch or instance norm)."""
    return frozenset(
        f"{prefix}.{name}" if prefix else name
        for prefix, layer in module.named_modules()
        if isinstance(layer, _NormBase) and layer.track_running_stats
        for name, _ in itertools.chain(layer.named_parameters(recurse=False), layer.named_buffers(recurse=False))
    )


def _check_kinds(module: nn.Module) -> None:
    for name, tensor in itertools.chain(module.named_parameters(), module.named_buffers()):
        if tensor.is_meta or tensor.is_complex():
            raise PlanError(f"tensor {name} of the model is {tensor.dtype} on {tensor.device}; use real CPU tensors")
    for name, tensor in module.named_parameters():
        if not tensor.is_floating_point():
            raise PlanError(f"parameter {name} of the model is {tensor.dtype}; make it a buffer or a float")
