"""A log, or a part of it, as text that is read and checked without home, key or this program's database.

JSON lines: the first line says whose log it is and has the newest checkpoint with the hashes that join the exported
entries to its root; then one line per entry, with the exact bytes under its hash. CSV is for reading only. Documents
(deltas, records, evidence) are not exported: the entries hold their digests. Memory stays at some rows.
"""

from __future__ import annotations

import csv
import io
import json
import re
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from p2pfl.audit import store
from p2pfl.audit.cosigned import Cosigned, held_cosigned
from p2pfl.audit.format import MAX_INTEGER, Entry, entry_from_data
from p2pfl.audit.held import held_of_others
from p2pfl.audit.show import as_dict, describe, time_text
from p2pfl.audit.texts import ERASED, put_back
from p2pfl.audit.tree import newest_head, node_of
from p2pfl.crypto.base64_text import to_base64
from p2pfl.crypto.log_entries import EntryData, entry_data, read_entry_data
from p2pfl.crypto.range_proofs import outside_hashes
from p2pfl.errors import ConfigError, StoreError

EXPORT = 1
"""Version of the JSON lines."""

COLUMNS = ("position", "time", "kind", "run", "round", "peer", "text", "hash")

_POSITION = re.compile(r"[0-9]{1,18}")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet would compute a cell that begins like this

Progress = Callable[[int, int], None]
"""Told now and then: entries written, entries in all."""


@dataclass(frozen=True, slots=True)
class Part:
    """An open log and which of its entries are wanted: from ``first`` up to ``last``, not included."""

    connection: sqlite3.Connection
    log: str
    origin: str
    size: int
    note: bytes
    first: int
    last: int
    held: tuple[bytes, ...] = ()  # checkpoints of others' logs, from the same store
    damaged: int = 0  # rows of that store that are no such checkpoint
    cosigned: tuple[Cosigned, ...] = ()  # joined to the newest checkpoint, where a witness store lies beside the log

    def texts(self, position: int) -> dict[str, tuple[bytes, str]]:
        """(salt, text) of the free texts beside an entry, by field."""
        return store.load_texts(self.connection, position, position).get(position, {})

    def rows(self) -> Iterator[bytes]:
        """The data of each entry, in order. Raises StoreError for a damaged row."""
        cursor = self.connection.execute(
            f"SELECT {store.ENTRY_COLUMNS} FROM entries WHERE position >= ? AND position < ? ORDER BY position",
            (self.first, self.last),
        )
        for row in cursor:
            if not store.entry_row_is_sound(row):
                raise StoreError(f"entry {row[0]} of the audit log has a damaged row; run p2pfl audit verify")
            yield entry_data(*row[:6])


@contextmanager
def open_part(path: Path | str, start: str | None = None, end: str | None = None) -> Iterator[Part]:
    """Entries of a log that a peer may be using, in one snapshot.

    ``start`` and ``end`` are positions or dates (UTC, such as 2026-03-01 or 2026-03-01T12:30), both included. Raises
    ConfigError or StoreError.
    """
    place = Path(path)
    with store.reading_log(place) as connection:
        log, origin, size, note = newest_head(connection)
        first = 0 if start is None else _first(connection, start)
        last = size if end is None else _last(connection, end)
        first, last = max(first, 0), min(last, size)
        if first >= last:
            raise ConfigError(f"the log has {size} entries, and none of them lies between these; check both")
        witnesses = place.with_name("witness.db")
        cosigned = held_cosigned(connection, origin, log, size, witnesses)
        held = held_of_others(witnesses, log)
        yield Part(connection, log, origin, size, note, first, last, held.notes, held.damaged, cosigned)


def _first(connection: sqlite3.Connection, text: str) -> int:
    if _POSITION.fullmatch(text):
        return int(text)
    found = connection.execute("SELECT min(position) FROM entries WHERE time >= ?", (moment(text)[0],)).fetchone()[0]
    return int(found) if found is not None else MAX_INTEGER


def _last(connection: sqlite3.Connection, text: str) -> int:
    if _POSITION.fullmatch(text):
        return int(text) + 1
    found = connection.execute("SELECT max(position) FROM entries WHERE time < ?", (moment(text)[1],)).fetchone()[0]
    return int(found) + 1 if found is not None else 0


def moment(text: str) -> tuple[int, int]:
    """Unix milliseconds at which a date, or a minute or second of it, begins and ends."""
    for form, length in (("%Y-%m-%d", timedelta(days=1)), ("%Y-%m-%dT%H:%M", timedelta(minutes=1)),
                         ("%Y-%m-%dT%H:%M:%S", timedelta(seconds=1))):  # fmt: skip
        try:
            begin = datetime.strptime(text.removesuffix("Z"), form).replace(tzinfo=UTC)
        except ValueError:
            continue
        first = round(begin.timestamp() * 1000)
        return first, first + length // timedelta(milliseconds=1)  # no date lies behind the last day of the year 9999
    raise ConfigError(f"{text[:40]!r} is no position and no date; write 41, 2026-03-01 or 2026-03-01T12:30 (UTC)")


def json_lines(part: Part, progress: Progress = lambda done, of: None, *, with_texts: bool = True) -> Iterator[str]:
    """The lines of a JSON export, each with its end; without its texts it verifies all the same."""
    outside = outside_hashes(part.first, part.last, part.size, node_of(part.connection))
    header = {
        "p2pfl_audit_export": EXPORT,
        "log": part.log,
        "origin": part.origin,
        "size": part.size,
        "first": part.first,
        "last": part.last - 1,
        "checkpoint": part.note.decode(),
        "outside": [to_base64(item) for item in outside],
        **({"cosigned": [item.fields() for item in part.cosigned]} if part.cosigned else {}),
        **({"held": [note.decode() for note in part.held]} if part.held else {}),
    }
    yield json.dumps(header) + "\n"
    for number, data in enumerate(part.rows(), start=1):
        texts = part.texts(part.first + number - 1) if with_texts else {}
        yield json.dumps(line_of(data, texts), allow_nan=False) + "\n"
        progress(number, part.last - part.first)


def line_of(data: bytes, texts: Mapping[str, tuple[bytes, str]]) -> dict[str, Any]:
    """One entry for people and programs; ``data`` are the bytes that its hash covers, the rest is read out of them.

    ``texts`` are (salt, text) of its free texts, for whoever may read them.
    """
    entry, raw = read_entry(data)
    shown = as_dict(entry)
    line = {
        "position": entry.position,
        "time": time_text(entry.time),
        "kind": entry.kind,
        "body": json.loads(json.dumps(finite(shown["body"]))),
        "documents": shown["documents"],
        "hash": shown["hash"],
        "first": raw.first,
        "data": to_base64(data),
    }
    if texts:
        line["texts"] = {name: [to_base64(salt), text] for name, (salt, text) in sorted(texts.items())}
    return line


def finite(value: Any) -> Any:
    """JSON has no infinite numbers; they are written as texts."""
    if isinstance(value, float):
        return value if value - value == 0 else repr(value)
    if isinstance(value, dict):
        return {name: finite(item) for name, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, list) else value


def read_entry(data: bytes) -> tuple[Entry, EntryData]:
    """An entry out of its data. Raises RemoteError."""
    raw = read_entry_data(data)
    return entry_from_data(raw), raw


def csv_lines(part: Part, progress: Progress = lambda done, of: None, *, with_texts: bool = True) -> Iterator[str]:
    """The lines of a table, each with its end; nobody can check it."""
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(COLUMNS)
    for number, data in enumerate(part.rows(), start=1):
        entry, _ = read_entry(data)
        body = entry.body
        if with_texts:
            put_back(entry.kind, body, part.texts(entry.position), ERASED)
        text = describe(entry).lstrip().split("  ", 2)[-1]
        row = [entry.position, time_text(entry.time), entry.kind, body.get("run", ""), body.get("round", ""),
               body.get("peer", body.get("origin", "")), text, entry.hash.hex()]  # fmt: skip
        writer.writerow([_cell(item) for item in row])
        yield buffer.getvalue()
        buffer.seek(0)
        buffer.truncate()
        progress(number, part.last - part.first)


def _cell(value: Any) -> Any:
    if isinstance(value, str):
        return f"'{value}" if value.startswith(_FORMULA) else value
    return value if type(value) is int else str(value)
