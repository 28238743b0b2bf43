"""Every change of the file by anybody but the owner of the key is found, and the first bad place is named."""

from __future__ import annotations

import hashlib
import re
import shutil
import sqlite3
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from audit_logs import KEYS, everything, owner, tamperer, write_small_log

from p2pfl.audit import AuditLog, verify_log
from p2pfl.audit.format import entry_hash
from p2pfl.crypto.identity import Identity
from p2pfl.crypto.merkle import root_of_hashes
from p2pfl.crypto.proofs import grow
from p2pfl.errors import ConfigError, StoreError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    place = tmp_path / "audit.db"
    write_small_log(place)
    return place


def test_the_untouched_log_verifies(path: Path) -> None:
    found = verify_log(path, owner().peer_id)
    assert (found.ok, found.entries, found.heads, found.problem) == (True, 6, 4, None)
    assert found.peer_id == owner().peer_id
    leaves = [row[6] for row in everything(path)["entries"]]
    assert found.root == root_of_hashes(leaves).hex()


def _flips(value: Any, mask: int) -> Iterator[Any]:
    if isinstance(value, int):
        data = struct.pack(">q", value)
        for index in range(8):
            changed = bytearray(data)
            changed[index] ^= mask
            yield "?", struct.unpack(">q", bytes(changed))[0]
        return
    kind = "CAST(? AS TEXT)" if isinstance(value, str) else "?"
    data = value.encode() if isinstance(value, str) else value
    for index in range(len(data)):
        changed = bytearray(data)
        changed[index] ^= mask
        yield kind, bytes(changed)


def _place(table: str, row: dict[str, Any]) -> str:
    if table == "documents":
        return f"document {row['place']} of entry {row['entry']}:"
    if table == "texts":
        return f"text {row['field']} of entry {row['entry']}:"
    return {
        "meta": "meta:",
        "entries": f"entry {row.get('position')}:",
        "heads": f"head of size {row.get('size')}:",
    }[table]


@pytest.mark.parametrize("mask", [0x01, 0x80, *(pytest.param(1 << bit, marks=pytest.mark.slow) for bit in range(1, 7))])
@pytest.mark.parametrize("table", list(KEYS))
def test_every_flipped_byte_of_every_column_is_found_and_named(path: Path, table: str, mask: int) -> None:
    connection = tamperer(path)
    cursor = connection.execute(f"SELECT rowid, * FROM {table} ORDER BY {', '.join(KEYS[table])}")
    columns = [item[0] for item in cursor.description]
    rows = [dict(zip(columns, values, strict=True)) for values in cursor.fetchall()]
    tried = 0
    for row in rows:
        for column in [name for name in columns if name != "rowid"]:
            for form, changed in _flips(row[column], mask):
                if _flip_is_found(connection, path, table, row, column, form, changed):
                    tried += 1
    connection.close()
    assert tried >= {"meta": 130, "entries": 1000, "heads": 1000, "documents": 150, "texts": 50}[table]
    assert verify_log(path).ok, "the test must put everything back"


def _flip_is_found(
    connection: sqlite3.Connection,
    path: Path,
    table: str,
    row: dict[str, Any],
    column: str,
    form: str,
    changed: Any,
) -> bool:
    is_key = column in KEYS[table]
    where = " AND ".join(f"{key} = ?" for key in KEYS[table])
    keys = [row[key] for key in KEYS[table]]
    try:
        connection.execute(f"UPDATE {table} SET {column} = {form} WHERE {where}", (changed, *keys))
    except sqlite3.IntegrityError:
        return False  # another row has this key already: the file cannot hold this change
    found = verify_log(path)
    assert not found.ok
    assert found.problem is not None
    if is_key:
        assert found.problem.startswith(("meta:", "entry ", "head of size ", "document ", "text "))
    else:
        assert found.problem.startswith(_place(table, row)), (table, row, column, changed)
    back = [changed if key == column else row[key] for key in KEYS[table]]
    there = " AND ".join(f"{key} = {form if key == column else '?'}" for key in KEYS[table])
    connection.execute(f"UPDATE {table} SET {column} = ? WHERE {there}", (row[column], *back))
    return True


def _sql(*statements: str) -> Any:
    def change(connection: sqlite3.Connection) -> None:
        for statement in statements:
            connection.execute(statement)

    return change


def _insert_with_valid_hashes(connection: sqlite3.Connection) -> None:
    """What somebody without the key can do best: insert an entry and mend the whole chain behind it."""
    rows = connection.execute("SELECT time, first, kind, body FROM entries ORDER BY position").fetchall()
    rows.insert(3, (5, 1, "forged", b"\x80"))
    _rewrite(connection, rows)
    connection.execute("UPDATE documents SET entry = entry + 1 WHERE entry >= 3")


def _change_with_valid_hashes(connection: sqlite3.Connection) -> None:
    rows = connection.execute("SELECT time, first, kind, body FROM entries ORDER BY position").fetchall()
    rows[3] = (rows[3][0] + 1, *rows[3][1:])
    _rewrite(connection, rows)


def _rewrite(connection: sqlite3.Connection, rows: list[Any]) -> None:
    connection.execute("DELETE FROM entries")
    previous, edge = bytes(32), list[bytes]()
    for position, (time, first, kind, body) in enumerate(rows):
        digest = entry_hash(position, time, first, kind, body, previous)
        values = (position, time, first, kind, body, previous, digest, b"".join(grow(edge, position, digest)))
        connection.execute("INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values)
        previous = digest


_SWAP = """UPDATE entries SET (time, first, kind, body, previous, hash, subtrees) =
  (SELECT time, first, kind, body, previous, hash, subtrees FROM temp.old WHERE old.position = 5 - entries.position)
  WHERE position IN (2, 3)"""

CHANGES = {
    "entry in the middle removed": (_sql("DELETE FROM entries WHERE position = 3"), "entry 3: missing"),
    "first entry removed": (_sql("DELETE FROM entries WHERE position = 0"), "entry 0: missing"),
    "all entries removed": (_sql("DELETE FROM entries"), "entry 0: missing"),
    "two entries swapped": (
        _sql("CREATE TEMP TABLE old AS SELECT * FROM entries", _SWAP),
        "entry 2: it does not follow",
    ),
    "entry copied to the end": (
        _sql(
            "INSERT INTO entries SELECT 6, time, first, kind, body, previous, hash, subtrees FROM entries WHERE position = 5"
        ),
        "entry 6: it does not follow",
    ),
    "entry inserted and the chain mended": (
        _insert_with_valid_hashes,
        "entry 3: it names entry 1 as the first of its commit",
    ),
    "entry changed and the chain mended": (
        _change_with_valid_hashes,
        "head of size 4: it was signed for another size or for other entries",
    ),
    "tail cut, its head left": (
        _sql("DELETE FROM entries WHERE position = 5"),
        "entry 5: missing (a head of size 6",
    ),
    "last head removed": (_sql("DELETE FROM heads WHERE size = 6"), "head of size 6: missing"),
    "head in the middle removed": (
        _sql("DELETE FROM heads WHERE size = 3"),
        "head of size 3: missing",
    ),
    "first head removed": (
        _sql("DELETE FROM heads WHERE size = 1"),
        "head of size 1: missing",
    ),
    "all heads removed": (_sql("DELETE FROM heads"), "head of size 1: missing"),
    "head of an older size put under a newer one": (
        _sql("UPDATE heads SET note = (SELECT note FROM heads WHERE size = 3) WHERE size = 4"),
        "head of size 4: it was signed for another size or for other entries",
    ),
    "document removed": (
        _sql("DELETE FROM documents WHERE entry = 4 AND place = 0"),
        "document 0 of entry 4: missing",
    ),
    "last document removed": (
        _sql("DELETE FROM documents WHERE entry = 4 AND place = 1"),
        "document 1 of entry 4: missing",
    ),
    "documents swapped": (
        _sql(
            "UPDATE documents SET place = place + 5 WHERE entry = 4",
            "UPDATE documents SET place = 6 - place WHERE entry = 4",
        ),
        "document 0 of entry 4: its role or digest",
    ),
    "document added to an entry": (
        _sql("INSERT INTO documents SELECT 1, 1, role, digest, content FROM documents WHERE entry = 1"),
        "document 1 of entry 1: no entry names it",
    ),
    "document of no entry": (
        _sql("INSERT INTO documents SELECT 99, 0, role, digest, content FROM documents WHERE entry = 1"),
        "document 0 of entry 99: no entry names it",
    ),
    "content emptied": (
        _sql("UPDATE documents SET content = x'' WHERE entry = 1"),
        "document 0 of entry 1: its content was changed",
    ),
    "content as text": (
        _sql("UPDATE documents SET content = CAST(content AS TEXT) WHERE entry = 1"),
        "document 0 of entry 1: its content has the wrong type",
    ),
    "time as text": (
        _sql("UPDATE entries SET time = 'noon' WHERE position = 2"),
        "entry 2: a value has the wrong type",
    ),
    "note as text": (
        _sql("UPDATE heads SET note = CAST(note AS TEXT) WHERE size = 3"),
        "head of size 3: its note has the wrong type",
    ),
    "tree hash removed": (
        _sql("UPDATE entries SET subtrees = x'' WHERE position = 3"),
        "entry 3: the tree hashes beside it are not those",
    ),
    "tree hash added": (
        _sql("UPDATE entries SET subtrees = hash WHERE position = 2"),
        "entry 2: the tree hashes beside it are not those",
    ),
    "text altered": (_sql("UPDATE texts SET text = 'early'"), "text reason of entry 5: it is not the one"),
    "text altered with its salt": (
        _sql("UPDATE texts SET salt = zeroblob(32), text = 'early'"),
        "text reason of entry 5: it is not the one",
    ),
    "text taken away in silence": (
        _sql("DELETE FROM texts"),
        "text reason of entry 5: missing, and no entry says that it was erased",
    ),
    "text of another entry": (_sql("UPDATE texts SET entry = 4"), "text of entry 4: no field of the entry names it"),
    "text of no entry": (
        _sql("INSERT INTO texts SELECT 99, field, salt, text FROM texts"),
        "text of an entry that is not",
    ),
    "text of another field": (
        _sql("INSERT INTO texts SELECT entry, 'peer', salt, text FROM texts"),
        "text of entry 5: no field of the entry names it",
    ),
    "meta emptied": (_sql("DELETE FROM meta"), "meta: there must be exactly one row"),
    "second meta row": (
        _sql("INSERT INTO meta SELECT 2, log, origin, format, created FROM meta"),
        "meta: there must be",
    ),
    "other format": (_sql("UPDATE meta SET format = 3"), "meta: format 3"),
    "table dropped": (_sql("DROP TABLE documents"), "file: table documents is missing"),
    "table replaced by a view": (
        _sql("ALTER TABLE heads RENAME TO h", "CREATE VIEW heads AS SELECT * FROM h"),
        "file: table heads is missing",
    ),
    "table rebuilt": (
        _sql("ALTER TABLE heads RENAME TO h", "CREATE TABLE heads AS SELECT * FROM h"),
        "file: table heads is not built",
    ),
}


@pytest.mark.parametrize("name", list(CHANGES))
def test_a_changed_structure_is_found_and_named(path: Path, name: str) -> None:
    change, problem = CHANGES[name]
    connection = tamperer(path)
    change(connection)
    connection.close()
    found = verify_log(path)
    assert not found.ok
    assert found.problem is not None
    assert found.problem.startswith(problem)


def test_a_log_signed_by_another_key_is_refused(path: Path, tmp_path: Path) -> None:
    """The whole log rewritten by somebody with another key, under the old name."""
    thief = Identity.generate()
    forged = tmp_path / "forged.db"
    AuditLog.create(forged, thief, 5).close()
    found = verify_log(forged, owner().peer_id)
    assert found.problem is not None
    assert found.problem.startswith(f"meta: the log belongs to {thief.peer_id}")
    with pytest.raises(ConfigError, match="belongs to"):
        AuditLog.open(forged, owner())


def test_a_tail_cut_with_its_heads_is_told_by_the_checkpoint_beside_the_log_alone(path: Path) -> None:
    """The stated limit: without it only witnesses, who remember a later head, can tell this from a younger log."""
    connection = tamperer(path)
    _sql("DELETE FROM documents WHERE entry >= 3", "DELETE FROM texts WHERE entry >= 3")(connection)
    connection.execute("DELETE FROM entries WHERE position >= 3")
    connection.execute("DELETE FROM heads WHERE size > 3")
    connection.close()
    found = verify_log(path)
    assert found.problem is not None
    assert found.problem.startswith("entry 3: missing (6 entries were acknowledged")
    path.with_name(path.name + ".head").unlink()
    found = verify_log(path)
    assert (found.ok, found.entries) == (True, 3)


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE heads SET note = zeroblob(64) WHERE size = 6",
        "UPDATE entries SET body = x'80' WHERE position = 4",
        "UPDATE entries SET kind = 'x' WHERE position = 0",
        "UPDATE entries SET hash = zeroblob(32) WHERE position = 5",
        "DELETE FROM heads",
        "DELETE FROM heads WHERE size = 6",
        "DELETE FROM entries WHERE position = 5",
        "DELETE FROM entries",
        "DELETE FROM meta",
        "DROP TABLE heads",
    ],
)
def test_open_refuses_a_damaged_end_and_frees_the_lock(path: Path, change: str) -> None:
    keep = path.with_name("keep.db")
    shutil.copy(path, keep)
    connection = tamperer(path)
    connection.execute(change)
    connection.close()
    with pytest.raises(StoreError):
        AuditLog.open(path, owner())
    shutil.copy(keep, path)
    AuditLog.open(path, owner()).close()


def test_no_flipped_byte_of_the_raw_file_passes_as_another_log(path: Path, tmp_path: Path) -> None:
    """Any byte, also those of SQLite itself: either it is found, or the log still reads the same."""
    data = path.read_bytes()
    before = everything(path)
    copy = tmp_path / "flipped.db"
    found_bad = 0
    for offset in range(0, len(data), 53):
        changed = bytearray(data)
        changed[offset] ^= 0x41
        copy.write_bytes(changed)
        for side in ("-wal", "-shm"):
            copy.with_name(copy.name + side).unlink(missing_ok=True)
        if verify_log(copy).ok:
            assert everything(copy) == before, offset
        else:
            found_bad += 1
    assert found_bad > 10


def test_an_index_that_disagrees_with_its_table_is_found(path: Path, tmp_path: Path) -> None:
    """The digest stands in the entry's body, in the document's row and in the index that look-ups use."""
    data = path.read_bytes()
    digest = hashlib.sha256(b"first delta").digest()
    places = [match.start() for match in re.finditer(re.escape(digest), data)]
    assert len(places) >= 3
    problems = []
    for number, place in enumerate(places):
        changed = bytearray(data)
        changed[place] ^= 1
        copy = tmp_path / f"index{number}.db"
        copy.write_bytes(changed)
        problems.append(verify_log(copy).problem or "")
    assert all(problems)
    assert any(problem.startswith("file:") for problem in problems)


@pytest.mark.parametrize("content", [b"", b"x", b"SQLite format 3\0", b"no database" * 1000])
def test_a_file_that_is_no_log_is_a_problem_not_an_error(tmp_path: Path, content: bytes) -> None:
    place = tmp_path / "audit.db"
    place.write_bytes(content)
    found = verify_log(place)
    assert not found.ok
    assert found.problem is not None
    assert found.problem.startswith("file")
    with pytest.raises(StoreError):
        AuditLog.open(place, owner())


def test_a_file_cut_at_any_page_is_a_problem(path: Path, tmp_path: Path) -> None:
    data = path.read_bytes()
    for pages in range(1, len(data) // 4096):
        copy = tmp_path / f"cut{pages}.db"
        copy.write_bytes(data[: pages * 4096])
        assert not verify_log(copy).ok


def test_a_missing_file_is_the_callers_mistake(tmp_path: Path) -> None:
    for place in (tmp_path / "none.db", tmp_path):
        with pytest.raises(ConfigError, match="there is no audit log"):
            verify_log(place)
