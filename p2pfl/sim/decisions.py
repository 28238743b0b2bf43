"""What was mixed when, and how long it took: the border between recorded runs and the engine that learns afterwards.

Schedule first, learn second: `p2pfl.sim.recording` writes these from real machines with stub training, or from the
schedule alone; `p2pfl.sim.vectorised` computes the parameters that follow from them. No tensors, no machine.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from p2pfl.errors import ConfigError

EDGE = np.dtype(
    [
        ("receiver", np.int64),
        ("sender", np.int64),
        ("round", np.int64),
        ("step", np.int64),
        ("weight", np.float64),
        ("sign", np.int64),
        ("given", np.float64),
    ]
)
"""One edge of a mixing: both ends' messages are those of own round ``round`` and mixing step ``step``, which are older
than the round they are listed in if the edge came late. ``sign`` +1: the displacement weight m_sender - given
m_receiver is counted; -1: the displacement that was counted under the same (receiver, sender, round, step) is taken
back. ``given`` is the weight itself but in directed mixings."""

ADOPTED = np.dtype(
    [
        ("receiver", np.int64),
        ("sender", np.int64),
        ("round", np.int64),
        ("step", np.int64),
        ("weight", np.float64),
        ("own", np.float64),
    ]
)
"""One state that a returning site takes in before its own round begins: x_i <- own x_i + (1 - own) sum_j weight_j m_j,
m_j the message of the model that ``sender`` sent in its own round ``round``, step ``step``. The weights of one receiver
sum to 1, and ``own`` is the same in all its rows."""


def no_adoptions() -> Any:
    """Nobody takes in states."""
    return np.empty(0, dtype=ADOPTED)


@dataclass(frozen=True)
class RecordedRound:
    """Own round t of every site, n of them. A site that skipped the round is not active and has no edges in it."""

    active: np.ndarray  # bool [n]: trained in this round
    steps: np.ndarray  # int [n]: local steps, 0 where not active
    edges: tuple[
        np.ndarray, ...
    ]  # per mixing step: rows of EDGE in the order they were mixed; -1 in the last step only
    seconds: np.ndarray  # float64 [n]: simulated time at which each site ended the round
    bytes: np.ndarray  # float64 [n]: bytes that each site sent in the round, as the machines sent them
    adopted: np.ndarray = field(default_factory=no_adoptions)  # rows of ADOPTED
    floods: np.ndarray | None = None  # float64 [n]: of ``bytes``, in what everybody sends on; None: not told apart
    idle: np.ndarray | None = None  # bool [n]: took part without a local step; None: of those, who mixed with somebody

    def __post_init__(self) -> None:
        """ConfigError for arrays that do not fit together."""
        sites = len(self.active)
        for name in ("active", "steps", "seconds", "bytes"):
            if getattr(self, name).shape != (sites,):
                raise ConfigError(f"a recorded round has {name} of shape {getattr(self, name).shape} for {sites} sites")
        if any(rows.dtype != EDGE for rows in self.edges) or self.adopted.dtype != ADOPTED:
            raise ConfigError("the edges of a recorded round have other columns than p2pfl.sim.decisions.EDGE says")

    def takes_part(self, round: int) -> np.ndarray:
        """Who trained or took part without a step in this round, whose number is ``round``; bool [n]."""
        found: np.ndarray = self.active.copy()
        if self.idle is not None:
            found |= self.idle
            return found
        for rows in self.edges:
            own = rows[(rows["round"] == round) & (rows["sign"] > 0)]
            found[own["receiver"]] = found[own["sender"]] = True
        return found


@dataclass(frozen=True)
class Decisions:
    """All rounds, training ones first, then those that only mix.

    An edge listed in round t is of a round t' <= t of both its ends: so all rounds can be computed level by level.
    """

    rounds: tuple[RecordedRound, ...]

    @property
    def sites(self) -> int:
        """Number of sites."""
        return len(self.rounds[0].active) if self.rounds else 0


def edge_rows(rows: Any) -> Any:
    """An array of `EDGE` of tuples (receiver, sender, round, step, weight, sign), or these and given."""
    return np.array([tuple(row) if len(row) > 6 else (*row, row[4]) for row in rows], dtype=EDGE)
