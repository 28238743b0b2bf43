"""The fault matrix: killed, disk full, failed commits and checkpoints, a damaged write-ahead log."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from audit_logs import NOW, Faulty, delta, owner, write_small_log

import p2pfl.audit.log
from p2pfl.audit import AuditLog, NewEntry, verify_log
from p2pfl.audit.format import prepare
from p2pfl.audit.wal import FRAME_HEADER_SIZE, HEADER_SIZE, expected_growth
from p2pfl.errors import ConfigError, StoreError

NOTE = NewEntry("link_up", {"peer": "x"})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    place = tmp_path / "audit.db"
    write_small_log(place)
    return place


def _inject(log: AuditLog, statement: str, *, after: bool = False) -> None:
    log._connection = Faulty(log._connection, statement, after=after)  # type: ignore[assignment]


def _wal(path: Path) -> Path:
    return path.with_name(path.name + "-wal")


@pytest.mark.parametrize("commits", [1, 7, pytest.param(40, marks=pytest.mark.slow)])
def test_sigkill_while_appending_leaves_a_log_that_verifies_and_opens(path: Path, commits: int) -> None:
    script = Path(__file__).with_name("audit_writer.py")
    child = subprocess.Popen([sys.executable, str(script), str(path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    with child:
        promised = [int(child.stdout.readline()) for _ in range(commits)][-1]
        running = verify_log(path, owner().peer_id)  # while the other process goes on writing
        assert (running.ok, running.problem) == (True, None)
        assert running.entries >= promised
        with pytest.raises(ConfigError, match="already open"):
            AuditLog.open(path, owner())
        child.kill()
        promised = max([promised, *(int(line) for line in child.stdout.read().split("\n")[:-1])])
    found = verify_log(path)
    assert found.problem is None
    assert found.entries >= promised, "what append returned for must be there"
    assert found.entries % 2 == 0, "a commit is there as a whole or not at all"
    with AuditLog.open(path, owner()) as log:
        assert log.head.size == found.entries
        assert log.append([NOTE], NOW).size == found.entries + 1
    assert verify_log(path).ok


def test_a_full_disk_stops_the_log_for_good(path: Path) -> None:
    log = AuditLog.open(path, owner())
    head = log.head
    (pages,) = log._connection.execute("PRAGMA page_count").fetchone()
    log._connection.execute(f"PRAGMA max_page_count = {pages + 1}").fetchall()
    with pytest.raises(StoreError, match="full") as first:
        log.append([delta(9, bytes(100_000))], NOW + 9)
    assert "free or repair the disk" in str(first.value)
    with pytest.raises(StoreError, match="takes no entries since a commit failed"):
        log.append([NOTE], NOW + 10)
    assert log.head == head
    assert [entry.position for entry in log.entries()] == list(range(head.size))
    log.close()
    assert (verify_log(path).ok, verify_log(path).entries) == (True, head.size)
    with AuditLog.open(path, owner()) as again:
        assert again.append([NOTE], NOW + 11).size == head.size + 1


FAULTS = {
    "before the first row": ("INSERT INTO entries", False, {6}),
    "after all rows": ("INSERT INTO entries", True, {6}),
    "between entries and head": ("INSERT INTO heads", False, {6}),
    "commit failed and lost": ("COMMIT", False, {6}),
    "commit failed but persisted": ("COMMIT", True, {7}),
    "begin failed": ("BEGIN", False, {6}),
}


@pytest.mark.parametrize("name", list(FAULTS))
def test_after_a_failed_step_no_entry_is_taken_and_the_healed_log_verifies(path: Path, name: str) -> None:
    statement, after, sizes = FAULTS[name]
    log = AuditLog.open(path, owner())
    _inject(log, statement, after=after)
    with pytest.raises(StoreError, match="disk I/O error"):
        log.append([NOTE], NOW + 9)
    log._connection = log._connection._inner  # type: ignore[attr-defined]  # the disk is well again
    with pytest.raises(StoreError, match="takes no entries since"):
        log.append([NOTE], NOW + 10)
    assert log.broken is not None
    log.close()
    found = verify_log(path)
    assert found.problem is None
    assert found.entries in sizes
    with AuditLog.open(path, owner()) as again:
        assert again.append([NOTE], NOW + 11).size == found.entries + 1
    assert verify_log(path).ok


def test_an_interrupt_inside_a_commit_passes_through_and_stops_the_log(path: Path) -> None:
    log = AuditLog.open(path, owner())

    class Interrupting(Faulty):
        def execute(self, statement: str, *arguments: Any) -> Any:
            if statement == "COMMIT":
                raise KeyboardInterrupt
            return self._inner.execute(statement, *arguments)

    log._connection = Interrupting(log._connection, "no statement")  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        log.append([NOTE], NOW + 9)
    with pytest.raises(StoreError, match="interrupted"):
        log.append([NOTE], NOW + 9)
    log.close()
    assert verify_log(path).entries == 6


def test_a_failed_checkpoint_is_never_tried_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(p2pfl.audit.log, "CHECKPOINT_BYTES", 1)
    log = AuditLog.open(path, owner())
    _inject(log, "PRAGMA wal_checkpoint")
    assert log.append([NOTE], NOW + 9).size == 7, "the entries are durable in the write-ahead log"
    with pytest.raises(StoreError, match="a checkpoint failed"):
        log.append([NOTE], NOW + 10)
    log._connection = log._connection._inner  # type: ignore[attr-defined]  # the disk is well again
    before = path.read_bytes()
    log.close()
    assert _wal(path).stat().st_size > HEADER_SIZE
    assert path.read_bytes() == before, "closing must not make the checkpoint after all"
    assert verify_log(path).entries == 7
    with AuditLog.open(path, owner()) as again:
        assert again.head.size == 7


def test_a_failed_checkpoint_at_close_still_frees_the_lock(path: Path) -> None:
    log = AuditLog.open(path, owner())
    log.append([NOTE], NOW + 9)
    _inject(log, "PRAGMA wal_checkpoint")
    log.close()
    assert _wal(path).stat().st_size > HEADER_SIZE
    with AuditLog.open(path, owner()) as again:
        assert again.head.size == 7


def test_the_write_ahead_log_stays_bounded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(p2pfl.audit.log, "CHECKPOINT_BYTES", 256 * 1024)
    with AuditLog.open(path, owner()) as log:
        for number in range(40):
            log.append([delta(number, bytes([number]) * 32 * 1024)], NOW + number)
        assert _wal(path).stat().st_size < 1024 * 1024, "1.3 MB of documents, a checkpoint every 256 KiB"


KINDS = ("acknowledged", "link_up", "missed", "mixed", "started")
SHAPES: dict[str, Callable[[random.Random, int], NewEntry]] = {
    "short": lambda draw, number: NewEntry("acknowledged", {"core": f"{number:064x}"}),
    "kinds": lambda draw, number: NewEntry(draw.choice(KINDS), {"core": f"{number:064x}"}),
    "half a page": lambda draw, number: NewEntry("mixed", {"edges": draw.randbytes(2200)}),
    "texts": lambda draw, number: NewEntry("refused", {"reason": f"because {number}" * 30}),
    "documents": lambda draw, number: delta(number, draw.randbytes(300), draw.randbytes(9000)),
}


@pytest.mark.parametrize("shape", list(SHAPES))
@pytest.mark.parametrize("many", [1, 8, 64])
def test_what_a_commit_adds_to_the_write_ahead_log_is_not_underestimated(path: Path, shape: str, many: int) -> None:
    """Nor by so much too high that commits of many entries pay for moving pages all the time."""
    draw, expected, written = random.Random(many), 0, 0
    with AuditLog.open(path, owner()) as log:
        for number in range(1, 64 if many == 1 else 16):
            entries = [SHAPES[shape](draw, number * many + place) for place in range(many)]
            log.append(entries, NOW + number)
            expected += expected_growth([prepare(entry) for entry in entries])
            if expected > p2pfl.audit.log.CHECKPOINT_BYTES // 2:
                break  # before it starts again from its beginning
        written = _wal(path).stat().st_size
    assert written <= expected <= 3 * written


def _leave_a_write_ahead_log(path: Path, commits: int) -> tuple[bytes, bytes, list[int]]:
    """Both files as a killed writer leaves them after ``commits`` commits, and the ends of the commits."""
    log = AuditLog.open(path, owner())
    ends = []
    for number in range(commits):
        log.append([delta(number, b"x" * 50)], NOW + number)
        ends.append(_wal(path).stat().st_size)
    files = path.read_bytes(), _wal(path).read_bytes()
    log.close()
    return *files, ends


def _restore(path: Path, data: bytes, wal: bytes) -> None:
    for beside in ("-shm", ".head"):
        path.with_name(path.name + beside).unlink(missing_ok=True)
    path.write_bytes(data)
    _wal(path).write_bytes(wal)


def test_a_damaged_write_ahead_log_is_found_not_cut_off(path: Path) -> None:
    data, wal, ends = _leave_a_write_ahead_log(path, 4)
    _restore(path, data, wal)
    assert (verify_log(path).ok, verify_log(path).entries) == (True, 10)
    # Any byte before the last two commits, frame headers and the file's header included.
    offsets = [
        *range(HEADER_SIZE),
        *range(HEADER_SIZE, HEADER_SIZE + FRAME_HEADER_SIZE),
        *range(56, ends[1], 401),
    ]
    for offset in offsets:
        changed = bytearray(wal)
        changed[offset] ^= 0x10
        _restore(path, data, bytes(changed))
        found = verify_log(path)
        assert found.problem is not None, offset
        assert found.problem.startswith("write-ahead log:"), (offset, found.problem)
        with pytest.raises(StoreError, match="write-ahead log"):
            AuditLog.open(path, owner())
        assert _wal(path).read_bytes() == changed, "the evidence must stay"


@pytest.mark.parametrize("size", [0, 7, HEADER_SIZE - 1, HEADER_SIZE])
def test_a_write_ahead_log_torn_at_its_very_beginning_holds_no_commit(path: Path, size: int) -> None:
    data, wal, _ = _leave_a_write_ahead_log(path, 1)
    _restore(path, data, wal[:size])
    assert (verify_log(path).ok, verify_log(path).entries) == (True, 6)
    _restore(path, data, bytes(size))
    assert verify_log(path).ok


def test_create_leaves_a_whole_log_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "audit.db"

    def fails(*arguments: Any) -> Any:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", fails)
        with pytest.raises(StoreError, match="could not be made"):
            AuditLog.create(place, owner(), NOW)
    assert not place.exists()
    AuditLog.create(place, owner(), NOW).close()  # what the crash left is replaced
    assert verify_log(place).entries == 1
    assert sorted(item.name for item in tmp_path.iterdir() if ".new" in item.name) == []
