"""Who contributed when: ranges of rounds, kept small, and the record that all closing statements make together.

A statement names, for its author and each of its neighbours, the rounds in which their local training went into the
author's model. The completion record is the union of all statements: it does not depend on their order, and whoever
has the same statements has the same record.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from p2pfl.types import PeerId

if TYPE_CHECKING:
    from p2pfl.gossip.closing_statement import Closing

RANGES = 64  # kept per site; the shortest gaps are closed beyond that
Range = tuple[int, int]
"""First and last round, both included."""


@dataclass(slots=True)
class RoundSet:
    """A growing set of rounds as ranges in order."""

    ranges: list[Range] = field(default_factory=list)

    def add(self, round_: int) -> None:
        """One more round; in asynchronous runs it may be an earlier one."""
        if self.ranges and round_ < self.ranges[-1][0]:
            self.ranges = list(union([self.ranges, [(round_, round_)]]))
        elif self.ranges and round_ <= self.ranges[-1][1] + 1:
            self.ranges[-1] = (self.ranges[-1][0], max(round_, self.ranges[-1][1]))
        else:
            self.ranges.append((round_, round_))
        if len(self.ranges) > RANGES:
            self._close_shortest_gap()

    def _close_shortest_gap(self) -> None:
        gaps = [later[0] - earlier[1] for earlier, later in zip(self.ranges, self.ranges[1:], strict=False)]
        place = gaps.index(min(gaps))
        self.ranges[place : place + 2] = [(self.ranges[place][0], self.ranges[place + 1][1])]


def union(parts: Iterable[Iterable[Range]]) -> tuple[Range, ...]:
    """All rounds that are in any part, as ranges in order."""
    found: list[Range] = []
    for first, last in sorted(item for part in parts for item in part):
        if found and first <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(last, found[-1][1]))
        else:
            found.append((first, last))
    return tuple(found)


def count(ranges: Iterable[Range]) -> int:
    """How many rounds."""
    return sum(last - first + 1 for first, last in ranges)


def gaps(ranges: Iterable[Range], total: int, first_round: int = 0) -> tuple[Range, ...]:
    """The rounds from ``first_round`` to ``total`` - 1 that are in no range."""
    found, start = [], first_round
    for first, last in union([ranges]):
        if first > start:
            found.append((start, first - 1))
        start = max(start, last + 1)
    if start < total:
        found.append((start, total - 1))
    return tuple(found)


def completion_record(
    statements: Mapping[PeerId, Closing],
    participants: Iterable[PeerId],
    rounds: int,
    joined: Mapping[PeerId, int] = MappingProxyType({}),
) -> dict[PeerId, dict[str, Any]]:
    """Per participant: rounds contributed and missed, why, samples, digest, consensus distance.

    A pure function of the statements. ``rounds`` counts training rounds; ``joined`` has the first one of each site that
    was admitted after the start. ``finished`` is None for a site that made no statement; it is known by what its
    neighbours mixed.
    """
    record = {}
    for peer in participants:
        own = statements.get(peer)
        contributed = union(
            [ranges for statement in statements.values() for who, ranges in statement.contributed if who == peer]
        )
        missed = gaps(contributed, rounds, joined.get(peer, 0))
        reasons = sorted(
            {reason for statement in statements.values() for who, _, reason in statement.missing if who == peer}
        )
        record[peer] = {
            "finished": own.finished if own else None,
            "joined": joined.get(peer),
            "contributed": [list(item) for item in contributed],
            "rounds": count(contributed),
            "missed": [list(item) for item in missed],
            "reasons": reasons,
            "samples": own.samples if own else None,
            "digest": own.digest if own and own.finished else None,
            "distance": own.distance if own else None,
        }
    return record


def summary(record: Mapping[PeerId, Mapping[str, Any]], names: Mapping[PeerId, str], rounds: int) -> str:
    """One sentence; plain "finished" only when everybody contributed to every round."""
    parts = []
    for peer, row in record.items():
        name = names.get(peer) or peer[-6:]
        if row["joined"] is not None and row["contributed"]:
            parts.append(f"with {name} from round {row['joined']}")
        for first, last in row["missed"]:
            if last >= rounds - 1 and not row["finished"]:  # else it was only behind at the end, and closed with all
                parts.append(f"without {name} from round {first}")
            elif first == last:
                parts.append(f"without {name} in round {first}")
            else:
                parts.append(f"without {name} in rounds {first} to {last}")
    return "finished" + (f" {', '.join(parts)}" if parts else "")
