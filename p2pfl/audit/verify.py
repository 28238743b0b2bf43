"""Checking a whole log without a key and without trust in its writer; the first bad place is named.

What it proves: every entry, document, tree hash and checkpoint is as it was when the owner's key signed, none is
missing in the middle, none was added. What it cannot prove: that the tail was not cut off together with its
heads, that an older copy was not put back, that the owner of the key did not write the whole file anew, or
that an entry says the truth.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from p2pfl.audit import store
from p2pfl.audit.format import FORMAT, MAX_DOCUMENT, START, decode_body, entry_hash
from p2pfl.audit.kinds import Kind
from p2pfl.audit.last_head import Acknowledged, open_last_head, read_last_head
from p2pfl.audit.text_check import TextCheck
from p2pfl.audit.tree import node_of
from p2pfl.audit.wal import wal_state
from p2pfl.audit.writing import WriterLock, other_format
from p2pfl.crypto.checkpoints import epoch_of, open_checkpoint
from p2pfl.crypto.proofs import grow, join, tree_root
from p2pfl.errors import RemoteError

NOT_ACKNOWLEDGED = "a crash cut the last commit off before it was acknowledged; the next writer drops it"
MAYBE_ACKNOWLEDGED = (
    "the last commit is not whole, and the next writer drops it: cut off by a crash before it was acknowledged, or "
    "damaged since; which of them, nothing beside the log says"
)

TOLD_EVERY = 100_000
"""Entries between two words about the progress."""

Progress = Callable[[int, int], None]
"""Told now and then: entries checked, entries in all as the newest head says (which is not checked yet)."""

_TEXT = 200  # characters of a damaged value that a message repeats


@dataclass(frozen=True, slots=True)
class Verification:
    """The outcome: counts are of what was checked and found good; ``problem`` names the first bad place."""

    ok: bool
    entries: int
    heads: int
    root: str  # of the newest good checkpoint, hexadecimal
    origin: str
    peer_id: str
    problem: str | None
    torn: str | None = None
    """What a crash has left at the end and the next writer drops: no entry that was acknowledged."""


class _Bad(Exception):
    """The first bad place and what is wrong there."""


def verify_log(
    path: Path | str,
    expected_peer: str | None = None,
    expected_origin: str | None = None,
    progress: Progress = lambda done, of: None,
) -> Verification:
    """Check every row of a log, in one snapshot; a running peer may go on writing.

    ``expected_peer`` is the peer id whose log it should be, ``expected_origin`` the first line of its checkpoints, as
    the charter has it; ``progress`` is told every `TOLD_EVERY` entries. Memory stays at a few rows. Never raises for a
    damaged file; raises ConfigError when there is none.
    """
    place = Path(path)
    store.require_file(place)
    check = _Check()
    problem = torn = None
    acknowledged = read_last_head(place)  # before the snapshot: a running peer goes on writing both
    try:
        with store.reading(place) as connection:
            check.run(connection, place, expected_peer, expected_origin, progress)
            ending = wal_state(place)
            known = open_last_head(acknowledged, check.origin, check.log)
            problem = ending.problem or _missing_end(connection, check, known, torn=ending.torn)
        if problem is None and ending.torn and not WriterLock.held(place):
            torn = NOT_ACKNOWLEDGED if known is not None else MAYBE_ACKNOWLEDGED
    except _Bad as bad:
        problem = str(bad)
    except (sqlite3.Error, OSError) as error:
        problem = f"file, after {check.entries} good entries: {_shown(str(error))}"
    return Verification(
        problem is None, check.entries, check.heads, check.root.hex(), _shown(check.origin), check.log, problem, torn
    )


def _missing_end(
    connection: sqlite3.Connection, check: _Check, known: Acknowledged | None, *, torn: bool
) -> str | None:
    """What the checkpoint beside the log says against a log that is good in itself."""
    if known is None or known.epoch < check.epoch:
        return None
    size, entries = known.checkpoint.size, check.entries
    if size > entries:
        how = "the write-ahead log is damaged there" if torn else "the end was cut off, or an older copy put back"
        return f"entry {entries}: missing ({size} entries were acknowledged; {how})"
    if tree_root(size, node_of(connection)) != known.checkpoint.root:
        return f"head of size {size}: another one was acknowledged; an older copy was put back, and gone on with"
    return None


class _Check:
    """One pass over entries, documents and heads in step: the first bad place is first in the log's order."""

    def __init__(self) -> None:
        self.entries = 0
        self.heads = 0
        self.root = b""
        self.origin = ""
        self.log = ""
        self._previous = START
        self._first = 0  # of the commit that the last entry belongs to
        self._texts = TextCheck()
        self._edge: list[bytes] = []
        self._covered = 0  # size of the newest good head
        self.epoch = 0  # of the newest good head

    def run(
        self, connection: sqlite3.Connection, place: Path, peer: str | None, origin: str | None, progress: Progress
    ) -> None:
        version = store.format_of(connection)
        if version == 1:
            raise _Bad(f"file: {other_format(place, version)}")
        problem = store.schema_problem(connection)
        if problem is not None:
            raise _Bad(f"file: {problem}")
        meta = self._meta(connection)
        documents = _Rows(connection, "SELECT entry, place, role, digest, content FROM documents ORDER BY entry, place")
        heads = _Rows(connection, "SELECT size, note FROM heads ORDER BY size")
        texts = _Rows(connection, "SELECT entry, field, salt, text FROM texts ORDER BY entry, field")
        for row in connection.execute(f"SELECT {store.ENTRY_COLUMNS} FROM entries ORDER BY position"):
            fields = self._entry(row, documents)
            self._check_texts(row[0], row[3], fields, texts)
            if row[0] == 0:
                self._first_entry(row[3], fields, meta, peer, origin)
            self._head(heads)
            if not self.entries % TOLD_EVERY:
                progress(self.entries, connection.execute("SELECT max(size) FROM heads").fetchone()[0] or 0)
        self._end(documents, heads)
        self._check_texts(None, "", {}, texts)
        for (message,) in connection.execute("PRAGMA integrity_check(1)"):
            if message != "ok":
                raise _Bad(f"file: {_shown(message)}")

    def _meta(self, connection: sqlite3.Connection) -> tuple[Any, ...]:
        rows = connection.execute("SELECT one, log, origin, format, created FROM meta LIMIT 2").fetchall()
        if len(rows) != 1 or rows[0][0] != 1:
            raise _Bad("meta: there must be exactly one row")
        _, log, origin, version, created = rows[0]
        if type(log) is not str or type(origin) is not str or not store.is_integer(created):
            raise _Bad("meta: a value has the wrong type")
        if version != FORMAT or type(version) is not int:
            raise _Bad(f"meta: format {_shown(version)} is not {FORMAT}, which this program checks")
        self.log, self.origin = _shown(log), origin
        return log, origin, version, created

    def _first_entry(
        self, kind: str, fields: dict[str, Any], meta: tuple[Any, ...], peer: str | None, origin: str | None
    ) -> None:
        if kind != Kind.LOG_CREATED or set(fields) != {"log", "origin", "format", "created"}:
            raise _Bad(f"entry 0: it is not {Kind.LOG_CREATED}")
        if (fields["log"], fields["origin"], fields["format"], fields["created"]) != meta:
            raise _Bad("meta: it differs from entry 0")
        if peer is not None and fields["log"] != peer:
            raise _Bad(f"meta: the log belongs to {self.log}, not to {_shown(peer)}")
        if origin is not None and fields["origin"] != origin:
            raise _Bad(f"meta: the log is {_shown(self.origin)}, not {_shown(origin)}")

    def _entry(self, row: tuple[Any, ...], documents: _Rows) -> dict[str, Any]:
        number = self.entries
        if row[0] != number:
            raise _Bad(f"entry {number}: missing (the next one is entry {_shown(row[0])})")
        if not store.entry_row_is_sound(row):
            raise _Bad(f"entry {number}: a value has the wrong type or size")
        if row[5] != self._previous:
            raise _Bad(f"entry {number}: it does not follow the entry before it")
        if entry_hash(*row[:6]) != row[6]:
            raise _Bad(f"entry {number}: its hash does not hold (time, first, kind, body or hash was changed)")
        if b"".join(grow(self._edge, number, row[6])) != row[7]:
            raise _Bad(f"entry {number}: the tree hashes beside it are not those of the entries")
        self._commit(number, row[2])
        try:
            fields, listed = decode_body(row[4])
        except RemoteError as error:
            raise _Bad(f"entry {number}: {error}") from None
        for place, (role, digest) in enumerate(listed):
            _check_document(number, place, role, digest, documents)
        _no_other_document(documents, number)
        self._previous = row[6]
        self.entries += 1
        return fields

    def _check_texts(self, number: int | None, kind: str, fields: dict[str, Any], texts: _Rows) -> None:
        """The texts beside one entry; without a number, that there are no others and that none is missing."""
        found = []
        while texts.next is not None and (number is None or texts.next[0] == number):
            found.append(texts.next[1:])
            texts.advance()
        problem = self._texts.end(found) if number is None else self._texts.entry(number, kind, fields, found)
        if problem is not None:
            raise _Bad(problem)

    def _commit(self, number: int, first: int) -> None:
        """A commit's entries name its first, so no head between two commits can be taken away."""
        expected = number if self._covered == number else self._first
        if first == number and expected != number:
            raise _Bad(f"head of size {number}: missing (a commit ended there)")
        if first != expected:
            raise _Bad(f"entry {number}: it names entry {first} as the first of its commit, not {expected}")
        self._first = first

    def _head(self, heads: _Rows) -> None:
        """The head of the size just reached, if the commit ended here."""
        if heads.next is None:
            return
        size = heads.next[0]
        if store.is_integer(size) and size > self.entries:
            return
        name = f"head of size {_shown(size)}"
        if size != self.entries:
            raise _Bad(f"{name}: no commit ended there")
        problem = store.note_problem(heads.next[1])
        if problem is not None:
            raise _Bad(f"{name}: {problem}")
        try:
            checkpoint = open_checkpoint(heads.next[1], self.origin, self.log)
        except RemoteError as error:
            raise _Bad(f"{name}: {error}") from None
        if checkpoint.size != size or checkpoint.root != join(self._edge):
            raise _Bad(f"{name}: it was signed for another size or for other entries")
        epoch = epoch_of(checkpoint.origin, self.origin) or 0
        if epoch < self.epoch:
            raise _Bad(f"{name}: it is of epoch {epoch}, after one of epoch {self.epoch}")
        self.epoch = epoch
        self.heads += 1
        self._covered, self.root = size, checkpoint.root
        heads.advance()

    def _end(self, documents: _Rows, heads: _Rows) -> None:
        if heads.next is not None:
            size = _shown(heads.next[0])
            raise _Bad(f"entry {self.entries}: missing (a head of size {size} was signed over it)")
        if self.entries == 0:
            raise _Bad("entry 0: missing")
        if self._covered != self.entries:
            raise _Bad(f"head of size {self.entries}: missing (entries from {self._covered} on are not signed)")
        _no_other_document(documents, None)


class _Rows:
    """A query read one row ahead."""

    def __init__(self, connection: sqlite3.Connection, query: str) -> None:
        self._cursor: Iterator[tuple[Any, ...]] = connection.execute(query)
        self.next: tuple[Any, ...] | None = next(self._cursor, None)

    def advance(self) -> None:
        """Go to the following row; ``next`` is None after the last."""
        self.next = next(self._cursor, None)


def _check_document(number: int, place: int, role: str, digest: bytes, documents: _Rows) -> None:
    name = f"document {place} of entry {number}"
    _no_other_document(documents, number, place)
    if documents.next is None or documents.next[:2] != (number, place):
        raise _Bad(f"{name}: missing")
    _, _, found_role, found_digest, content = documents.next
    if type(content) is not bytes or len(content) > MAX_DOCUMENT:
        raise _Bad(f"{name}: its content has the wrong type or size")
    if found_role != role or found_digest != digest:
        raise _Bad(f"{name}: its role or digest is not what the entry names")
    if hashlib.sha256(content).digest() != digest:
        raise _Bad(f"{name}: its content was changed")
    documents.advance()


def _no_other_document(documents: _Rows, number: int | None, place: int = 0) -> None:
    """Refuse a document row that stands before (number, place) or, without a number, any row at all."""
    if documents.next is None:
        return
    entry, found = documents.next[:2]
    sound = store.is_integer(entry) and store.is_integer(found)
    if number is None or not sound or (entry, found) < (number, place):
        raise _Bad(f"document {_shown(found)} of entry {_shown(entry)}: no entry names it")


def _shown(value: Any) -> str:
    """A value from the file, safe to print: no control characters, bounded length."""
    text = value[:_TEXT] if isinstance(value, str) else repr(value)[:_TEXT]
    return "".join(letter if letter.isprintable() else "?" for letter in text)
