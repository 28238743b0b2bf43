"""What accelerated closing rounds add once more: the displacements of the rounds before, ever weaker.

    f_t = d_t + b_t f_(t-1)        x_t = x_(t-1) + f_t        d_t = sum_j w_t w_ij (m_j - m_i),  b_t = w_t - 1

per channel, f before the first closing round 0. Where no message is lost this is the Chebyshev recurrence
x_t = w_t W x_(t-1) + (1 - w_t) x_(t-2) of `p2pfl.topology.chebyshev`. Since f is a sum of displacements of edges, each
displacement d of round s has by round t moved x by d A and is in f as d P:

    P(s, t) = b_(s+1) ... b_t        A(s, t) = 1 + P(s, s+1) + ... + P(s, t)

so an edge that only this end counted is taken back as d A from x and d P from f. The b are the same at all sites, and a
site that was away makes up for the rounds it missed: both ends of an edge have the same A and P, and what mixing keeps
is kept exactly. Source of the recurrence: Golub and Varga, 1961; the form by edges, and its settling, are ours.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

MOST_WEIGHT = 2.0  # w_t is at most 2, and w_ij at most 1
Tag = tuple[str, int, int]  # origin, round, step
Betas = Sequence[tuple[int, float]]  # (round, b), in the order of the rounds


@dataclass(slots=True)
class Inertia:
    """One site's f [S] per channel, and how far each displacement that may be taken back has gone."""

    flow: dict[str, Tensor] = field(default_factory=dict)
    until: int = -1  # the last round whose b is in f
    factors: dict[Tag, tuple[float, float]] = field(default_factory=dict)  # A and P

    def coast(self, betas: Betas, before: int) -> dict[str, Tensor]:
        """The rounds below ``before`` that were missed: what x [S] moves by in them, per channel."""
        moved: dict[str, Tensor] = {}
        for round, beta in betas:
            if self.until < round < before:
                self._turn(round, beta)
                _add(moved, self.flow)
        return moved

    def round(
        self, round: int, betas: Betas, displacements: Mapping[str, Tensor], mixed: Collection[Tag]
    ) -> dict[str, Tensor]:
        """The round, which ``betas`` may not reach, with its displacements [S] and edges: what x moves by in all."""
        moved = self.coast(betas, round)
        for number, beta in betas:
            if number == round > self.until:
                self._turn(round, beta)
                _add(self.flow, displacements)
                self.factors.update(dict.fromkeys(mixed, (1.0, 1.0)))
                _add(moved, self.flow)
                return moved
        _add(moved, displacements)
        return moved

    def _turn(self, round: int, beta: float) -> None:
        self.flow = {channel: value * beta for channel, value in self.flow.items()}
        for tag, (gone, left) in self.factors.items():
            self.factors[tag] = (gone + left * beta, left * beta)
        self.until = round

    def take_back(self, tag: Tag, displacement: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What x [S] has moved by for this edge, which leaves f, too."""
        gone, left = self.factors.pop(tag, (1.0, 0.0))
        for channel, value in displacement.items():
            if left and channel in self.flow:
                self.flow[channel] = self.flow[channel] - value * left
        return {channel: value * gone for channel, value in displacement.items()}

    def forget(self, tag: Tag) -> None:
        """Both ends counted it."""
        self.factors.pop(tag, None)


def most_weight(rows: Sequence[Sequence[float]]) -> float:
    """What an edge may weigh at most in a round with these rows (round, b): 1 where it is not accelerated."""
    return MOST_WEIGHT if rows else 1.0


def read_betas(rows: Sequence[Sequence[float]]) -> Betas:
    """Rows (round, b) as plain values."""
    return [(int(round), float(beta)) for round, beta in rows]


def _add(total: dict[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for channel, value in values.items():
        total[channel] = total[channel] + value if channel in total else value
