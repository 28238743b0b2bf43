"""Parts of the writer: the lock, the making of a new file, the rows of one commit, the check on open."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Sequence
from pathlib import Path

from p2pfl.audit import store
from p2pfl.audit.format import (
    FORMAT,
    MAX_INTEGER,
    START,
    Head,
    NewEntry,
    Prepared,
    check_head,
    entry_hash,
    prepare,
    sign_head,
)
from p2pfl.audit.kinds import Kind
from p2pfl.crypto.identity import Identity
from p2pfl.errors import ConfigError, RemoteError, StoreError

RECENT = store.PAGE
"""Entries whose chain is checked on open: a damaged or foreign end shows at once; verify_log checks all."""

AFTER_FAILURE = "free or repair the disk, then start the peer again"


class WriterLock:
    """One writer per log: an flock on ``<log>.lock``, held until release or the end of the process."""

    def __init__(self, path: Path) -> None:
        lock = path.with_name(path.name + ".lock")
        try:
            self._file: int | None = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigError(f"cannot make the lock file {lock} ({error.strerror}); check the folder") from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.release()
            raise ConfigError(
                f"the audit log {path} is already open for writing; stop the other peer of this home first"
            ) from None

    def release(self) -> None:
        """Let the next writer in; harmless when called twice."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def require_time(now_ms: int) -> None:
    """Raises ConfigError for a time that the format cannot hold."""
    if not 0 <= now_ms <= MAX_INTEGER:
        raise ConfigError(f"{now_ms} is not a time in Unix milliseconds; check the clock of this machine")


def damaged(path: Path, reason: str) -> StoreError:
    """The error for a file that does not hold together."""
    return StoreError(f"the audit log {path} is damaged: {reason}; run p2pfl audit verify and restore a backup")


def build(path: Path, identity: Identity, now_ms: int) -> None:
    """Make the file with entry 0 under another name, sync it, and only then give it its name.

    Temporary file, sync, rename, sync of the folder: a crash leaves either no log or a whole one.
    """
    fresh = path.with_name(path.name + ".new")
    for leftover in (fresh, fresh.with_name(fresh.name + "-wal"), fresh.with_name(fresh.name + "-shm")):
        leftover.unlink(missing_ok=True)
    try:
        os.close(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        with contextlib.closing(store.connect_writer(fresh)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            for statement in store.schema():
                connection.execute(statement)
            connection.execute("INSERT INTO meta VALUES (1, ?, ?, ?)", (identity.peer_id, FORMAT, now_ms))
            body = {"log": identity.peer_id, "format": FORMAT, "created": now_ms}
            empty = Head(0, START, 0, b"", 0)
            insert(connection, identity, empty, [prepare(NewEntry(Kind.LOG_CREATED, body))], now_ms)
            connection.execute("COMMIT")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        fresh.rename(path)
        _sync_folder(path.parent)
    except (sqlite3.Error, OSError) as error:
        raise StoreError(f"the audit log {path} could not be made ({error}); check the folder and the disk") from error


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def insert(
    connection: sqlite3.Connection, identity: Identity, last: Head, prepared: Sequence[Prepared], now_ms: int
) -> Head:
    """Write entries, documents and the signed head inside the caller's transaction; returns the new head."""
    position, previous = last.size, last.hash
    for item in prepared:
        digest = entry_hash(position, now_ms, item.kind, item.body, previous)
        connection.execute(
            "INSERT INTO entries (position, time, kind, body, previous, hash) VALUES (?, ?, ?, ?, ?, ?)",
            (position, now_ms, item.kind, item.body, previous, digest),
        )
        connection.executemany(
            "INSERT INTO documents (entry, place, role, digest, content) VALUES (?, ?, ?, ?, ?)",
            [(position, place, *document) for place, document in enumerate(item.documents)],
        )
        position, previous = position + 1, digest
    head = sign_head(identity, last.size, position, now_ms, previous)
    connection.execute(
        "INSERT INTO heads (size, hash, time, signature, previous) VALUES (?, ?, ?, ?, ?)",
        (head.size, head.hash, head.time, head.signature, head.previous),
    )
    return head


def check_end(path: Path, connection: sqlite3.Connection, identity: Identity) -> Head:
    """The newest head, after checking that the file is this peer's log and that its end holds together.

    Raises ConfigError for another peer's log or another format, StoreError for a damaged one.
    """
    problem = store.schema_problem(connection)
    if problem is not None:
        raise StoreError(f"{path} is not a whole audit log: {problem}; restore a backup, or check the path")
    meta = connection.execute("SELECT log, format FROM meta").fetchone()
    if meta is None:
        raise damaged(path, "table meta is empty")
    if meta[1] != FORMAT:
        raise ConfigError(f"the audit log {path} has format {meta[1]!r}, this program reads {FORMAT}; update it")
    if meta[0] != identity.peer_id:
        raise ConfigError(f"the audit log {path} belongs to {meta[0]}, not to {identity.peer_id}; use its own key")
    try:
        head = store.load_head(connection)
        if head is not None:
            check_head(head, identity.peer_id)
    except (RemoteError, StoreError) as error:
        raise damaged(path, f"the newest head does not hold ({error})") from None
    if head is None:
        raise damaged(path, "it has no signed head")
    _check_recent(path, connection, head)
    return head


def _check_recent(path: Path, connection: sqlite3.Connection, head: Head) -> None:
    rows = connection.execute(
        "SELECT position, time, kind, body, previous, hash FROM entries ORDER BY position DESC LIMIT ?",
        (RECENT,),
    ).fetchall()
    position, digest = head.size - 1, head.hash
    for row in rows:
        sound = store.entry_row_is_sound(row) and row[0] == position and row[5] == digest
        if not sound or entry_hash(*row[:5]) != digest:
            raise damaged(path, f"entry {position} does not fit the newest head")
        position, digest = position - 1, row[4]
    if not rows or (position < 0 and digest != START):
        raise damaged(path, "its last entries are missing" if not rows else "it does not begin with entry 0")
