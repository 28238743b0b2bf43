"""What appending and reading promise: one transaction, one writer, order, limits, append-only."""

from __future__ import annotations

import asyncio
import hashlib
import sqlite3
import stat
import threading
from pathlib import Path
from typing import Any

import pytest
from audit_logs import KEYS, NOW, delta, everything, owner, tamperer, write_small_log

from p2pfl.audit import (
    MAX_BODY,
    MAX_DOCUMENT,
    MAX_DOCUMENTS,
    MAX_ENTRIES,
    AuditLog,
    NewEntry,
    read_entries,
    store,
    verify_log,
)
from p2pfl.crypto.identity import Identity
from p2pfl.errors import ConfigError, IllegalStep, StoreError

NOTE = NewEntry("link_up", {"peer": "x"})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.db"


def test_a_new_log_holds_its_identity(path: Path) -> None:
    with AuditLog.create(path, owner(), NOW) as log:
        (first,) = log.entries()
        assert (first.position, first.time, first.kind) == (0, NOW, "log_created")
        assert first.body == {"log": owner().peer_id, "origin": f"p2pfl/{owner().peer_id}", "format": 2, "created": NOW}
        assert (log.head.size, log.head.root, log.head.hash) == (1, first.hash, first.hash)
        assert log.head.note.decode().split("\n")[:2] == [log.origin, "1"]
    for name in (path, path.with_name("audit.db.lock")):
        assert stat.S_IMODE(name.stat().st_mode) == 0o600


def test_entries_and_documents_come_back_in_order(path: Path) -> None:
    with AuditLog.create(path, owner(), NOW) as log:
        head = log.append([delta(0, b"a", b"b"), NOTE], NOW + 1)
        log.append([delta(1, b"c")], NOW + 2)
        assert head.size == 3
        digests = [hashlib.sha256(content).hexdigest() for content in (b"a", b"b", b"c")]
        assert [entry.kind for entry in log.entries()] == [
            "log_created",
            "delta_sent",
            "link_up",
            "delta_sent",
        ]
        assert [entry.position for entry in log.entries(start=2)] == [2, 3]
        assert [entry.position for entry in log.entries(kind="delta_sent")] == [1, 3]
        assert [entry.position for entry in log.entries(start=2, kind="delta_sent")] == [3]
        (sent,) = log.entries(start=3)
        assert sent.documents == (("outbox", digests[2]),)
        assert "documents" not in sent.body
        assert [log.document(digest) for digest in digests] == [b"a", b"b", b"c"]
        assert log.document("00" * 32) is None
        assert list(log.documents("outbox")) == [
            (1, digests[0], b"a"),
            (1, digests[1], b"b"),
            (3, digests[2], b"c"),
        ]
        assert list(log.documents("outbox", start=2)) == [(3, digests[2], b"c")]
        assert list(log.documents("evidence")) == []
        assert list(read_entries(path)) == list(log.entries())
        assert list(read_entries(path, 1, "link_up")) == list(log.entries(kind="link_up"))


def test_entries_span_pages_and_appends_may_go_on_between(path: Path) -> None:
    with AuditLog.create(path, owner(), NOW) as log:
        log.append([NOTE] * (2 * store.PAGE), NOW)
        seen = []
        for entry in log.entries():
            seen.append(entry.position)
            if entry.position == store.PAGE:
                log.append([NOTE], NOW)
        assert seen == list(range(2 * store.PAGE + 2))
        assert [entry.position for entry in read_entries(path)] == seen


def test_one_append_is_one_transaction(path: Path) -> None:
    statements: list[str] = []
    with AuditLog.create(path, owner(), NOW) as log:
        log._connection.set_trace_callback(statements.append)
        log.append([delta(0, b"a", b"b"), NOTE, delta(1, b"c")], NOW)
        log._connection.set_trace_callback(None)
    words = [statement.split()[0] for statement in statements if not statement.startswith("--")]
    assert words.count("BEGIN") == words.count("COMMIT") == 1
    assert words.index("BEGIN") < words.index("INSERT")
    assert len(words) - 1 - words[::-1].index("INSERT") < words.index("COMMIT")
    tables = [  # SQLite tells a statement a second time for each trigger it fires
        statement.split()[2] for statement in dict.fromkeys(statements) if statement.startswith("INSERT")
    ]
    assert tables.count("entries") == tables.count("documents") == 3
    assert tables.count("heads") == 1
    assert tables[-1] == "heads", "entries first, then the head that covers them"


def test_every_durability_setting_holds(path: Path) -> None:
    with AuditLog.create(path, owner(), NOW) as log:
        values = {
            name: log._connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("journal_mode", "synchronous", "foreign_keys", "wal_autocheckpoint", "fullfsync")
        }
    expected = {
        "journal_mode": "wal",
        "synchronous": 2,
        "foreign_keys": 1,
        "wal_autocheckpoint": 0,
        "fullfsync": 1,
    }
    assert values == expected


@pytest.mark.parametrize("table", list(KEYS))
@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE {table} SET {key} = {key}",
        "DELETE FROM {table}",
        "INSERT INTO {table} SELECT * FROM {table}",
        "INSERT OR REPLACE INTO {table} SELECT * FROM {table}",
        "INSERT OR IGNORE INTO {table} SELECT * FROM {table}",
    ],
)
def test_triggers_refuse_every_change(path: Path, table: str, statement: str) -> None:
    write_small_log(path)
    before = everything(path)
    foreign = sqlite3.connect(path, isolation_level=None)  # with SQLite's defaults, as any other program has
    if (table, statement) == ("texts", "DELETE FROM {table}"):
        foreign.close()
        return  # erasing is what texts lie there for; in silence it is found by verify_log
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        foreign.execute(statement.format(table=table, key=KEYS[table][0]))
    foreign.close()
    assert everything(path) == before


def test_triggers_refuse_gaps(path: Path) -> None:
    write_small_log(path)
    foreign = sqlite3.connect(path, isolation_level=None)
    for table in ("entries", "heads"):
        row = foreign.execute(f"SELECT * FROM {table}").fetchone()
        key = 9 if table == "entries" else 0
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            foreign.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(row))})", (key, *row[1:]))
    foreign.close()


def test_only_one_writer_at_a_time(path: Path) -> None:
    log = AuditLog.create(path, owner(), NOW)
    with pytest.raises(ConfigError, match="already open"):
        AuditLog.open(path, owner())
    assert verify_log(path).ok, "reading works beside a writer"
    log.close()
    log.close()
    AuditLog.open(path, owner()).close()


def test_threads_may_append_at_once(path: Path) -> None:
    sizes: list[int] = []
    with AuditLog.create(path, owner(), NOW) as log:

        def work(number: int) -> None:
            for index in range(10):
                sizes.append(log.append([delta(index, bytes([number, index])), NOTE], NOW).size)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(sizes) == list(range(3, 83, 2))
    assert (verify_log(path).ok, verify_log(path).entries) == (True, 81)


async def test_the_log_works_from_worker_threads_of_a_loop(path: Path) -> None:
    log = await asyncio.to_thread(AuditLog.create, path, owner(), NOW)
    heads = await asyncio.gather(*(asyncio.to_thread(log.append, [NOTE], NOW + i) for i in range(5)))
    assert sorted(head.size for head in heads) == [2, 3, 4, 5, 6]
    await asyncio.to_thread(log.close)


BAD_ENTRIES: dict[str, tuple[Any, str]] = {
    "no entries": ([], "1 to"),
    "too many entries": ([NOTE] * (MAX_ENTRIES + 1), "1 to"),
    "kind with capitals": ([NewEntry("Mixed", {})], "lower-case"),
    "empty kind": ([NewEntry("", {})], "lower-case"),
    "long kind": ([NewEntry("k" * 41, {})], "lower-case"),
    "kind with a line feed": ([NewEntry("mixed\n", {})], "lower-case"),
    "reserved field": ([NewEntry("mixed", {"documents": []})], "log's own"),
    "field that is no text": ([NewEntry("mixed", {1: 2})], "cannot be logged"),  # type: ignore[dict-item]
    "value of a strange type": ([NewEntry("mixed", {"x": object()})], "cannot be logged"),
    "body too long": ([NewEntry("mixed", {"x": "y" * MAX_BODY})], "cannot be logged"),
    "body too deep": ([NewEntry("mixed", {"x": [[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]})], "cannot be logged"),
    "bad role": ([NewEntry("mixed", {}, (("Out Box", b""),))], "role"),
    "too many documents": ([NewEntry("mixed", {}, (("outbox", b""),) * (MAX_DOCUMENTS + 1))], "documents"),
    "document too long": ([NewEntry("mixed", {}, (("outbox", bytes(MAX_DOCUMENT + 1)),))], "bytes"),
}


@pytest.mark.parametrize("name", list(BAD_ENTRIES))
def test_what_the_format_cannot_hold_is_refused_and_nothing_changes(path: Path, name: str) -> None:
    entries, reason = BAD_ENTRIES[name]
    with AuditLog.create(path, owner(), NOW) as log:
        with pytest.raises(ConfigError, match=reason):
            log.append([NOTE, *entries] if len(entries) == 1 else entries, NOW)
        assert log.head.size == 1
        assert log.append([NOTE], NOW).size == 2, "a refused entry does not stop the log"


def test_the_largest_entry_fits_and_verifies(path: Path) -> None:
    documents = (
        ("record", bytes(MAX_DOCUMENT)),
        *(("record", b"%d" % i) for i in range(MAX_DOCUMENTS - 1)),
    )
    with AuditLog.create(path, owner(), NOW) as log:
        log.append([NewEntry("k" * 40, {"x": b"y" * 60_000}, documents)], 2**63 - 1)
        assert len(list(log.documents("record"))) == MAX_DOCUMENTS
    assert verify_log(path).problem is None


@pytest.mark.parametrize("time", [-1, 2**63])
def test_a_time_outside_the_format_is_refused(path: Path, time: int) -> None:
    with pytest.raises(ConfigError, match="clock"):
        AuditLog.create(path, owner(), time)
    with AuditLog.create(path, owner(), NOW) as log:
        with pytest.raises(ConfigError, match="clock"):
            log.append([NOTE], time)


def test_create_and_open_say_what_is_wrong(path: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no audit log"):
        AuditLog.open(path, owner())
    with pytest.raises(ConfigError, match="check the folder"):
        AuditLog.create(tmp_path / "nowhere" / "audit.db", owner(), NOW)
    AuditLog.create(path, owner(), NOW).close()
    with pytest.raises(ConfigError, match="exists already"):
        AuditLog.create(path, owner(), NOW)
    with pytest.raises(ConfigError, match="belongs to"):
        AuditLog.open(path, Identity.generate())


def test_a_closed_log_refuses_every_call(path: Path) -> None:
    log = AuditLog.create(path, owner(), NOW)
    log.close()
    calls = (
        lambda: log.append([NOTE], NOW),
        lambda: list(log.entries()),
        lambda: list(log.documents("outbox")),
        lambda: log.document("00" * 32),
    )
    for call in calls:
        with pytest.raises(IllegalStep, match="closed"):
            call()


def test_a_bad_digest_is_the_callers_mistake(path: Path) -> None:
    with AuditLog.create(path, owner(), NOW) as log, pytest.raises(ConfigError, match="hexadecimal"):
        log.document("not hex")


def test_a_file_changed_under_the_writer_stops_it(path: Path) -> None:
    write_small_log(path)
    log = AuditLog.open(path, owner())
    foreign = sqlite3.connect(path, isolation_level=None)
    row = foreign.execute(
        "SELECT time, first, kind, body, previous, hash, subtrees FROM entries WHERE position = 5"
    ).fetchone()
    foreign.execute("INSERT INTO entries VALUES (6, ?, ?, ?, ?, ?, ?, ?)", row)
    foreign.close()
    with pytest.raises(StoreError, match="somebody else changed the file"):
        log.append([NOTE], NOW)
    log.close()


def test_a_foreign_lock_is_a_clear_error_and_not_the_end(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "BUSY_SECONDS", 0.0)
    with AuditLog.create(path, owner(), NOW) as log:
        foreign = sqlite3.connect(path, isolation_level=None)
        foreign.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="another program keeps"):
            log.append([NOTE], NOW)
        foreign.close()
        assert log.append([NOTE], NOW).size == 2, "nothing was written, so nothing is broken"


def test_a_damaged_document_is_never_handed_out(path: Path) -> None:
    write_small_log(path)
    connection = tamperer(path)
    connection.execute("UPDATE documents SET content = x'00' WHERE entry = 1")
    connection.close()
    digest = hashlib.sha256(b"first delta").hexdigest()
    with AuditLog.open(path, owner()) as log:
        with pytest.raises(StoreError, match="does not have its digest"):
            log.document(digest)
        with pytest.raises(StoreError, match="does not have its digest"):
            list(log.documents("outbox"))


@pytest.mark.parametrize("change", ["body = x'c1'", "time = 'noon'", "kind = x'00'"])
def test_reading_a_damaged_entry_names_it(path: Path, change: str) -> None:
    write_small_log(path)
    connection = tamperer(path)
    connection.execute(f"UPDATE entries SET {change} WHERE position = 2")
    connection.close()
    with pytest.raises(StoreError, match="entry 2"):
        list(read_entries(path))


def test_reading_without_a_place_for_shared_memory(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What SQLite answers in a folder that cannot be written (a test run by root cannot make one)."""
    write_small_log(path)
    connect = store.connect

    def refuses(place: Path, mode: str) -> sqlite3.Connection:
        if mode == "mode=ro":
            mode = "mode=ro&vfs=unix-none"  # no shared memory in this VFS: a WAL file cannot be opened with it
        return connect(place, mode)

    monkeypatch.setattr(store, "connect", refuses)
    assert verify_log(path).ok
    assert len(list(read_entries(path))) == 6
