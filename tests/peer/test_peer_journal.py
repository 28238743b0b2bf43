"""The journal: entries that many wait for share a transaction; nobody's failure is another's."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from p2pfl.audit import MAX_ENTRIES, AuditLog, NewEntry, verify_log
from p2pfl.crypto import Identity
from p2pfl.errors import ConfigError, IllegalStep, StoreError
from p2pfl.peer.journal import Journal

OWNER = Identity.from_seed(bytes(range(32)))


class Gate:
    """Holds the log's appends back, in their thread, until it is opened."""

    def __init__(self, journal: Journal) -> None:
        self.open, self.reached = threading.Event(), asyncio.Event()
        append, loop = journal.log.append, asyncio.get_running_loop()

        def held(*arguments: Any) -> Any:
            loop.call_soon_threadsafe(self.reached.set)
            assert self.open.wait(60)
            return append(*arguments)

        journal.log.append = held  # type: ignore[method-assign]


def note(number: int) -> NewEntry:
    return NewEntry("link_up", {"peer": f"{number}"})


@pytest.fixture
async def journal(tmp_path: Path) -> AsyncIterator[Journal]:
    failures: list[StoreError] = []
    made = Journal(AuditLog.create(tmp_path / "audit.db", OWNER, 1), failures.append)
    made.failures = failures  # type: ignore[attr-defined]
    yield made
    made.close()


async def test_those_who_wait_share_one_transaction_and_keep_their_order(journal: Journal, tmp_path: Path) -> None:
    gate = Gate(journal)
    first = asyncio.create_task(journal.commit([note(0)]))
    await gate.reached.wait()
    others = [asyncio.create_task(journal.commit([note(2 * n + 1), note(2 * n + 2)])) for n in range(64)]
    await asyncio.sleep(0)  # all of them are in the queue now
    gate.open.set()
    assert await first == 1
    assert await asyncio.gather(*others) == [2 + 2 * n for n in range(64)]
    assert journal.commits == 2
    assert [entry.body["peer"] for entry in journal.log.entries(1)] == [f"{n}" for n in range(129)]
    assert verify_log(tmp_path / "audit.db").heads == 3


async def test_what_does_not_fit_one_transaction_goes_into_the_next(journal: Journal) -> None:
    gate = Gate(journal)
    sizes = [1, MAX_ENTRIES - 1, 1, 1]
    tasks = [asyncio.create_task(journal.commit([note(0)] * size)) for size in sizes]
    await gate.reached.wait()
    gate.open.set()
    positions = await asyncio.gather(*tasks)
    assert positions == [1, 2, MAX_ENTRIES + 1, MAX_ENTRIES + 2]
    assert journal.commits == 2


async def test_an_entry_that_cannot_be_logged_harms_nobody_else(journal: Journal) -> None:
    gate = Gate(journal)
    entries = [[note(1)], [NewEntry("Bad", {})], [note(2)], []]
    tasks = [asyncio.create_task(journal.commit(item)) for item in entries]
    await gate.reached.wait()
    gate.open.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert (results[0], results[2]) == (1, 2)
    assert isinstance(results[1], ConfigError) and isinstance(results[3], ConfigError)
    assert await journal.commit([note(3)]) == 3


async def test_after_a_failed_commit_all_who_waited_hear_of_it(journal: Journal) -> None:
    gate = Gate(journal)
    first = asyncio.create_task(journal.commit([note(0)]))
    await gate.reached.wait()
    others = [asyncio.create_task(journal.commit([note(n)])) for n in range(3)]
    journal.log._connection.execute("PRAGMA query_only = ON")
    gate.open.set()
    results = await asyncio.gather(first, *others, return_exceptions=True)
    assert all(isinstance(result, StoreError) for result in results)
    assert journal.failures  # type: ignore[attr-defined]
    assert journal.head.size == 1


async def test_who_is_cancelled_before_its_turn_leaves_no_entry(journal: Journal) -> None:
    gate = Gate(journal)
    first = asyncio.create_task(journal.commit([note(0)]))
    await gate.reached.wait()
    gone, stays = (asyncio.create_task(journal.commit([note(n)])) for n in (1, 2))
    await asyncio.sleep(0)
    gone.cancel()
    first.cancel()
    await asyncio.gather(gone, first, return_exceptions=True)
    gate.open.set()
    assert await stays == 2, "the first one's transaction had begun"
    assert [entry.body["peer"] for entry in journal.log.entries(1)] == ["0", "2"]


async def test_a_closed_journal_takes_nothing_and_leaves_no_thread(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    closed = Journal(AuditLog.create(tmp_path / "closed.db", OWNER, 1), lambda error: None)
    assert await closed.commit([note(0)]) == 1
    (thread,) = set(threading.enumerate()) - before
    closed.close()
    with pytest.raises(IllegalStep, match="closed"):
        await closed.commit([note(1)])
    closed.close()
    thread.join(60)
    assert not thread.is_alive()
    assert verify_log(tmp_path / "closed.db").entries == 2


async def test_a_commit_does_not_wait_for_other_work_in_threads(journal: Journal) -> None:
    """Slow files of others may fill the loop's own threads."""
    loop, free = asyncio.get_running_loop(), threading.Event()
    pool = ThreadPoolExecutor(1)
    loop.set_default_executor(pool)
    busy = loop.run_in_executor(None, free.wait, 60)
    assert await journal.commit([note(0)]) == 1
    assert not busy.done()
    free.set()
    assert await busy
