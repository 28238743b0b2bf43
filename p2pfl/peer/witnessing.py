"""This peer as a witness of its neighbours' logs: it asks, checks, stores, cosigns, and compares with other witnesses.

A neighbour is asked when its link comes up, and when a newer checkpoint of it is seen, in a cover or told by another
member; at most once in `PACE` seconds. Newly checked checkpoints are told to all linked members, who hand on what is
new to them: so two members that were shown different histories find out within a round.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict, deque
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from p2pfl.audit import (
    LogMisbehaviour,
    WitnessStore,
    compare_notes,
)
from p2pfl.crypto import (
    Identity,
    cosign,
    epoch_of,
    log_origin,
    pack,
    plain_checkpoint,
    read_fields,
    read_log_proof,
    unpack,
)
from p2pfl.errors import IllegalStep, LinkError, MalformedMessage, Refusal, RemoteError, StoreError
from p2pfl.gossip.messages import ANNOUNCEMENT_LIMIT, decode_announcement, decode_cover
from p2pfl.governance import Pace
from p2pfl.net import Host
from p2pfl.peer.alarms import Alarms, Commit, Told
from p2pfl.peer.evidence_sharing import EvidenceSharing
from p2pfl.peer.log_checks import ANSWER_TIME, LogChecks
from p2pfl.peer.own_heads import HELD, KEEP, WITNESS, OwnHeads
from p2pfl.peer.sightings import Place, Sightings
from p2pfl.peer.unanswered import Unanswered
from p2pfl.types import PeerId, Roster

HEAD = "/p2pfl/head/1"

PACE = 10.0  # seconds between two questions to one neighbour; a shorter round is checked with the next one
REQUEST_LIMIT = 200_000  # bytes: two notes of 64 KiB
NOTE_BYTES = 16 * 1024  # of a checkpoint told by others, cosignatures included
QUESTIONS_PER_HOUR = 3600  # answered for each neighbour
COVERS_PER_HOUR = 100_000  # looked at, by one neighbour: more than 25 rounds a second
HEADS_PER_HOUR = 20_000  # told by one neighbour: of 50 logs one each in `PACE` seconds
RELAYED_PER_MINUTE = 60  # checkpoints of one log, told by one member, that are handed on
TELL_PACE = 60.0  # seconds between two looks whether the own log has grown beyond what others know

_log = logging.getLogger("p2pfl.witness")


class Witnessing:
    """All logs that this peer sees. All calls belong to one event loop.

    ``commit`` writes an entry, ``spawn`` runs a task whose errors end the peer, ``told`` hears
    (topic, facts) of what people must know.
    """

    def __init__(
        self, identity: Identity, consortium: str, host: Host, store: WitnessStore, own: OwnHeads, *,
        roster: Callable[[], Roster], folder: Path, commit: Commit,
        spawn: Callable[[Coroutine[Any, Any, None]], None], told: Told,
    ) -> None:  # fmt: skip
        self._identity, self._consortium, self._host, self._store, self._own = identity, consortium, host, store, own
        self._roster, self._commit, self._spawn, self._told = roster, commit, spawn, told
        self.pace = PACE
        self._unanswered = Unanswered(store, commit, told)
        self.withheld = self._unanswered.withheld
        self._alarms = Alarms(identity.peer_id, consortium, store, folder, commit, told)
        self.accused = self._alarms.accused
        self._sharing = EvidenceSharing(host, consortium, self._alarms, roster=roster, spawn=spawn)
        self._sightings = Sightings(store)
        self._checks = LogChecks(
            consortium, host, store, self._sightings, commit=commit, told=told, taken=self._held_now
        )
        self._told_own = b""
        self._busy: dict[PeerId, bool] = {}  # a check is under way; True: another one is wanted behind it
        self._next: dict[PeerId, float] = {}
        self._relayed: dict[tuple[PeerId, PeerId], deque[float]] = {}
        self._held: dict[PeerId, Place] = {}  # the newest in the store, once it was read
        self._heads: defaultdict[PeerId, Pace] = defaultdict(lambda: Pace(HEADS_PER_HOUR))
        self._covers: defaultdict[PeerId, Pace] = defaultdict(lambda: Pace(COVERS_PER_HOUR))
        self._questions: defaultdict[PeerId, Pace] = defaultdict(lambda: Pace(QUESTIONS_PER_HOUR))
        self._starts: defaultdict[PeerId, Pace] = defaultdict(lambda: Pace(QUESTIONS_PER_HOUR))
        host.handle(WITNESS, self._on_question)
        host.handle_notify(HEAD, self._on_head)

    def begin(self) -> None:
        """From now on the own checkpoints are told, also while nothing else is sent."""
        self._spawn(self._tell_own_now_and_then())

    def _held_now(self, owner: PeerId, place: Place) -> None:
        self._held[owner] = place

    # --- what comes in

    def linked(self, peer: PeerId) -> None:
        """A link came up."""
        self._own.linked(peer)
        self._sharing.linked(peer)
        self._want(peer)

    def saw(self, peer: PeerId, announcement: bytes) -> None:
        """A neighbour's announcement came: whatever the run makes of it, its checkpoints are compared."""
        now = int(time.time())
        if not self._covers[peer].allows(now):
            return
        self._covers[peer].count(now)
        try:
            value = unpack(decode_announcement(announcement).cover, what="cover", limit=ANNOUNCEMENT_LIMIT)
            cover = decode_cover(value[2]) if isinstance(value, list) and len(value) == 4 else None
            notes = [] if cover is None else [read_log_proof(cover.proof).checkpoint, cover.witnessed]
        except (RemoteError, TypeError):
            return  # the machine refuses it, by name
        self._spawn(self._hear_all([note for note in notes if 0 < len(note) <= NOTE_BYTES], None))

    def _on_head(self, peer: PeerId, data: bytes) -> None:
        now = int(time.time())
        if len(data) <= NOTE_BYTES and self._heads[peer].allows(now):
            self._heads[peer].count(now)
            self._spawn(self._hear_all([data], peer))

    async def _on_question(self, peer: PeerId, data: bytes) -> bytes:
        try:
            return await self._on_request(peer, data)
        except StoreError as error:
            self._own.fail(error)
            raise Refusal("this peer's disk does not take or give what it holds; it stops") from None

    async def _on_request(self, peer: PeerId, data: bytes) -> bytes:
        value = unpack(data, what="a witness's question", limit=REQUEST_LIMIT)
        asked, now = value.get("ask") if isinstance(value, dict) else None, int(time.time())
        # a peer that has just started waits for the answer to `held`: its other questions do not use that up
        pace = (self._starts if asked == HELD else self._questions)[peer]
        if not pace.allows(now):
            raise Refusal("too many questions within the hour; ask again later")
        pace.count(now)
        match asked:
            case "held":
                return pack(await asyncio.to_thread(self._store.last_of_epochs, peer))
            case "grow":
                spec: dict[str, type | tuple[type, ...]] = {"ask": str, "held": bytes, "to": bytes}
                fields = read_fields(value, "a witness's question", spec)
                return await self._own.answer(fields["held"], fields["to"])
            case "keep":
                await self._own.keep(peer, read_fields(value, "a cosignature", {"ask": str, "item": bytes})["item"])
                return b""
        raise MalformedMessage("a witness's question is of no form we know; update one of the two programs", peer=peer)

    async def _hear_all(self, notes: list[bytes], sender: PeerId | None) -> None:
        for note in notes:
            try:
                await self._hear(note, sender)
            except LogMisbehaviour as shown:
                await self._alarms.sound(shown)
            except RemoteError as error:
                _log.debug("a checkpoint is of no use: %s", error)

    async def _hear(self, data: bytes, sender: PeerId | None) -> None:
        owner = self._owner_of(data)
        if owner is None:
            return
        if owner == self._identity.peer_id:
            await self._own.hear(data)
            return
        origin = log_origin(self._consortium, owner)
        checkpoint, note = plain_checkpoint(data, origin, owner)  # what else stands on it goes no further
        place = (epoch_of(checkpoint.origin, origin) or 0, checkpoint.size)
        known = self._sightings.at(owner, place)
        if known is None and place <= self._held.get(owner, place):  # newer ones cannot be in the store
            known = await asyncio.to_thread(self._store.at, owner, *place)
            if known is not None:
                compare_notes(known, note, origin, owner)
                return
        if known is not None:
            compare_notes(known, note, origin, owner)
        if self._sightings.add(owner, sender or owner, place, note):
            if sender not in (None, owner):
                self._hand_on(owner, note, PeerId(str(sender)))
            self._want(owner)
        self._sightings.write(self._spawn)

    def _owner_of(self, note: bytes) -> PeerId | None:
        line = note.partition(b"\n")[0].decode(errors="replace")
        for peer in self._roster().peer_ids:
            if epoch_of(line, log_origin(self._consortium, peer)) is not None:
                return peer
        return None

    def _hand_on(self, owner: PeerId, note: bytes, sender: PeerId) -> None:
        """Tell all linked members what one of them told; so many a minute for each teller and log, and no more."""
        now, times = asyncio.get_running_loop().time(), self._relayed.setdefault((owner, sender), deque())
        while times and times[0] < now - 60:
            times.popleft()
        if len(times) < RELAYED_PER_MINUTE:
            times.append(now)
            self._tell(owner, note, sender)

    def _tell(self, owner: PeerId, note: bytes, sender: PeerId | None = None) -> None:
        for peer in self._host.links:
            if peer not in (owner, sender):
                self._spawn(self._notify(peer, note))

    def tell_own(self) -> None:
        """Show all linked members how long the own log is, unless they have seen it."""
        note = self._own.newest
        if note != self._told_own and self._own.cleared.is_set():
            self._told_own = note
            self._tell(self._identity.peer_id, note)

    async def _tell_own_now_and_then(self) -> None:
        while True:
            await asyncio.sleep(TELL_PACE)
            self.tell_own()

    async def _notify(self, peer: PeerId, note: bytes) -> None:
        try:
            await self._host.notify(peer, HEAD, note)
        except LinkError:
            pass  # it hears the next one

    # --- checking one log

    def _want(self, owner: PeerId) -> None:
        if owner in self._busy:
            self._busy[owner] = True
        elif owner in self._host.links and owner not in self.accused:
            self._busy[owner] = False
            self._spawn(self._check(owner))

    async def _check(self, owner: PeerId) -> None:
        loop = asyncio.get_running_loop()
        try:
            while owner in self._host.links and owner not in self.accused:
                self._busy[owner] = False
                await asyncio.sleep(max(0.0, self._next.get(owner, 0.0) - loop.time()))
                link = self._host.links.get(owner)
                if link is None:
                    return  # not asked: that is made up for as soon as it is linked again
                try:
                    await self._check_once(owner)
                except LogMisbehaviour as shown:
                    await self._alarms.sound(shown)
                except (RemoteError, LinkError, Refusal) as error:
                    now = self._host.links.get(owner)
                    same = now is not None and now.since == link.since
                    if same or not isinstance(error, LinkError):
                        await self._unanswered.missed(owner, str(error))
                    else:
                        await self._unanswered.cut_off(owner)
                    self._busy[owner] = True
                else:
                    self._unanswered.ended_well(owner)
                self._next[owner] = loop.time() + self.pace
                if not self._busy[owner]:
                    return
        finally:
            del self._busy[owner]

    async def _check_once(self, owner: PeerId) -> None:
        try:
            new = await self._checks.check(owner)
        except IllegalStep:  # another check was quicker
            self._busy[owner] = True
            return
        self._unanswered.answered(owner)
        if new is None:
            return
        self._tell(owner, new.note)
        item = cosign(self._identity, self._consortium, new.note, int(time.time())).encode()
        await self._host.request(owner, WITNESS, pack({"ask": KEEP, "item": item}), timeout=ANSWER_TIME)

    # --- what people ask

    def status(self) -> list[dict[str, Any]]:
        """For each member: what is held of its log here, and what it has cosigned of ours."""
        cosigned: dict[str, tuple[int, int]] = {}
        for witness, _, size, _, seconds in self._store.cosigned():
            cosigned.setdefault(witness, (size, seconds))
        rows = []
        for peer in self._roster().peer_ids:
            if peer == self._identity.peer_id:
                continue
            held, ours = self._store.newest(peer), cosigned.get(peer)
            rows.append(
                {
                    "peer": peer,
                    "holds": None if ours is None else ours[0],
                    "cosigned": None if ours is None else ours[1],
                    "held": None if held is None else held.size,
                    "epoch": None if held is None else held.epoch,
                    "checked": None if held is None else held.time,
                    "withheld": self.withheld.get(peer),
                    "alarm": self.accused.get(peer),
                }
            )
        return rows
