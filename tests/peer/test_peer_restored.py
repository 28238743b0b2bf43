"""Homes that were put back, and neighbours that answer late, refuse to, or come when others have spoken."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections import Counter
from pathlib import Path

import pytest
from test_peer_witnesses import (
    NAME,
    ask_again,
    evidence_of,
    found,
    grow,
    history,
    peer_id,
    quick,  # noqa: F401
    row,
    until,
    up,
    witnessed,
)

from p2pfl.audit import read_entries
from p2pfl.crypto import cosign, pack
from p2pfl.errors import Refusal
from p2pfl.net import MemoryNetwork
from p2pfl.peer.own_heads import WITNESS
from p2pfl.types import PeerId


def kinds(home: Path) -> Counter[str]:
    """What a log says of losses, and of what others' logs did."""
    wanted = {"loss_witnessed", "head_withheld", "log_misbehaviour", "epoch_opened", "loss_declared"}
    return Counter(entry.kind for entry in read_entries(home / "audit.db") if entry.kind in wanted)


def put_back(backup: Path, home: Path) -> None:
    """The home is as it was when it was copied."""
    shutil.rmtree(home)
    shutil.copytree(backup, home)


async def test_a_question_that_is_refused_is_asked_again_and_is_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("p2pfl.peer.own_heads.PATIENCE", 0.2)
    monkeypatch.setattr("p2pfl.peer.own_heads.ASK_AGAIN", 0.05)
    homes = a, b = found(tmp_path, "ab")
    network = MemoryNetwork()
    async with up(*homes, network=network) as (owner, witness):
        await witnessed(witness, owner)
    shutil.copytree(a, tmp_path / "backup")
    await history(homes, network, entries=10)
    put_back(tmp_path / "backup", a)
    async with up(b, network=network) as (witness,):
        answer = witness.witnessing._on_request
        asked = 0

        async def refuse(peer: PeerId, data: bytes) -> bytes:
            nonlocal asked
            asked += 1
            if asked <= 10:
                raise Refusal("too many questions within the hour; ask again later")
            return await answer(peer, data)

        witness.witnessing._on_request = refuse  # type: ignore[method-assign]
        async with up(a, network=network) as (owner,):
            await until(lambda: asked >= 10)
            assert not owner._own_heads.cleared.is_set(), "nobody has answered yet, whatever time has passed"
            await until(lambda: row(witness, owner)["epoch"] == 1)
            assert owner.status()["epoch"] == 1 and row(witness, owner)["alarm"] is None
    assert not evidence_of(b)


async def test_a_witness_that_is_always_late_stops_the_peer_once_and_not_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds more than the others; what it showed is remembered, so the next start declares it by itself."""
    monkeypatch.setattr("p2pfl.peer.own_heads.PATIENCE", 0.2)
    homes = a, b, c = found(tmp_path)
    network = MemoryNetwork()
    async with up(*homes, network=network) as (first, second, third):
        await asyncio.gather(witnessed(second, first), witnessed(third, first))
    shutil.copytree(a, tmp_path / "backup")
    await history([a, c], network, entries=20)
    put_back(tmp_path / "backup", a)
    for start in range(3):
        async with up(b, a, network=network) as (second, first):
            await until(lambda first=first: first._own_heads.cleared.is_set())
            async with up(c, network=network) as (third,):
                if start == 0:
                    await until(lambda first=first: first.failure)
                    assert "then start this peer again" in str(first.failure)
                else:
                    await until(lambda third=third, first=first: row(third, first)["epoch"] == 1)
                    assert first.failure is None
                assert [row(witness, first)["alarm"] for witness in (second, third)] == [None, None]
    assert kinds(a) == {"epoch_opened": 1} and kinds(b) <= Counter(loss_witnessed=1)
    assert kinds(c)["loss_witnessed"] == 1 and not kinds(c)["log_misbehaviour"]


async def test_a_witness_of_many_lost_checkpoints_is_told_of_one_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Restored while one neighbour is up, restarted, then met by the other one, which had checked each entry."""
    monkeypatch.setattr("p2pfl.peer.own_heads.PATIENCE", 0.3)
    homes = a, b, c = found(tmp_path)
    network = MemoryNetwork()
    async with up(*homes, network=network) as (first, second, third):
        await asyncio.gather(witnessed(second, first), witnessed(third, first))
    shutil.copytree(a, tmp_path / "backup")
    await history([a, b], network, entries=1)
    async with up(a, c, network=network) as (first, third):
        await witnessed(third, first)
        for _ in range(12):
            await grow(first, 1)
            ask_again(third, first)
            await until(lambda: row(third, first)["held"] >= first._journal.head.size)
    put_back(tmp_path / "backup", a)
    for _ in range(2):  # the second one is an ordinary restart
        async with up(b, a, network=network) as (second, first):
            await until(lambda second=second, first=first: row(second, first)["epoch"] == 1)
            await grow(first, 20)
    async with up(b, a, network=network) as (second, first):
        await until(lambda: first._own_heads.cleared.is_set())
        async with up(c, network=network) as (third,):
            await until(lambda: row(third, first)["epoch"] == 1)
            assert first.failure is None and not first.log_news
    assert kinds(a) == {"epoch_opened": 1, "loss_declared": 1}
    assert kinds(c) == {"loss_witnessed": 1}


async def test_no_witness_pushes_out_what_another_has_cosigned(tmp_path: Path) -> None:
    homes = found(tmp_path)
    async with up(*homes, network=MemoryNetwork()) as (first, second, third):
        await asyncio.gather(witnessed(second, first), witnessed(third, first))
        third.witnessing.pace = 60.0
        before = row(first, third)["holds"]
        for _ in range(70):
            await grow(first, 1)
            item = cosign(second._identity, NAME, first._journal.head.note, int(time.time())).encode()
            await second._host.request(first.peer_id, WITNESS, pack({"ask": "keep", "item": item}), timeout=5)
        assert row(first, second)["holds"] == first._journal.head.size
        assert row(first, third)["holds"] >= before
        assert peer_id(homes[2]) in {witness for witness, *_ in first.witnessing._sightings._store.cosigned()}
