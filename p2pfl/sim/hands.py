"""Carries out the machine's effects for one site at virtual time: worker, sealing, log, links, timers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from p2pfl.crypto import Sealed, sign_envelope
from p2pfl.errors import P2PFLError, RemoteError, StoreError
from p2pfl.gossip import effects, events
from p2pfl.gossip.effects import with_inertia
from p2pfl.gossip.messages import TO_ALL, Announcement, Position, sealing_context
from p2pfl.sim import training
from p2pfl.types import Digest, StartRecord

if TYPE_CHECKING:
    from p2pfl.sim.site import Site


def perform(site: Site, effect: effects.Effect) -> None:
    """Begin to carry out one effect; its answer is posted to the site when its time has come."""
    match effect:
        case effects.SendStatement(peer=peer, kind=kind, payload=payload):
            site.send(peer, "direct", sign_envelope(site.identity, kind, payload).encode())
        case effects.SendAnnouncement(peer=peer, core=core):
            if core in site.disk.outbox:
                site.send(peer, "announcement", with_inline(site.announcement(core), site.chunks_for(peer, core), site))
        case effects.Flood(kind=kind, payload=payload):
            site.spreading.own(sign_envelope(site.identity, kind, payload))
        case effects.Commit():
            site.commits.add(effect)
        case effects.Fetch():
            _fetch(site, effect)
        case effects.SetTimer(name=name, at=at):
            site.set_timer(name, at)
        case effects.CancelTimer(name=name):
            site.cancel_timer(name)
        case effects.ShareClosings(peer=peer):
            site.spreading.share_closings(site.world.numbers[peer])
        case effects.StoreStatement(data=data):
            if site.disk.full:
                site.fail(StoreError("no space left on device"))
            else:
                site.disk.keep_statement(data)
        case effects.Release(core=core):
            site.let_go(core)
        case effects.Hold() | effects.LetGo() | effects.SendOffer():
            site.holdings.perform(effect)
        case effects.Tell(topic=topic, facts=facts):
            site.tell(topic, facts)
        case _:
            _with_worker(site, effect)


def _with_worker(site: Site, effect: effects.Effect) -> None:
    handling = site.world.compute.handling
    match effect:
        case effects.Begin(start=start):
            _worker(site, 0.0, lambda: _begin(site, start))
        case effects.Restore(start=start, digest=digest):
            _worker(site, handling, lambda: _restore(site, start, digest))
        case effects.Train(round=round_):
            site.work(site.training_time(round_), lambda: _train(site, effect))
        case effects.Encode():
            _worker(site, handling, lambda: _encode(site, effect))
        case effects.Mix():
            _worker(site, handling, lambda: _mix(site, effect))
        case effects.Adopt():
            _worker(site, handling, lambda: _adopt(site, effect))
        case effects.Forget(edges=edges, cores=cores):
            if edges:
                _worker(site, 0.0, lambda: site.trainer.forget([[peer, *place] for peer, place in edges]))
            if cores:
                _worker(site, 0.0, lambda: site.trainer.drop(list(cores)))
        case _:
            raise AssertionError(f"no way to carry out {effect}")


def with_inline(parts: Announcement, chunks: list[bytes], site: Site) -> bytes:
    """An announcement with its first chunk inside, where that is small and the world does not want it pulled."""
    return parts.encode_with(b"" if site.world.content_bytes or not chunks else chunks[0])


def _worker(site: Site, seconds: float, action: Callable[[], None]) -> None:
    """One call of the worker in its turn. What it refuses ends this site's part in the run, as in the real shell."""

    def call() -> None:
        try:
            if not site.armed:
                raise P2PFLError("no worker runs for this run; it was not approved here")
            action()
        except P2PFLError as error:
            site.problems.append(f"{error}")
            site.post(events.Leave(site.now, f"{error}"))

    site.work(seconds, call)


def _begin(site: Site, start: StartRecord) -> None:
    context = site.running.context
    share, first = context.law[site.peer_id], context.first_weight
    site.trainer.begin(site.world.initial, bytes.fromhex(start.run), site.key, share, first)
    site.begun = True


def _restore(site: Site, start: StartRecord, digest: Digest) -> None:
    share = site.running.context.law[site.peer_id]
    saved = site.disk.checkpoints[digest]
    training.restore(site.trainer, site.folder, saved, site.world.initial, bytes.fromhex(start.run), site.key, share)
    site.begun = True


def _train(site: Site, effect: effects.Train) -> None:
    round_, changed = effect.round, dict[str, Any](effect.arguments)
    steps = int(changed.pop("local_steps", site.world.local_steps[site.number]))
    if site.failing > 0:
        site.failing -= 1
        site.post(events.TrainingFailed(site.now, round_, "the test wants it to fail"))
        return
    try:
        steps = site.running.context.running_schedule.steps_of(site.peer_id, steps)
        value = site.trainer.train(round=round_, steps=steps, **changed)
    except P2PFLError as error:
        site.problems.append(f"{error}")
        site.post(events.TrainingFailed(site.now, round_, str(error)))
        return
    site.post(events.Trained(site.now, round_, float(value["loss"])))


def _encode(site: Site, effect: effects.Encode) -> None:
    position, parcels = (effect.round, effect.step), []
    messages = site.trainer.encode(round=effect.round, step=effect.step, closing=effect.closing, **with_inertia(effect))
    for message in messages:
        sealed = _seal(site, position, message["channel"], message["payload"])
        site.sealed[(position, message["channel"])] = sealed
        parcels.append(events.Parcel(message["channel"], sealed.manifest, Digest(message["result"])))
    site.post(events.Encoded(site.now, effect.round, effect.step, tuple(parcels)))


def _seal(site: Site, position: Position, channel: str, payload: bytes) -> Sealed:
    context = sealing_context(site.world.proposal.run, site.peer_id, position, channel, TO_ALL)
    if site.member is not None:
        site.member.sealed(site, (position, channel), payload)
    return site.world.kit.seal(payload, context)


def _mix(site: Site, effect: effects.Mix) -> None:
    value = site.trainer.mix(
        round=effect.round,
        step=effect.step,
        edges=[edge.row() for edge in effect.edges],
        corrections=[[peer, *place] for peer, place in effect.corrections],
        last=effect.last,
        closing=effect.closing,
        **with_inertia(effect),
    )
    site.post(
        events.Mixed(
            site.now, effect.round, effect.step, Digest(value["digest"]), float(value["distance"]), value.get("shared")
        )
    )


def _adopt(site: Site, effect: effects.Adopt) -> None:
    states = [[state.peer, state.weight, dict(state.cores)] for state in effect.states]
    value = site.trainer.adopt(round=effect.round, own=effect.own, states=states, **with_inertia(effect))
    site.post(events.Adopted(site.now, effect.round, Digest(value["digest"]), float(value["distance"])))


def _fetch(site: Site, effect: effects.Fetch) -> None:
    if effect.inline:
        site.work(0.0, lambda: _receive(site, effect, [effect.inline]))
        return
    origin = site.world.site_of(effect.source)
    chunks: list[bytes] = []

    def read() -> int | None:
        held = origin.serve(site.number, effect.digest)
        chunks.extend(held or ())
        return (site.world.bytes_of(effect.core.round) or sum(map(len, chunks))) if held is not None else None

    def done(problem: str | None) -> None:
        if problem is None:
            site.work(0.0, lambda: _receive(site, effect, chunks))
        else:
            site.post(events.Received(site.now, effect.name, f"couldn't fetch: {problem}", again=True))

    site.world.network.pull(site.number, origin.number, read, site.guarded(done))


def _receive(site: Site, effect: effects.Fetch, chunks: list[bytes]) -> None:
    if not site.begun:
        return  # its worker has no run: the machine leaves it, or has left it
    core = effect.core
    context = sealing_context(core.run, effect.peer, core.position, core.channel, core.recipient)
    try:
        payload = site.world.kit.open(core.manifest, effect.wrapped_key, site.prekey[0], context, chunks)
    except RemoteError as error:
        site.post(events.Received(site.now, effect.name, str(error), altered=True))
        return
    try:
        counts = site.running.context.counting(effect.peer, core.channel)
        site.trainer.receive(key=effect.name, channel=core.channel, payload=payload, result=core.result, **counts)
    except RemoteError as error:
        site.post(events.Received(site.now, effect.name, str(error)))
        return
    except P2PFLError as error:
        site.problems.append(f"{error}")
        site.post(events.Leave(site.now, f"{error}"))
        return
    if effect.keep:
        site.holdings.keep(effect.digest, chunks)
    site.post(events.Received(site.now, effect.name))
