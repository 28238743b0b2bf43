"""Which examples n sites see in all local steps of a round, at once, keyed by (seed, site, round, step).

    key(i, k) = hash(seed, i, round, k);  draw_p = floor(hash(key, p) (top_p + 1) / 2^32);  Floyd's method over p

A batch is a pure function of these four and of the site's number of examples: chunks, their order, threads and devices
change nothing. The bias of a draw is below examples / 2^32. Deployed sites draw from secret keys instead;
`DeployedKeys` takes such keys, so that the engine trains on the very batches of deployed sessions.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from p2pfl.errors import ConfigError
from p2pfl.train.integer_hash import combine, key_of
from p2pfl.train.kernels import load
from p2pfl.train.sampling import batch_indices, noise_seed

BATCH, NOISE = 1, 2  # purposes of keys


class Draws(Protocol):
    """Where batches and dropout come from."""

    deployed: bool  # whether dropout is to come from torch's generator, as at deployed sites

    def quicken(self) -> str | None:
        """Compile what takes long, where there is something; why that is not possible, in words. Changes no draw."""
        ...

    def positions(self, sites: Tensor, counts: Tensor, round: int, steps: int, batch: int) -> Tensor:
        """[c, K, batch] positions into each site's own examples; padded with 0 where a site has fewer."""
        ...

    def noise(self, sites: Tensor, round: int, steps: int) -> Tensor:
        """[c, K] keys or seeds of dropout, int64."""
        ...


class CounterDraws:
    """Draws of simulations: nothing but integers, computed where the parameters are."""

    deployed = False

    def __init__(self, seed: int) -> None:
        self._batch, self._noise = key_of(seed, BATCH), key_of(seed, NOISE)
        self._kernel: Any = None

    def quicken(self) -> str | None:
        """See `Draws`; a fifth of the time, on CPUs."""
        library, why_not = load("floyd.cpp", "drawing batches")
        self._kernel = None if library is None else library.floyd
        return why_not

    def positions(self, sites: Tensor, counts: Tensor, round: int, steps: int, batch: int) -> Tensor:
        """See `Draws`; Floyd's method (Bentley and Floyd 1987) on all sites and steps side by side."""
        keys = _keys(self._batch, sites, round, steps)
        if self._kernel is None or keys.device.type != "cpu":
            return floyd(keys, counts, batch)
        return _compiled(self._kernel, keys, counts, batch)

    def noise(self, sites: Tensor, round: int, steps: int) -> Tensor:
        """See `Draws`."""
        return _keys(self._noise, sites, round, steps)


class DeployedKeys:
    """The draws of deployed sessions with these keys, one per site: for tests that compare both worlds."""

    deployed = True

    def __init__(self, keys: Sequence[bytes], run: bytes) -> None:
        self._keys, self._run = tuple(keys), run

    def quicken(self) -> str | None:
        """See `Draws`; there is nothing."""
        return None

    def positions(self, sites: Tensor, counts: Tensor, round: int, steps: int, batch: int) -> Tensor:
        """See `Draws`; `p2pfl.train.sampling.batch_indices` of each site and step."""
        if len(self._keys) <= int(sites.max()):
            raise ConfigError(f"{len(self._keys)} keys for more sites; give one key per site")
        found = torch.zeros((len(sites), steps, batch), dtype=torch.int64)
        for place, (site, count) in enumerate(zip(sites.cpu().tolist(), counts.cpu().tolist(), strict=True)):
            for step in range(steps):
                chosen = batch_indices(self._keys[site], self._run, round, step, count, batch)
                found[place, step, : len(chosen)] = chosen
        return found.to(counts.device)

    def noise(self, sites: Tensor, round: int, steps: int) -> Tensor:
        """See `Draws`; the seeds of deployed dropout."""
        numbers = sites.cpu().tolist()
        rows = [[noise_seed(self._keys[site], self._run, round, k) for k in range(steps)] for site in numbers]
        return torch.tensor(rows, dtype=torch.int64, device=sites.device).reshape(len(rows), steps)


def _keys(key: int, sites: Tensor, round: int, steps: int) -> Tensor:
    own = combine(torch.full_like(sites, key), sites)
    own = combine(own, round)
    return combine(own.unsqueeze(-1), torch.arange(steps, dtype=torch.int64, device=sites.device))


def floyd(keys: Tensor, counts: Tensor, batch: int) -> Tensor:
    """[c, K, batch] positions without replacement from keys [c, K]: every set of min(batch, count) is equally likely.

    ``counts`` [c], 1 or more. A site with no more than ``batch`` examples gets all, in order, and padding 0.
    """
    count = counts.unsqueeze(-1)
    places = torch.arange(batch, device=keys.device).reshape(-1, 1, 1)
    top = (count - batch).clamp(min=0) + places  # [batch, c, 1]
    chosen = (combine(keys.unsqueeze(0), places) * (top + 1)) >> 32
    for place in range(1, batch):
        taken = (chosen[:place] == chosen[place]).any(dim=0)
        chosen[place] = torch.where(taken, top[place], chosen[place])
    in_order = torch.where(places < count, places, 0)
    return torch.where(count <= batch, in_order, chosen).permute(1, 2, 0).contiguous()


def _compiled(kernel: Any, keys: Tensor, counts: Tensor, batch: int) -> Tensor:
    """`floyd` by floyd.cpp, without the interpreter's lock."""
    keys, counts = keys.contiguous(), counts.contiguous()
    positions = torch.empty((*keys.shape, batch), dtype=torch.int64)
    kernel(
        *(ctypes.c_void_p(tensor.data_ptr()) for tensor in (keys, counts, positions)),
        *(ctypes.c_int64(size) for size in positions.shape),
    )
    return positions
