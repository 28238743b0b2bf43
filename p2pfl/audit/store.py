"""The SQLite file under the log: its tables, how it is opened, and how rows become values.

Trust: whoever can write this file can change it. The triggers guard against bugs of this program only;
changes by anybody else are found by p2pfl.audit.verify, which never relies on them.

Durability (https://sqlite.org/wal.html): WAL with synchronous=FULL syncs the write-ahead log at every
commit; NORMAL would lose the last commits on power loss. A log must lie on a local disk: WAL does not work
on network file systems.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from p2pfl.audit.format import (
    HASH_SIZE,
    MAX_BODY,
    MAX_DOCUMENT,
    MAX_INTEGER,
    MAX_KIND,
    Entry,
    decode_body,
)
from p2pfl.audit.texts import ERASED, put_back
from p2pfl.crypto.notes import NOTE_LIMIT
from p2pfl.crypto.proofs import MAX_PROOF
from p2pfl.errors import ConfigError, RemoteError, StoreError
from p2pfl.types import Digest

BUSY_SECONDS = 5.0
"""How long SQLite waits for a lock. Only a foreign program can hold one: the log has one writer."""

PAGE = 64
"""Entries read at once: at most 64 bodies of 64 KiB in memory."""

_ROW_LIMIT = MAX_DOCUMENT + MAX_BODY  # SQLite refuses to build a longer row, so a hostile file cannot eat memory

_WRITER_SETTINGS = (
    "synchronous = FULL",
    "fullfsync = ON",  # macOS: fsync alone leaves data in the drive's cache
    "checkpoint_fullfsync = ON",
    "wal_autocheckpoint = 0",  # AuditLog makes them: SQLite's own ignores a failed sync and tries again later
    "foreign_keys = ON",
    "recursive_triggers = ON",
    "secure_delete = ON",  # an erased text leaves no trace in the file's pages
)

TABLES = {
    "meta": """CREATE TABLE meta (
  one INTEGER PRIMARY KEY CHECK (one = 1),
  log TEXT NOT NULL,
  origin TEXT NOT NULL,
  format INTEGER NOT NULL,
  created INTEGER NOT NULL
)""",
    "entries": """CREATE TABLE entries (
  position INTEGER PRIMARY KEY,
  time INTEGER NOT NULL,
  first INTEGER NOT NULL,
  kind TEXT NOT NULL,
  body BLOB NOT NULL,
  previous BLOB NOT NULL,
  hash BLOB NOT NULL,
  subtrees BLOB NOT NULL
)""",
    "heads": """CREATE TABLE heads (
  size INTEGER PRIMARY KEY,
  note BLOB NOT NULL
)""",
    "documents": """CREATE TABLE documents (
  entry INTEGER NOT NULL REFERENCES entries (position),
  place INTEGER NOT NULL,
  role TEXT NOT NULL,
  digest BLOB NOT NULL,
  content BLOB NOT NULL,
  PRIMARY KEY (entry, place)
)""",
    "texts": """CREATE TABLE texts (
  entry INTEGER NOT NULL REFERENCES entries (position),
  field TEXT NOT NULL,
  salt BLOB NOT NULL,
  text TEXT NOT NULL,
  PRIMARY KEY (entry, field)
)""",
}

ENTRY_COLUMNS = "position, time, first, kind, body, previous, hash, subtrees"

_INDEXES = (
    "CREATE INDEX entries_by_kind ON entries (kind, position)",
    "CREATE INDEX documents_by_digest ON documents (digest)",
    "CREATE INDEX documents_by_role ON documents (role, entry, place)",
)

# INSERT OR REPLACE deletes without firing delete triggers (sqlite.org/lang_conflict.html): guard inserts too.
_NEXT = {
    "meta": "EXISTS (SELECT 1 FROM meta)",
    "entries": "NEW.position <> (SELECT coalesce(max(position) + 1, 0) FROM entries)",
    "heads": "NEW.size <= (SELECT coalesce(max(size), 0) FROM heads)",
    "documents": "EXISTS (SELECT 1 FROM documents WHERE entry = NEW.entry AND place = NEW.place)",
    "texts": "EXISTS (SELECT 1 FROM texts WHERE entry = NEW.entry AND field = NEW.field)",
}


def schema() -> Iterator[str]:
    """All statements that make an empty log."""
    yield from TABLES.values()
    yield from _INDEXES
    for table, wrong in _NEXT.items():
        refuse = f"BEGIN SELECT RAISE(ABORT, 'the audit log is append-only: {table}'); END"
        yield f"CREATE TRIGGER {table}_no_update BEFORE UPDATE ON {table} {refuse}"
        if table != "texts":  # what lies there may be erased
            yield f"CREATE TRIGGER {table}_no_delete BEFORE DELETE ON {table} {refuse}"
        yield f"CREATE TRIGGER {table}_in_order BEFORE INSERT ON {table} WHEN {wrong} {refuse}"


def connect(path: Path, mode: str) -> sqlite3.Connection:
    """A connection with explicit transactions; it never makes a file. Raises sqlite3.Error.

    ``mode`` is a query of https://sqlite.org/uri.html: mode=ro, mode=rw or immutable=1.
    """
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?{mode}",
        uri=True,
        timeout=BUSY_SECONDS,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=32,
    )
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _ROW_LIMIT)
    # All texts of ours are ASCII. Damaged ones must reach the checks that name the row, not fail on the way.
    connection.text_factory = _text
    connection.execute("PRAGMA trusted_schema = OFF")
    return connection


def _text(data: bytes) -> str:
    return data.decode(errors="replace")


def connect_writer(path: Path) -> sqlite3.Connection:
    """The one writing connection, with every durability setting. Raises StoreError, sqlite3.Error."""
    connection = connect(path, "mode=rw")
    try:
        (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            raise StoreError(
                f"the audit log {path} cannot have a write-ahead log (SQLite: {mode}); put it on a local disk"
            )
        for setting in _WRITER_SETTINGS:
            connection.execute(f"PRAGMA {setting}")
    except BaseException:
        connection.close()
        raise
    return connection


def require_file(path: Path) -> None:
    """Raises ConfigError when there is no file to read."""
    if not path.is_file():
        raise ConfigError(f"there is no audit log at {path}; check the path, or make a home with p2pfl init")


@contextlib.contextmanager
def reading(path: Path) -> Iterator[sqlite3.Connection]:
    """A read-only connection inside one snapshot; a running peer may go on writing.

    Raises ConfigError for a missing file, sqlite3.Error for a damaged one.
    """
    require_file(path)
    connection = _connect_reader(path)
    try:
        yield connection
    finally:
        connection.close()


@contextlib.contextmanager
def reading_log(path: Path) -> Iterator[sqlite3.Connection]:
    """As `reading`, of a file whose tables are those of a log. Raises ConfigError; StoreError, also for damage met."""
    try:
        with reading(path) as connection:
            problem = schema_problem(connection)
            if problem is not None:
                raise StoreError(f"{path} is not an audit log: {problem}; check the path")
            yield connection
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_NOTADB and not path.name.startswith("audit.db"):
            raise StoreError(f"{path} is no log itself (an export of one?); name the home, or its audit.db") from error
        raise StoreError(f"the audit log {path} cannot be read ({error}); run p2pfl audit verify") from error


def _connect_reader(path: Path) -> sqlite3.Connection:
    connection = connect(path, "mode=ro")
    try:
        connection.execute("BEGIN")
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.OperationalError:
        connection.close()
        if path.with_name(path.name + "-wal").exists():
            raise
        # In a folder that cannot be written SQLite has no place for its shared memory file; without a
        # write-ahead log there is no writer either, and the file can be read as it is.
        connection = connect(path, "immutable=1")
    except BaseException:
        connection.close()
        raise
    return connection


def schema_problem(connection: sqlite3.Connection) -> str | None:
    """What is wrong with the tables, or None.

    Compares the exact text: a view or a computed column could show every reader other rows.
    """
    found = dict(
        connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")
    )
    for name, statement in TABLES.items():
        if found.get(name) != statement:
            return f"table {name} is {'missing' if name not in found else 'not built as this format says'}"
    return None


def format_of(connection: sqlite3.Connection) -> Any:
    """The format that the file names, or None: to be asked first, for another format has other tables."""
    try:
        row = connection.execute("SELECT format FROM meta LIMIT 1").fetchone()
    except sqlite3.OperationalError:  # no such table or column
        return None
    return None if row is None else row[0]


def is_integer(value: Any) -> bool:
    """SQLite keeps any type in any column; only integers from 0 are ours."""
    return type(value) is int and 0 <= value <= MAX_INTEGER


def is_hash(value: Any) -> bool:
    """A stored SHA-256 digest."""
    return type(value) is bytes and len(value) == HASH_SIZE


def entry_row_is_sound(row: tuple[Any, ...]) -> bool:
    """Types and sizes of a row of ENTRY_COLUMNS; the hashes themselves are not checked."""
    position, time, first, kind, body, previous, digest, subtrees = row
    sound = is_integer(position) and is_integer(time) and is_integer(first) and type(kind) is str
    sound = sound and kind.isascii() and len(kind) <= MAX_KIND
    sound = sound and type(body) is bytes and len(body) <= MAX_BODY and is_hash(previous) and is_hash(digest)
    return sound and type(subtrees) is bytes and len(subtrees) <= MAX_PROOF * HASH_SIZE


def load_entries(connection: sqlite3.Connection, start: int, kind: str | None) -> list[Entry]:
    """The next at most PAGE entries from ``start``. Raises StoreError for a row that cannot be read."""
    which = "" if kind is None else "AND kind = ? "
    rows = connection.execute(
        f"SELECT {ENTRY_COLUMNS} FROM entries WHERE position >= ? {which}ORDER BY position LIMIT ?",
        (start, PAGE) if kind is None else (start, kind, PAGE),
    ).fetchall()
    entries = [_entry(row) for row in rows]
    if entries:
        texts = load_texts(connection, entries[0].position, entries[-1].position)
        for entry in entries:
            put_back(entry.kind, entry.body, texts.get(entry.position, {}), ERASED)
    return entries


def load_texts(connection: sqlite3.Connection, first: int, last: int) -> dict[int, dict[str, tuple[bytes, str]]]:
    """(salt, text) by field, of each entry from ``first`` to ``last`` that has any; unsound rows are left out."""
    found: dict[int, dict[str, tuple[bytes, str]]] = {}
    rows = connection.execute("SELECT entry, field, salt, text FROM texts WHERE entry BETWEEN ? AND ?", (first, last))
    for entry, name, salt, text in rows:
        if [type(entry), type(name), type(salt), type(text)] == [int, str, bytes, str]:
            found.setdefault(entry, {})[name] = (salt, text)
    return found


def _entry(row: tuple[Any, ...]) -> Entry:
    if not entry_row_is_sound(row):
        raise StoreError(f"entry {row[0]} of the audit log has a damaged row; run p2pfl audit verify")
    position, time, _, kind, body, _, digest, _ = row
    try:
        fields, documents = decode_body(body)
    except RemoteError as error:
        raise StoreError(f"entry {position} of the audit log is damaged ({error}); run p2pfl audit verify") from None
    named = tuple((role, Digest(item.hex())) for role, item in documents)
    return Entry(position, time, kind, fields, digest, named)


def note_problem(note: Any) -> str | None:
    """What is wrong with the type or size of a stored note, or None."""
    return None if type(note) is bytes and len(note) <= NOTE_LIMIT else "its note has the wrong type or size"


def read_entries(path: Path | str, start: int = 0, kind: str | None = None) -> Iterator[Entry]:
    """The entries of a log that may be in use by a running peer, oldest first.

    Reads one snapshot and checks nothing: verify_log does. Raises ConfigError for a missing file, StoreError
    for a damaged one.
    """
    with reading_log(Path(path)) as connection:
        while page := load_entries(connection, start, kind):
            yield from page
            start = page[-1].position + 1
