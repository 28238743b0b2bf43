"""Owners that try to evade their witnesses, and witnesses that try to harm an owner: each is noticed, or comes to nothing."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_peer_restart import three_homes
from test_peer_witnesses import (
    NAME,
    Say,
    ask_again,
    evidence_of,
    found,
    grow,
    history,
    peer_id,
    quick,  # noqa: F401
    rewrite,
    row,
    until,
    up,
    up_dishonest,
    witnessed,
)

import p2pfl
from p2pfl.audit import Answer, AuditLog, NewEntry, WitnessStore, read_entries
from p2pfl.crypto import Cosignature, cosign, log_origin, open_checkpoint, pack, read_log_proof
from p2pfl.crypto.notes import Note, NoteSignature, read_note
from p2pfl.errors import Refusal
from p2pfl.net import MemoryNetwork
from p2pfl.peer import open_home
from p2pfl.peer.own_heads import WITNESS
from p2pfl.peer.witnessing import HEAD
from p2pfl.types import PeerId


def head_of(note: bytes) -> tuple[bytes, int]:
    """Origin and size that a note says."""
    origin, size = note.split(b"\n")[:2]
    return origin, int(size)


@contextlib.contextmanager
def two_logs(folder: Path, home: Path, apart: int = 0) -> Iterator[tuple[AuditLog, AuditLog]]:
    """Two histories under one key, the second one longer by some entries."""
    identity = open_home(home).identity(None)
    with (
        AuditLog.create(folder / "one.db", identity, 1, NAME) as one,
        AuditLog.create(folder / "other.db", identity, 2, NAME) as other,
    ):
        for log in (one, other):  # some hundred appends in the event loop: a slow disk would hold up everybody
            log._connection.execute("PRAGMA synchronous = OFF")
        one.append([NewEntry("refused", {"reason": "one"})] * 20, 3)
        other.append([NewEntry("refused", {"reason": "other"})] * (20 + apart), 3)
        yield one, other


def kinds(home: Path) -> list[str]:
    """What a witness wrote down of logs."""
    found = {"loss_witnessed", "head_withheld", "log_misbehaviour"}
    return [entry.kind for entry in read_entries(home / "audit.db") if entry.kind in found]


async def test_the_first_checkpoint_shown_for_ever(tmp_path: Path) -> None:
    """It joins whatever its covers show, but never says by itself that its log has grown."""
    homes = found(tmp_path)
    network = MemoryNetwork()

    def stale(peer: p2pfl.Peer) -> Say:
        log = peer._journal.log
        first: list[bytes] = []

        def say(witness: PeerId, held: bytes, to: bytes) -> bytes:
            first.append(log.head.note)
            newest = to or first[0]
            old, new = head_of(held or newest)[1], head_of(newest)[1]
            return Answer(held, newest, log.prove_growth(old, new) if held and old < new else ()).sign(peer._identity)

        return say

    async with up(*homes[1:], network=network) as witnesses, up_dishonest(homes[0], network, stale) as evil:
        for witness in witnesses:
            await until(lambda witness=witness: row(witness, evil)["held"])
        while not all(row(witness, evil)["alarm"] for witness in witnesses):
            await grow(evil, 5)
            for witness in witnesses:  # what a cover brings
                await evil._host.notify(witness.peer_id, HEAD, evil._journal.head.note)
            await asyncio.sleep(0.05)
    assert all("log_misbehaviour" in kinds(home) for home in homes[1:])


async def test_one_neighbour_is_shown_another_epoch(tmp_path: Path) -> None:
    """The second history declares all of the first one lost, so both are joined by a signed answer; one must go on."""
    homes = found(tmp_path)
    network = MemoryNetwork()
    with two_logs(tmp_path, homes[0]) as (one, other):
        lost = {"epoch": 1, "kept": 0, "lost": [[0, 2**62, bytes(32)]], "reason": "a disk"}
        position = other.append([NewEntry("epoch_opened", lost)], 3, epoch=1)
        declared = other.head.size - 1
        assert position is not None

        def sly(peer: p2pfl.Peer) -> Say:
            def say(witness: PeerId, held: bytes, to: bytes) -> bytes:
                newest = to or (one if witness == peer_id(homes[1]) else other).head.note
                (line, new), (before, old) = head_of(newest), head_of(held or newest)
                if line.endswith(b"/1") and not before.endswith(b"/1"):
                    loss = other.prove_under(declared, new, newest).encode()
                    return Answer(held, newest, loss=loss).sign(peer._identity)
                log = other if line.endswith(b"/1") else one
                return Answer(held, newest, log.prove_growth(old, new) if old < new else ()).sign(peer._identity)

            return say

        async with up(*homes[1:], network=network) as (b, c), up_dishonest(homes[0], network, sly) as evil:
            await until(lambda: row(b, evil)["held"] and row(c, evil)["held"])
            while not (row(b, evil)["alarm"] and row(c, evil)["alarm"]):
                for log, witness in ((one, b), (other, c)):
                    log.append([NewEntry("refused", {"reason": "more"})], 4)
                    ask_again(witness, evil)
                await asyncio.sleep(0.05)
    assert kinds(homes[1])[0] == "loss_witnessed"


@pytest.mark.parametrize("apart", [0, 7])
async def test_notes_padded_until_they_are_too_long_to_be_told(tmp_path: Path, apart: int) -> None:
    homes = found(tmp_path)
    network = MemoryNetwork()
    junk = tuple(NoteSignature(f"x{number}", b"abcd", bytes(190)) for number in range(90))
    with two_logs(tmp_path, homes[0], apart) as logs:

        def padded(peer: p2pfl.Peer) -> Say:
            faces = dict(zip([peer_id(home) for home in homes[1:]], logs, strict=True))

            def say(witness: PeerId, held: bytes, to: bytes) -> bytes:
                whole = read_note(faces[witness].head.note)
                newest = to or Note(whole.text, whole.signatures + junk).encode()
                return Answer(held, newest).sign(peer._identity)

            return say

        async with up(*homes[1:], network=network) as witnesses, up_dishonest(homes[0], network, padded) as evil:
            for witness in witnesses:
                await until(lambda witness=witness: row(witness, evil)["withheld"])
                assert "more than its own line" in row(witness, evil)["withheld"]
                assert row(witness, evil)["held"] is None, "nothing of it is cosigned"


async def test_two_histories_behind_a_flood_of_checkpoints(tmp_path: Path) -> None:
    """Each neighbour is told so many checkpoints of what it is shown that those of the other have no room among them."""
    homes = found(tmp_path)
    network = MemoryNetwork()
    with two_logs(tmp_path, homes[0], 7) as logs:
        shown = [{log.head.note} for log in logs]
        faces = dict(zip([peer_id(home) for home in homes[1:]], zip(logs, shown, strict=True), strict=True))

        def sly(peer: p2pfl.Peer) -> Say:
            def say(witness: PeerId, held: bytes, to: bytes) -> bytes:
                log, known = faces[witness]
                if any(note and note not in known for note in (held, to)):
                    raise Refusal("busy")
                newest = to or log.head.note
                old, new = head_of(held or newest)[1], head_of(newest)[1]
                return Answer(held, newest, log.prove_growth(old, new) if old < new else ()).sign(peer._identity)

            return say

        async with up(*homes[1:], network=network) as witnesses, up_dishonest(homes[0], network, sly) as evil:
            await until(lambda: all(evil.peer_id in witness._host.links for witness in witnesses))
            for witness in witnesses:
                witness.witnessing.pace = 0.5
            while not all(row(witness, evil)["withheld"] for witness in witnesses):
                for witness in witnesses:
                    log, known = faces[witness.peer_id]
                    for _ in range(30):
                        log.append([NewEntry("refused", {"reason": "x"})] * 2, 4)
                        known.add(log.head.note)
                        await evil._host.notify(witness.peer_id, HEAD, log.head.note)
                    ask_again(witness, evil)
                await asyncio.sleep(0.1)
    assert all("head_withheld" in kinds(home) for home in homes[1:])


async def test_a_loss_of_one_entry_declared_over_a_rewritten_log(tmp_path: Path) -> None:
    """Everything before what it declares lost is another history, too: it is asked about, down to the first."""
    homes = a, b = found(tmp_path, "ab")
    network = MemoryNetwork()
    async with up(*homes, network=network) as (owner, witness):
        await witnessed(witness, owner)
        for _ in range(5):
            await grow(owner, 5)
            ask_again(witness, owner)
            await until(lambda: row(witness, owner)["held"] >= owner._journal.head.size)
    with contextlib.closing(WitnessStore(b / "witness.db")) as store:
        roots = dict(store._read("SELECT size, root FROM heads WHERE log = ? ORDER BY size", peer_id(a)))
    before, last = sorted(roots)[-2:]
    rewrite(a, 100)
    opened = open_home(a)
    with AuditLog.open(opened.audit, opened.identity(None)) as log:
        for kind, size, epoch in (("epoch_opened", last, 1), ("loss_declared", before, None)):
            body = {"epoch": 1, "kept": size - 1, "lost": [[0, size, roots[size]]], "reason": "a disk"}
            log.append([NewEntry(kind, body)], 5, epoch=epoch)

    def sly(peer: p2pfl.Peer) -> Say:
        log = peer._journal.log

        def say(asked_by: PeerId, held: bytes, to: bytes) -> bytes:
            newest = to or log.head.note
            (line, old), new = head_of(held or newest), head_of(newest)[1]
            if line.endswith(b"/1"):
                return Answer(held, newest, log.prove_growth(old, new) if old < new else ()).sign(peer._identity)
            loss = log.prove_under(100 if old == last else 101, new, newest).encode()
            return Answer(held, newest, loss=loss).sign(peer._identity)

        return say

    async with up(b, network=network) as (witness,), up_dishonest(a, network, sly) as evil:
        await until(lambda: row(witness, evil)["alarm"])
    assert "log_misbehaviour" in kinds(b) and "loss_witnessed" not in kinds(b)


async def test_no_question_stops_an_honestly_restored_peer(tmp_path: Path) -> None:
    homes = a, b, c = found(tmp_path)
    network = MemoryNetwork()
    async with up(*homes, network=network) as (first, second, third):
        await asyncio.gather(witnessed(second, first), witnessed(third, first))
    shutil.copytree(a, tmp_path / "backup")
    await history(homes, network, entries=20)
    shutil.rmtree(a)
    shutil.copytree(tmp_path / "backup", a)
    async with up(b, c, a, network=network) as (second, third, first):
        await until(lambda: row(second, first)["epoch"] == 1 and row(third, first)["epoch"] == 1)
        store = second.witnessing._sightings._store
        lost, now = store.last_of_epochs(first.peer_id)
        question = pack({"ask": "grow", "held": now, "to": lost})
        with pytest.raises(Refusal, match="ask for the newest"):
            await second._host.request(first.peer_id, WITNESS, question, timeout=5)
        assert first.failure is None


async def test_cosignatures_that_would_spoil_what_is_stapled(tmp_path: Path) -> None:
    """From another time, or with lines of others on them: refused, and what travels stays as it was."""
    a, b, c = found(tmp_path)
    async with up(a, b, c, network=MemoryNetwork()) as (first, second, third):
        await asyncio.gather(witnessed(second, first), witnessed(third, first))
        await until(lambda: first._own_heads.witnessed)
        note = first._journal.head.note
        junk = NoteSignature("x" * 20, b"abcd", bytes(1200))
        good = cosign(second._identity, NAME, note, int(time.time()))
        lines = read_note(good.note)
        items = [cosign(second._identity, NAME, note, seconds) for seconds in (2**64 - 1, 2**63 - 1, 0)]
        items += [
            Cosignature(Note(lines.text, signatures).encode(), good.statement)
            for signatures in (
                (junk, *lines.signatures, junk),
                (*lines.signatures, junk),
                (*lines.signatures[::-1], junk),
            )
        ]
        for item in items:
            question = pack({"ask": "keep", "item": item.encode()})
            with pytest.raises(Refusal):
                await second._host.request(first.peer_id, WITNESS, question, timeout=5)
        origin = log_origin(NAME, first.peer_id)
        open_checkpoint(first._own_heads.witnessed, origin, first.peer_id)
        assert {line.name for line in read_note(first._own_heads.witnessed).signatures} <= {
            origin, *(log_origin(NAME, peer.peer_id) + "/witness" for peer in (second, third))
        }  # fmt: skip


async def run_rounds(peers: list[p2pfl.Peer], folder: Path) -> None:
    """A whole run of all peers."""
    first, *others = peers
    run = await first.propose(folder / "plan")
    joined = [await peer.join((await peer.next_proposal()).id) for peer in others]
    await asyncio.gather(*(handle.finished() for handle in (run, *joined)))


@pytest.mark.slow
@pytest.mark.parametrize("grown", [False, True])
async def test_a_backup_from_the_middle_of_a_run_is_a_declared_loss_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, grown: bool
) -> None:
    """Witnesses had checked some entries and seen covers of many more; the restored log reaches sizes that they had."""
    monkeypatch.setattr("p2pfl.peer.witnessing.PACE", 10.0)
    a, b, c = three_homes(tmp_path, rounds=4)
    network = MemoryNetwork()
    async with up(b, c, network=network) as (second, third):
        async with up(a, network=network) as (first,):
            running = asyncio.create_task(run_rounds([first, second, third], tmp_path))
            await until(lambda: first._journal.head.size > 20)
            with (
                contextlib.closing(sqlite3.connect(a / "audit.db")) as log,
                contextlib.closing(sqlite3.connect(tmp_path / "backup.db")) as copy,
            ):
                log.backup(copy)
            await running
            size = first._journal.head.size
        last = second.witnessing._sightings.newest(first.peer_id, 0)
        assert last is not None and row(second, first.peer_id)["held"] < last[1] <= size
        for file in a.glob("audit.db*"):
            file.unlink()
        shutil.copy(tmp_path / "backup.db", a / "audit.db")
        for witness in (second, third):
            witness.witnessing.pace = 0.05
        async with up(a, network=network) as (first,):
            await until(lambda: first._own_heads.cleared.is_set())
            assert first.status()["epoch"] == 1
            while grown and first._journal.head.size <= last[1]:
                await grow(first, 1)
            for witness in (second, third):
                ask_again(witness, first)
                await until(lambda witness=witness: row(witness, first)["epoch"] == 1)
                await until(lambda witness=witness: "loss declared" in [topic for topic, _ in witness.log_news])
            assert first.failure is None
            proof = read_log_proof((await first._journal.prove(1)).encode())
            assert proof.checkpoint.partition(b"\n")[0].endswith(b"/1")
        assert [row(witness, peer_id(a))["alarm"] for witness in (second, third)] == [None, None]
    assert not evidence_of(b) and not evidence_of(c)
    assert {*kinds(b), *kinds(c)} == {"loss_witnessed"}
