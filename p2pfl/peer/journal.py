"""The one writer of a peer's audit log: commits in order, off the event loop, never retried."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from p2pfl.audit import AuditLog, Head, NewEntry
from p2pfl.errors import StoreError


class Journal:
    """Serialises all commits of one peer. After one failed commit everything stops (``on_failure``)."""

    def __init__(self, log: AuditLog, on_failure: Callable[[StoreError], None]) -> None:
        self.log = log
        self._lock = asyncio.Lock()
        self._on_failure = on_failure
        self.commits = 0
        self.seconds = 0.0

    async def commit(self, entries: Sequence[NewEntry]) -> Head:
        """Write entries and their documents in one transaction. Raises StoreError, after which nothing is written."""
        async with self._lock:
            started = time.perf_counter()
            try:
                head = await asyncio.to_thread(self.log.append, entries, unix_milliseconds())
            except StoreError as error:
                self._on_failure(error)
                raise
            self.commits += 1
            self.seconds += time.perf_counter() - started
            return head

    @property
    def head(self) -> Head:
        """The newest signed head."""
        return self.log.head

    def close(self) -> None:
        """Close the database."""
        self.log.close()


def unix_milliseconds() -> int:
    """Wall-clock time for entries people read."""
    return time.time_ns() // 1_000_000
