"""This peer as a witness of its neighbours' logs: it asks, checks, stores, cosigns, and compares with other witnesses.

A neighbour is asked when its link comes up, and when a newer checkpoint of it is seen, in a cover or told by another
member; at most once in `PACE` seconds. Newly checked checkpoints are told to all linked members, who hand on what is
new to them: so two members that were shown different histories find out within a round.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from p2pfl.audit import (
    HeldHead,
    Judged,
    LogMisbehaviour,
    NewEntry,
    WitnessStore,
    judge,
)
from p2pfl.crypto import (
    Identity,
    cosign,
    log_origin,
    pack,
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
from p2pfl.peer.own_heads import GROW, KEEP, WITNESS, OwnHeads
from p2pfl.peer.seen_heads import HEAD, SeenHeads
from p2pfl.types import PeerId, Roster

PACE = 10.0  # seconds between two questions to one neighbour; a shorter round is checked with the next one
ANSWER_TIME = 20.0  # seconds
MISSES = 3  # questions without a usable answer, over a live link, until the neighbour is named
REQUEST_LIMIT = 200_000  # bytes: two notes of 64 KiB
NOTE_BYTES = 16 * 1024  # of a checkpoint told by others, cosignatures included
QUESTIONS_PER_HOUR = 3600  # answered for each neighbour
HEADS_PER_HOUR = 20_000  # told by one neighbour: of 50 logs one each in `PACE` seconds

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
        self.withheld: dict[PeerId, str] = {}
        """Members that are linked and do not show that their log has grown, and why."""
        self._alarms = Alarms(identity.peer_id, consortium, store, folder, commit, told)
        self.accused = self._alarms.accused
        self._sharing = EvidenceSharing(host, consortium, self._alarms, roster=roster, spawn=spawn)
        self._seen = SeenHeads(consortium, host, store, roster=roster, spawn=spawn)
        self._busy: dict[PeerId, bool] = {}  # a check is under way; True: another one is wanted behind it
        self._next: dict[PeerId, float] = {}
        self._misses: Counter[PeerId] = Counter()
        self._heads: defaultdict[PeerId, Pace] = defaultdict(lambda: Pace(HEADS_PER_HOUR))
        self._questions: defaultdict[PeerId, Pace] = defaultdict(lambda: Pace(QUESTIONS_PER_HOUR))
        host.handle(WITNESS, self._on_question)
        host.handle_notify(HEAD, self._on_head)

    # --- what comes in

    def linked(self, peer: PeerId) -> None:
        """A link came up."""
        self._own.linked(peer)
        self._sharing.linked(peer)
        self._want(peer)

    def saw(self, announcement: bytes) -> None:
        """An announcement came: whatever the run makes of it, its checkpoints are compared."""
        try:
            value = unpack(decode_announcement(announcement).cover, what="cover", limit=ANNOUNCEMENT_LIMIT)
            cover = decode_cover(value[2]) if isinstance(value, list) and len(value) == 4 else None
            notes = [] if cover is None else [read_log_proof(cover.proof).checkpoint, cover.witnessed]
        except (RemoteError, TypeError):
            return  # the machine refuses it, by name
        self._spawn(self._hear_all([note for note in notes if note], None))

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
        now = int(time.time())
        if not self._questions[peer].allows(now):
            raise Refusal("too many questions within the hour; ask again later")
        self._questions[peer].count(now)
        value = unpack(data, what="a witness's question", limit=REQUEST_LIMIT)
        match value.get("ask") if isinstance(value, dict) else None:
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

    async def _hear(self, note: bytes, sender: PeerId | None) -> None:
        owner = self._seen.owner_of(note)
        if owner == self._identity.peer_id:
            await self._own.hear(note)
        elif owner is not None and await self._seen.take(owner, note):
            if sender is not None:
                self._seen.tell(owner, note, sender)
            self._want(owner)

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
                try:
                    await self._check_once(owner)
                except LogMisbehaviour as shown:
                    await self._alarms.sound(shown)
                except (RemoteError, LinkError, Refusal) as error:
                    await self._missed(owner, str(error))
                    self._busy[owner] = True
                else:
                    self._misses.pop(owner, None)
                    self.withheld.pop(owner, None)
                self._next[owner] = loop.time() + self.pace
                if not self._busy[owner]:
                    return
        finally:
            del self._busy[owner]

    async def _check_once(self, owner: PeerId) -> None:
        held = await asyncio.to_thread(self._store.newest, owner)
        if held is not None:
            self._seen.holds(owner, (held.epoch, held.size))
        judged = await self._ask(owner, held.note if held else b"", b"")
        if judged.kept is not None:  # it kept the beginning: it shall show that, to what was held of it
            earlier = await asyncio.to_thread(self._store.before, owner, judged.epoch, judged.kept)
            if earlier is not None:
                await self._ask(owner, earlier.note, judged.note)
        await self._join(owner, judged)
        if held is not None and (judged.epoch, judged.newest.size) <= (held.epoch, held.size):
            return
        if judged.kept is not None and held is not None:  # before it is taken: rather twice in the log than never
            body = {"peer": owner, "epoch": judged.epoch, "kept": judged.kept, "held": held.size}
            await self._commit(NewEntry("loss_witnessed", body))
        now = int(time.time())
        new = HeldHead(judged.epoch, judged.newest.size, judged.newest.root, judged.note, now)
        try:
            await asyncio.to_thread(self._store.accept, owner, held, new)
        except IllegalStep:
            self._busy[owner] = True
            return
        self._seen.holds(owner, (new.epoch, new.size))
        if judged.kept is not None:
            self._told("loss declared", {"peer": owner, "epoch": judged.epoch, "kept": judged.kept})
        self._seen.tell(owner, judged.note, None)
        item = cosign(self._identity, self._consortium, judged.note, now).encode()
        await self._host.request(owner, WITNESS, pack({"ask": KEEP, "item": item}), timeout=ANSWER_TIME)

    async def _ask(self, owner: PeerId, held: bytes, to: bytes) -> Judged:
        """One question; raises LogMisbehaviour for an answer that is evidence, else why there is none."""
        question = pack({"ask": GROW, "held": held, "to": to})
        data = await self._host.request(owner, WITNESS, question, timeout=ANSWER_TIME)
        judged = judge(data, held, log_origin(self._consortium, owner), owner)
        if to and judged.note != to:
            raise MalformedMessage("the answer is about another checkpoint than the one asked for", peer=owner)
        return judged

    async def _join(self, owner: PeerId, judged: Judged) -> None:
        """What others were shown must be of the same history as what was just shown here."""
        place = (judged.epoch, judged.newest.size)
        self._seen.compare(owner, place, judged.note)
        for other, note in self._seen.to_join(owner):
            first, second = (note, judged.note) if other < place else (judged.note, note)
            if other != place:
                await self._ask(owner, first, second)
            self._seen.joined(owner, other)

    async def _missed(self, owner: PeerId, why: str) -> None:
        if owner not in self._host.links:
            return  # not its fault
        self._misses[owner] += 1
        if self._misses[owner] < MISSES or owner in self.withheld:
            return
        held = self._store.newest(owner)
        body = {"peer": owner, "asked": self._misses[owner], "size": held.size if held else 0, "reason": why[:400]}
        await self._commit(NewEntry("head_withheld", body))
        self.withheld[owner] = why
        self._told("head withheld", {"peer": owner, "reason": why})

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
