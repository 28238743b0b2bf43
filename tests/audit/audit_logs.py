"""Small logs to work on, and a second, independent way to read and change the file."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

from p2pfl.audit import AuditLog, NewEntry
from p2pfl.crypto.identity import Identity

NOW = 1_700_000_000_000
KEYS = {
    "meta": ("one",),
    "entries": ("position",),
    "heads": ("size",),
    "documents": ("entry", "place"),
    "texts": ("entry", "field"),
}


def owner() -> Identity:
    return Identity.from_seed(bytes(range(32)))


def delta(number: int, *contents: bytes) -> NewEntry:
    body = {"run": "ab" * 32, "round": number, "bytes": 3, "to": ["x"], "core": "cd" * 32}
    return NewEntry("delta_sent", body, tuple(("outbox", content) for content in contents))


def write_small_log(path: Path) -> int:
    """Sizes of its heads: 1, 3, 4, 6; documents in entries 1 and 4. Returns its number of entries."""
    with AuditLog.create(path, owner(), NOW) as log:
        log.append([delta(0, b"first delta"), NewEntry("mixed", {"round": 0, "edges": [["x", 0.5]]})], NOW + 1)
        log.append([NewEntry("link_up", {"peer": "x", "kind": "tcp"})], NOW + 2)
        log.append([delta(1, b"one", b"two"), NewEntry("refused", {"peer": "y", "reason": "late"})], NOW + 3)
        return log.head.size


def tamperer(path: Path) -> sqlite3.Connection:
    """A connection that may change everything: no triggers, no checks, no write-ahead log."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = DELETE").fetchall()
    for setting in ("synchronous = OFF", "foreign_keys = OFF", "ignore_check_constraints = ON"):
        connection.execute(f"PRAGMA {setting}")
    triggers = connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall()
    for (name,) in triggers:
        connection.execute(f"DROP TRIGGER {name}")
    return connection


def everything(path: Path) -> dict[str, list[tuple[Any, ...]]]:
    """All rows of all tables."""
    connection = sqlite3.connect(path)
    try:
        return {
            table: connection.execute(f"SELECT * FROM {table} ORDER BY {', '.join(keys)}").fetchall()
            for table, keys in KEYS.items()
        }
    finally:
        connection.close()


class Faulty:
    """A connection that fails at one statement, before or after it took effect."""

    def __init__(self, inner: sqlite3.Connection, statement: str, *, after: bool = False) -> None:
        self._inner = inner
        self._statement = statement
        self._after = after

    def execute(self, statement: str, *arguments: Any) -> sqlite3.Cursor:
        return self._run(self._inner.execute, statement, *arguments)

    def executemany(self, statement: str, *arguments: Any) -> sqlite3.Cursor:
        return self._run(self._inner.executemany, statement, *arguments)

    def _run(self, call: Callable[..., sqlite3.Cursor], statement: str, *arguments: Any) -> sqlite3.Cursor:
        if not statement.startswith(self._statement):
            return call(statement, *arguments)
        if self._after:
            call(statement, *arguments)
        raise sqlite3.OperationalError("disk I/O error")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)
