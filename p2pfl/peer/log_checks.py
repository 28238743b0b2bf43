"""One check of a neighbour's log: what is held of it, what it shows now, and what was seen elsewhere are one history.

Each step asks the owner, whose answers are signed. A checkpoint is taken, and stored, only once it is joined to the one
held; a declared loss is followed down to what was kept.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from p2pfl.audit import HeldHead, Judged, NewEntry, WitnessStore, compare_notes, judge
from p2pfl.crypto import log_origin, pack
from p2pfl.errors import MalformedMessage, RemoteError
from p2pfl.net import Host
from p2pfl.peer.alarms import Commit, Told
from p2pfl.peer.own_heads import GROW, WITNESS
from p2pfl.peer.sightings import Place, Sightings
from p2pfl.types import PeerId

ANSWER_TIME = 20.0  # seconds
JOINED = 8  # checkpoints seen elsewhere that are joined in one go


class LogChecks:
    """Asks owners of logs. Raises LogMisbehaviour for evidence; RemoteError, LinkError, Refusal where none can be had.

    ``taken`` hears of each newest place that is held.
    """

    def __init__(
        self, consortium: str, host: Host, store: WitnessStore, sightings: Sightings, *,
        commit: Commit, told: Told, taken: Callable[[PeerId, Place], None],
    ) -> None:  # fmt: skip
        self._consortium, self._host, self._store, self._sightings = consortium, host, store, sightings
        self._commit, self._told, self._taken = commit, told, taken
        self._losses: dict[PeerId, tuple[int, int]] = {}  # the last one written down: epoch, kept

    async def check(self, owner: PeerId) -> HeldHead | None:
        """Ask for the newest checkpoint, and join what was seen elsewhere; the new one that is held, if it is new."""
        held = await self._newest(owner)
        known = None if held is None else self._sightings.newest(owner, held.epoch)
        judged = await self._ask(owner, held.note if held else b"", b"")
        shown = (judged.epoch, judged.newest.size)
        await self._advance(owner, held, judged)
        for _ in range(JOINED):
            place = self._sightings.pending(owner)
            note = None if place is None else self._sightings.at(owner, place)
            if place is None or note is None:
                break
            await self._join(owner, place, note)
            self._sightings.joined(owner, place)
        if known is not None and shown < known:
            raise RemoteError(
                f"{owner} shows an older checkpoint of its log (size {shown[1]}) than one that it let out before "
                f"(size {known[1]}); ask its people why",
                peer=owner,
            )
        newest = await self._newest(owner)
        return newest if newest is not None and newest != held else None

    async def _newest(self, owner: PeerId) -> HeldHead | None:
        held = await asyncio.to_thread(self._store.newest, owner)
        if held is not None:
            self._taken(owner, (held.epoch, held.size))
        return held

    async def _ask(self, owner: PeerId, held: bytes, to: bytes) -> Judged:
        question = pack({"ask": GROW, "held": held, "to": to})
        data = await self._host.request(owner, WITNESS, question, timeout=ANSWER_TIME)
        judged = judge(data, held, self._origin(owner), owner)
        if to and judged.note != to:
            raise MalformedMessage("the answer is about another checkpoint than the one asked for", peer=owner)
        return judged

    def _origin(self, owner: PeerId) -> str:
        return log_origin(self._consortium, owner)

    async def _join(self, owner: PeerId, place: Place, note: bytes) -> None:
        """What others were shown must be of the same history as what is held here; if it is newer, it is held now."""
        held = await self._newest(owner)
        assert held is not None
        if place == (held.epoch, held.size):
            compare_notes(held.note, note, self._origin(owner), owner)
        elif place > (held.epoch, held.size):
            await self._advance(owner, held, await self._ask(owner, held.note, note))
        else:
            # what an epoch before lost may be declared now only: under the newest checkpoint
            to = held.note if place[0] == held.epoch else b""
            judged = await self._ask(owner, note, to)
            await self._loss(owner, judged, place[1])
            if not to:
                self._show_newest(owner, judged)

    async def _advance(self, owner: PeerId, held: HeldHead | None, judged: Judged) -> None:
        """Hold what was shown to follow from what is held. Raises IllegalStep if something else is held by now."""
        if held is not None and (judged.epoch, judged.newest.size) <= (held.epoch, held.size):
            return
        if held is not None:
            await self._loss(owner, judged, held.size)
        new = HeldHead(judged.epoch, judged.newest.size, judged.newest.root, judged.note, int(time.time()))
        await asyncio.to_thread(self._store.accept, owner, held, new)
        self._taken(owner, (new.epoch, new.size))

    async def _loss(self, owner: PeerId, judged: Judged, held: int) -> None:
        """Where one is declared: prove what it says to have kept, as far down as declarations go, and write it down.

        That is done before the new checkpoint is taken: rather twice in the log than never.
        """
        if judged.kept is None:
            return
        kept, declared = judged.kept, judged.declared
        while (earlier := await asyncio.to_thread(self._store.before, owner, judged.epoch, kept)) is not None:
            shown = await self._ask(owner, earlier.note, b"")  # it may declare that only now, in a newer checkpoint
            self._show_newest(owner, shown)
            if shown.kept is None:
                break
            # smaller than what was asked about, or the answer would have been evidence
            kept, declared = shown.kept, shown.declared
        epoch, least = self._losses.get(owner, (-1, 0))
        if epoch == declared and least <= kept:
            return
        self._losses[owner] = (declared, kept)
        body: dict[str, Any] = {"peer": owner, "epoch": declared, "kept": kept, "held": held}
        await self._commit(NewEntry("loss_witnessed", body))
        self._told("loss declared", {"peer": owner, "epoch": declared, "kept": kept})

    def _show_newest(self, owner: PeerId, judged: Judged) -> None:
        """A checkpoint that came with an answer about another one is joined like one seen elsewhere."""
        place = (judged.epoch, judged.newest.size)
        known = self._sightings.at(owner, place)
        if known is not None:
            compare_notes(known, judged.note, self._origin(owner), owner)
        self._sightings.add(owner, owner, place, judged.note)
