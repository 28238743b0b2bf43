"""The append-only log of one peer: who may write it, what one append does, and what happens after a failure.

One append is one transaction for entries, documents and the signed head. When append returns, all of it is
on disk; when it raises StoreError, the entries may or may not be there after a restart, the chain holds in
both cases, and this object takes no further entry. It never tries again: after a failed sync the kernel may
drop the unwritten pages and report success next time (PostgreSQL wiki, "Fsync Errors").
"""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from p2pfl.audit import store
from p2pfl.audit.format import MAX_ENTRIES, Entry, Head, NewEntry, Prepared, prepare
from p2pfl.audit.last_head import Acknowledged, LastHead
from p2pfl.audit.tree import End, node_of, prove, prove_growth, prove_under
from p2pfl.audit.wal import expected_growth
from p2pfl.audit.writing import (
    AFTER_FAILURE,
    WriterLock,
    build,
    connect_at_end,
    damaged,
    epoch_at,
    insert,
    lost_end,
    require_time,
)
from p2pfl.crypto.checkpoints import epoch_origin, log_origin
from p2pfl.crypto.identity import Identity
from p2pfl.crypto.log_proofs import LogProof
from p2pfl.crypto.packing import packer
from p2pfl.crypto.proofs import tree_root
from p2pfl.errors import ConfigError, IllegalStep, StoreError

LOCK_SECONDS = 60.0
"""How long a call waits for another thread's append: far more than a sync of a slow disk takes."""

CHECKPOINT_BYTES = 4 * 1024 * 1024
"""Bytes of the write-ahead log between checkpoints: about SQLite's own default of 1000 pages."""


class AuditLog:
    """An open log with its one writer. Use create or open; all calls may come from any thread."""

    def __init__(
        self, path: Path, identity: Identity, connection: sqlite3.Connection, origin: str, end: End, lock: WriterLock,
        *, torn: bool = False,
    ) -> None:  # fmt: skip
        self.torn = torn
        """Whether a commit that a crash had cut off, before it was acknowledged, was dropped on opening."""
        self._path = path
        self._identity = identity
        self._connection = connection
        self._origin = origin
        self._epoch = epoch_at(end.head, origin)
        self._end = end
        self._writer_lock = lock
        self._mutex = threading.Lock()
        self._broken: str | None = None
        self._closed = False
        self._unchecked = 0
        self._lost = lost_end(path, connection, identity.peer_id, origin, end)
        self._last_head = LastHead(path)

    @classmethod
    def create(cls, path: Path | str, identity: Identity, now_ms: int, consortium: str = "") -> AuditLog:
        """Make a new log with entry 0 and open it; ``now_ms`` is Unix milliseconds.

        ``consortium`` is the name in the charter; it becomes part of the log's origin, for good.

        Raises ConfigError when there is one already, StoreError when the disk refuses.
        """
        place = Path(path)
        require_time(now_ms)
        lock = WriterLock(place)
        try:
            if place.exists():
                raise ConfigError(f"{place} exists already; open it, or choose another home")
            build(place, identity, log_origin(consortium, identity.peer_id), now_ms)
        finally:
            lock.release()
        return cls.open(place, identity)

    @classmethod
    def open(cls, path: Path | str, identity: Identity) -> AuditLog:
        """Open an existing log for appending; checks the newest checkpoint, its tree and the last entries' chain.

        Raises ConfigError (missing, in use, another peer's log) or StoreError (damaged).
        """
        place = Path(path)
        store.require_file(place)
        lock = WriterLock(place)
        try:
            connection, origin, end, torn = connect_at_end(place, identity)
            try:
                return cls(place, identity, connection, origin, end, lock, torn=torn)
            except BaseException:
                connection.close()
                raise
        except (sqlite3.Error, OSError) as error:
            lock.release()
            raise damaged(place, str(error)) from error
        except BaseException:
            lock.release()
            raise

    @property
    def head(self) -> Head:
        """The newest committed head."""
        return self._end.head

    @property
    def path(self) -> Path:
        """The file."""
        return self._path

    @property
    def origin(self) -> str:
        """The first line of this log's checkpoints, and the name of its key."""
        return self._origin

    @property
    def epoch(self) -> int:
        """How often this log has gone on from an older copy, each time after declaring what was lost."""
        return self._epoch

    @property
    def lost(self) -> Acknowledged | None:
        """What this home has acknowledged and this file does not contain, until a new epoch has declared it."""
        return self._lost

    @property
    def broken(self) -> str | None:
        """Why this object takes no further entry, or None."""
        return self._broken

    def append(
        self,
        entries: Sequence[NewEntry],
        now_ms: int,
        epoch: int | None = None,
        *,
        erase: Sequence[tuple[int, str]] = (),
    ) -> Head:
        """Commit entries, their documents and a signed head in one transaction; returns the new head.

        ``epoch`` begins a new one, larger than the log's: this head and all later ones are signed under its origin.
        ``erase`` are the (entry, field) of texts that go with it: `p2pfl.audit.erase_texts` writes what they were.

        Blocks for a disk sync: call it through asyncio.to_thread. ``now_ms`` is Unix milliseconds. Raises
        ConfigError for entries that the format cannot hold (nothing has changed), StoreError when the disk or
        the file fails, IllegalStep when the log is closed.
        """
        require_time(now_ms)
        if not 0 < len(entries) <= MAX_ENTRIES:
            raise ConfigError(f"one append takes 1 to {MAX_ENTRIES} audit entries, not {len(entries)}; split them")
        encode = packer()
        prepared = [prepare(entry, encode) for entry in entries]
        with self._exclusive():
            begun = self._epoch if epoch is None else epoch
            if epoch is not None and epoch <= self._epoch:
                raise ConfigError(f"the log is in epoch {self._epoch}; epoch {epoch} cannot begin after it")
            if self._broken is not None:
                raise StoreError(f"the audit log {self._path} takes no entries since {self._broken}; {AFTER_FAILURE}")
            self._begin()
            try:
                self._require_unchanged()
                end = insert(
                    self._connection, self._identity, epoch_origin(self._origin, begun), self._end, prepared, now_ms
                )
                self._connection.executemany("DELETE FROM texts WHERE entry = ? AND field = ?", erase)
                self._connection.execute("COMMIT")
            except (sqlite3.Error, StoreError) as error:
                raise self._fail("a commit failed", error) from error
            except BaseException as error:
                self._fail("a commit was interrupted", error)
                raise
            self._end, self._epoch = end, begun
            if self._lost is None or begun > self._lost.epoch:
                self._lost = None
                self._last_head.write(end.head.note)
            self._checkpoint(prepared)
            return end.head

    def _begin(self) -> None:
        try:
            self._connection.execute("BEGIN IMMEDIATE")
        except sqlite3.Error as error:
            if (
                getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY
            ):  # nothing was written: not a failed commit
                raise StoreError(
                    f"another program keeps the audit log {self._path} locked; close it and try again"
                ) from error
            raise self._fail("a transaction could not begin", error) from error

    def _require_unchanged(self) -> None:
        row = self._connection.execute("SELECT position, hash FROM entries ORDER BY position DESC LIMIT 1").fetchone()
        if row != (self.head.size - 1, self.head.hash):
            raise StoreError("somebody else changed the file")

    def _checkpoint(self, prepared: Sequence[Prepared]) -> None:
        self._unchecked += expected_growth(prepared)
        if self._unchecked < CHECKPOINT_BYTES:
            return
        self._unchecked = 0
        try:
            self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        except sqlite3.Error as error:
            # The entries are durable in the write-ahead log, so this append holds; the next one is refused.
            self._fail("a checkpoint failed", error)

    def _fail(self, what: str, error: BaseException) -> StoreError:
        """Take no further entry; returns the error for the caller of the call that failed."""
        self._broken = f"{what} ({error})"
        with contextlib.suppress(sqlite3.Error):
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
        return StoreError(f"the audit log {self._path} could not be written: {what} ({error}); {AFTER_FAILURE}")

    def entries(self, start: int = 0, kind: str | None = None) -> Iterator[Entry]:
        """Committed entries from position ``start``, oldest first; appends may go on meanwhile."""
        while True:
            with self._exclusive(), self._readable():
                page = store.load_entries(self._connection, start, kind)
            if not page:
                return
            yield from page
            start = page[-1].position + 1

    def prove(self, position: int) -> LogProof:
        """The entry at ``position`` with its way into the newest checkpoint. Raises ConfigError if there is none."""
        with self._exclusive(), self._readable():
            return prove(self._connection, position)

    def prove_under(self, position: int, size: int, note: bytes) -> LogProof:
        """The entry at ``position`` with its way into ``note``, a checkpoint of this log over ``size`` entries.

        Raises IllegalStep unless position < size <= the log's size.
        """
        with self._exclusive(), self._readable():
            if size > self.head.size:
                raise IllegalStep(f"the log has {self.head.size} entries, not {size}; ask for a size that it has had")
            return prove_under(self._connection, position, size, note)

    def root_at(self, size: int) -> bytes:
        """The root of the first ``size`` entries, 32 bytes. Raises IllegalStep for a size the log has not had."""
        with self._exclusive(), self._readable():
            if not 0 <= size <= self.head.size:
                raise IllegalStep(f"the log has {self.head.size} entries, not {size}; ask for a size that it has had")
            return tree_root(size, node_of(self._connection))

    def prove_growth(self, old: int, new: int) -> tuple[bytes, ...]:
        """The consistency proof from ``old`` to ``new`` entries. Raises IllegalStep unless 0 < old <= new <= size."""
        with self._exclusive(), self._readable():
            if new > self.head.size:
                raise IllegalStep(f"the log has {self.head.size} entries, not {new}; ask for a size that it has had")
            return prove_growth(self._connection, old, new)

    def document(self, digest: str) -> bytes | None:
        """The content with this SHA-256 digest (64 hexadecimal digits), or None."""
        try:
            key = bytes.fromhex(digest)
        except ValueError:
            raise ConfigError(f"{digest[:80]!r} is not a digest; give 64 hexadecimal digits") from None
        with self._exclusive(), self._readable():
            row = self._connection.execute("SELECT content FROM documents WHERE digest = ? LIMIT 1", (key,)).fetchone()
        return None if row is None else _checked(self._path, key, row[0])

    def documents(self, role: str, start: int = 0) -> Iterator[tuple[int, str, bytes]]:
        """(entry position, digest, content) of each document with this role, oldest first, from ``start``."""
        after = (start, -1)
        while True:
            with self._exclusive(), self._readable():
                row = self._connection.execute(
                    "SELECT entry, place, digest, content FROM documents "
                    "WHERE role = ? AND (entry, place) > (?, ?) ORDER BY entry, place LIMIT 1",
                    (role, *after),
                ).fetchone()
            if row is None:
                return
            position, place, digest, content = row
            after = (position, place)
            content = _checked(self._path, digest, content)
            yield position, digest.hex(), content

    def texts(self) -> list[tuple[int, str]]:
        """(entry, field) of every free text that is still there, oldest first."""
        with self._exclusive(), self._readable():
            return self._connection.execute("SELECT entry, field FROM texts ORDER BY entry, field").fetchall()

    def wipe(self) -> bool:
        """Empty the write-ahead log, where an erased text may still lie; False if a reader keeps it from that."""
        with self._exclusive(), self._readable():
            busy, _, _ = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            return not busy

    def close(self) -> None:
        """Write everything into the main file and let the next writer in; harmless when called twice."""
        with self._hold():
            if self._closed:
                return
            self._closed = True
            try:
                if self._broken is None:
                    self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
            except sqlite3.Error as error:
                self._fail("a checkpoint failed", error)
            try:
                self._disconnect()
            finally:
                self._last_head.close()
                self._writer_lock.release()

    def _disconnect(self) -> None:
        """After a failure, close without SQLite's last checkpoint: only the last connection makes one."""
        with contextlib.ExitStack() as stack:
            if self._broken is not None:
                with contextlib.suppress(sqlite3.Error, ConfigError):
                    stack.enter_context(store.reading(self._path))
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()

    @contextlib.contextmanager
    def _hold(self) -> Iterator[None]:
        if not self._mutex.acquire(timeout=LOCK_SECONDS):
            raise StoreError(f"the audit log {self._path} is busy for more than {LOCK_SECONDS:.0f} s; check the disk")
        try:
            yield
        finally:
            self._mutex.release()

    @contextlib.contextmanager
    def _exclusive(self) -> Iterator[None]:
        with self._hold():
            if self._closed:
                raise IllegalStep(f"the audit log {self._path} is closed; open it again")
            yield

    @contextlib.contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise damaged(self._path, str(error)) from error

    def __enter__(self) -> AuditLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _checked(path: Path, digest: Any, content: Any) -> bytes:
    """What is read here may be sent again: it must be what was committed."""
    if type(content) is not bytes or hashlib.sha256(content).digest() != digest:
        raise damaged(path, "a document does not have its digest")
    return content
