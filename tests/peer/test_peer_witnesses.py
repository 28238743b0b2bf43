"""Witnesses with real peers: cosignatures, what a restored backup does, and who notices which attack."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

import p2pfl
from p2pfl.audit import AuditLog, NewEntry, check_evidence, read_entries, read_evidence
from p2pfl.crypto import log_origin, read_log_proof
from p2pfl.crypto.notes import read_note
from p2pfl.errors import SignatureRefused
from p2pfl.net import MemoryNetwork
from p2pfl.peer import found_consortium, open_home

NAME = "test"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neighbours are asked without a pause between two questions."""
    monkeypatch.setattr("p2pfl.peer.witnessing.PACE", 0.05)


def found(folder: Path, names: str = "abc", kind: str = "full") -> list[Path]:
    homes = [folder / name for name in names]
    found_consortium(dict.fromkeys(homes), NAME, {"kind": kind})
    return homes


@contextlib.asynccontextmanager
async def up(*homes: Path, network: MemoryNetwork) -> AsyncIterator[list[p2pfl.Peer]]:
    async with contextlib.AsyncExitStack() as stack:
        yield [await stack.enter_async_context(p2pfl.Peer(home, network=network)) for home in homes]


async def until(condition: Callable[[], Any], what: str = "") -> Any:
    """Look again at every turn of the loop, for a bounded time."""
    async with asyncio.timeout(30):
        while not (value := condition()):
            await asyncio.sleep(0.01)
    return value


def row(peer: p2pfl.Peer, of: p2pfl.Peer | str) -> dict[str, Any]:
    """What a peer's status says of another one."""
    wanted = of if isinstance(of, str) else of.peer_id
    return next(row for row in peer.witnessing.status() if row["peer"] == wanted)


def peer_id(home: Path) -> str:
    return str(open_home(home).member().peer_id)


async def witnessed(witness: p2pfl.Peer, owner: p2pfl.Peer) -> int:
    """Wait until a witness has cosigned and the owner has the cosignature; the size that is held."""
    await until(lambda: row(owner, witness)["holds"] is not None and row(witness, owner)["held"] is not None)
    return int(row(witness, owner)["held"])


async def grow(peer: p2pfl.Peer, entries: int = 3) -> None:
    for number in range(entries):
        await peer._journal.commit([NewEntry("refused", {"peer": "x", "reason": f"entry {number}"})])


def ask_again(witness: p2pfl.Peer, owner: p2pfl.Peer) -> None:
    """As if a newer checkpoint had been seen in a cover."""
    witness.witnessing._want(owner.peer_id)


def evidence_of(home: Path) -> list[Path]:
    return sorted((home / "evidence").glob("*.json"))


def rewrite(home: Path, *reasons: str, like: Path | None = None) -> None:
    """What the owner of the key can do: a whole new log, every hash and signature in order."""
    opened = open_home(home)
    first = next(iter(read_entries(opened.audit)))
    for file in home.glob("audit.db*"):
        file.unlink()
    with AuditLog.create(opened.audit, opened.identity(None), first.time, NAME) as log:
        for reason in reasons:
            log.append([NewEntry("refused", {"peer": "x", "reason": reason})], first.time + 1)


def deny(peer: p2pfl.Peer) -> None:
    """A dishonest peer: it claims that it contains whatever is held of it."""
    heads = peer._own_heads

    async def contains(checkpoint: Any) -> bool:
        return True

    async def growth(old: int, new: int) -> tuple[bytes, ...]:
        return (bytes(32),) if old != new else ()

    heads._contains = contains  # type: ignore[method-assign]
    heads._growth = growth  # type: ignore[method-assign]


def dishonest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sign the answer whatever it says: honest software checks its own answer first."""
    monkeypatch.setattr("p2pfl.peer.own_heads.judge", lambda *arguments: None)


async def test_neighbours_cosign_and_the_next_cover_carries_it(tmp_path: Path) -> None:
    a, b, c = found(tmp_path)
    async with up(a, b, c, network=MemoryNetwork()) as (first, second, third):
        await asyncio.gather(witnessed(second, first), witnessed(third, first), witnessed(first, second))
        before = row(second, first)["held"]
        await grow(first)
        for witness in (second, third):
            ask_again(witness, first)
            await until(lambda witness=witness: row(witness, first)["held"] > before)
        size = row(second, first)["held"]
        await until(lambda: {row(first, peer)["holds"] for peer in (second, third)} == {size})
        await until(lambda: len(read_note(first._own_heads.witnessed).signatures) == 3)
        lines = read_note(first._own_heads.witnessed).signatures
        origins = [log_origin(NAME, peer.peer_id) for peer in (first, second, third)]
        assert [lines[0].name, *sorted(line.name for line in lines[1:])] == [
            origins[0],
            *sorted(f"{origin}/witness" for origin in origins[1:]),
        ]
        assert not first.log_news and not second.log_news
    assert not evidence_of(b) and not list(read_entries(b / "audit.db", kind="log_misbehaviour"))


async def test_what_was_cosigned_is_remembered_over_a_restart(tmp_path: Path) -> None:
    a, b = found(tmp_path, "ab")
    network = MemoryNetwork()
    async with up(a, b, network=network) as (first, second):
        size = await witnessed(second, first)
    async with up(a, b, network=network) as (first, second):
        assert row(first, second)["holds"] >= size and row(second, first)["held"] >= size
        assert first._own_heads.witnessed
        await until(lambda: row(second, first)["held"] > size)
        assert first.status()["epoch"] == 0 and not first.log_news


async def test_a_restored_backup_declares_its_loss_and_goes_on_in_a_new_epoch(tmp_path: Path) -> None:
    a, b, c = found(tmp_path)
    network = MemoryNetwork()
    async with up(a, b, c, network=network) as (first, second, third):
        await asyncio.gather(witnessed(second, first), witnessed(third, first))
    shutil.copytree(a, tmp_path / "backup")
    kept = len(list(read_entries(a / "audit.db")))
    async with up(a, b, c, network=network) as (first, second, third):
        await grow(first, 20)
        for witness in (second, third):
            ask_again(witness, first)
            await until(lambda witness=witness: row(witness, first)["held"] > kept + 10)
        lost = row(second, first)["held"]
    shutil.rmtree(a)
    shutil.copytree(tmp_path / "backup", a)
    async with up(b, c, a, network=network) as (second, third, first):
        await until(lambda: first._own_heads.cleared.is_set() and first.status()["epoch"] == 1)
        for witness in (second, third):
            await until(lambda witness=witness: row(witness, first)["epoch"] == 1)
            assert row(witness, first)["alarm"] is None
            said = ("loss declared", {"peer": first.peer_id, "epoch": 1, "kept": kept})
            await until(lambda said=said, witness=witness: said in witness.log_news)
        assert [topic for topic, _ in first.log_news] == ["epoch opened"]
        proof = await first._journal.prove(1)
        assert read_log_proof(proof.encode()).checkpoint.startswith(f"p2pfl/{NAME}/{first.peer_id}/1\n".encode())
    (declared,) = read_entries(a / "audit.db", kind="epoch_opened")
    assert declared.body["kept"] == kept and declared.body["lost"][0][:2] == [0, lost]
    assert p2pfl.verify_log(a / "audit.db").ok
    async with up(b, a, network=network) as (second, first):  # and it is still in that epoch later
        await until(lambda: first._own_heads.cleared.is_set())
        assert first.status()["epoch"] == 1
        await until(lambda: row(second, first)["holds"] is not None)
        assert row(second, first)["alarm"] is None
