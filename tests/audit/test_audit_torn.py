"""A torn end and a damaged one: the same bytes, told apart by what had been acknowledged."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from audit_logs import NOW, delta, everything, owner, write_small_log

from p2pfl.audit import AuditLog, NewEntry, verify_log
from p2pfl.audit.last_head import last_head_path, read_last_head
from p2pfl.audit.verify import MAYBE_ACKNOWLEDGED, NOT_ACKNOWLEDGED
from p2pfl.audit.wal import FRAME_HEADER_SIZE, HEADER_SIZE, wal_state
from p2pfl.crypto.identity import Identity
from p2pfl.errors import StoreError

NOTE = NewEntry("link_up", {"peer": "x"})
BEFORE = 6  # entries of the log in its database file
COMMITS = 3
FRAME = FRAME_HEADER_SIZE + 4096


@dataclass(frozen=True)
class Killed:
    """The files as SIGKILL leaves them after each of some commits of one entry."""

    path: Path
    data: bytes
    wal: bytes
    ends: list[int]  # of the commits in the write-ahead log
    heads: list[bytes]  # beside the log: before the first of them, and after each

    def put(self, wal: bytes, head: bytes | None) -> None:
        self.path.with_name(self.path.name + "-shm").unlink(missing_ok=True)
        self.path.write_bytes(self.data)
        self.wal_path.write_bytes(wal)
        last_head_path(self.path).unlink(missing_ok=True)
        if head is not None:
            last_head_path(self.path).write_bytes(head)

    @property
    def wal_path(self) -> Path:
        return self.path.with_name(self.path.name + "-wal")


@pytest.fixture
def killed(tmp_path: Path) -> Killed:
    path = tmp_path / "audit.db"
    write_small_log(path)
    ends, heads = [], [read_last_head(path)]
    with AuditLog.open(path, owner()) as log:
        for number in range(COMMITS):
            log.append([delta(number, b"x" * 50)], NOW + number)
            ends.append(path.with_name(path.name + "-wal").stat().st_size)
            heads.append(read_last_head(path))
        data, wal = path.read_bytes(), path.with_name(path.name + "-wal").read_bytes()
    return Killed(path, data, wal, ends, heads)


def places(killed: Killed, step: int) -> Iterator[int]:
    """Places in the last commit: all in the first frames' headers and near their pages' ends, and some between."""
    start, end = killed.ends[-2], killed.ends[-1]
    near = range(start, start + FRAME) if step > FRAME_HEADER_SIZE * 10 else range(start, end)
    for offset in range(start, end):
        inside = (offset - HEADER_SIZE) % FRAME
        edge = inside < FRAME_HEADER_SIZE + 2 or inside > FRAME - 2
        if (edge and offset in near) or offset % step == 0:
            yield offset


def test_the_checkpoint_beside_the_log_is_the_newest_that_was_acknowledged(killed: Killed) -> None:
    assert [note.split(b"\n")[1] for note in killed.heads] == [b"6", b"7", b"8", b"9"]
    with AuditLog.open(killed.path, owner()) as log:
        assert log.lost is None and read_last_head(killed.path) == log.head.note


@pytest.mark.parametrize("step", [997, pytest.param(67, marks=pytest.mark.slow)])
def test_an_end_torn_before_it_was_acknowledged_is_dropped(killed: Killed, step: int) -> None:
    rows = None
    for cut in places(killed, step):
        killed.put(killed.wal[:cut], killed.heads[-2])
        found = verify_log(killed.path)
        assert (found.ok, found.entries) == (True, BEFORE + COMMITS - 1), cut
        # of a frame's first bytes nothing says yet whose they are
        whole = (cut - HEADER_SIZE) % FRAME <= FRAME_HEADER_SIZE and cut < killed.ends[-2] + FRAME
        assert found.torn == NOT_ACKNOWLEDGED or (found.torn is None and whole), cut
        rows = rows or everything(killed.path)
    with AuditLog.open(killed.path, owner()) as log:
        assert log.lost is None
        assert log.append([NOTE], NOW).size == BEFORE + COMMITS
    assert verify_log(killed.path).torn is None


@pytest.mark.parametrize("step", [997, pytest.param(67, marks=pytest.mark.slow)])
def test_the_same_end_cut_off_after_it_was_acknowledged_is_a_loss(killed: Killed, step: int) -> None:
    refused = lost = 0
    for cut in places(killed, step):
        wal = killed.wal[:cut]
        killed.put(wal, killed.heads[-1])
        found = verify_log(killed.path)
        assert found.problem is not None and found.torn is None
        assert found.problem.startswith(f"entry {BEFORE + COMMITS - 1}: missing ({BEFORE + COMMITS} entries were"), cut
        if wal_state(killed.path).torn:
            with pytest.raises(StoreError, match=r"its end is damaged \(9 entries were acknowledged, 8 are whole\)"):
                AuditLog.open(killed.path, owner())
            assert killed.wal_path.read_bytes() == wal, "the evidence must stay"
            refused += 1
        else:
            with AuditLog.open(killed.path, owner()) as log:
                assert log.lost is not None and log.lost.checkpoint.size == BEFORE + COMMITS
            lost += 1
    assert refused > lost > 0


@pytest.mark.slow
def test_a_flipped_bit_in_the_last_commit_is_damage_where_it_was_acknowledged(killed: Killed) -> None:
    kept = 0
    for offset in places(killed, 67):
        wal = bytearray(killed.wal)
        wal[offset] ^= 1 << offset % 8
        killed.put(bytes(wal), killed.heads[-1])
        found = verify_log(killed.path)
        assert found.problem is not None, offset
        if found.problem.startswith("write-ahead log:"):
            continue  # a frame that now looks like a second commit: damage in any case
        assert found.problem.startswith("entry 8: missing (9 entries were acknowledged"), offset
        with pytest.raises(StoreError, match="its end is damaged"):
            AuditLog.open(killed.path, owner())
        assert killed.wal_path.read_bytes() == wal
        killed.put(bytes(wal), killed.heads[-2])
        assert verify_log(killed.path).torn == NOT_ACKNOWLEDGED
        kept += 1
    assert kept > 100


def test_without_the_checkpoint_beside_the_log_the_doubt_is_said(killed: Killed) -> None:
    """The stated limit, after a power loss, too; one commit earlier the same byte is damage all the same."""
    wal = bytearray(killed.wal)
    wal[killed.ends[-2] + FRAME_HEADER_SIZE + 100] ^= 1
    for head in (None, b"", killed.heads[-1][:-9], b"rubbish " * 9):
        killed.put(bytes(wal), head)
        found = verify_log(killed.path)
        assert (found.ok, found.torn) == (True, MAYBE_ACKNOWLEDGED)
    wal[killed.ends[-3] + FRAME_HEADER_SIZE + 100] ^= 1
    killed.put(bytes(wal), None)
    found = verify_log(killed.path)
    assert found.problem is not None and "2 commits behind it" in found.problem


def test_nobody_without_the_key_can_make_a_good_log_look_cut_off(killed: Killed, tmp_path: Path) -> None:
    other = Identity.generate()
    with AuditLog.create(tmp_path / "other.db", other, NOW) as log:
        log.append([NOTE] * 30, NOW)
    killed.put(killed.wal, read_last_head(tmp_path / "other.db"))
    assert verify_log(killed.path).ok
    killed.put(killed.wal, killed.heads[-1].replace(b"\n9\n", b"\n99\n"))
    assert verify_log(killed.path).ok


@pytest.mark.parametrize("pages", [1, 2, 5, -1])
def test_a_database_cut_at_a_page_is_damage(killed: Killed, pages: int) -> None:
    with AuditLog.open(killed.path, owner()):
        pass  # closing moves all pages into the database file
    data = killed.path.read_bytes()
    killed.path.write_bytes(data[: pages * 4096])
    found = verify_log(killed.path)
    assert not found.ok and found.torn is None
    with pytest.raises(StoreError):
        AuditLog.open(killed.path, owner())
    assert len(killed.path.read_bytes()) == len(data[: pages * 4096])


def test_a_lost_end_is_known_until_a_new_epoch_declares_it(killed: Killed) -> None:
    killed.put(killed.wal[: killed.ends[0]], killed.heads[-1])
    with AuditLog.open(killed.path, owner()) as log:
        assert log.head.size == 7
        log.append([NOTE] * 5, NOW)
    found = verify_log(killed.path)
    assert found.problem == "head of size 9: another one was acknowledged; an older copy was put back, and gone on with"
    with AuditLog.open(killed.path, owner()) as log:
        assert log.lost is not None and (log.lost.epoch, log.lost.checkpoint.size) == (0, 9)
        lost = [[0, 9, log.lost.checkpoint.root]]
        log.append([NewEntry("epoch_opened", {"epoch": 1, "kept": 7, "lost": lost, "reason": "x"})], NOW, 1)
        assert log.lost is None and read_last_head(killed.path) == log.head.note
    assert verify_log(killed.path).ok
    with AuditLog.open(killed.path, owner()) as log:
        assert log.lost is None


def test_a_running_writer_is_not_called_torn(killed: Killed) -> None:
    killed.put(killed.wal[:-9], killed.heads[-2])
    with AuditLog.open(killed.path, owner()):
        assert verify_log(killed.path).torn is None
    killed.put(killed.wal[:-9], killed.heads[-2])
    assert verify_log(killed.path).torn == NOT_ACKNOWLEDGED
