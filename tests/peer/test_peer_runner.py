"""The shell around one machine: order on the wire, and what a failure at the end may cost."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from bottle import Quadratic
from hospitals import write_plan

import p2pfl
from p2pfl.audit import AuditLog, NewEntry
from p2pfl.crypto import Identity, sha256
from p2pfl.errors import ConfigError, LocalError
from p2pfl.gossip import effects
from p2pfl.gossip.anchors import Outbound
from p2pfl.peer.holdings import Holdings
from p2pfl.peer.journal import Journal
from p2pfl.peer.runner import ANNOUNCE, DIRECT, RunKeys, Runner
from p2pfl.peer.runs import Runs
from p2pfl.peer.states import States
from p2pfl.peer.worker import Worker
from p2pfl.types import PeerId


async def test_a_later_message_to_a_neighbour_never_overtakes_an_earlier_one(tmp_path: Path) -> None:
    """A settle message in front of the last delta would say that no delta comes: the neighbour mixes without it."""
    run, core = sha256(b"run"), sha256(b"core")
    me, lille, caen = (Identity.from_seed(bytes([number]) * 32) for number in range(3))
    disk = threading.Event()  # the disk is slow: the announcement's first chunk is not read yet
    wire: list[tuple[str, str]] = []

    def first_chunk(_: str) -> bytes:
        assert disk.wait(10)
        return b"chunk"

    async def notify(peer: str, protocol: str, data: bytes) -> None:
        wire.append((peer, protocol))

    machine: Any = SimpleNamespace(context=SimpleNamespace(proposal=SimpleNamespace(run=run)))
    log = AuditLog.create(tmp_path / "audit.db", me, 1)
    journal = Journal(log, lambda error: None)
    services: Any = SimpleNamespace(
        identity=me, host=SimpleNamespace(notify=notify), contents=SimpleNamespace(first_chunk=first_chunk, is_for=lambda core, peer: True),
        journal=journal, cleared=asyncio.Event(), witnessed=bytes,
    )  # fmt: skip
    runner = Runner(machine, services, RunKeys(), States(tmp_path), Holdings(tmp_path / "holdings", services))
    runner.outbox.restore(core, Outbound(run, b"core", {}).encode(), await journal.commit([NewEntry("x", {})]))
    runner._perform_all(
        [
            effects.SendAnnouncement(lille.peer_id, core),
            effects.SendStatement(lille.peer_id, "settle", b"settle"),
            effects.SendStatement(caen.peer_id, "settle", b"settle"),
        ]
    )
    async with asyncio.timeout(10):
        while not wire:
            await asyncio.sleep(0)
        for _ in range(20):  # whatever could overtake has had its turn
            await asyncio.sleep(0)
        assert wire == [(caen.peer_id, DIRECT)]  # one slow neighbour delays no other
        disk.set()
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(wire) == 1, "no checkpoint leaves before it is known where the own log stands"
        services.cleared.set()
        while len(wire) < 3:
            await asyncio.sleep(0)
    assert wire[1:] == [(lille.peer_id, ANNOUNCE), (lille.peer_id, DIRECT)]
    await runner.stop()
    log.close()


async def test_a_model_that_cannot_be_saved_ends_the_run_and_not_the_peer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = Worker.call

    async def failing(self: Worker, operation: str, /, timeout: float | None = None, **arguments: Any) -> Any:
        if operation == "result":
            raise LocalError("the worker process ended during 'result'")
        return await call(self, operation, timeout, **arguments)

    monkeypatch.setattr(Worker, "call", failing)
    plan = write_plan(tmp_path / "plan", rounds=2)
    async with p2pfl.local(plan, Quadratic.make([4, 4]).write(tmp_path), peers=2) as peers:
        runs = await peers.run(seed=1)
        for peer, run in zip(peers, runs, strict=True):
            assert run.report()["problem"] == "the worker process ended during 'result'"
            assert run.report()["finished"] and peer.failure is None
            with pytest.raises(ConfigError, match=r"no model of run .*the worker process ended"):
                await run.model_file()


async def test_a_checkpoint_is_taken_before_the_next_training_begins(tmp_path: Path) -> None:
    """Else a peer that is restarted would find its next round trained already, and train nothing."""
    me = Identity.from_seed(bytes(32))
    asked: list[str] = []

    async def call(operation: str, **arguments: Any) -> Any:
        asked.append(operation)
        if operation == "save":
            await asyncio.to_thread(Path(arguments["path"]).write_bytes, b"checkpoint")
            return sha256(b"checkpoint")
        return {"loss": 0.0} if operation == "train" else None

    async def commit(entries: Any) -> int:
        asked.append("commit")
        return 1

    start: Any = SimpleNamespace(plan="plan", run="00")
    schedule = SimpleNamespace(steps_of=lambda peer, usual: usual)
    law, proposal = {me.peer_id: 1.0}, SimpleNamespace(run=sha256(b"run"))
    context = SimpleNamespace(proposal=proposal, law=law, first_weight=1.0, running_schedule=schedule)
    machine: Any = SimpleNamespace(context=context, handle=lambda event: [])
    services: Any = SimpleNamespace(identity=me, journal=SimpleNamespace(commit=commit), approved=lambda plan: True)
    services.cleared, services.witnessed = asyncio.Event(), bytes
    states = States(tmp_path)
    runner = Runner(machine, services, RunKeys(), states, Holdings(tmp_path / "holdings", services))
    runner.worker = SimpleNamespace(call=lambda operation, timeout=None, **more: call(operation, **more))  # type: ignore[assignment]
    entry = effects.LogEntry("state_stored", {})
    runner._perform_all([effects.Begin(start)])
    for round_ in range(3):
        stored = effects.Commit(f"mixed:{round_}:0", (entry,), (), (), b"state %d" % round_, True)
        runner._perform_all([stored, effects.Train(round_ + 1)])
    async with asyncio.timeout(10):
        while asked.count("commit") < 3 or asked.count("train") < 3:
            await asyncio.sleep(0)
    assert [word for word in asked if word != "commit"] == ["begin", *["save", "train"] * 3]
    async with asyncio.timeout(10):
        while states.read(sha256(b"state 2")) is None or len(os.listdir(tmp_path)) > 2:
            await asyncio.sleep(0)
    assert states.read(sha256(b"state 1")) is None, "older states are gone"
    runner.worker = None
    await runner.stop()


async def test_the_report_takes_in_what_others_say_before_everybody_has(tmp_path: Path) -> None:
    """A site that dies at the very end keeps the completion record open for a day: what is known by then is told."""
    plan = write_plan(tmp_path / "plan", rounds=3)
    async with p2pfl.local(plan, Quadratic.make([4, 4, 4]).write(tmp_path), peers=3) as peers:
        silent = peers[2]

        async def but_closings(peer: PeerId, data: bytes) -> None:
            """Neither when it ends nor with the standings some seconds later."""
            if b"closing" not in data:
                await Runs._send(silent._book, peer, data)

        silent._book._send = but_closings  # type: ignore[method-assign]
        runs = await peers.run(seed=1)

        def finished(run: p2pfl.Run, number: int) -> bool | None:
            return next(row["finished"] for row in run.report()["completion"] if row["peer"] == peers[number].peer_id)

        async with asyncio.timeout(20):
            while not (finished(runs[0], 1) and finished(runs[1], 0)):
                await asyncio.sleep(0.01)
        assert finished(runs[0], 2) is None and finished(runs[1], 2) is None, "the third has not been heard yet"
        stored = json.loads((peers[0].home.run_folder(runs[0].id) / "report.json").read_bytes())
        assert stored["completion"] == runs[0].report()["completion"]
