"""One peer's messages of one run: what it sends, what arrived, which displacements may still be taken back.

The displacement of edge j in step s is d = w_ij (m_j - m_i), per channel, or w_ij m_j - g_ij m_i where a site gives
another amount than it takes; of a rule with weights m is the message times the weight (`WEIGHT`). It is kept under
(origin, round, step) until the edge is settled: either forgotten (both ends counted it) or taken back (only this end
did).

In asynchronous runs an edge may be mixed some own rounds late, against the own message of its own round; so the own
messages of the newest rounds are kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from p2pfl.errors import IllegalStep, LimitExceeded
from p2pfl.train import deltas
from p2pfl.train.inertia import Betas, Inertia
from p2pfl.train.push_weights import check_own, check_received, is_amount, quotient, told
from p2pfl.types import WEIGHT

Tag = tuple[str, int, int]  # origin, round, step
Place = tuple[int, int]  # round, step


class Edge(NamedTuple):
    """One neighbour's messages to mix."""

    origin: str
    weight: float
    keys: Mapping[str, str]  # channel -> key of the received message
    given: float | None = None  # what is given up of the own message for it; None: as much as is taken of its


# 16 unsettled rounds (DESIGN.md, "Flows settle") of 50 members with two steps each.
KEPT_LIMIT = 16 * 50 * 2
# Two rounds' messages of 50 members on a few channels; more can only be a caller that never drops.
RECEIVED_LIMIT = 1024


def tag_of(row: Sequence[Any]) -> Tag:
    """The tag that plain values name."""
    origin, round, step = row
    return str(origin), int(round), int(step)


def read_edges(rows: Sequence[Sequence[Any]], place: Place) -> tuple[list[Tag], list[Edge]]:
    """Rows (origin, weight, {channel: key}), which may go on with round and step, else of ``place``, and those with
    what is given up."""
    edges = [Edge(str(row[0]), float(row[1]), dict(row[2]), *map(float, row[5:6])) for row in rows]
    return [tag_of([row[0], *(row[3:5] or place)]) for row in rows], edges


def relayed_edges(edges: Sequence[Edge], channel: str) -> tuple[list[Edge], list[tuple[str, str]]]:
    """The edges without their messages of a relayed channel, and those: (origin, key). Raises IllegalStep."""
    for edge in edges:
        if channel not in edge.keys:
            raise IllegalStep(f"no message of channel {channel} from {edge.origin}; give one of each channel")
    rest = [edge._replace(keys={name: key for name, key in edge.keys.items() if name != channel}) for edge in edges]
    return rest, [(edge.origin, edge.keys[channel]) for edge in edges]


@dataclass(frozen=True, slots=True)
class _Received:
    channel: str
    value: Tensor


class Exchange:
    """Messages [S] of each channel against their bases (None = zero); of the channel `WEIGHT` they are [1].

    ``staleness``: own rounds that an edge may be mixed late; so many own messages besides the newest one are kept.
    ``most`` [1]: that is told of the own weight, in every step of a round.
    """

    def __init__(
        self,
        bases: Mapping[str, Tensor | None],
        size: int,
        dtype: torch.dtype,
        staleness: int = 0,
        most: Tensor | None = None,
    ) -> None:
        self._staleness, self._most = staleness, most
        self._past: dict[Place, dict[str, Tensor]] = {}
        self._bases = bases
        self._size = size
        self._dtype = dtype
        self._received: dict[str, _Received] = {}
        self._kept: dict[Tag, dict[str, Tensor]] = {}
        self._own: dict[str, Tensor] = {}
        self._total: dict[str, Tensor] = {}
        self.inertia = Inertia()

    @property
    def own(self) -> Mapping[str, Tensor]:
        """The own messages as they stand in this round; empty before the first encoding."""
        return self._own

    @property
    def total(self) -> Mapping[str, Tensor]:
        """Each channel's displacement [S] since the last merge."""
        return self._total

    @property
    def kept(self) -> Mapping[Tag, Mapping[str, Tensor]]:
        """The displacements [S] per channel that are not settled."""
        return self._kept

    @property
    def past(self) -> Mapping[Place, Mapping[str, Tensor]]:
        """The own messages [S] per channel of the newest rounds, oldest first; empty in synchronous runs."""
        return self._past

    def base(self, channel: str) -> Tensor:
        """What deltas of a channel stand on, [S]."""
        base = self._bases[channel]
        return torch.zeros(self._size_of(channel), dtype=self._dtype) if base is None else base

    def _size_of(self, channel: str) -> int:
        return 1 if channel == WEIGHT else self._size

    def keep_own(self, place: Place) -> None:
        """Edges of this place may be mixed late: keep the own messages as they are now. Nothing if none may."""
        if self._staleness:
            self._past[place] = dict(self._own)
            for old in list(self._past)[: -(self._staleness + 1)]:
                del self._past[old]

    def drop_past(self) -> None:
        """The closing rounds begin: nothing is mixed late any more."""
        self._past = {}

    def _own_at(self, tag: Tag) -> Mapping[str, Tensor]:
        if not self._staleness or not self._past:
            return self._own
        if tag[1:] not in self._past:
            raise IllegalStep(
                f"the own message of round {tag[1]}, step {tag[2]} is not kept; mix within {self._staleness} own rounds"
            )
        return self._past[tag[1:]]

    def start_round(self) -> None:
        """Leave the messages of a round that was never finished; what it mixed counts with the next one."""
        self._own = {}

    def encode(self, messages: Mapping[str, Tensor]) -> list[dict[str, Any]]:
        """Payload and result digest of each message; the own messages become what receivers rebuild."""
        answers, adopted = [], {}
        for channel, value in messages.items():
            payload, adopted[channel], digest = deltas.encode(value, self._bases[channel])
            if WEIGHT in self._bases:
                check_own(adopted[channel])
            answers.append({"channel": channel, "payload": payload, "result": digest})
        self._own = adopted
        return answers

    def receive(self, key: str, channel: str, payload: bytes, result: str, share: float | None = None) -> None:
        """Check, rebuild and store under ``key``; a refused message leaves nothing behind.

        ``share``: what its sender counts, by which its weight is judged.
        """
        if channel not in self._bases:
            raise IllegalStep(f"no channel {channel!r} in this run; ask for {', '.join(self._bases)}")
        if key not in self._received and len(self._received) >= RECEIVED_LIMIT:
            raise LimitExceeded(f"{RECEIVED_LIMIT} received messages are waiting; mix or drop some first")
        value = deltas.rebuild(payload, self._bases[channel], self._size_of(channel), self._dtype, result)
        if WEIGHT in self._bases:
            check_received(channel, value, share)
        self._received[key] = _Received(channel, value)

    def drop(self, keys: Sequence[str]) -> None:
        """Forget received messages; unknown keys are nothing to forget."""
        for key in keys:
            self._received.pop(key, None)

    def take(self, named: Sequence[tuple[str, str]]) -> list[Tensor]:
        """The received messages [S] of these (channel, key), which are gone then. Raises IllegalStep first."""
        for place, (channel, key) in enumerate(named):
            if key not in self._received or self._received[key].channel != channel or (channel, key) in named[:place]:
                raise IllegalStep(f"no message of channel {channel} under {key!r}; receive it first, take it once")
        return [self._received.pop(key).value for _, key in named]

    def forget(self, tags: Sequence[Tag]) -> None:
        """These edges are settled: both ends counted them, so their displacements stay."""
        for tag in tags:
            self._kept.pop(tag, None)
            self.inertia.forget(tag)

    def restore(
        self,
        own: Mapping[str, Tensor],
        total: Mapping[str, Tensor],
        kept: Mapping[Tag, Mapping[str, Tensor]],
        past: Mapping[Place, Mapping[str, Tensor]] | None = None,
        inertia: Inertia | None = None,
    ) -> None:
        """Take over what an exchange that was ended had, under these names. Nothing is received then."""
        # in the order of the channels, as they were: the distance is that of the first one
        self._own = self._in_order(own)
        self._total = self._in_order(total)
        self._kept = {tag: self._in_order(values) for tag, values in kept.items()}
        self._past = {place: self._in_order(values) for place, values in (past or {}).items()}
        self._received = {}
        self.inertia = inertia or Inertia()

    def _in_order(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {channel: values[channel] for channel in self._bases if channel in values}

    def check(self, tags: Sequence[Tag], edges: Sequence[Edge], corrections: Sequence[Tag], most: float = 1.0) -> None:
        """Refuse, before anything changes, a mix of what is not here, or of weights above ``most``; IllegalStep."""
        used: set[str] = set()
        for tag, (origin, weight, keys, given) in zip(tags, edges, strict=True):
            if tag in self._kept or tags.count(tag) > 1:
                raise IllegalStep(
                    f"the edge to {origin} of round {tag[1]}, step {tag[2]} is mixed already; mix it once"
                )
            if not (0.0 < weight <= most if given is None else is_amount(weight, given)):
                raise IllegalStep(f"weight {weight} for {origin}; take it from the mixing matrix")
            if set(keys) != set(self._own_at(tag)):
                raise IllegalStep(f"channels {sorted(keys)} from {origin}, own {sorted(self._own)}; encode first")
            for channel, key in keys.items():
                if key in used:
                    raise IllegalStep(f"message {key!r} is named twice; mix each message once")
                used.add(key)
                if key not in self._received or self._received[key].channel != channel:
                    raise IllegalStep(f"no message of channel {channel} under {key!r}; receive it first")
        for tag in corrections:
            if tag not in self._kept or corrections.count(tag) > 1:
                raise IllegalStep(f"no displacement of {tag[0]} in round {tag[1]}, step {tag[2]}; settle it once")
        if len(self._kept) + len(tags) > KEPT_LIMIT:
            raise LimitExceeded(f"{KEPT_LIMIT} displacements are unsettled; forget those outside the window")

    def mix(self, tags: Sequence[Tag], edges: Sequence[Edge], *, moves: bool = True) -> float:
        """Move the own messages by the sum of the edges' displacements, in the given order; keep each one.

        With ``moves=False`` nothing is displaced by these messages, now or when they are taken back.

        Returns the root mean square of m_j - m_i over edges and entries of the first channel, 0 without
        edges. Received messages that were mixed are dropped.
        """
        squares = []
        totals: dict[str, Tensor] = {}
        for tag, edge in zip(tags, edges, strict=True):
            kept = self._kept.setdefault(tag, {})
            own_at = self._own_at(tag)
            theirs = self._received[edge.keys[WEIGHT]].value if WEIGHT in own_at else None
            for channel, own in own_at.items():
                value = self._received.pop(edge.keys[channel]).value
                gap = value - own
                if channel == next(iter(self._own)):
                    squares.append(float(gap.square().mean()))
                if not moves:
                    continue
                if theirs is not None and channel != WEIGHT:
                    value, own = value * theirs, own * own_at[WEIGHT]
                plain = theirs is None and edge.given is None
                kept[channel] = gap.mul_(edge.weight) if plain else _given_and_taken(edge, value, own)
                before = totals.get(channel)
                totals[channel] = kept[channel] if before is None else before + kept[channel]
        self._move_own(totals)
        for channel, displacement in totals.items():
            before = self._total.get(channel)
            self._total[channel] = displacement if before is None else before + displacement
        return (sum(squares) / len(squares)) ** 0.5 if squares else 0.0

    def _move_own(self, totals: Mapping[str, Tensor]) -> None:
        weight = self._own.get(WEIGHT) if WEIGHT in totals else None
        for channel, displacement in totals.items():
            if channel == WEIGHT:
                self._own[channel] = told(self._own[channel] + displacement, self._most)
            elif weight is None:
                self._own[channel] = self._own[channel] + displacement
            else:
                numerator = self._own[channel] * weight + displacement
                self._own[channel] = quotient(numerator, weight + totals[WEIGHT], self._own[channel])

    def finish(self, corrections: Sequence[Tag], round: int = 0, betas: Betas = ()) -> dict[str, Tensor]:
        """Every channel's displacement [S] of the round, less what is taken back; ends the round.

        ``betas`` up to this ``round`` where it is an accelerated closing one, or behind the last of them.
        """
        zeros = {channel: torch.zeros(self._size_of(channel), dtype=self._dtype) for channel in self._bases}
        mixed = [tag for tag in self._kept if tag[1] == round] if betas else ()
        moved = self.inertia.round(round, betas, self._total, mixed)
        pulls = {channel: moved.get(channel, zero) for channel, zero in zeros.items()}
        for tag in corrections:
            for channel, displacement in self.inertia.take_back(tag, self._kept.pop(tag)).items():
                pulls[channel] = pulls[channel] - displacement
        self._own, self._total = {}, {}
        return pulls


def _given_and_taken(edge: Edge, value: Tensor, own: Tensor) -> Tensor:
    """What the other end computes of the same numbers with the sign changed, times its share over ours.

    Where both count alike both ends have the same bits; else they differ by the rounding of the weights.
    """
    return edge.weight * value - (edge.weight if edge.given is None else edge.given) * own
