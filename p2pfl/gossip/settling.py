"""Edges that settle: both ends of an edge come to agree on which rounds counted.

Linear mixing is a sum of displacements. With weights that satisfy pi_i w_ij = pi_j w_ji, the two ends of one edge add

    pi_i w_ij (m_j - m_i) + pi_j w_ji (m_i - m_j) = 0

to the conserved sum, provided that both mixed it or neither did. In directed mixings it is pi_i (w_ij m_j - g_ij m_i)
and pi_j (w_ji m_i - g_ji m_j), 0 as well since pi_i g_ij = pi_j w_ji. So each end lists, for every neighbour, the
positions whose outcome the two have not yet agreed on; an end that mixed what the other did not takes its
displacement back. Lists get lost like any message, so a position stays listed until the author knows that the
reader knows (DESIGN, "Flows settle"; reference/engine.md section 2: listing only the last round leaves an error
of 1.8e-2 at 5 % loss, eight rounds 2e-14). After ``SETTLING_WINDOW`` rounds it is given up and becomes recorded bias.

Order of knowledge for one position: I decide; I hear the other's verdict (``theirs``); I hear that the other has
seen mine (``acknowledged``). Only then is it dropped, and its absence from my list tells the other the same.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from p2pfl.gossip.messages import SETTLING_WINDOW, EdgeList, Position, position_of


@dataclass(slots=True)
class _Verdict:
    mine: bool
    theirs: bool | None = None
    acknowledged: bool = False


@dataclass(frozen=True, slots=True)
class Settled:
    """What a step of settling asks for: displacements to take back, and displacements no longer needed."""

    take_back: tuple[Position, ...] = ()
    keep_no_longer: tuple[Position, ...] = ()


@dataclass(slots=True)
class EdgeLedger:
    """One peer's view of the edge to one neighbour."""

    floor: Position = (0, 0)  # everything below is settled or given up
    heard: Position = (-1, 0)  # position of the newest list from the other end
    asynchronous: bool = False
    revocable: bool = False  # an end may say later that it did not mix after all (`revoke`), until the other has heard
    _verdicts: dict[Position, _Verdict] = field(default_factory=dict)
    _early: dict[Position, bool] = field(default_factory=dict)

    def declined(self, position: Position) -> bool:
        """Whether the other end already said that it did not mix this position."""
        return self._early.get(position) is False

    def decide(self, position: Position, mixed: bool) -> Settled:
        """I mixed, or did not mix, the other's message of ``position``."""
        verdict = _Verdict(mixed, self._early.pop(position, None))
        self._verdicts[position] = verdict
        return self._judge(position, verdict)

    def revoke(self, positions: Collection[Position]) -> Settled:
        """What I mixed without hearing that the other did counts as not mixed from now on, and the other hears so."""
        for position in positions:
            self._verdicts[position].mine = False
        return Settled(take_back=tuple(positions))

    def list(self, until: Position | None = None) -> EdgeList:
        """What to tell the other end now; ``until``: where the first edge is that is not decided here, if one is."""
        rows = (
            (round_, step, verdict.mine, verdict.theirs is not None)
            for (round_, step), verdict in sorted(self._verdicts.items())
        )
        return EdgeList(self.floor, tuple(rows), until)

    def hear(self, edges: EdgeList, author_position: Position, my_position: Position) -> Settled:
        """The other end's list, written when it stood at ``author_position``. Old lists change nothing."""
        if author_position < self.heard:
            return Settled()
        self.heard = author_position
        take_back: list[Position] = []
        keep_no_longer: list[Position] = []
        listed = set()
        for round_, step, mixed, seen in edges.items:
            position = (round_, step)
            listed.add(position)
            verdict = self._verdicts.get(position)
            if verdict is None:
                if my_position <= position and len(self._early) < 4 * SETTLING_WINDOW:
                    self._early[position] = mixed
                continue
            verdict.acknowledged = verdict.acknowledged or seen
            if verdict.theirs is None or (self.revocable and verdict.theirs and not mixed):
                verdict.theirs = mixed
                settled = self._judge(position, verdict)
                take_back.extend(settled.take_back)
                keep_no_longer.extend(settled.keep_no_longer)
        decided_until = author_position if edges.until is None else min(edges.until, author_position)
        for position, verdict in self._verdicts.items():
            # The author has been past this position, vouches for it, and no longer lists it: it knows both sides.
            if edges.floor <= position < decided_until and position not in listed:
                verdict.acknowledged = True
                if self.asynchronous and not verdict.mine and verdict.theirs is None:
                    verdict.theirs = False  # or it skipped the round: then nobody mixed it
        keep_no_longer.extend(self._drop_settled())
        return Settled(tuple(take_back), tuple(keep_no_longer))

    def expire(self, before: Position) -> tuple[Position, ...]:
        """Give up all positions below ``before``; returns those that I mixed and whose fate is unknown."""
        gone = sorted(position for position in self._verdicts if position < before)
        lost = [position for position in gone if self._verdicts[position].theirs is None]
        biased = tuple(position for position in lost if self._verdicts[position].mine)
        for position in gone:
            del self._verdicts[position]
        for position in [position for position in self._early if position < before]:
            del self._early[position]
        self.floor = max(self.floor, before)
        return biased

    def thin(self, before: Position) -> tuple[Position, ...]:
        """As `expire` for asynchronous runs: by number, not by age, or a site slower than the window never settles.

        Of the positions below ``before`` the newest stay, so many of those mixed here and so many of the others. A slow
        site has few, since only its own rounds count; towards a silent one only rounds without it pile up.
        """
        biased: list[Position] = []
        for mixed in (True, False):
            rows = sorted(position for position, verdict in self._verdicts.items() if verdict.mine is mixed)
            for position in rows[: -(SETTLING_WINDOW + 1)]:
                if position < before:
                    if mixed and self._verdicts[position].theirs is None:
                        biased.append(position)
                    del self._verdicts[position]
                    self.floor = max(self.floor, (position[0], position[1] + 1))
        for position in [position for position in self._early if position < before]:
            del self._early[position]
        return tuple(biased)

    def remember(self) -> dict[str, Any]:
        """For a restart, as plain values."""
        rows = [[*key, item.mine, item.theirs, item.acknowledged] for key, item in sorted(self._verdicts.items())]
        early = [[*key, mixed] for key, mixed in sorted(self._early.items())]
        kept = {"floor": list(self.floor), "heard": list(self.heard), "verdicts": rows, "early": early}
        flags = {name: True for name in ("asynchronous", "revocable") if getattr(self, name)}
        return {**kept, **flags}

    @classmethod
    def recall(cls, kept: Mapping[str, Any]) -> EdgeLedger:
        """What `remember` gave."""
        flags = {name: kept.get(name, False) for name in ("asynchronous", "revocable")}
        ledger = cls(position_of(kept["floor"]), position_of(kept["heard"]), **flags)
        for round_, step, mine, theirs, acknowledged in kept["verdicts"]:
            ledger._verdicts[(round_, step)] = _Verdict(mine, theirs, acknowledged)
        ledger._early = {(round_, step): mixed for round_, step, mixed in kept["early"]}
        return ledger

    @property
    def unsettled(self) -> tuple[Position, ...]:
        """Positions whose outcome at the other end is still unknown here."""
        return tuple(sorted(key for key, verdict in self._verdicts.items() if verdict.theirs is None))

    @property
    def mixed_and_unknown(self) -> tuple[Position, ...]:
        """Positions that I mixed and whose outcome at the other end is still unknown here."""
        return tuple(key for key in self.unsettled if self._verdicts[key].mine)

    def _judge(self, position: Position, verdict: _Verdict) -> Settled:
        if not verdict.mine or verdict.theirs is None:
            return Settled()
        if verdict.theirs:
            return Settled() if self.revocable else Settled(keep_no_longer=(position,))
        return Settled(take_back=(position,))

    def _drop_settled(self) -> tuple[Position, ...]:
        """What is known at both ends is listed no longer; of revocable edges, what need not be kept from now on."""
        done = [
            position
            for position, verdict in self._verdicts.items()
            if verdict.theirs is not None and verdict.acknowledged
        ]
        kept = tuple(position for position in done if self.revocable and self._counts(position))
        for position in done:
            del self._verdicts[position]
        return kept

    def counted(self, before: Position) -> tuple[Position, ...]:
        """Of revocable edges below ``before`` those that both ends have counted, as far as is known here."""
        return tuple(at for at in self._verdicts if self.revocable and at < before and self._counts(at))

    def _counts(self, position: Position) -> bool:
        return self._verdicts[position].mine and bool(self._verdicts[position].theirs)
