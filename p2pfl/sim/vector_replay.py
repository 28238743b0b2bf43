"""Recorded decisions as sparse products: what each round mixes now, mixes late, takes back and takes in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from p2pfl.errors import ConfigError
from p2pfl.sim.decisions import Decisions, RecordedRound
from p2pfl.sim.vector_mixing import Honest, Kept, Pull, nothing_further, weighed
from p2pfl.train.sparse import SparseProduct, displacements
from p2pfl.types import WEIGHT

Place = tuple[int, int]  # round, step


class Replay:
    """Walks through the rounds, and keeps the messages that later ones need, no longer than they do."""

    def __init__(
        self, decisions: Decisions, sites: int, device: torch.device, betas: Mapping[int, float] | None = None
    ) -> None:
        """``betas``: the inertia of accelerated closing rounds, by round.

        ConfigError for decisions of another number of sites, or that look ahead.
        """
        self._betas = betas or {}
        if decisions.sites != sites:
            raise ConfigError(f"decisions of {decisions.sites} sites for {sites}; record them with the same sites")
        self._rounds, self._sites, self._device = decisions.rounds, sites, device
        self.kept: dict[Place, Kept] = {}
        self._needed: dict[Place, set[int]] = {}
        self._last: dict[Place, int] = {}
        for t, recorded in enumerate(decisions.rounds):
            self._note(t, recorded)

    def _note(self, t: int, recorded: RecordedRound) -> None:
        later = [rows[(rows["round"] != t) | (rows["sign"] < 0)] for rows in recorded.edges]
        for row in np.concatenate(later) if later else ():
            self._need(t, row, (int(row["receiver"]), int(row["sender"])))
        for row in recorded.adopted:
            self._need(t, row, (int(row["sender"]),))

    def _need(self, t: int, row: Any, sites: tuple[int, ...]) -> None:
        place = (int(row["round"]), int(row["step"]))
        if place[0] > t:
            raise ConfigError(f"round {t} mixes a message of round {place[0]}: it cannot be computed round by round")
        self._needed.setdefault(place, set()).update(sites)
        self._last[place] = max(self._last.get(place, 0), t)

    def at(self, t: int) -> RecordedRound:
        """What was decided."""
        return self._rounds[t]

    def pulls(self, t: int) -> list[Pull]:
        """The mixings with messages of round t itself, one for each step."""
        found: list[Pull] = []
        for step, rows in enumerate(self._rounds[t].edges):
            now = rows[(rows["round"] == t) & (rows["sign"] > 0)]
            if (now["step"] != step).any():
                raise ConfigError(f"round {t} mixes messages of another step in step {step}; list them where they are")
            found.append(
                Honest(
                    displacements(
                        now["receiver"], now["sender"], now["weight"], self._sites, self._device, now["given"]
                    )
                )
            )
        return found

    def keep(self, t: int, like: Tensor, channels: tuple[str, ...]) -> Mapping[int, Kept]:
        """Room for the messages of round t that later rounds need, by step."""
        for place in [place for place, last in self._last.items() if last < t]:
            self.kept.pop(place, None)
        found = {}
        for (round_, step), sites in self._needed.items():
            if round_ == t:
                rows = torch.tensor(sorted(sites), dtype=torch.int64, device=self._device)
                sizes = {name: 1 if name == WEIGHT else like.shape[-1] for name in channels}
                kept = Kept(rows, {name: like.new_zeros(len(rows), size) for name, size in sizes.items()})
                self.kept[round_, step] = found[step] = kept
        return found

    def _since(self, place: Place, t: int) -> tuple[float, float]:
        """How far a displacement of this place has moved x by round t, and what of it is in the flow."""
        if place[0] not in self._betas:
            return 1.0, 0.0
        gone = left = 1.0
        for round_ in range(place[0] + 1, t + 1):
            left *= self._betas.get(round_, 0.0)
            gone += left
        return gone, left

    def more(self, t: int) -> Any:
        """What comes late or is taken back, as `LinearMixing.round` asks for it."""
        return self._later(t, 0)

    def lost(self, t: int) -> Any:
        """What of it leaves the flow of accelerated closing rounds."""
        return self._later(t, 1) if t in self._betas else nothing_further

    def _later(self, t: int, part: int) -> Any:
        products: dict[int, list[tuple[Kept, SparseProduct]]] = {}
        for step, rows in enumerate(self._rounds[t].edges):
            old = rows[(rows["round"] != t) | (rows["sign"] < 0)]
            for place in sorted({(int(row["round"]), int(row["step"])) for row in old}):
                these = old[(old["round"] == place[0]) & (old["step"] == place[1])]
                factor = self._since(place, t)[part]
                if factor:
                    product = self._product(these, self.kept[place], factor)
                    products.setdefault(step, []).append((self.kept[place], product))

        def displacement(step: int, channel: str, columns: slice) -> Tensor | None:
            total: Tensor | None = None
            for kept, product in products.get(step, ()):
                moved = product(weighed(kept.channels, channel, columns))
                total = moved if total is None else total + moved
            return total

        return displacement

    def _product(self, rows: Any, kept: Kept, factor: float) -> SparseProduct:
        known = kept.rows.cpu().numpy()
        weight, given = (rows[amount] * rows["sign"] * factor for amount in ("weight", "given"))
        receivers, senders = (np.searchsorted(known, rows[end]) for end in ("receiver", "sender"))
        entries = (
            np.tile(rows["receiver"], 2),
            np.concatenate((senders, receivers)),
            np.concatenate((weight, -given)),
        )
        return SparseProduct(entries, (self._sites, len(known)), self._device)

    def state_of(self, row: Any, x: Tensor, t: int, channel: str) -> Tensor:
        """The parameters [P] that a row of ADOPTED names; those of round t itself are x after the local steps."""
        place = (int(row["round"]), int(row["step"]))
        if place == (t, 0):
            return x[int(row["sender"])]
        kept = self.kept[place]
        return kept.channels[channel][int(torch.searchsorted(kept.rows, int(row["sender"])))]
