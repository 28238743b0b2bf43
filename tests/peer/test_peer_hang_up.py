"""Owners that end the link whenever their log is asked about, and honest ones whose line is bad."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from test_peer_witness_evasion import head_of, kinds, two_logs
from test_peer_witnesses import (
    Say,
    ask_again,
    found,
    grow,
    hang_up,
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
from p2pfl.audit import Answer, NewEntry, read_entries
from p2pfl.crypto import unpack
from p2pfl.errors import LinkError
from p2pfl.net import MemoryNetwork
from p2pfl.peer.own_heads import WITNESS
from p2pfl.peer.unanswered import CUT_OFF
from p2pfl.peer.witnessing import HEAD
from p2pfl.types import PeerId


@contextlib.asynccontextmanager
async def linked_again(owner: p2pfl.Peer, *witnesses: p2pfl.Peer) -> AsyncIterator[None]:
    """The owner dials as soon as a link has ended."""

    async def dial(peer: PeerId) -> None:
        while True:
            with contextlib.suppress(LinkError):
                await owner._host.dial(peer)
            await asyncio.sleep(0.01)

    tasks = [asyncio.create_task(dial(witness.peer_id)) for witness in witnesses]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_whoever_hangs_up_at_each_question_is_named(tmp_path: Path) -> None:
    """Its log is rewritten; it is linked all the time but for the moments after it was asked."""
    homes = found(tmp_path)
    network = MemoryNetwork()
    await history(homes, network)
    rewrite(homes[0], 60)
    asked: list[PeerId] = []

    def gone(peer: p2pfl.Peer) -> Say:
        return lambda witness, held, to: asked.append(witness)

    async with up(*homes[1:], network=network) as witnesses, up_dishonest(homes[0], network, gone) as evil:
        async with linked_again(evil, *witnesses):
            for witness in witnesses:
                await until(lambda witness=witness: row(witness, evil)["withheld"])
                assert f"link ended at each of {CUT_OFF} questions" in row(witness, evil)["withheld"]
                assert row(witness, evil)["alarm"] is None, "a finding, no proof"
                assert asked.count(witness.peer_id) >= CUT_OFF
    for home in homes[1:]:
        (entry,) = read_entries(home / "audit.db", kind="head_withheld")
        assert (entry.body["peer"], entry.body["asked"]) == (peer_id(homes[0]), CUT_OFF)
    assert kinds(homes[1]) == ["head_withheld"]


async def test_whoever_hangs_up_only_when_two_histories_are_to_be_joined_is_named(tmp_path: Path) -> None:
    """It shows each of its neighbours a history that grows; what the other one was shown it joins with nothing."""
    homes = found(tmp_path)
    network = MemoryNetwork()
    with two_logs(tmp_path, homes[0], 7) as logs:
        faces = dict(zip([peer_id(home) for home in homes[1:]], logs, strict=True))

        def gone(peer: p2pfl.Peer) -> Say:
            def say(witness: PeerId, held: bytes, to: bytes) -> bytes | None:
                if to:
                    return None
                newest = faces[witness].head.note
                old, new = head_of(held or newest)[1], head_of(newest)[1]
                proof = faces[witness].prove_growth(old, new) if old < new else ()
                return Answer(held, newest, proof).sign(peer._identity)

            return say

        async with up(*homes[1:], network=network) as witnesses, up_dishonest(homes[0], network, gone) as evil:
            async with linked_again(evil, *witnesses), asyncio.timeout(60):
                while not all(row(witness, evil)["withheld"] for witness in witnesses):
                    for witness in witnesses:
                        faces[witness.peer_id].append([NewEntry("refused", {"reason": "more"})] * 2, 4)
                        with contextlib.suppress(LinkError):
                            await evil._host.notify(witness.peer_id, HEAD, faces[witness.peer_id].head.note)
                    await asyncio.sleep(0.05)
    for home in homes[1:]:
        assert "head_withheld" in kinds(home)


def unreliable(owner: p2pfl.Peer, fails: Callable[[], bool]) -> None:
    """An honest peer on a line that breaks under some of the questions."""
    answer = owner._host._handlers.requests[WITNESS]

    async def handler(witness: PeerId, data: bytes) -> bytes:
        if unpack(data, what="question", limit=200_000)["ask"] == "grow" and fails():
            return await hang_up(owner, witness)
        return await answer(witness, data)

    owner._host.handle(WITNESS, handler)


async def test_a_bad_line_names_nobody_as_long_as_some_checks_come_through(tmp_path: Path) -> None:
    homes = found(tmp_path, "ab")
    async with up(*homes, network=MemoryNetwork()) as (owner, witness):
        await witnessed(witness, owner)
        left = 0

        def fails() -> bool:
            nonlocal left
            left -= 1
            return left >= 0

        unreliable(owner, fails)
        async with linked_again(owner, witness):
            for _ in range(3):
                await grow(owner)
                left, size = CUT_OFF - 1, owner._journal.head.size
                ask_again(witness, owner)
                await until(lambda size=size: row(witness, owner)["held"] >= size)
                assert left < 0 and row(witness, owner)["withheld"] is None
            left = CUT_OFF
            await grow(owner)
            ask_again(witness, owner)
            await until(lambda: row(witness, owner)["withheld"])
            await until(lambda: row(witness, owner)["withheld"] is None)  # it answers again
    assert kinds(homes[1]) == ["head_withheld"]


async def test_a_link_that_is_away_when_a_question_is_due_puts_it_off_until_it_is_back_and_no_longer(
    tmp_path: Path,
) -> None:
    homes = found(tmp_path, "ab")
    async with up(*homes, network=MemoryNetwork()) as (owner, witness):
        await witnessed(witness, owner)
        await until(lambda: not witness.witnessing._busy)
        witness.witnessing.pace = 1.0
        await grow(owner)
        ask_again(witness, owner)
        await until(lambda: row(witness, owner)["held"] >= owner._journal.head.size and not witness.witnessing._busy)
        due = witness.witnessing._next[owner.peer_id]
        ask_again(witness, owner)
        owner._host.want([])
        witness._host.want([])
        owner._host._table.close(witness.peer_id, "away")
        await until(lambda: not witness.witnessing._busy)
        assert asyncio.get_running_loop().time() >= due == witness.witnessing._next[owner.peer_id]
        assert not witness.links()
