"""Questions of a witness that were not answered: an owner that leaves too many of them open is named.

Two counts for each owner. Over a live link a few are enough. A question that ended with its link is nobody's fault,
unless it is so each time: who ended it cannot be seen from here. So it takes more of them, and only a check that was
answered to its end, with all that was seen elsewhere, begins that count anew. Links that come and go do not.
"""

from __future__ import annotations

from collections import Counter

from p2pfl.audit import NewEntry, WitnessStore
from p2pfl.peer.alarms import Commit, Told
from p2pfl.types import PeerId

MISSES = 3  # questions without a usable answer, over a live link, until the owner is named
CUT_OFF = 6  # questions whose link ended before the answer, without a whole check between them, until it is named


class Unanswered:
    """Who owes answers here. ``commit`` writes an entry, ``told`` hears (topic, facts) of what people must know."""

    def __init__(self, store: WitnessStore, commit: Commit, told: Told) -> None:
        self._store, self._commit, self._told = store, commit, told
        self._misses: Counter[PeerId] = Counter()
        self._cut_off: Counter[PeerId] = Counter()
        self.withheld: dict[PeerId, str] = {}
        """Members that are or were linked and do not show that their log has grown, and why."""

    async def missed(self, owner: PeerId, why: str) -> None:
        """It refused, was silent over a live link, or gave an answer that is of no use."""
        self._misses[owner] += 1
        if self._misses[owner] >= MISSES:
            await self._name(owner, self._misses[owner], why)

    async def cut_off(self, owner: PeerId) -> None:
        """The link ended while it was asked."""
        self._cut_off[owner] = times = self._cut_off[owner] + 1
        if times >= CUT_OFF:
            why = f"its link ended at each of {times} questions, before the answer; ask its people why"
            await self._name(owner, times, why)

    def answered(self, owner: PeerId) -> None:
        """It showed its newest checkpoint, and joined what was seen elsewhere."""
        self._cut_off.pop(owner, None)

    def ended_well(self, owner: PeerId) -> None:
        """Nothing is owed any more."""
        self._misses.pop(owner, None)
        self.withheld.pop(owner, None)

    async def _name(self, owner: PeerId, asked: int, why: str) -> None:
        if owner in self.withheld:
            return
        held = self._store.newest(owner)
        body = {"peer": owner, "asked": asked, "size": held.size if held else 0, "reason": why[:400]}
        await self._commit(NewEntry("head_withheld", body))
        self.withheld[owner] = why
        self._told("head withheld", {"peer": owner, "reason": why})
