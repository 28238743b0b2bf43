"""What one peer remembers as a witness of others' logs, and the cosignatures that others gave to its own.

One SQLite file beside the audit log. Compare, store and only then answer, in one transaction: what was cosigned is
never forgotten by a crash, and two answers at one time cannot take the witness back.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from p2pfl.audit import store
from p2pfl.crypto.cosignatures import Cosignature
from p2pfl.errors import IllegalStep, StoreError

KEPT_HEADS = 256
"""Checked notes kept per log. Of more than that, the newest half stays and every second one of the rest: the older, the
sparser, back to the first. What a declared loss says to have kept is compared with them."""

MOST_EPOCHS = 64
"""In one answer about what is held here."""

KEPT_COSIGNATURES = 8
"""Of the own log by each witness, the newest ones: no witness pushes out another."""

_SETTINGS = ("PRAGMA journal_mode = DELETE", "PRAGMA synchronous = EXTRA", "PRAGMA fullfsync = ON")
_TABLES = (
    "CREATE TABLE IF NOT EXISTS heads (log TEXT, epoch INTEGER, size INTEGER, root BLOB, note BLOB, time INTEGER, "
    "PRIMARY KEY (log, epoch, size)) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS seen (log TEXT, teller TEXT, epoch INTEGER, size INTEGER, note BLOB, "
    "PRIMARY KEY (log, teller)) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS cosigned (witness TEXT, epoch INTEGER, size INTEGER, note BLOB, statement BLOB, "
    "time INTEGER, PRIMARY KEY (witness, epoch, size)) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS findings (log TEXT, claim TEXT, file TEXT, time INTEGER, PRIMARY KEY (log, claim))",
)
_DISK = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR)  # the file itself is whole
_NEWEST = "ORDER BY epoch DESC, size DESC"


@dataclass(frozen=True, slots=True)
class HeldHead:
    """A checkpoint of another log that was checked here; ``time`` is Unix seconds."""

    epoch: int
    size: int
    root: bytes
    note: bytes
    time: int


@dataclass(frozen=True, slots=True)
class SeenHead:
    """A checkpoint of a log, with its owner's signature alone, that ``teller`` showed; not checked yet."""

    log: str
    teller: str
    epoch: int
    size: int
    note: bytes


@dataclass(frozen=True, slots=True)
class WitnessFinding:
    """Misbehaviour of a log that this peer has evidence of."""

    log: str
    claim: str
    file: str
    time: int


class WitnessStore:
    """The file; all calls may come from any thread, and block for the disk. Raises StoreError where it fails."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._mutex = threading.Lock()
        try:
            if not path.exists():
                path.touch(mode=0o600)
            self._connection = store.connect(path, "mode=rw")
            for statement in (*_SETTINGS, *_TABLES):
                self._connection.execute(statement)
        except (sqlite3.Error, OSError) as error:
            raise self._broken(error) from error

    def _broken(self, error: Exception) -> StoreError:
        well = getattr(error, "sqlite_errorcode", 0) & 0xFF in _DISK
        remedy = "free or repair the disk, then start this peer again" if well else "restore it from a backup"
        return StoreError(f"the witness store {self._path} cannot be used ({error}); nothing is cosigned; {remedy}")

    def newest(self, log: str) -> HeldHead | None:
        """The newest checkpoint held of this log, or None."""
        rows = self._read(f"SELECT epoch, size, root, note, time FROM heads WHERE log = ? {_NEWEST} LIMIT 1", log)
        return HeldHead(*rows[0]) if rows else None

    def before(self, log: str, epoch: int, size: int) -> HeldHead | None:
        """The newest one held of the epochs before ``epoch`` that has at most this size, or None."""
        rows = self._read(
            "SELECT epoch, size, root, note, time FROM heads WHERE log = ? AND epoch < ? AND size <= ? "
            f"{_NEWEST} LIMIT 1",
            log, epoch, size,
        )  # fmt: skip
        return HeldHead(*rows[0]) if rows else None

    def at(self, log: str, epoch: int, size: int) -> bytes | None:
        """The note held for exactly this size, or None."""
        rows = self._read("SELECT note FROM heads WHERE log = ? AND epoch = ? AND size = ?", log, epoch, size)
        return bytes(rows[0][0]) if rows else None

    def last_of_epochs(self, log: str) -> list[bytes]:
        """The newest note of each epoch, checked or only seen; of the newest `MOST_EPOCHS` epochs."""
        rows = self._read(
            "SELECT note, MAX(size) FROM (SELECT epoch, size, note FROM heads WHERE log = ?1 "
            "UNION ALL SELECT epoch, size, note FROM seen WHERE log = ?1) GROUP BY epoch ORDER BY epoch DESC LIMIT ?2",
            log, MOST_EPOCHS,
        )  # fmt: skip
        return [bytes(row[0]) for row in reversed(rows)]

    def see(self, heads: Iterable[SeenHead]) -> None:
        """Remember the newest checkpoint that each teller showed of each log."""
        rows = [(item.log, item.teller, item.epoch, item.size, item.note) for item in heads]
        with self._transaction():
            self._connection.executemany(
                "INSERT INTO seen VALUES (?, ?, ?, ?, ?) ON CONFLICT (log, teller) DO UPDATE SET "
                "epoch = excluded.epoch, size = excluded.size, note = excluded.note "
                "WHERE (excluded.epoch, excluded.size) > (epoch, size)",
                rows,
            )

    def seen(self) -> list[SeenHead]:
        """All of them."""
        return [SeenHead(*row) for row in self._read("SELECT log, teller, epoch, size, note FROM seen")]

    def accept(self, log: str, held: HeldHead | None, new: HeldHead) -> None:
        """Take ``new``, which was checked against ``held``, in place of it.

        Raises IllegalStep if something else is held by now: nothing has changed then, and nothing may be cosigned.
        """
        with self._transaction():
            row = self._connection.execute(
                f"SELECT epoch, size FROM heads WHERE log = ? {_NEWEST} LIMIT 1", (log,)
            ).fetchone()
            if row != (None if held is None else (held.epoch, held.size)):
                raise IllegalStep(f"another checkpoint of {log} was taken meanwhile; check against that one")
            self._connection.execute(
                "INSERT OR IGNORE INTO heads VALUES (?, ?, ?, ?, ?, ?)",
                (log, new.epoch, new.size, new.root, new.note, new.time),
            )
            self._thin_out(log)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """All of it is stored and synced, or nothing has changed. Raises StoreError."""
        with self._mutex:
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                yield
                self._connection.execute("COMMIT")
            except sqlite3.Error as error:
                self._give_up()
                raise self._broken(error) from error
            except BaseException:
                self._give_up()
                raise

    def _thin_out(self, log: str) -> None:
        rows = self._connection.execute(f"SELECT epoch, size FROM heads WHERE log = ? {_NEWEST}", (log,)).fetchall()
        if len(rows) > KEPT_HEADS:
            old = rows[KEPT_HEADS // 2 : -1]
            self._connection.executemany(
                "DELETE FROM heads WHERE log = ? AND epoch = ? AND size = ?", [(log, *row) for row in old[::2]]
            )

    def _give_up(self) -> None:
        """What could not be stored must not be read from this connection as if it were held."""
        try:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
        except sqlite3.Error:
            self._connection.close()

    def find(self, finding: WitnessFinding) -> bool:
        """Remember misbehaviour; False if the same was known of this log."""
        statement = "INSERT OR IGNORE INTO findings VALUES (?, ?, ?, ?)"
        return self._write(statement, finding.log, finding.claim, finding.file, finding.time) > 0

    def findings(self) -> list[WitnessFinding]:
        """All of them, oldest first."""
        return [WitnessFinding(*row) for row in self._read("SELECT log, claim, file, time FROM findings ORDER BY time")]

    def keep_cosignature(self, witness: str, epoch: int, size: int, item: Cosignature, seconds: int) -> None:
        """Store a verified cosignature of the own log."""
        with self._transaction():
            self._connection.execute(
                "INSERT OR REPLACE INTO cosigned VALUES (?, ?, ?, ?, ?, ?)",
                (witness, epoch, size, item.note, item.statement, seconds),
            )
            self._connection.execute(
                f"DELETE FROM cosigned WHERE witness = ?1 AND (epoch, size) NOT IN "
                f"(SELECT epoch, size FROM cosigned WHERE witness = ?1 {_NEWEST} LIMIT ?2)",
                (witness, KEPT_COSIGNATURES),
            )

    def cosigned(self) -> list[tuple[str, int, int, Cosignature, int]]:
        """(witness, epoch, size, cosignature, Unix seconds) of the own log, newest checkpoint first."""
        rows = self._read(f"SELECT witness, epoch, size, note, statement, time FROM cosigned {_NEWEST}, witness")
        return [(row[0], row[1], row[2], Cosignature(row[3], row[4]), row[5]) for row in rows]

    def close(self) -> None:
        """Harmless when called twice."""
        with self._mutex:
            self._connection.close()

    def _read(self, statement: str, *values: object) -> Sequence[tuple[Any, ...]]:
        with self._mutex:
            try:
                return self._connection.execute(statement, values).fetchall()
            except sqlite3.Error as error:
                raise self._broken(error) from error

    def _write(self, statement: str, *values: object) -> int:
        with self._mutex:
            try:
                return self._connection.execute(statement, values).rowcount
            except sqlite3.Error as error:
                raise self._broken(error) from error
