"""The sites of a simulation side by side: parameters, the rule's state, private buffers, and who has which examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from p2pfl.errors import ConfigError
from p2pfl.train.chunk_paths import Chunk, Done
from p2pfl.train.plan_code import Batch
from p2pfl.train.rules import State
from p2pfl.train.stacked import Buffers
from p2pfl.train.stacked_sampling import Draws

LOOKED_AT = 4096  # examples that are looked through at once: the temporaries of all of them are as large as the data


class Holdings:
    """The rows of the common data that each site has: one list after the other."""

    def __init__(self, rows: Sequence[Any], examples: int, device: torch.device) -> None:
        """ConfigError for a site without examples, or a row that is not in the data."""
        counts = np.array([len(own) for own in rows], dtype=np.int64)
        if not len(counts):
            raise ConfigError("a simulation of no sites; give at least one")
        if not counts.all():
            raise ConfigError(f"site {int(counts.argmin())} has no training examples; give every site at least one")
        order = np.concatenate([np.asarray(own, dtype=np.int64) for own in rows])
        if order.min() < 0 or order.max() >= examples:
            raise ConfigError(f"a site has row {order.max()} of {examples} examples; partition the data that are given")
        self.sites = len(counts)
        self.counts = torch.from_numpy(counts).to(device)
        self._starts = torch.from_numpy(np.cumsum(counts) - counts).to(device)
        small = order.astype(np.int32) if examples < 2**31 else order  # the longest list of a large simulation
        self._order = torch.from_numpy(small).to(device)
        self.most, self.least = int(counts.max()), int(counts.min())

    def rows_of(self, site: int) -> Tensor:
        """One site's rows."""
        start = int(self._starts[site])
        return self._order[start : start + int(self.counts[site])].long()

    def global_rows(self, sites: Tensor, positions: Tensor) -> Tensor:
        """Positions [c, K, B] in the sites' own lists as rows of the data."""
        return self._order[self._starts[sites].reshape(-1, 1, 1) + positions].long()


class Population:
    """What the local phase takes from and puts back to."""

    def __init__(
        self, x: Tensor, state: State, private: Buffers, holdings: Holdings, draws: Draws, batch_size: int
    ) -> None:
        self.x, self.state, self.private = x, state, private
        self.holdings, self._draws = holdings, draws
        self.width = min(batch_size, holdings.most)
        self.unequal = holdings.least < self.width
        self.losses = torch.zeros(len(x), dtype=x.dtype, device=x.device)
        self.round, self.steps = 0, 0
        self.quicker: Callable[[], str | None] | None = None  # what else is compiled where drawing is
        self.each: Tensor | None = None  # [n] own steps in this round, where they differ

    def _of_sites(self) -> list[str]:
        """State per site; a rule's other entries belong to edges."""
        return [name for name, value in self.state.items() if len(value) == len(self.x)]

    def quicken(self) -> str | None:
        """Compile what takes long in taking, and what else there is; why that is not possible, in words."""
        reasons = self._draws.quicken(), self.quicker() if self.quicker else None
        return "; ".join(filter(None, reasons)) or None

    def take(self, rows: Tensor) -> Chunk:
        """Everything that these sites' local steps need; ``rows`` are on the CPU. Views where they lie side by side."""
        at, rows = self._place(rows), rows.to(self.x.device)
        counts = self.holdings.counts[at]
        positions = self._draws.positions(rows, counts, self.round, self.steps, self.width)
        weights = None
        if self.unequal:
            place = torch.arange(self.width, device=rows.device)
            weights = (place < counts.unsqueeze(-1)).to(self.x.dtype)
        return Chunk(
            self.x[at],
            {name: self.state[name][at] for name in self._of_sites()},
            {name: value[at] for name, value in self.private.items()},
            self.holdings.global_rows(rows, positions),
            weights,
            self._draws.noise(rows, self.round, self.steps),
            None if self.each is None else self.each[at],
        )

    def put(self, rows: Tensor, done: Done) -> None:
        """Take the results over, in place. State first: it may be a view of the parameters as they were."""
        at = self._place(rows)
        for name in self._of_sites():
            self.state[name][at] = done.state[name]
        for name, value in done.private.items():
            self.private[name][at] = value
        self.losses[at] = done.losses
        self.x[at] = done.x

    def _place(self, rows: Tensor) -> Any:
        """The same rows as a slice, where they lie side by side."""
        first, last = int(rows[0]), int(rows[-1])
        return slice(first, last + 1) if last - first + 1 == len(rows) else rows.to(self.x.device)


def batch_on(data: Sequence[Tensor], dtype: torch.dtype, device: torch.device) -> Batch:
    """The data where they are needed, floats in the parameters' dtype. ConfigError if rows or values do not fit."""
    tensors = tuple(torch.as_tensor(tensor) for tensor in data)
    if not tensors or len({len(tensor) for tensor in tensors}) != 1:
        raise ConfigError("the training data must be tensors with one row per example each; mend them")
    for tensor in tensors:
        if tensor.is_floating_point() and not all(
            bool(torch.isfinite(rows).all()) for rows in torch.split(tensor, LOOKED_AT)
        ):
            raise ConfigError("the training data have missing or infinite values; fill them first")
    return tuple((t.to(dtype) if t.is_floating_point() else t).to(device) for t in tensors)
