"""SIGKILL at every step of writing: what was acknowledged is there, what was begun is there as a whole or not at all."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from audit_logs import NOW, owner

from p2pfl.audit import AuditLog, NewEntry, verify_log
from p2pfl.audit.last_head import open_last_head, read_last_head
from p2pfl.crypto.checkpoints import log_origin

SCRIPT = Path(__file__).with_name("audit_lives.py")
RANDOM_KILLS = 1000
LIVES_OF_A_LOG = 20  # so that each check of the whole log is short
SEED = 20


class Lives:
    """The process that brings writers to life."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(SCRIPT)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def live(self, path: Path, **order: Any) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps({"path": str(path), **order}) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        assert answer["failed"] == answer["refused"] == []
        return answer

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(10)


@pytest.fixture(scope="module")
def lives() -> Iterator[Lives]:
    made = Lives()
    yield made
    made.close()


def holds(path: Path, life: dict[str, Any]) -> int:
    """Check what one life left: size of the log."""
    size = life["acknowledged"][-1][0] if life["acknowledged"] else 0
    if not path.exists():
        assert size == 0, "a log of which nothing was acknowledged is all that may be missing"
        return 0
    found = verify_log(path, owner().peer_id)
    assert found.problem is None
    sizes = {size} | {first + count for first, count in life["begins"][-1:] if first == size}
    if size:
        assert found.entries in sizes, "the last transaction is there as a whole, or not at all"
    told = open_last_head(read_last_head(path), log_origin("", owner().peer_id), owner().peer_id)
    assert told is None or told.checkpoint.size <= found.entries, "it never names more than is on the disk"
    if len(life["acknowledged"]) > 1:  # the first one is said on opening
        assert told is not None and told.checkpoint.size >= size
    with AuditLog.open(path, owner()) as log:
        assert log.lost is None
        assert (log.head.size, log.head.root.hex()) == (found.entries, found.root)
        for said, root in life["acknowledged"]:
            assert log.root_at(said).hex() == root, "the tree grew out of what was acknowledged"
    return found.entries


def kill_at_every_statement(lives: Lives, tmp_path: Path, begun: Path | None, appends: int) -> tuple[int, set[int]]:
    """Lives that differ in the statement they end at, from the first to the one after the last."""
    sizes = set()
    for statement in range(1, 10_000):
        path = tmp_path / f"{statement}" / "audit.db"
        path.parent.mkdir()
        if begun is not None:
            shutil.copy(begun, path)
        life = lives.live(path, seed=SEED, at=statement, appends=appends)
        sizes.add(holds(path, life))
        shutil.rmtree(path.parent)
        if not life["killed"]:
            return statement, sizes
    raise AssertionError("no life came to its end")


def test_killed_at_every_statement_of_a_commit(lives: Lives, tmp_path: Path) -> None:
    begun = tmp_path / "audit.db"
    assert not lives.live(begun, seed=SEED, appends=3)["killed"]
    size = holds(begun, {"acknowledged": [], "begins": []})
    statements, sizes = kill_at_every_statement(lives, tmp_path, begun, appends=1)
    assert statements > 20
    assert min(sizes) == size and len(sizes) == 2, "both outcomes were seen"


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_killed_at_every_statement_of_a_life(lives: Lives, tmp_path: Path) -> None:
    """From the making of the file on: with erasing, documents, checkpoints and the end."""
    statements, sizes = kill_at_every_statement(lives, tmp_path, None, appends=12)
    assert statements > 150
    assert min(sizes) == 0 and len(sizes) > 12


def killed_at_random(lives: Lives, folder: Path, kills: int) -> int:
    """Lives one after the other on the same logs; how many of them had acknowledged something before the end."""
    draw = random.Random(SEED)
    useful = 0
    for number in range(kills):
        path = folder / f"{number // LIVES_OF_A_LOG}.db"
        ends = {"after": draw.randint(0, 4), "microseconds": draw.randint(0, 4000)}
        life = lives.live(path, seed=number, appends=1_000_000, **ends)
        assert life["killed"]
        holds(path, life)
        useful += len(life["acknowledged"]) > 1
        if number % LIVES_OF_A_LOG == LIVES_OF_A_LOG - 1:
            with AuditLog.open(path, owner()) as log:
                log.append([NewEntry("link_up", {"peer": "x"})], NOW)
            assert verify_log(path).ok
            path.unlink()
    return useful


def test_killed_at_random_moments(lives: Lives, tmp_path: Path) -> None:
    assert killed_at_random(lives, tmp_path, 10) > 3


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_killed_a_thousand_times_at_random_moments(lives: Lives, tmp_path: Path) -> None:
    assert killed_at_random(lives, tmp_path, RANDOM_KILLS) > RANDOM_KILLS / 2
