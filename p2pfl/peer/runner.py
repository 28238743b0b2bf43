"""Carries out the machine's effects for one run: worker, sealing, log, links, timers."""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from p2pfl.audit import NewEntry
from p2pfl.crypto import Identity, Opener, Prekey, Sealed, seal_off_loop, sign_envelope, wrap_key
from p2pfl.errors import LinkError, P2PFLError, PolicyRefusal, RemoteError, StoreError
from p2pfl.gossip import Machine, effects, events
from p2pfl.gossip.anchors import SENT, Outbound
from p2pfl.gossip.effects import with_inertia
from p2pfl.gossip.messages import (
    TO_ALL,
    Core,
    Position,
    envelope_frame,
    sealing_context,
)
from p2pfl.net import Host
from p2pfl.peer.contents import Contents, pull_sealed
from p2pfl.peer.disk import as_store_error
from p2pfl.peer.holdings import Holdings, Spool
from p2pfl.peer.journal import Journal
from p2pfl.peer.keeping import KeptRun, Shelf
from p2pfl.peer.outbox import Outbox
from p2pfl.peer.states import States
from p2pfl.peer.worker import Worker
from p2pfl.types import Digest, PeerId, RunId, StartRecord

ANNOUNCE = "/p2pfl/announce/1"
OFFER = "/p2pfl/offer/1"
DIRECT = "/p2pfl/direct/1"
FLOOD = "/p2pfl/flood/1"
QUEUE_LIMIT = 4096  # remote events waiting for the machine; a run of 50 sites needs some hundred
TRAIN_LIMIT = 24 * 3600.0  # seconds; no round trains longer than a day
CALL_LIMIT = 3600.0  # seconds for every other call of the worker
FETCH_LIMIT = 600.0  # seconds for the content of one delta


@dataclass(slots=True)
class Services:
    """What a runner uses of its peer."""

    identity: Identity
    host: Host
    journal: Journal
    contents: Contents
    flood: Callable[[bytes], None]  # send an own statement (framed) to all linked members
    share_closings: Callable[[PeerId, RunId], None]  # send a neighbour the closing statements that are kept
    store_statement: Callable[[str, bytes], None]
    approved: Callable[[Digest], bool]  # whether this site has approved a plan hash
    told: Callable[[str, str, dict[str, Any]], None]  # (run, topic, facts)
    failed: Callable[[P2PFLError], None]
    cleared: asyncio.Event  # set once checkpoints may leave: see own_heads.py
    witnessed: Callable[[], bytes]  # the newest own checkpoint with cosignatures, or nothing
    shelf: Shelf | None = None  # where this home keeps its deltas, if its owner says so


@dataclass(slots=True)
class Timings:
    """Seconds spent per part. Wire, fetching and log_after run beside the others; those follow each other."""

    training: float = 0.0
    encoding: float = 0.0
    sealing: float = 0.0
    signing: float = 0.0
    log: float = 0.0  # commits that let a delta out
    log_after: float = 0.0  # all other commits
    wire: float = 0.0
    fetching: float = 0.0
    waiting: float = 0.0  # from the own announcement until all messages are here
    mixing: float = 0.0
    sent_bytes: int = 0


NO_CHECKPOINT = Digest("")


@dataclass(slots=True)
class RunKeys:
    """The secrets of one run: the prekey, the sampling key and the initial parameters' file."""

    prekey: Prekey | None = None
    sampling: bytes = b""
    initial: bytes = b""
    local_steps: int = 0
    checkpoint: Digest = NO_CHECKPOINT  # of the worker's state that the newest stored state belongs to
    examples: int = 0
    has_test: bool = False


class Runner:
    """One machine and the task that drives it."""

    def __init__(
        self,
        machine: Machine,
        services: Services,
        keys: RunKeys,
        states: States,
        holdings: Holdings,
        kept: KeptRun | None = None,
    ) -> None:
        self.machine = machine
        self._kept = kept  # where this home keeps its deltas
        self._payloads: dict[tuple[Position, str], bytes] = {}  # own ones, encoded and not signed yet, to be kept
        self.keys = keys
        self.worker: Worker | None = None
        self.timings = Timings()
        self.states = states
        self.holdings = holdings
        self._services = services
        self._run = machine.context.proposal.run
        self._queue: deque[events.Event] = deque()
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._commit_lock = asyncio.Lock()
        self._lanes: defaultdict[PeerId, asyncio.Lock] = defaultdict(asyncio.Lock)  # sends to one peer keep their order
        self._sealed: dict[tuple[Position, str], Sealed] = {}
        self._saves = 0
        self._beginning: asyncio.Task[None] | None = None  # gives the worker its run
        self._announced_at: float | None = None
        self.outbox = Outbox(services.identity, services.journal, services.witnessed)
        self._loop = asyncio.get_running_loop()
        self._task = self._loop.create_task(self._drive(), name=f"run {self._run[:8]}")

    # --- events in

    def now(self) -> float:
        """The clock the machine is shown."""
        return self._loop.time()

    def post(self, event: events.Event) -> bool:
        """Hand an event to the machine; False when the queue is full and a neighbour's message is dropped.

        What comes from here (a commit, an answer of the worker, a timer) is never dropped: the machine waits for it.
        """
        own, full = self._services.identity.peer_id, len(self._queue) >= QUEUE_LIMIT
        remote = (events.AnnouncementReceived, events.StatementReceived, events.OfferReceived)
        if full and isinstance(event, remote) and event.peer != own:
            self.machine.context.counters["queue full"] += 1
            return False
        self._queue.append(event)
        self._wake.set()
        return True

    def do(self, event: events.Event) -> None:
        """Carry out a user's command at once. Raises IllegalStep or ConfigError; nothing has changed then."""
        self._perform_all(self.machine.handle(event))

    async def _drive(self) -> None:
        while True:
            while self._queue:
                event = self._queue.popleft()
                try:
                    self._perform_all(self.machine.handle(event))
                except P2PFLError as error:
                    self._services.failed(error)
                    return
                except Exception as error:
                    self._services.failed(P2PFLError(f"internal error ({error!r}); please report it"))
                    return
            self._wake.clear()
            await self._wake.wait()

    async def stop(self) -> None:
        """Stop the task, the timers and the worker; the log has everything that counts."""
        for timer in self._timers.values():
            timer.cancel()
        self.holdings.stop()
        tasks = [self._task, *self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self.worker is not None:
            await self.worker.stop()

    # --- effects out

    def _perform_all(self, todo: list[effects.Effect]) -> None:
        for effect in todo:
            self._perform(effect)

    def _perform(self, effect: effects.Effect) -> None:
        match effect:
            case effects.Train():
                self._spawn(self._train(effect))
            case effects.Encode():
                self._spawn(self._encode(effect))
            case effects.Commit():
                # in the worker's queue now: what the machine asks for next must not be in this checkpoint
                fresh = effect.checkpoint and self.worker is not None and self._beginning is not None
                self._spawn(self._commit(effect, self._loop.create_task(self._save()) if fresh else None))
            case effects.Fetch():
                self._spawn(self._fetch(effect))
            case effects.Mix():
                self._spawn(self._mix(effect))
            case effects.Adopt():
                self._spawn(self._adopt(effect))
            case effects.Forget():
                self._spawn(self._forget(effect))
            case effects.Begin(start=start):
                self._beginning = self._spawn(self._begin(start))
            case effects.Restore(start=start):
                self._beginning = self._spawn(self._begin(start, self.keys.checkpoint))
            case effects.SendAnnouncement(peer=peer, core=core):
                self._spawn(self._send_announcement(peer, core))
            case effects.Hold() | effects.LetGo() | effects.SendOffer():
                self._spawn(self._hold(effect))
            case effects.SendStatement(peer=peer, kind=kind, payload=payload):
                envelope = sign_envelope(self._services.identity, kind, payload).encode()
                self._spawn(self._send_statement(peer, envelope_frame(self._run, envelope)))
            case _:
                self._perform_at_once(effect)

    def _perform_at_once(self, effect: effects.Effect) -> None:
        match effect:
            case effects.Flood(kind=kind, payload=payload):
                envelope = sign_envelope(self._services.identity, kind, payload).encode()
                self._services.flood(envelope_frame(self._run, envelope))
                self.post(events.StatementReceived(self.now(), self._services.identity.peer_id, envelope))
            case effects.ShareClosings(peer=peer):
                self._services.share_closings(peer, self._run)
            case effects.StoreStatement(data=data):
                self._services.store_statement(self._run, data)
            case effects.Release(core=core):
                self.outbox.release(core)
                self._services.contents.release(core)
            case effects.SetTimer(name=name, at=at):
                self._cancel(name)
                self._timers[name] = self._loop.call_at(at, self._fire, name)
            case effects.CancelTimer(name=name):
                self._cancel(name)
            case effects.Tell(topic=topic, facts=facts):
                self._services.told(self._run, topic, dict(facts))
            case _:
                raise AssertionError(f"no way to carry out {effect}")

    def _fire(self, name: str) -> None:
        self._timers.pop(name, None)
        self.post(events.TimerFired(self.now(), name))

    def _cancel(self, name: str) -> None:
        timer = self._timers.pop(name, None)
        if timer is not None:
            timer.cancel()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or (raised := task.exception()) is None:
            return
        error = as_store_error(raised)
        if isinstance(error, StoreError):
            self._services.failed(error)
        elif isinstance(error, P2PFLError):
            self.post(events.Leave(self.now(), f"{error}"))
        else:
            self._services.failed(P2PFLError(f"internal error ({error!r}); please report it"))

    # --- worker

    async def _call(self, operation: str, limit: float = CALL_LIMIT, **arguments: Any) -> Any:
        if self.worker is None:
            raise P2PFLError("no worker runs for this run; it was not approved here")
        return await self.worker.call(operation, timeout=limit, **arguments)

    async def _begin(self, start: StartRecord, checkpoint: Digest = NO_CHECKPOINT) -> None:
        if not self._services.approved(start.plan):  # the gate: checked again at every start
            raise PolicyRefusal(f"plan {start.plan[:12]} is not approved at this site; read and approve it")
        share = self.machine.context.law[self._services.identity.peer_id]
        beginning: dict[str, Any] = {
            "initial": self.keys.initial,
            "run": bytes.fromhex(start.run),
            "key": self.keys.sampling,
        }
        if checkpoint == NO_CHECKPOINT:
            first = self.machine.context.first_weight
            await self._call("begin", **beginning, share=share, first_weight=first)
        else:
            path = str(self.states.checkpoint(checkpoint))
            await self._call("restore", path=path, digest=checkpoint, **beginning, share=share)

    async def reopen(self) -> None:
        """After a restart of a closed run whose result was not stored yet: the worker as it was at the end."""
        await self._begin(self.machine.context.running, self.keys.checkpoint)

    async def _train(self, effect: effects.Train) -> None:
        started, round_ = self.now(), effect.round
        changed = dict(effect.arguments)
        steps = int(changed.pop("local_steps", self.keys.local_steps))
        steps = self.machine.context.running_schedule.steps_of(self._services.identity.peer_id, steps)
        try:
            value = await self._call("train", TRAIN_LIMIT, round=round_, steps=steps, **changed)
        except P2PFLError as error:
            self.post(events.TrainingFailed(self.now(), round_, str(error)))
            return
        self.timings.training += self.now() - started
        self.post(events.Trained(self.now(), round_, float(value["loss"])))

    async def _encode(self, effect: effects.Encode) -> None:
        started = self.now()
        messages = await self._call(
            "encode", round=effect.round, step=effect.step, closing=effect.closing, **with_inertia(effect)
        )
        self.timings.encoding += self.now() - started
        me = self._services.identity.peer_id
        parcels = []
        started = self.now()
        for message in messages:
            position = (effect.round, effect.step)
            context = sealing_context(self._run, me, position, message["channel"], TO_ALL)
            sealed = await seal_off_loop(message["payload"], context)
            self._sealed[(position, message["channel"])] = sealed
            if self._kept is not None:
                self._payloads[(position, message["channel"])] = message["payload"]
            parcels.append(events.Parcel(message["channel"], sealed.manifest, Digest(message["result"])))
        self.timings.sealing += self.now() - started
        self.post(events.Encoded(self.now(), effect.round, effect.step, tuple(parcels)))

    async def _mix(self, effect: effects.Mix) -> None:
        started = self.now()
        if self._announced_at is not None:
            self.timings.waiting += started - self._announced_at
            self._announced_at = None
        if self._kept is not None:
            await self._kept.mixes((core for edge in effect.edges for core in edge.cores.values()), self._base)
        value = await self._call(
            "mix",
            round=effect.round,
            step=effect.step,
            edges=[edge.row() for edge in effect.edges],
            corrections=[[peer, round_, step] for peer, (round_, step) in effect.corrections],
            last=effect.last,
            closing=effect.closing,
            **with_inertia(effect),
        )
        self.timings.mixing += self.now() - started
        if self._kept is not None and effect.last:
            await self._kept.mixed(Digest(value["shared"]), self._shared)
        self.post(
            events.Mixed(
                self.now(),
                effect.round,
                effect.step,
                Digest(value["digest"]),
                float(value["distance"]),
                Digest(value["shared"]),
            )
        )

    async def _base(self) -> dict[str, Any]:
        value: dict[str, Any] = await self._call("base")
        return value

    async def _shared(self) -> bytes:
        value: bytes = await self._call("shared")
        return value

    async def _adopt(self, effect: effects.Adopt) -> None:
        states = [[state.peer, state.weight, dict(state.cores)] for state in effect.states]
        value = await self._call("adopt", round=effect.round, own=effect.own, states=states, **with_inertia(effect))
        self.post(events.Adopted(self.now(), effect.round, Digest(value["digest"]), float(value["distance"])))

    async def _forget(self, effect: effects.Forget) -> None:
        if self._kept is not None:
            self._kept.forget(effect.cores)
        if self.worker is None:
            return
        if effect.edges:
            await self._call("forget", pairs=[[peer, round_, step] for peer, (round_, step) in effect.edges])
        if effect.cores:
            await self._call("drop", keys=list(effect.cores))

    # --- log

    async def _save(self) -> Digest | P2PFLError:
        """A checkpoint of the worker; or why there is none: for the commit, which may be waited for by nobody."""
        self._saves += 1
        path = self.states.fresh(self._saves)
        try:
            checkpoint = Digest(await self._call("save", path=str(path)))
            await asyncio.to_thread(self.states.keep, path, checkpoint)
        except P2PFLError as error:
            return error
        return checkpoint

    async def _commit(self, effect: effects.Commit, saving: asyncio.Task[Digest | P2PFLError] | None) -> None:
        async with self._commit_lock:
            started = self.now()
            entries = [NewEntry(entry.kind, entry.body, entry.documents) for entry in effect.entries]
            stored = await self._store_state(effect, saving) if effect.state else None
            cores = [await self._sign_core(core, effect.recipients) for core in effect.cores]
            if entries or cores:
                position = await self._services.journal.commit([*entries, *(entry for _, _, entry in cores)])
                for place, (digest, outbound, _) in enumerate(cores, start=position + len(entries)):
                    self.outbox.add(digest, outbound, place)
            if stored is not None:
                await asyncio.to_thread(self.states.prune, stored, self.keys.checkpoint)
            self._time_commit(started, bool(effect.cores))
        self.post(events.Committed(self.now(), effect.token, tuple(digest for digest, _, _ in cores)))

    async def _store_state(self, effect: effects.Commit, saving: asyncio.Task[Digest | P2PFLError] | None) -> Digest:
        """Before the transaction that names it: the worker's checkpoint, then what the machine remembers."""
        if saving is not None:
            saved = await saving
            if not isinstance(saved, P2PFLError):
                self.keys.checkpoint = saved
            elif await self._worker_has_run():
                raise saved
        return await asyncio.to_thread(self.states.write, effect.state, self.keys.checkpoint)

    async def _worker_has_run(self) -> bool:
        if self._beginning is None:
            return False
        await asyncio.wait([self._beginning])
        return not self._beginning.cancelled() and self._beginning.exception() is None

    def _time_commit(self, started: float, announces: bool) -> None:
        now = self.now()
        if announces:
            self.timings.log += now - started
            self._announced_at = now
        else:
            self.timings.log_after += now - started

    async def _sign_core(self, core: Core, recipients: tuple[PeerId, ...]) -> tuple[Digest, Outbound, NewEntry]:
        """Sign a core, wrap its key, store its ciphertext; the entry lets it out once it is committed."""
        started = self.now()
        sealed = self._sealed.pop((core.position, core.channel))
        identity = self._services.identity
        signed = sign_envelope(identity, "core", core.encode())
        context = sealing_context(self._run, identity.peer_id, core.position, core.channel, core.recipient)
        prekeys = self.machine.context.prekeys
        keys = {peer: wrap_key(sealed.key, prekeys[peer], context) for peer in recipients}
        outbound = Outbound(self._run, signed.encode(), keys)
        self.timings.signing += self.now() - started
        payload = self._payloads.pop((core.position, core.channel), None)
        if self._kept is not None and payload is not None:
            await self._kept.sent(signed.digest, outbound.core, payload, self._base)
        await self._services.contents.put_ciphertext(signed.digest, sealed.chunks, frozenset(recipients))
        body = {
            "run": self._run,
            "sequence": core.sequence,
            "round": core.round,
            "step": core.step,
            "channel": core.channel,
            "core": signed.digest,
            "to": list(recipients),
            "bytes": core.manifest.size,
        }
        return signed.digest, outbound, NewEntry(SENT, body, (("outbox", outbound.encode()),))

    # --- links

    async def _send_announcement(self, peer: PeerId, core: Digest) -> None:
        # a later message must not overtake: a settle message in front of the last delta says that none will come
        async with self._lanes[peer]:
            await self._services.cleared.wait()
            started = self.now()
            announcement = await self.outbox.announcement(core)
            if announcement is None:
                return
            try:
                wanted = self._services.contents.is_for(core, peer)
                chunk = await asyncio.to_thread(self._services.contents.first_chunk, core) if wanted else b""
            except OSError:
                return  # released meanwhile
            data = announcement.encode_with(chunk)
            self.timings.sent_bytes += len(data)
            await self._notify(peer, ANNOUNCE, data)
            self.timings.wire += self.now() - started

    async def _hold(self, effect: effects.Hold | effects.LetGo | effects.SendOffer) -> None:
        data = await self.holdings.perform(effect, self._run)
        if isinstance(effect, effects.SendOffer):
            async with self._lanes[effect.peer]:
                await self._notify(effect.peer, OFFER, data)

    async def _send_statement(self, peer: PeerId, data: bytes) -> None:
        async with self._lanes[peer]:
            await self._notify(peer, DIRECT, data)

    async def _notify(self, peer: PeerId, protocol: str, data: bytes) -> None:
        try:
            await self._services.host.notify(peer, protocol, data)
        except LinkError:
            self.machine.context.counters["not sent"] += 1  # sent again when the link is back

    async def _fetch(self, effect: effects.Fetch) -> None:
        started = self.now()
        spool = self.holdings.spool(effect.digest) if effect.keep else None
        answer = await self._receive(effect, spool)
        if spool is not None:
            await (spool.close() if answer.problem is None else spool.abandon())
        if answer.problem is None:
            self.timings.fetching += self.now() - started
        self.post(answer)

    async def _receive(self, effect: effects.Fetch, spool: Spool | None) -> events.Received:
        """Pull a content, open it, and hand it to the worker: what there is to say of that."""
        core = effect.core
        altered = False
        try:
            opener = self._opener(effect)
            altered = True  # what is wrong from here on is so in the bytes that came
            payload = await self._open(effect, opener, spool)
            altered = False
            counts = self.machine.context.counting(effect.peer, core.channel)
            told: dict[str, Any] = {"channel": core.channel, "payload": payload, "result": core.result, **counts}
            await self._call("receive", key=effect.name, **told)
            if self._kept is not None and effect.key is None:
                self._kept.hear(effect.digest, effect.signed, payload)
        except RemoteError as error:
            return events.Received(self.now(), effect.name, str(error), altered=altered)
        except (LinkError, TimeoutError) as error:
            return events.Received(self.now(), effect.name, f"couldn't fetch: {error}", again=True)
        return events.Received(self.now(), effect.name)

    def _opener(self, effect: effects.Fetch) -> Opener:
        """What its origin has signed and wrapped for us."""
        assert self.keys.prekey is not None
        core = effect.core
        context = sealing_context(self._run, effect.peer, core.position, core.channel, core.recipient)
        return Opener(core.manifest, self.keys.prekey.unwrap(effect.wrapped_key, context), context)

    async def _open(self, effect: effects.Fetch, opener: Opener, spool: Spool | None) -> bytes:
        if effect.inline:
            plaintext = opener.open(0, effect.inline)
            opener.finish()
            if spool is not None:
                await spool.add(effect.inline)
            return plaintext
        async with asyncio.timeout(FETCH_LIMIT):
            return await pull_sealed(self._services.host, effect.source, effect.digest, opener, spool)
