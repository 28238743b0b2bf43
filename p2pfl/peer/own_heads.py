"""The own log as its witnesses see it: what they hold is asked for before the first send, answered for, and stapled.

A home may be an older copy of itself. Its witnesses hold the last checkpoints that left it, under its own signature.
What this log does not contain of them is lost: it is declared, and the log goes on in a new epoch. Nothing that carries
a checkpoint leaves before that.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any

from p2pfl.audit import MAX_LOST, Answer, LogMisbehaviour, NewEntry, SeenHead, WitnessStore, judge
from p2pfl.crypto import (
    Checkpoint,
    Identity,
    epoch_of,
    log_origin,
    open_checkpoint,
    open_cosignature,
    pack,
    plain_checkpoint,
    staple,
    unpack,
)
from p2pfl.crypto.cosignatures import decode_cosignature
from p2pfl.crypto.notes import read_note
from p2pfl.errors import ConfigError, LinkError, P2PFLError, Refusal, RemoteError, SignatureRefused, StoreError
from p2pfl.net import Host
from p2pfl.peer.journal import Journal
from p2pfl.types import PeerId

WITNESS = "/p2pfl/witness/1"
DECLARATIONS = ("epoch_opened", "loss_declared")
HELD, GROW, KEEP = "held", "grow", "keep"

PATIENCE = 3.0  # seconds from the first link for the neighbours to say what they hold of this log
READY = 10.0  # seconds a witness's question waits until this peer knows where its own log stands
ASK_AGAIN = 0.5  # seconds after a question that was not answered
LATE = 0.5  # seconds behind its time of a timer that show that this process was stopped
CLOCKS_APART = 600.0  # seconds between a cosignature's time and ours
MAX_NOTES = 64  # in one answer: the last of each epoch
HELD_LIMIT = MAX_NOTES * 4096  # bytes

REASON = (
    "witnesses, or this home's own note of its newest checkpoint, hold more than its log: it was restored from an "
    "older copy, or its disk has lost its newest part"
)
ELSEWHERE = (
    "a neighbour holds a checkpoint, signed with this peer's key, that is not in this log: another process signs with "
    "the key, or this home is an older copy and started without its witnesses. Stop the other one, then start this "
    "peer again; its log then goes on in a new epoch"
)

DAMAGED = "the tree of the audit log does not hold together; run p2pfl audit verify, and restore a backup"


class OwnHeads:
    """One peer's side of being witnessed. All calls belong to one event loop.

    ``expected`` gives the neighbours worth waiting for at the start, ``spawn`` runs a task whose errors end the peer,
    ``opened`` hears of a declared loss.
    """

    def __init__(
        self, identity: Identity, consortium: str, journal: Journal, store: WitnessStore, *,
        expected: Callable[[], set[PeerId]], spawn: Callable[[Coroutine[Any, Any, None]], None],
        failed: Callable[[P2PFLError], None], opened: Callable[[dict[str, Any]], None],
    ) -> None:  # fmt: skip
        self._identity, self._consortium, self._journal, self._store = identity, consortium, journal, store
        self._expected, self._spawn, self._failed, self._opened = expected, spawn, failed, opened
        self.origin = log_origin(consortium, identity.peer_id)
        self.kept = journal.head.size  # entries that were here when this process began
        self.cleared = asyncio.Event()
        """Set once it is known where the own log stands: from then on checkpoints may leave."""
        self.witnessed = b""
        """The newest own checkpoint that has cosignatures, with their lines; empty if there is none."""
        self._host: Host | None = None
        self._answered: set[PeerId] = set()
        self._lost: dict[int, Checkpoint] = {}  # by epoch, the largest that is not in this log
        if journal.log.lost is not None:  # this home knows it by itself
            self._lost[journal.log.lost.epoch] = journal.log.lost.checkpoint
        self._timer: asyncio.TimerHandle | None = None
        self._opening = False
        self._late = False
        self._declaring = asyncio.Lock()
        self._restaple()

    def attach(self, host: Host) -> None:
        """Ask and answer through this host."""
        self._host = host

    def fail(self, error: P2PFLError) -> None:
        """End the peer: the disk does not keep what witnesses rely on."""
        self._failed(error)

    def stop(self) -> None:
        """No timer is left behind."""
        if self._timer is not None:
            self._timer.cancel()

    # --- before the first send

    def linked(self, peer: PeerId) -> None:
        """A link came up: until it is known where this log stands, its other end is asked."""
        if self.cleared.is_set():
            return
        if self._timer is None:
            due = asyncio.get_running_loop().time() + PATIENCE
            self._timer = asyncio.get_running_loop().call_at(due, self._patience_over, due)
        self._spawn(self._ask(peer))

    async def _ask(self, peer: PeerId) -> None:
        assert self._host is not None
        while not self._opening and peer in self._host.links:
            try:
                data = await self._host.request(peer, WITNESS, pack({"ask": HELD}), timeout=PATIENCE)
                for note in read_notes(data):
                    if not self._opening:  # later ones are asked about, and declared then
                        await self._compare(note)
            except (LinkError, RemoteError, Refusal):
                await asyncio.sleep(ASK_AGAIN)  # no answer is not the answer that nothing is held
            else:
                self._answered.add(peer)
                if self._late or self._answered >= self._expected():
                    self._enough()
                return

    async def _compare(self, note: bytes) -> None:
        """Remember a checkpoint by the own key that is neither in this log nor declared lost."""
        checkpoint, epoch = self.open(note)
        if await self._contains(checkpoint):
            return
        known = self._lost.get(epoch)
        if await asyncio.to_thread(self._declaring_entry, checkpoint, epoch) is None and (
            known is None or known.size < checkpoint.size
        ):
            self._lost[epoch] = checkpoint

    def _enough(self) -> None:
        if not self._opening:
            self._opening = True
            self._spawn(self._go_on())

    def _patience_over(self, due: float) -> None:
        """A process that was stopped meanwhile has not read the answers that lie waiting: it waits once more."""
        loop = asyncio.get_running_loop()
        if loop.time() - due > LATE:
            due = loop.time() + PATIENCE
            self._timer = loop.call_at(due, self._patience_over, due)
        elif self._answered:
            self._enough()
        else:
            self._late = True  # the first answer is waited for, however long it takes: without one nothing leaves

    async def _go_on(self) -> None:
        cosigned = {epoch: item.note for _, epoch, _, item, _ in reversed(self._store.cosigned())}
        met = [item.note for item in self._store.seen() if item.log == self._identity.peer_id]
        for note in (*cosigned.values(), *met):  # what has left under this key, whoever is away now
            await self._compare(note)
        if self._lost:
            epoch = max(self._journal.log.epoch, *self._lost) + 1
            await self._declare("epoch_opened", epoch, begin=True)
        self.cleared.set()

    async def _declare(self, kind: str, epoch: int, *, begin: bool = False) -> None:
        lost = [(number, item.size, item.root) for number, item in sorted(self._lost.items())][-MAX_LOST:]
        # this log may have grown since it was put back: what it shares with a lost head ends before that head, and
        # before whatever an earlier declaration says was kept of that epoch
        oldest = min(number for number, _, _ in lost)
        earlier = await asyncio.to_thread(self._kept_after, oldest)
        kept = min([self.kept, *(size - 1 for _, size, _ in lost), *earlier])
        body = {"epoch": epoch, "kept": kept, "lost": [list(row) for row in lost], "reason": REASON}
        await self._journal.commit([NewEntry(kind, body)], epoch=epoch if begin else None)
        self._lost = {}
        if begin:
            self._opened({"epoch": epoch, "kept": kept, "lost": [row[1] for row in lost]})

    def _kept_after(self, epoch: int) -> list[int]:
        """What this log says to have kept, wherever it went on in an epoch after this one."""
        entries = (entry for kind in DECLARATIONS for entry in self._journal.log.entries(kind=kind))
        return [entry.body["kept"] for entry in entries if entry.body["epoch"] > epoch]

    # --- what is asked later

    def open(self, note: bytes) -> tuple[Checkpoint, int]:
        """A checkpoint of this log and its epoch. Raises RemoteError for anything that this key has not signed."""
        checkpoint = open_checkpoint(note, self.origin, self._identity.peer_id)
        return checkpoint, epoch_of(checkpoint.origin, self.origin) or 0

    async def _contains(self, checkpoint: Checkpoint) -> bool:
        log = self._journal.log
        epoch = epoch_of(checkpoint.origin, self.origin) or 0
        if epoch > log.epoch or checkpoint.size > log.head.size:
            return False
        return await asyncio.to_thread(log.root_at, checkpoint.size) == checkpoint.root

    async def answer(self, held: bytes, to: bytes) -> bytes:
        """Show that ``held`` has grown into ``to``, or into the newest checkpoint where that is empty.

        Raises RemoteError for notes that are not ours, Refusal where no answer can be given. If the key has signed what
        this log does not have, nothing is answered and the peer ends: any answer would be evidence against it.
        """
        try:
            await asyncio.wait_for(self.cleared.wait(), READY)
        except TimeoutError:
            raise Refusal("this peer has only just started; ask again") from None
        newest, target = self._newest(to)
        if not held:
            return Answer(held, newest).sign(self._identity)
        checkpoint, epoch = self.open(held)
        if to and not await self._contains(target):
            if self.open(to)[1] < self._journal.log.epoch:
                raise Refusal("what is asked for was lost, and is declared; ask for the newest checkpoint")
            raise await self._elsewhere(to)
        if await self._contains(checkpoint):
            if checkpoint.size > target.size:
                raise Refusal("the checkpoint to be joined is older than the one held; ask the other way round")
            proof = () if not checkpoint.size else await self._growth(checkpoint.size, target.size)
            signed = Answer(held, newest, proof).sign(self._identity)
        elif epoch < self._journal.log.epoch:
            position = await self._declared(checkpoint, epoch)
            if not to:
                newest, target = self._newest(b"")
            if position >= target.size:
                raise Refusal("what was lost is declared in a newer checkpoint; ask for the newest")
            loss = await asyncio.to_thread(self._journal.log.prove_under, position, target.size, newest)
            signed = Answer(held, newest, loss=loss.encode()).sign(self._identity)
        else:
            raise await self._elsewhere(held)
        try:
            judge(signed, held, self.origin, self._identity.peer_id)
        except LogMisbehaviour:  # a damaged tree must not become evidence
            self._failed(StoreError(DAMAGED))
            raise Refusal("this peer has found its own log damaged; it stops") from None
        return signed

    def _newest(self, to: bytes) -> tuple[bytes, Checkpoint]:
        newest = to or self._journal.head.note
        return newest, self.open(newest)[0]

    async def _growth(self, old: int, new: int) -> tuple[bytes, ...]:
        return await asyncio.to_thread(self._journal.log.prove_growth, old, new)

    async def _elsewhere(self, note: bytes) -> Refusal:
        """Stop; the next start declares the loss by itself, whoever is there then."""
        checkpoint, epoch = self.open(note)
        me, plain = self._identity.peer_id, plain_checkpoint(note, self.origin, self._identity.peer_id)[1]
        await asyncio.to_thread(self._store.see, [SeenHead(me, me, epoch, checkpoint.size, plain)])
        self._failed(ConfigError(ELSEWHERE))
        return Refusal("this peer's key has signed what its log does not have; it stops")

    async def _declared(self, checkpoint: Checkpoint, epoch: int) -> int:
        """The position of the entry that declares this checkpoint lost; written now if no earlier one covers it."""
        async with self._declaring:
            position = await asyncio.to_thread(self._declaring_entry, checkpoint, epoch)
            if position is None:
                self._lost = {epoch: checkpoint}
                await self._declare("loss_declared", self._journal.log.epoch)
                position = await asyncio.to_thread(self._declaring_entry, checkpoint, epoch)
            assert position is not None
            return position

    def _declaring_entry(self, checkpoint: Checkpoint, epoch: int) -> int | None:
        log = self._journal.log
        for kind in DECLARATIONS:
            for entry in log.entries(kind=kind):
                for number, size, root in entry.body["lost"]:
                    same = number == epoch and (size, root) == (checkpoint.size, checkpoint.root)
                    if (same or (number == epoch and size > checkpoint.size)) and checkpoint.size > entry.body["kept"]:
                        return entry.position
        return None

    async def hear(self, note: bytes) -> None:
        """Somebody showed a checkpoint in this log's name. One that this log does not have ends the peer."""
        checkpoint, epoch = self.open(note)
        if not self.cleared.is_set() or await self._contains(checkpoint):
            return
        if epoch >= self._journal.log.epoch:
            await self._elsewhere(note)

    @property
    def newest(self) -> bytes:
        """The newest checkpoint of the own log."""
        return self._journal.head.note

    # --- cosignatures

    async def keep(self, peer: PeerId, data: bytes) -> None:
        """A neighbour's cosignature. Raises RemoteError if it is not one of this log, by this neighbour."""
        item = decode_cosignature(data)
        witness, text, seconds = open_cosignature(item, self._consortium)
        checkpoint, epoch = self.open(item.note)
        if witness != peer or text != checkpoint.text or not await self._contains(checkpoint):
            raise SignatureRefused("a cosignature by another witness, or of another log", peer=peer)
        if len(read_note(item.note).signatures) != 2:  # the owner's and the witness's, as `cosign` makes it
            raise SignatureRefused("a cosignature with lines of others on it", peer=peer)
        if abs(seconds - time.time()) > CLOCKS_APART:
            raise SignatureRefused("a cosignature from another time; set the clocks right", peer=peer)
        await asyncio.to_thread(self._store.keep_cosignature, peer, epoch, checkpoint.size, item, seconds)
        self._restaple()

    def _restaple(self) -> None:
        rows = self._store.cosigned()
        if rows:
            newest = [item for _, epoch, size, item, _ in rows if (epoch, size) == rows[0][1:3]]
            self.witnessed = staple(newest[0].note, newest)


def read_notes(data: bytes) -> list[bytes]:
    """The notes in an answer. Raises MalformedMessage or LimitExceeded."""
    value = unpack(data, what="held checkpoints", limit=HELD_LIMIT)
    if not isinstance(value, list) or len(value) > MAX_NOTES or not all(isinstance(note, bytes) for note in value):
        raise SignatureRefused("an answer about held checkpoints is no short list of notes")
    return list(value)
