"""What is known of the ways to each member: its record, what discovery heard, what worked last."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from p2pfl.net.connection import Transport
from p2pfl.net.limits import Limits
from p2pfl.net.outcomes import name_of, shortened
from p2pfl.types import PeerId, Roster

_log = logging.getLogger("p2pfl.net")


@dataclass(frozen=True, slots=True)
class Way:
    """An address and the transport that understands it."""

    address: str
    kind: str
    cost: int

    def __str__(self) -> str:
        """For people; an address that only repeats a peer id is left out."""
        return self.kind if "/p2p/" in self.address else f"{self.kind} {self.address}"

    def tried(self, error: Exception, limit: int) -> str:
        """What came of it, in at most ``limit`` characters."""
        text = str(error).removeprefix(self.address).lstrip(" :")
        label = self.kind if self.address in text else str(self)
        between = " " if text.startswith("through ") else ": "
        return shortened(f"tried {label}{between}{text}", limit)


@dataclass(slots=True)
class Candidate:
    """An address heard by discovery. ``owner`` is known after the first hello over it."""

    failures: int = 0
    next_try: float = 0.0  # loop time
    owner: PeerId | None = None


class KnownWays:
    """All of it bounded: by the roster, and for heard addresses by the limits."""

    def __init__(
        self,
        transports: Sequence[Transport],
        roster: Callable[[], Roster],
        limits: Limits,
        *,
        worked: Mapping[PeerId, str],
        on_worked: Callable[[PeerId, str], None] | None,
    ) -> None:
        self._transports = transports
        self._roster = roster
        self._limits = limits
        self._on_worked = on_worked
        self.worked = dict(worked)
        """The address over which a peer was reached last."""
        self.candidates: dict[str, Candidate] = {}
        self.forget_strangers()

    def to(self, peer: PeerId) -> list[Way]:
        """The cheapest first; of one cost the one that worked last, then the record's own, then proven heard ones."""
        member = self._roster().member(peer)
        if member is None:
            return []
        known = [Way(address, each.kind, each.cost) for each in self._transports for address in each.ways(member)]
        heard = [self.over(address) for address, candidate in self.candidates.items() if candidate.owner == peer]
        ways = dict.fromkeys(known + [way for way in heard if way is not None])
        return sorted(ways, key=lambda way: (way.cost, way.address != self.worked.get(peer)))

    def over(self, address: str) -> Way | None:
        """The way that an address means; None where no transport understands it."""
        for transport in self._transports:
            if transport.handles(address):
                return Way(address, transport.kind, transport.cost)
        return None

    def no_address(self, peer: PeerId) -> str:
        """Why there is no plain address to dial."""
        member = self._roster().member(peer)
        if member is None:
            return f"{peer} is not a member of this charter"
        if not member.listens:
            return f"{name_of(member)} has no listening port: it dials us; is it up, and our port reachable?"
        return (
            f"no address of {name_of(member)} is known: its member record has none and discovery heard none; "
            "put its address into its member record"
        )

    def hear(self, address: str) -> bool:
        """Remember a heard address, True if it is new; the oldest makes room."""
        if address in self.candidates or self.over(address) is None:
            return False
        while len(self.candidates) >= self._limits.candidates:
            del self.candidates[next(iter(self.candidates))]
        self.candidates[address] = Candidate()
        return True

    def unproven(self) -> list[tuple[float, Way]]:
        """Heard addresses of unknown owners, each with the loop time of its next try."""
        ways = [(candidate, self.over(address)) for address, candidate in self.candidates.items()]
        return [(each.next_try, way) for each, way in ways if each.owner is None and way is not None]

    def proved(self, address: str, owner: PeerId) -> None:
        """A hello over a heard address has shown whose it is."""
        if address in self.candidates:
            self.candidates[address].owner = owner
            self.candidates[address].failures = 0

    def failed(self, address: str) -> None:
        """A heard address is tried less and less often, and then forgotten."""
        candidate = self.candidates.get(address)
        if candidate is None:
            return
        candidate.failures += 1
        limits = self._limits
        pause = min(limits.redial_first * 2**candidate.failures, limits.redial_longest)
        candidate.next_try = asyncio.get_running_loop().time() + pause
        if candidate.failures >= limits.candidate_failures:
            del self.candidates[address]

    def note_worked(self, peer: PeerId, address: str) -> None:
        """We have reached ``peer`` there."""
        if self.worked.get(peer) == address:
            return
        self.worked[peer] = address
        if self._on_worked is not None:
            try:
                self._on_worked(peer, address)
            except Exception:
                _log.exception("on_worked failed")

    def forget_strangers(self) -> None:
        """Drop what worked for peers that are no members (any more)."""
        members = set(self._roster().peer_ids)
        for peer in [peer for peer in self.worked if peer not in members]:
            del self.worked[peer]
