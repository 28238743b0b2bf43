"""A consortium in a bottle: real machines, real sessions, real signatures and seals, joined in memory.

Time is a heap of events; there is no sleep and no thread. Messages may be lost by a rule of the test's own.
"""

from __future__ import annotations

import csv
import heapq
import itertools
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from p2pfl.crypto import (
    Identity,
    Opener,
    Prekey,
    Sealed,
    pack,
    seal,
    sha256,
    sign_envelope,
    wrap_key,
)
from p2pfl.errors import RemoteError
from p2pfl.gossip import Machine, Proposal, Restored, State, effects, events
from p2pfl.gossip.anchors import Outbound
from p2pfl.gossip.effects import with_inertia
from p2pfl.gossip.messages import TO_ALL, Announcement, Core, decode_announcement, sealing_context
from p2pfl.gossip.offers import Offer
from p2pfl.sim.memory_log import lone_proof
from p2pfl.train.session import Session
from p2pfl.types import CATCH_UP_ROUNDS, ChannelSpec, Digest, Member, PeerId, Roster

QUADRATIC_PLAN = textwrap.dedent(
    '''
    """f_i(x) = mean over the site's rows of 0.5 * sum(a * (x - b)**2): each site has its own optimum."""
    import csv
    import torch
    from torch import nn


    def load(path):
        with open(path, newline="") as file:
            rows = [[float(value) for value in row] for row in list(csv.reader(file))[1:]]
        table = torch.tensor(rows, dtype=torch.float64)
        half = table.shape[1] // 2
        return {"train": (table[:, :half], table[:, half:])}


    class Point(nn.Module):
        def __init__(self):
            super().__init__()
            self.x = nn.Parameter(torch.zeros(3))

        def forward(self):
            return self.x


    def model():
        return Point()


    def loss(model, batch):
        a, b = batch
        return 0.5 * (a * (model() - b) ** 2).sum(dim=1)
    '''
)


@dataclass(frozen=True)
class Quadratic:
    """Sites of unequal size with curvatures a and centres b; knows the weighted optimum."""

    tables: tuple[np.ndarray, ...]

    @classmethod
    def make(cls, sizes: Sequence[int], seed: int = 1) -> Quadratic:
        rng = np.random.default_rng(seed)
        tables = []
        for number, size in enumerate(sizes):
            curvature = rng.uniform(0.5, 1.5, 3) * np.ones((size, 3))
            centre = rng.normal(loc=2.0 * number, scale=1.0, size=(size, 3))
            tables.append(np.hstack([curvature, centre]))
        return cls(tuple(tables))

    def write(self, folder: Path) -> list[Path]:
        paths = []
        for number, table in enumerate(self.tables):
            path = folder / f"site-{number}.csv"
            with path.open("w", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(["a1", "a2", "a3", "b1", "b2", "b3"])
                writer.writerows([[repr(float(value)) for value in row] for row in table])
            paths.append(path)
        return paths

    @property
    def optimum(self) -> np.ndarray:
        """argmin of sum_i n_i f_i: the curvature-weighted mean over all rows."""
        rows = np.vstack(self.tables)
        return (rows[:, :3] * rows[:, 3:]).sum(axis=0) / rows[:, :3].sum(axis=0)


Loss = Callable[[str, PeerId, PeerId, Any], bool]


@dataclass
class Site:
    """One machine with its session, its log and its outbox, all in memory."""

    bottle: Bottle
    identity: Identity
    session: Session
    machine: Machine | None = None
    prekey: Prekey = field(default_factory=lambda: Prekey.from_secret(bytes(range(32))))
    key: bytes = b""
    log: list[tuple[str, Mapping[str, Any], tuple[Any, ...]]] = field(default_factory=list)
    told: list[tuple[str, Mapping[str, Any]]] = field(default_factory=list)
    sealed: dict[tuple[Any, str], Sealed] = field(default_factory=dict)
    outbox: dict[Digest, tuple[Announcement, tuple[bytes, ...]]] = field(default_factory=dict)
    timers: dict[str, int] = field(default_factory=dict)
    state: bytes = b""  # what the machine remembered with its newest commit that stored a state
    chunks: dict[Digest, bytes] = field(default_factory=dict)  # kept for others, as they came
    holdings: dict[Digest, tuple[bytes, frozenset[PeerId]]] = field(default_factory=dict)
    dead: bool = False
    hold_training: bool = False

    @property
    def peer_id(self) -> PeerId:
        return self.identity.peer_id

    def kinds(self) -> list[str]:
        return [kind for kind, _, _ in self.log]

    def entries(self, kind: str) -> list[Mapping[str, Any]]:
        return [body for name, body, _ in self.log if name == kind]

    def post(self, event: events.Event) -> None:
        if self.dead or self.machine is None:
            return
        for effect in self.machine.handle(event):
            self.perform(effect)

    def perform(self, effect: effects.Effect) -> None:
        bottle, now = self.bottle, self.bottle.now
        match effect:
            case effects.Flood(kind=kind, payload=payload):
                envelope = sign_envelope(self.identity, kind, payload).encode()
                bottle.after(0.0, self, lambda: self.post(events.StatementReceived(bottle.now, self.peer_id, envelope)))
                for other in bottle.sites.values():
                    if other is not self:
                        bottle.carry("flood", self, other, envelope)
            case effects.SendStatement(peer=peer, kind=kind, payload=payload):
                envelope = sign_envelope(self.identity, kind, payload).encode()
                bottle.carry("direct", self, bottle.sites[peer], envelope)
            case effects.SendAnnouncement(peer=peer, core=core):
                if core in self.outbox:
                    announcement, chunks = self.outbox[core]
                    whole = Announcement(announcement.run, announcement.core, announcement.cover, chunks[0])
                    bottle.carry("announcement", self, bottle.sites[peer], whole.encode())
            case effects.Begin(start=start):
                context = self.machine.context
                share, first = context.law[self.peer_id], context.first_weight
                self.session.begin(bottle.initial, bytes.fromhex(start.run), self.key, share, first)
            case effects.Train(round=round_):
                if not self.hold_training:
                    bottle.after(1.0, self, lambda: self.train(round_))
            case effects.Encode():
                bottle.after(0.0, self, lambda: self.encode(effect))
            case effects.Commit():
                bottle.after(0.0, self, lambda: self.commit(effect))
            case effects.Fetch():
                bottle.after(0.0, self, lambda: self.fetch(effect))
            case effects.Mix():
                bottle.after(0.0, self, lambda: self.mix(effect))
            case effects.Adopt():
                bottle.after(0.0, self, lambda: self.adopt(effect))
            case effects.Forget(edges=edges, cores=cores):
                self.session.forget([[peer, *position] for peer, position in edges])
                self.session.drop(list(cores))
            case effects.Release(core=core):
                self.outbox.pop(core, None)
            case effects.Hold(core=core, announcement=announcement, recipients=recipients):
                self.holdings[core] = (announcement, recipients)
            case effects.LetGo(core=core):
                self.holdings.pop(core, None)
                self.chunks.pop(core, None)
            case effects.SendOffer(peer=peer, origin=origin, core=core):
                data = b""
                if core is not None:
                    held, recipients = self.holdings[core]
                    assert peer in recipients
                    data = replace(decode_announcement(held), inline=self.chunks[core]).encode()
                offer = Offer(bottle.proposal.run, origin, data).encode()
                bottle.carry("offer", self, bottle.sites[peer], offer)
            case effects.SetTimer(name=name, at=at):
                self.timers[name] = token = next(bottle.counter)
                bottle.after(max(0.0, at - now), self, lambda: self.fire(name, token))
            case effects.CancelTimer(name=name):
                self.timers.pop(name, None)
            case effects.Tell(topic=topic, facts=facts):
                self.told.append((topic, facts))
            case effects.StoreStatement() | effects.Restore() | effects.ShareClosings():
                pass
            case _:
                raise AssertionError(effect)

    def fire(self, name: str, token: int) -> None:
        if self.timers.get(name) == token:
            del self.timers[name]
            self.post(events.TimerFired(self.bottle.now, name))

    def train(self, round_: int) -> None:
        schedule, usual = self.machine.context.running_schedule, self.bottle.settings["local_steps"]
        value = self.session.train(round=round_, steps=schedule.steps_of(self.peer_id, usual))
        self.post(events.Trained(self.bottle.now, round_, value["loss"]))

    def encode(self, effect: effects.Encode) -> None:
        parcels, round_, step = [], effect.round, effect.step
        run = self.bottle.proposal.run
        for message in self.session.encode(round=round_, step=step, closing=effect.closing, **with_inertia(effect)):
            context = sealing_context(run, self.peer_id, (round_, step), message["channel"], TO_ALL)
            sealed = seal(message["payload"], context)
            self.sealed[((round_, step), message["channel"])] = sealed
            parcels.append(events.Parcel(message["channel"], sealed.manifest, Digest(message["result"])))
        self.post(events.Encoded(self.bottle.now, round_, step, tuple(parcels)))

    def commit(self, effect: effects.Commit) -> None:
        digests = []
        self.state = effect.state or self.state
        self.log.extend((entry.kind, entry.body, entry.documents) for entry in effect.entries)
        for core in effect.cores:
            digests.append(self.commit_core(core, effect.recipients))
        self.post(events.Committed(self.bottle.now, effect.token, tuple(digests)))

    def commit_core(self, core: Core, recipients: Sequence[PeerId]) -> Digest:
        sealed = self.sealed.pop((core.position, core.channel))
        signed = sign_envelope(self.identity, "core", core.encode())
        context = sealing_context(core.run, self.peer_id, core.position, core.channel, core.recipient)
        keys = {peer: wrap_key(sealed.key, self.bottle.sites[peer].prekey.public, context) for peer in recipients}
        body = {"run": core.run, "core": signed.digest}
        proof = lone_proof(self.identity, body, self.bottle.roster.consortium).encode()
        announcement = Outbound(core.run, signed.encode(), keys).announce(signed.digest, self.identity, proof)
        self.outbox[signed.digest] = (announcement, tuple(sealed.chunks))
        self.log.append(("delta_sent", {"round": core.round, "step": core.step, "core": signed.digest}, ()))
        return signed.digest

    def fetch(self, effect: effects.Fetch) -> None:
        core = effect.core
        context = sealing_context(core.run, effect.peer, core.position, core.channel, core.recipient)
        try:
            key = self.prekey.unwrap(effect.wrapped_key, context)
            opener = Opener(core.manifest, key, context)
            payload = opener.open(0, effect.inline)
            opener.finish()
            counts = self.machine.context.counting(effect.peer, core.channel)
            self.session.receive(effect.name, core.channel, payload, core.result, **counts)
        except RemoteError as error:
            self.post(events.Received(self.bottle.now, effect.name, str(error)))
            return
        if effect.keep:
            self.chunks[effect.digest] = effect.inline
        self.post(events.Received(self.bottle.now, effect.name))

    def mix(self, effect: effects.Mix) -> None:
        value = self.session.mix(
            round=effect.round,
            step=effect.step,
            edges=[edge.row() for edge in effect.edges],
            corrections=[[peer, *position] for peer, position in effect.corrections],
            last=effect.last,
            closing=effect.closing,
            **with_inertia(effect),
        )
        digest, shared = Digest(value["digest"]), Digest(value["shared"])
        self.post(events.Mixed(self.bottle.now, effect.round, effect.step, digest, value["distance"], shared))

    def adopt(self, effect: effects.Adopt) -> None:
        states = [[state.peer, state.weight, dict(state.cores)] for state in effect.states]
        value = self.session.adopt(round=effect.round, own=effect.own, states=states, **with_inertia(effect))
        self.post(events.Adopted(self.bottle.now, effect.round, Digest(value["digest"]), value["distance"]))


class Bottle:
    """The world: time, links, and who is in it."""

    def __init__(
        self,
        files: Sequence[Path],
        plan: str,
        settings: Mapping[str, Any],
        *,
        topology: Mapping[str, Any] | None = None,
        rounds: int = 3,
        closing_rounds: int = 0,
        deadline: float = 10.0,
        catch_up_rounds: int = CATCH_UP_ROUNDS,
        lost: Loss = lambda kind, source, target, data: False,
        identities: Sequence[Identity] | None = None,
        roster: Roster | None = None,
        proposal: Proposal | None = None,
        initial: bytes | None = None,
        keys: Mapping[PeerId, bytes] | None = None,
    ) -> None:
        """``roster``, ``proposal``, ``initial`` and ``keys`` (sampling) come from a run that is to be repeated."""
        self.now = 0.0
        self.counter = itertools.count()
        self.heap: list[tuple[float, int, Site, Callable[[], None]]] = []
        self.lost = lost
        self.settings = dict(settings)
        self.carried: list[tuple[str, PeerId, PeerId]] = []
        names = identities or [Identity.from_seed(bytes([number]) * 32) for number in range(1, len(files) + 1)]
        self.sites: dict[PeerId, Site] = {}
        for identity, path in zip(names, files, strict=True):
            session = Session(plan.encode(), self.settings)
            session.load_data(str(path))
            key = keys[identity.peer_id] if keys else identity.derive("site key")
            self.sites[identity.peer_id] = Site(self, identity, session, prekey=Prekey.generate(), key=key)
        self.order = list(self.sites)
        members = tuple(
            Member(peer, f"site-{number}", (), True, (), 1, 2**40) for number, peer in enumerate(self.order)
        )
        self.roster = roster or Roster(sha256(b"charter"), members, len(members) // 2 + 1)
        first = self.sites[self.order[0]].session
        self.initial = initial or first.initial(seed=1)
        rows = first.begin(self.initial, bytes(32), bytes(32), 1.0)
        channels = tuple(ChannelSpec(row["name"], row["size"], Digest(row["base"])) for row in rows)
        self.proposal = proposal or Proposal(
            charter=self.roster.charter, plan=sha256(plan.encode()), bundle=pack(plan), proposer=self.order[0],
            nonce=bytes(16), initial=sha256(self.initial), initial_size=len(self.initial), channels=channels, seed=1,
            topology=dict(topology or {"kind": "ring"}), rounds=rounds, closing_rounds=closing_rounds,
            deadline=deadline, patience=60.0, staleness=int(self.settings.get("staleness", 0)),
            catch_up_rounds=catch_up_rounds,
        )  # fmt: skip
        for site in self.sites.values():
            site.machine = Machine(site.peer_id, self.roster, self.proposal)

    def __getitem__(self, number: int) -> Site:
        return self.sites[self.order[number]]

    def machine(self, number: int) -> Machine:
        machine = self[number].machine
        assert machine is not None
        return machine

    def after(self, seconds: float, site: Site, action: Callable[[], None]) -> None:
        heapq.heappush(self.heap, (self.now + seconds, next(self.counter), site, action))

    def carry(self, kind: str, source: Site, target: Site, data: bytes) -> None:
        """Deliver a message after 10 ms, unless the test loses it."""
        if source.dead or target.dead or self.lost(kind, source.peer_id, target.peer_id, data):
            return
        self.carried.append((kind, source.peer_id, target.peer_id))
        makes = {"announcement": events.AnnouncementReceived, "offer": events.OfferReceived}
        make = makes.get(kind, events.StatementReceived)
        self.after(0.01, target, lambda: target.post(make(self.now, source.peer_id, data)))

    def link_all(self) -> None:
        for site in self.sites.values():
            for other in self.order:
                if other != site.peer_id:
                    site.post(events.LinkUp(self.now, other))

    def begin(self, approving: Sequence[int] | None = None) -> None:
        """Everybody hears the proposal and approves it."""
        for site in self.sites.values():
            site.post(events.Proposed(self.now))
        self.link_all()
        for number in approving if approving is not None else range(len(self.order)):
            site = self[number]
            samples = len(site.session._data["train"][0])
            site.post(events.Approve(self.now, samples, site.prekey.public))

    def kill(self, number: int) -> None:
        """The process is gone; the others notice at once that the link is down."""
        self[number].dead = True
        for site in self.sites.values():
            site.post(events.LinkDown(self.now, self.order[number], "process gone"))

    def step(self) -> bool:
        if not self.heap:
            return False
        self.now, _, _, action = heapq.heappop(self.heap)
        action()
        return True

    def run(self, until: Callable[[], bool] | None = None, limit: int = 500_000) -> None:
        """Step until nothing is left to do, or ``until`` holds."""
        for _ in range(limit):
            if until is not None and until():
                return
            if not self.step():
                if until is not None:
                    raise AssertionError(
                        f"nothing left to do; states {[str(s.machine.state) for s in self.sites.values() if s.machine]}"
                    )
                return
        raise AssertionError("the bottle does not come to rest")

    def remade(self, number: int, state: bytes | None = None) -> Machine:
        """The machine as a restart makes it from a stored state; the session's state is not touched."""
        site, start = self[number], self.machine(number).context.start
        outgoing = self.machine(number).deliveries.outgoing
        rows = tuple((digest, item.core, frozenset(item.waiting)) for digest, item in outgoing.items())
        restored = Restored(None, start, 0, rows, False, site.state if state is None else state)
        return Machine(site.peer_id, self.roster, self.proposal, restored=restored)

    def done(self) -> bool:
        return all(site.dead or (site.machine and site.machine.state is State.DONE) for site in self.sites.values())
