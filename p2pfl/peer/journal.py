"""The one writer of a peer's audit log: commits in order, off the event loop, never retried.

While one transaction is being synced, whoever wants to write waits; the next transaction takes all of them along. So
the disk's sync rate bounds transactions, not entries.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from p2pfl.audit import MAX_ENTRIES, AuditLog, Head, NewEntry, prove_entry
from p2pfl.crypto import LogProof
from p2pfl.errors import ConfigError, IllegalStep, StoreError


class _Waiting:
    """What one caller wants written, and the answer it waits for: the position of its first entry."""

    __slots__ = ("entries", "epoch", "position")

    def __init__(self, entries: Sequence[NewEntry], epoch: int | None) -> None:
        self.entries = tuple(entries)
        self.epoch = epoch  # that begins with these entries
        self.position: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def fail(self, error: Exception) -> None:
        """Tell the caller, if it still waits."""
        if not self.position.cancelled():
            self.position.set_exception(error)


class Journal:
    """Serialises all commits of one peer. After one failed commit everything stops (``on_failure``)."""

    def __init__(self, log: AuditLog, on_failure: Callable[[StoreError], None]) -> None:
        self.log = log
        self._queue: deque[_Waiting] = deque()
        self._writing: asyncio.Task[None] | None = None
        self._on_failure = on_failure
        # one thread of its own: no commit queues behind other work, and what it needs stays in that core's caches
        self._thread = ThreadPoolExecutor(1, "audit-log")
        self._closed = False
        self.commits = 0
        self.seconds = 0.0

    async def commit(self, entries: Sequence[NewEntry], *, epoch: int | None = None) -> int:
        """Write entries and their documents, all of them in one transaction; returns the first one's position.

        ``epoch`` begins with them (`AuditLog.append`).

        Raises StoreError, after which nothing is written. A caller that is cancelled before its transaction has begun
        leaves no entry.
        """
        waiting = _Waiting(entries, epoch)
        self._queue.append(waiting)
        if self._writing is None:
            self._writing = asyncio.get_running_loop().create_task(self._write())
        try:
            return await waiting.position
        except asyncio.CancelledError:
            if waiting in self._queue:
                self._queue.remove(waiting)
            raise

    async def _write(self) -> None:
        try:
            while self._queue:
                await self._write_together(self._take())
        finally:
            self._writing = None

    def _take(self) -> list[_Waiting]:
        """The oldest, and all behind it that fit into one transaction."""
        queue, size = self._queue, 0
        taken: list[_Waiting] = []
        for waiting in queue:
            size += len(waiting.entries)
            if taken and (waiting.epoch is not None or taken[0].epoch is not None or size > MAX_ENTRIES):
                break
            taken.append(waiting)
        for _ in taken:
            queue.popleft()
        return taken

    async def _write_together(self, taken: list[_Waiting]) -> None:
        started, position = time.perf_counter(), self.head.size
        try:
            entries = [entry for waiting in taken for entry in waiting.entries]
            if self._closed:
                raise IllegalStep(f"the audit log {self.log.path} is closed; open it again")
            arguments = (entries, unix_milliseconds(), taken[0].epoch)
            await asyncio.get_running_loop().run_in_executor(self._thread, self.log.append, *arguments)
        except ConfigError as error:
            if len(taken) == 1:
                taken[0].fail(error)
            for waiting in taken if len(taken) > 1 else ():  # one of them cannot be logged; the others can
                await self._write_together([waiting])
            return
        except Exception as error:
            if isinstance(error, StoreError):
                self._on_failure(error)
            for waiting in taken:
                waiting.fail(error)
            return
        self.commits += 1
        self.seconds += time.perf_counter() - started
        for waiting in taken:
            if not waiting.position.cancelled():  # its caller has gone; the entry stays
                waiting.position.set_result(position)
            position += len(waiting.entries)

    async def prove(self, position: int) -> LogProof:
        """The entry at a position, with its way into the newest checkpoint. Raises StoreError or ConfigError.

        Read beside the writer: a delta that is ready to leave must not wait for the sync of a later commit.
        """
        return await asyncio.to_thread(prove_entry, self.log.path, position)

    @property
    def head(self) -> Head:
        """The newest signed head."""
        return self.log.head

    def close(self) -> None:
        """Close the database, after a commit that is being written. Harmless when called twice."""
        self._closed = True
        try:
            self.log.close()
        except BaseException:
            self._thread.shutdown(wait=False)  # a disk that does not answer is not waited for
            raise
        self._thread.shutdown()  # it still tells the loop, which may be gone the next moment


def unix_milliseconds() -> int:
    """Wall-clock time for entries people read."""
    return time.time_ns() // 1_000_000
