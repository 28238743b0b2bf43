"""A writer's own system calls on the files of the log, under strace: each of them ended by SIGKILL, each of them failing.

The faults are the kernel's answers to the real program: nothing in it knows of them.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from audit_lives import understood
from audit_logs import NOW, delta, owner
from tracing import needs_strace, traced

from p2pfl.audit import AuditLog, NewEntry, verify_log

pytestmark = [needs_strace, pytest.mark.timeout(240)]

SCRIPT = Path(__file__).with_name("audit_lives.py")
WRITING = ("pwrite64", "write", "fdatasync", "fsync", "ftruncate")
SEED = 20


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """A log that was left by a killed writer: its last commits lie in the write-ahead log."""
    folder, path = tmp_path / "writing", tmp_path / "begun" / "audit.db"
    folder.mkdir()
    with AuditLog.create(folder / "audit.db", owner(), NOW) as log:
        for number in range(3):
            log.append([delta(number, b"x" * 50)], NOW + number)
        shutil.copytree(folder, path.parent)
    (path.parent / "audit.db-shm").unlink()
    return path


def live(folder: Path, begun: Path, *inject: str, appends: int) -> tuple[Path, dict[str, Any], list[str]]:
    """One life on a copy of the log with one fault: the log, what it said, and its calls."""
    shutil.copytree(begun.parent, folder)
    path, calls = folder / "audit.db", folder / "calls"
    files = [path.with_name(path.name + end) for end in ("", "-wal")]
    options = [option for file in files for option in ("-P", str(file))]
    order = json.dumps({"path": str(path), "seed": SEED, "appends": appends})
    line = [*traced(calls, WRITING, *options, *inject), sys.executable, str(SCRIPT), order]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60)
    said = understood(done.stdout)
    assert said["failed"] == [] and "Traceback" not in done.stderr, done.stderr
    return path, said, calls.read_text().splitlines()


def on_log(calls: list[str]) -> list[str]:
    """The calls on the log's files, without those that strace tells of itself."""
    return [line for line in calls if re.search(r"(write|pwrite64|fdatasync|fsync|ftruncate)\(\d+<", line)]


def calls_of_a_whole_life(tmp_path: Path, begun: Path, call: str) -> int:
    """How often it is made from opening the log over one commit to closing it."""
    many = sum(f"{call}(" in line for line in on_log(live(tmp_path / "whole", begun, appends=1)[2]))
    assert many > 0
    return many


def check(path: Path, said: dict[str, Any]) -> int:
    """Nothing that was acknowledged is lost, and the log goes on."""
    size, _ = said["acknowledged"][-1] if said["acknowledged"] else (0, "")
    found = verify_log(path, owner().peer_id)
    assert found.problem is None
    assert found.entries in {max(size, 4)} | {first + count for first, count in said["begins"][-1:] if first == size}
    with AuditLog.open(path, owner()) as log:
        for entries, root in said["acknowledged"]:
            assert log.root_at(entries).hex() == root
        assert log.append([NewEntry("link_up", {"peer": "x"})], NOW).size == found.entries + 1
    assert verify_log(path).ok
    return found.entries


@pytest.mark.slow
@pytest.mark.parametrize("call", ["pwrite64", "fdatasync", "ftruncate"])
def test_killed_at_every_system_call_that_writes(begun: Path, tmp_path: Path, call: str) -> None:
    many = calls_of_a_whole_life(tmp_path, begun, call)
    for number in range(1, many + 1):
        inject = f"inject={call}:signal=KILL:when={number}"
        path, said, calls = live(tmp_path / f"{number}", begun, "-e", inject, appends=1)
        assert "killed by SIGKILL" in calls[-1]
        check(path, said)


FAULTS = [("fdatasync", ["EIO"]), pytest.param("pwrite64", ["EIO", "ENOSPC"], marks=pytest.mark.slow)]


@pytest.mark.parametrize(("call", "errors"), FAULTS)
def test_after_a_failed_call_nothing_more_is_written(begun: Path, tmp_path: Path, call: str, errors: list[str]) -> None:
    many = calls_of_a_whole_life(tmp_path, begun, call)
    refused = 0
    for number in range(1, many + 1):
        inject = f"inject={call}:error={errors[number % len(errors)]}:when={number}"
        path, said, calls = live(tmp_path / f"{number}", begun, "-e", inject, appends=1)
        mine = on_log(calls)
        failed = next(place for place, line in enumerate(mine) if "INJECTED" in line)
        assert mine[failed + 1 :] == [], "a second try may be told that all is well"
        refused += bool(said["refused"])
        check(path, said)
    assert refused > 0
