"""Strangers and rubbish against a real peer: past no transport, and written down under the right name."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bottle import QUADRATIC_PLAN, Quadratic

from p2pfl.audit import read_entries, verify_log
from p2pfl.crypto import (
    Certificate,
    Identity,
    create_certificate,
    pack,
    read_key,
    sha256,
    sign_envelope,
)
from p2pfl.errors import LinkError, PlanError
from p2pfl.gossip import Proposal, State, events
from p2pfl.gossip.closing_statement import Closing
from p2pfl.gossip.context import REFUSALS_LOGGED
from p2pfl.gossip.messages import ANNOUNCEMENT_LIMIT, FLOOD_LIMIT, STANDING_LIMIT, Announcement, envelope_frame
from p2pfl.gossip.statements import Approval
from p2pfl.governance import plan_from_files
from p2pfl.net import Host, MemoryNetwork, TcpTransport
from p2pfl.peer import Home, Peer, found_consortium, open_home
from p2pfl.peer.home import tls_password
from p2pfl.peer.runner import ANNOUNCE, DIRECT, FLOOD, QUEUE_LIMIT
from p2pfl.peer.runs import OPEN_PROPOSALS
from p2pfl.train.session import Session
from p2pfl.types import ChannelSpec, Roster

BOUND = 60.0  # seconds that bound every wait; two workers that import torch are the longest
PASSWORD = b"only for tests"
PROTOCOLS = (FLOOD, ANNOUNCE, DIRECT)
SETTINGS = """
[plan]
name = "points"
[data]
tag = "points"
[training]
rule = "dpsgd"
learning_rate = 0.1
local_steps = 1
batch_size = 100
rounds = 20
closing_rounds = 1
dtype = "float64"
deadline = 20
"""


class World:
    """The homes of one consortium (lille, rouen, caen) and a way to reach them."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.kind = kind
        self.network = MemoryNetwork() if kind == "memory" else None
        self.homes = {name: folder / name for name in ("lille", "rouen", "caen")}
        listen = {home: self._address(name) for name, home in self.homes.items()}
        found_consortium(dict.fromkeys(self.homes.values()), "test", {"kind": "full"}, listen=listen)

    def _address(self, name: str) -> str:
        if self.kind == "memory":
            return f"/memory/{name}"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return f"/ip4/127.0.0.1/tcp/{probe.getsockname()[1]}"

    def peer(self, name: str) -> Peer:
        return Peer(self.homes[name], network=self.network)

    def home(self, name: str) -> Home:
        return open_home(self.homes[name])

    def identity(self, name: str) -> Identity:
        return read_key(self.homes[name] / "identity.key", None)

    def certificate(self, name: str) -> tuple[Certificate, bytes]:
        """A member's own certificate, and the password of its key."""
        home = self.home(name)
        key = (home.path / "tls.key").read_bytes()
        return Certificate(home.member().certificates[0], key), tls_password(self.identity(name))

    def refused(self, name: str) -> list[tuple[str, str]]:
        """(who, why) of each refusal in a peer's log."""
        entries = read_entries(self.home(name).audit, 0)
        return [(entry.body["peer"], entry.body["reason"]) for entry in entries if entry.kind == "refused"]

    def links(self, name: str) -> list[str]:
        """Peers whose link ever came up."""
        return [entry.body["peer"] for entry in read_entries(self.home(name).audit, 0) if entry.kind == "link_up"]

    @contextlib.asynccontextmanager
    async def host(
        self, identity: Identity, certificate: Certificate, password: bytes, roster: Roster
    ) -> AsyncIterator[Host]:
        """A bare host without any of the product's restraint."""
        if self.network is not None:
            transport: Any = self.network.transport("attacker", certificate.der)
        else:
            transport = TcpTransport(certificate, password)
        host = Host(identity, roster, [transport], on_link=lambda *_: None)
        for protocol in PROTOCOLS:  # both ends must offer what they speak
            host.handle_notify(protocol, lambda peer, payload: None)
        await host.start([])
        try:
            yield host
        finally:
            await host.stop()


@pytest.fixture(params=["memory", "tcp"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> World:
    return World(tmp_path, request.param)


def new_certificate() -> Certificate:
    now = int(time.time())
    return create_certificate("attacker", not_before=now - 3600, not_after=now + 86400, password=PASSWORD)


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(BOUND):
        while not condition():
            await asyncio.sleep(0.01)


async def refused_to(world: World, identity: Identity, certificate: Certificate, password: bytes) -> str:
    """Dial lille with these keys; it must fail. Returns what lille wrote down, which must be one entry."""
    async with world.peer("lille") as victim:
        before = len(world.refused("lille"))
        async with world.host(identity, certificate, password, victim.roster) as host:
            with pytest.raises(LinkError):
                await host.dial(victim.peer_id)
            assert not host.links
        await until(lambda: len(world.refused("lille")) > before)
        assert not victim.links() and not world.links("lille")
        assert victim.failure is None
        entries = world.refused("lille")[before:]
    assert len(entries) == 1
    assert verify_log(world.home("lille").audit, victim.peer_id).ok
    return f"{entries[0][0]}: {entries[0][1]}"


async def test_a_stranger_is_refused_and_written_down(world: World) -> None:
    said = await refused_to(world, Identity.generate(), new_certificate(), PASSWORD)
    assert "no certificate of a current member" in said


async def test_a_stranger_with_a_members_certificate_and_its_key_is_refused(world: World) -> None:
    """The stolen certificate's key opens the transport; without the member's identity it ends there."""
    stranger = Identity.generate()
    said = await refused_to(world, stranger, *world.certificate("rouen"))
    assert said.startswith(stranger.peer_id) and "not a member" in said


async def test_a_member_with_an_old_certificate_is_refused(world: World) -> None:
    """Rouen's right identity, but a certificate that its record in the charter does not (or no longer) hold."""
    said = await refused_to(world, world.identity("rouen"), new_certificate(), PASSWORD)
    assert "no certificate of a current member" in said


async def test_a_member_with_another_members_certificate_is_refused(world: World) -> None:
    said = await refused_to(world, world.identity("rouen"), *world.certificate("caen"))
    assert said.startswith(world.identity("rouen").peer_id) and "not in its record" in said


async def test_the_right_keys_do_get_in(world: World) -> None:
    """Else the refusals above would show nothing."""
    async with world.peer("lille") as victim:
        certificate, password = world.certificate("rouen")
        async with world.host(world.identity("rouen"), certificate, password, victim.roster) as host:
            await host.dial(victim.peer_id)
            await until(lambda: victim.links())
    assert world.links("lille") == [world.identity("rouen").peer_id]
    assert not world.refused("lille")


# --- a member that talks rubbish over a real link

Rubbish = Callable[[World, Peer], bytes]
STRANGER = Identity.from_seed(b"s" * 32)
RUN = sha256(b"unknown run")
RUBBISH: dict[str, tuple[str, Rubbish, str | None]] = {  # protocol, bytes, reason; None: ignored, there is no such run
    "flood: nothing": (FLOOD, lambda world, peer: b"", "cannot be decoded"),
    "flood: random bytes": (FLOOD, lambda world, peer: bytes(range(193, 256)) * 9, "cannot be decoded"),
    "flood: a number": (FLOOD, lambda world, peer: pack(7), "not a run and an envelope"),
    "flood: no envelope": (FLOOD, lambda world, peer: envelope_frame(RUN, b"rubbish"), "envelope"),
    "flood: too long": (FLOOD, lambda world, peer: bytes(FLOOD_LIMIT + 200), "more than the"),
    "flood: deep": (FLOOD, lambda world, peer: b"\x91" * 900 + b"\x01", "nested|decoded"),
    "flood: by a stranger": (FLOOD, lambda world, peer: frame(STRANGER, "closing"), "no run"),
    "flood: not what it says": (FLOOD, lambda world, peer: frame(world.identity("rouen"), "proposal", b"\x80"), "field"),
    "announcement: nothing": (ANNOUNCE, lambda world, peer: b"", "cannot be decoded"),
    "announcement: random bytes": (ANNOUNCE, lambda world, peer: bytes(range(193, 256)), "cannot be decoded"),
    "announcement: a list": (ANNOUNCE, lambda world, peer: pack([1, 2, 3, 4]), "not run, core, cover"),
    "announcement: too long": (ANNOUNCE, lambda world, peer: bytes(ANNOUNCEMENT_LIMIT + 1), "the limit is"),
    "announcement: unknown run": (ANNOUNCE, lambda world, peer: Announcement(RUN, b"", b"", b"").encode(), None),
    "direct: nothing": (DIRECT, lambda world, peer: b"", "cannot be decoded"),
    "direct: random bytes": (DIRECT, lambda world, peer: bytes(range(193, 256)), "cannot be decoded"),
    "direct: no frame": (DIRECT, lambda world, peer: pack({"run": 1}), "not a run and an envelope"),
    "direct: too long": (DIRECT, lambda world, peer: bytes(STANDING_LIMIT + 200), "more than the"),
    "direct: unknown run": (DIRECT, lambda world, peer: envelope_frame(RUN, b"rubbish"), None),
}  # fmt: skip


def frame(signer: Identity, kind: str, payload: bytes | None = None) -> bytes:
    statement = Closing(RUN, True, 1, sha256(b"d"), (), 0).encode() if payload is None else payload
    return envelope_frame(RUN, sign_envelope(signer, kind, statement).encode())


@contextlib.asynccontextmanager
async def rouen_linked(world: World, victim: Peer) -> AsyncIterator[Callable[[str, bytes], Awaitable[None]]]:
    """Rouen's keys in the hands of a bare host, linked to lille; gives what sends to it."""
    certificate, password = world.certificate("rouen")
    async with world.host(world.identity("rouen"), certificate, password, victim.roster) as host:
        await host.dial(victim.peer_id)

        async def send(protocol: str, data: bytes) -> None:
            await host.notify(victim.peer_id, protocol, data)

        await until(lambda: victim.links())
        yield send
        assert host.links, "rubbish in a message costs an entry, not the link"


async def test_rubbish_over_a_real_link_is_refused_by_name(world: World) -> None:
    rouen = world.identity("rouen").peer_id
    expected = []
    async with world.peer("lille") as victim, rouen_linked(world, victim) as send:
        for name, (protocol, make, reason) in RUBBISH.items():
            if reason == "no run":  # a statement about a run that is not known here is not even looked at
                reason = None
            await send(protocol, make(world, victim))
            expected += [] if reason is None else [(name, reason)]
            count = min(len(expected), REFUSALS_LOGGED)
            await until(lambda count=count: len(world.refused("lille")) == count)
        assert victim.failure is None and list(victim.links()) == ["rouen"]
    entries = world.refused("lille")
    assert len(entries) == min(len(expected), REFUSALS_LOGGED)
    for (who, why), (name, reason) in zip(entries, expected, strict=False):
        assert who == rouen, name
        assert any(words in why for words in reason.split("|")), (name, why)
    assert verify_log(world.home("lille").audit, victim.peer_id).ok


async def test_a_flood_of_rubbish_fills_no_log(world: World) -> None:
    async with world.peer("lille") as victim, rouen_linked(world, victim) as send:
        for number in range(300):
            await send(PROTOCOLS[number % 3], b"rubbish" + bytes([number % 256]))
        await until(lambda: victim._refusals[world.identity("rouen").peer_id] == 300)
        await until(lambda: len(world.refused("lille")) == REFUSALS_LOGGED)
        assert list(victim.links()) == ["rouen"]
    assert len(world.refused("lille")) == REFUSALS_LOGGED


@pytest.mark.timeout(180)
async def test_rubbish_during_a_run_does_not_keep_the_others_from_training(world: World, tmp_path: Path) -> None:
    """Rouen sends rubbish about the very run that lille and caen train; it never approved."""
    plan = tmp_path / "plan"
    plan.mkdir()
    (plan / "plan.py").write_text(QUADRATIC_PLAN)
    (plan / "plan.toml").write_text(SETTINGS)
    files = Quadratic.make((12, 9)).write(tmp_path)
    for name, file in zip(("lille", "caen"), files, strict=True):
        world.home(name).registry.add("points", file, now=int(time.time()))
    rouen = world.identity("rouen")
    async with world.peer("lille") as lille, world.peer("caen") as caen, rouen_linked(world, lille) as send:
        await until(lambda: "caen" in lille.links())
        run = await lille.propose(plan, seed=1, patience=600.0)
        joined = await caen.join((await caen.next_proposal()).id)
        for data in about_run(run.id, rouen):
            for protocol in PROTOCOLS:
                await send(protocol, data)
        machine = lille._book.runners[run.id].machine
        await until(lambda: len(machine.starting.approvals) == 2)
        lille._book.runners[run.id]._fire("approvals")  # patience is over: those who approved begin
        await until(lambda: machine.state is not State.PROPOSING)
        sent = 0
        ended = asyncio.gather(run.finished(), joined.finished())
        while not ended.done():
            for data in about_run(run.id, rouen):
                await send(PROTOCOLS[sent % 3], data)
                sent += 1
            await asyncio.sleep(0.01)
            assert sent < 100_000
        await ended
        assert lille.failure is None and caen.failure is None
        assert lille.run(run.id).report()["finished"] and caen.run(run.id).report()["finished"]
        assert lille.run(run.id).report()["rounds_done"] == 21
        assert lille.run(run.id).report()["missing"] == []
    entries = world.refused("lille")
    assert {who for who, _ in entries} == {rouen.peer_id}
    assert 0 < len(entries) <= 2 * REFUSALS_LOGGED  # at the door and inside the run
    assert not world.refused("caen"), "nothing of it was passed on"
    for name in ("lille", "caen"):
        assert verify_log(world.home(name).audit, world.identity(name).peer_id).ok


@pytest.mark.slow
async def test_a_proposal_that_lies_about_its_plan_is_not_approved(tmp_path: Path) -> None:
    """Channels that the plan's code does not have would fail in every round: found before anything is signed."""
    world = World(tmp_path, "memory")
    file = Quadratic.make((12,)).write(tmp_path)[0]
    world.home("lille").registry.add("points", file, now=int(time.time()))
    plan = plan_from_files(QUADRATIC_PLAN.encode(), SETTINGS.encode())
    session = Session(plan.source, plan.session_settings())
    initial, rouen = session.initial(seed=1), world.identity("rouen")
    rows = session.begin(initial, bytes(32), bytes(32), 1.0)
    good = tuple(ChannelSpec(row["name"], row["size"], row["base"]) for row in rows)
    lies = {
        "name": (replace(good[0], name="y"),),
        "size": (replace(good[0], size=good[0].size + 8),),
        "base": (replace(good[0], base=sha256(b"elsewhere")),),
        "one more": (*good, replace(good[0], name="z")),
    }
    async with world.peer("lille") as lille, rouen_linked(world, lille) as send:
        lille._contents.put_file(initial)
        for number, channels in enumerate((*lies.values(), good)):
            proposal = Proposal(
                charter=lille.roster.charter, plan=plan.digest, bundle=plan.bundle(), proposer=rouen.peer_id,
                nonce=bytes([number]) * 16, initial=sha256(initial), initial_size=len(initial), channels=channels,
                seed=1, topology={"kind": "full"}, rounds=3, closing_rounds=0, deadline=5.0, patience=60.0,
            )  # fmt: skip
            statement = sign_envelope(rouen, "proposal", proposal.encode()).encode()
            while number >= OPEN_PROPOSALS and lille._book.runners:  # a member has so many open ones, and no more
                lille._book.runners.popitem()[1]._task.cancel()
            await send(FLOOD, envelope_frame(proposal.run, statement))
            await until(lambda run=proposal.run: run in lille._book.runners)
            if channels != good:
                with pytest.raises(PlanError, match="other channels than its plan"):
                    await lille.join(proposal.run)
                assert lille._book.runners[proposal.run].worker is None
            else:
                await lille.join(proposal.run)
        assert not world.refused("lille") and lille.failure is None


async def test_a_full_queue_drops_messages_and_nothing_else(tmp_path: Path) -> None:
    """The machine waits for its own commits, timers and worker: a flood of messages must not push them out."""
    world = World(tmp_path, "memory")
    plan = plan_from_files(QUADRATIC_PLAN.encode(), SETTINGS.encode())
    world.home("lille").registry.add("points", Quadratic.make((12,)).write(tmp_path)[0], now=int(time.time()))
    rouen = world.identity("rouen").peer_id
    async with world.peer("lille") as lille:
        run = await lille.propose(plan, seed=1)
        runner = lille._book.runners[run.id]
        await until(lambda: len(runner.machine.starting.approvals) == 1)
        taken = [runner.post(events.StatementReceived(runner.now(), rouen, b"rubbish")) for _ in range(QUEUE_LIMIT + 9)]
        assert taken == [True] * QUEUE_LIMIT + [False] * 9
        assert runner.post(events.LinkUp(runner.now(), rouen)), "what comes from here is never dropped"
        assert runner.post(events.StatementReceived(runner.now(), lille.peer_id, b"own"))
        await until(lambda: not runner._queue)
        assert rouen in runner.machine.context.linked
        assert runner.machine.context.counters["queue full"] == 9
        assert lille.failure is None


def about_run(run: str, rouen: Identity) -> list[bytes]:
    """Well framed, and wrong."""
    approval = Approval(run, sha256(b"another plan"), 5, bytes(range(32)))  # type: ignore[arg-type]
    return [
        Announcement(run, b"", b"", b"").encode(),  # type: ignore[arg-type]
        envelope_frame(run, b"rubbish"),
        envelope_frame(run, sign_envelope(STRANGER, "approval", approval.encode()).encode()),
        envelope_frame(run, sign_envelope(rouen, "settle", json.dumps({"run": run}).encode()).encode()),
        envelope_frame(run, sign_envelope(rouen, "acknowledgement", pack({"run": run, "cores": [7]})).encode()),
        envelope_frame(sha256(b"other"), sign_envelope(rouen, "approval", approval.encode()).encode()),
    ]
