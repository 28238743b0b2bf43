"""Parts of the writer: the lock, the making of a new file, the rows of one commit, the check on open."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from p2pfl.audit import store
from p2pfl.audit.format import (
    FORMAT,
    MAX_INTEGER,
    START,
    Head,
    NewEntry,
    Prepared,
    entry_hash,
    prepare,
    sign_head,
)
from p2pfl.audit.kinds import Kind
from p2pfl.audit.last_head import Acknowledged, open_last_head, read_last_head
from p2pfl.audit.tree import End, node_of
from p2pfl.audit.wal import wal_state
from p2pfl.crypto.checkpoints import epoch_of, open_checkpoint
from p2pfl.crypto.identity import Identity
from p2pfl.crypto.proofs import complete_subtrees, grow, join, tree_root
from p2pfl.errors import ConfigError, RemoteError, StoreError

RECENT = store.PAGE
"""Entries whose chain is checked on open: a damaged or foreign end shows at once; verify_log checks all."""

_INSERT_ENTRY = f"INSERT INTO entries ({store.ENTRY_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
_TOGETHER = 16  # rows of one statement: spares an eighth of SQLite's time, more rows spare no more
_INSERT_TOGETHER = _INSERT_ENTRY + ", (?, ?, ?, ?, ?, ?, ?, ?)" * (_TOGETHER - 1)

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

    @staticmethod
    def held(path: Path) -> bool:
        """Whether a writer is at work on this log just now."""
        try:
            file = os.open(path.with_name(path.name + ".lock"), os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
        finally:
            os.close(file)
        return False

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


def build(path: Path, identity: Identity, origin: str, now_ms: int) -> None:
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
            meta = {"log": identity.peer_id, "origin": origin, "format": FORMAT, "created": now_ms}
            connection.execute("INSERT INTO meta VALUES (1, ?, ?, ?, ?)", tuple(meta.values()))
            empty = End(Head(0, join(()), START, b""), ())
            insert(connection, identity, origin, empty, [prepare(NewEntry(Kind.LOG_CREATED, meta))], now_ms)
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
    connection: sqlite3.Connection, identity: Identity, origin: str, end: End, prepared: Sequence[Prepared], now_ms: int
) -> End:
    """Write entries with the subtrees they complete, documents and the signed head inside the caller's transaction.

    Returns the new end; ``end`` itself is not changed, for the transaction may fail.
    """
    first = position = end.head.size
    previous, edge = end.head.hash, list(end.edge)
    entries, documents, texts = [], [], []
    for item in prepared:
        digest = entry_hash(position, now_ms, first, item.kind, item.body, previous)
        subtrees = b"".join(grow(edge, position, digest))
        entries.append((position, now_ms, first, item.kind, item.body, previous, digest, subtrees))
        documents += [(position, place, *document) for place, document in enumerate(item.documents)]
        texts += [(position, *text) for text in item.texts]
        position, previous = position + 1, digest
    # one call for all rows of a table: SQLite's own work is a third of what a call from Python costs
    _insert_entries(connection, entries)
    connection.executemany(
        "INSERT INTO documents (entry, place, role, digest, content) VALUES (?, ?, ?, ?, ?)", documents
    )
    connection.executemany("INSERT INTO texts (entry, field, salt, text) VALUES (?, ?, ?, ?)", texts)
    head = sign_head(identity, origin, position, join(edge), previous)
    connection.execute("INSERT INTO heads (size, note) VALUES (?, ?)", (head.size, head.note))
    return End(head, tuple(edge))


def _insert_entries(connection: sqlite3.Connection, rows: Sequence[tuple[Any, ...]]) -> None:
    whole = len(rows) - len(rows) % _TOGETHER
    for start in range(0, whole, _TOGETHER):
        values = [value for row in rows[start : start + _TOGETHER] for value in row]
        connection.execute(_INSERT_TOGETHER, values)
    connection.executemany(_INSERT_ENTRY, rows[whole:])


def connect_at_end(path: Path, identity: Identity) -> tuple[sqlite3.Connection, str, End, bool]:
    """The writing connection, the origin, the newest end, and whether a torn commit behind it is dropped.

    Raises what `check_end` does, sqlite3.Error, OSError.
    """
    # Before SQLite looks: it drops everything behind a damaged frame, and the next commit overwrites it.
    state = wal_state(path)
    if state.problem is not None:
        raise damaged(path, state.problem)
    if state.torn:
        _require_unacknowledged(path, identity)
    connection = store.connect_writer(path)
    try:
        return connection, *check_end(path, connection, identity), state.torn
    except BaseException:
        connection.close()
        raise


def _require_unacknowledged(path: Path, identity: Identity) -> None:
    """What is torn at the end of the write-ahead log may be dropped, unless it was acknowledged once."""
    with store.reading(path) as connection:
        origin, end = check_end(path, connection, identity)
        lost = lost_end(path, connection, identity.peer_id, origin, end)
    if lost is not None:
        acknowledged = f"{lost.checkpoint.size} entries were acknowledged, {end.head.size} are whole"
        raise damaged(path, f"write-ahead log: its end is damaged ({acknowledged})")


def lost_end(path: Path, connection: sqlite3.Connection, log: str, origin: str, end: End) -> Acknowledged | None:
    """The checkpoint that this home has acknowledged and the file does not contain, in no epoch before the file's."""
    known = open_last_head(read_last_head(path), origin, log)
    if known is None or known.epoch < epoch_at(end.head, origin):
        return None
    size = known.checkpoint.size
    here = size <= end.head.size and tree_root(size, node_of(connection)) == known.checkpoint.root
    return None if here else known


def check_end(path: Path, connection: sqlite3.Connection, identity: Identity) -> tuple[str, End]:
    """The origin and the newest end, after checking that the file is this peer's log and that its end holds together.

    Reads some hundred rows whatever the log's size. Raises ConfigError for another peer's log or another format,
    StoreError for a damaged one.
    """
    version = store.format_of(connection)
    if version is not None and version != FORMAT:
        raise ConfigError(other_format(path, version))
    problem = store.schema_problem(connection)
    if problem is not None:
        raise StoreError(f"{path} is not a whole audit log: {problem}; restore a backup, or check the path")
    meta = connection.execute("SELECT log, origin FROM meta").fetchone()
    if meta is None:
        raise damaged(path, "table meta is empty")
    log, origin = meta
    if log != identity.peer_id:
        raise ConfigError(f"the audit log {path} belongs to {log}, not to {identity.peer_id}; use its own key")
    try:
        return origin, _newest_end(path, connection, origin, log)
    except RemoteError as error:
        raise damaged(path, f"the newest head does not hold ({error})") from None


def other_format(path: Path, version: object) -> str:
    """What to tell somebody who brings a log of another format: an older one has no tree that its owner had signed."""
    if version == 1:
        return (
            f"the audit log {path} has format 1, from before the Merkle tree; keep the file and check it with the "
            "version that wrote it, and make a new home for this one"
        )
    return f"the audit log {path} has format {version!r}, this program reads {FORMAT}; update it"


def epoch_at(head: Head, origin: str) -> int:
    """The epoch in which a head of the log named ``origin`` was signed."""
    return epoch_of(head.note.partition(b"\n")[0].decode(), origin) or 0


def _newest_end(path: Path, connection: sqlite3.Connection, origin: str, log: str) -> End:
    row = connection.execute("SELECT size, note FROM heads ORDER BY size DESC LIMIT 1").fetchone()
    if row is None:
        raise damaged(path, "it has no signed head")
    size, note = row
    problem = store.note_problem(note)
    if problem or type(origin) is not str or not store.is_integer(size):
        raise damaged(path, problem or "a value of the newest head or of meta has the wrong type")
    checkpoint = open_checkpoint(note, origin, log)
    if checkpoint.size != size:
        raise damaged(path, f"the newest head is stored under size {size}, but signed for {checkpoint.size}")
    node = node_of(connection)
    edge = tuple(node(level, place) for level, place in complete_subtrees(0, size))
    if join(edge) != checkpoint.root:
        raise damaged(path, "the tree does not have the root that the newest head names")
    return End(Head(size, checkpoint.root, _check_recent(path, connection, size), note), edge)


def _check_recent(path: Path, connection: sqlite3.Connection, size: int) -> bytes:
    """The hash of the last entry, after checking the chain of the last ones."""
    rows = connection.execute(
        f"SELECT {store.ENTRY_COLUMNS} FROM entries ORDER BY position DESC LIMIT ?", (RECENT,)
    ).fetchall()
    last = digest = rows[0][6] if rows else START
    position = size - 1
    for row in rows:
        sound = store.entry_row_is_sound(row) and row[0] == position and row[6] == digest
        if not sound or entry_hash(*row[:6]) != digest:
            raise damaged(path, f"entry {position} does not fit the newest head")
        position, digest = position - 1, row[5]
    if not rows or (position < 0 and digest != START):
        raise damaged(path, "its last entries are missing" if not rows else "it does not begin with entry 0")
    return bytes(last)
