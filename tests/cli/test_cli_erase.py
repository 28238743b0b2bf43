"""`audit erase` names the files of a home that still have the text; nothing else is touched."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_worlds import do

from p2pfl.audit import AuditLog, NewEntry, copies_of
from p2pfl.audit.copies import BLOCK
from p2pfl.peer import open_home

NOW = 1_700_000_000_000
TEXT = 'patient "4711", seen by Doctor Némo'


@pytest.fixture
def home(world: Path) -> Path:
    lille = open_home(world / "lille")
    with AuditLog.create(lille.audit, lille.identity(None), NOW, "north") as log:
        log.append([NewEntry("peer_started", {"peer": "x", "name": "lille"})], NOW)
        log.append([NewEntry("head_withheld", {"peer": "y", "asked": 3, "size": 9, "reason": TEXT})], NOW)
        log.append([NewEntry("refused", {"peer": "y", "reason": "elsewhere"})], NOW)
    return world / "lille"


def test_copies_in_the_home_are_named(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = home / "runs" / "ab" / "report.json"
    report.parent.mkdir(parents=True)
    report.write_text(json.dumps({"missing": [TEXT]}))
    printed = home / "up.log"
    printed.write_text("x" * (BLOCK - 5) + TEXT + "\n")  # across the border of two blocks
    (home / "other.log").write_text(TEXT[:-1])
    done = do(capsys, "audit", "erase", "lille", "--all")
    assert done.code == 0, done.err
    named = [line.split()[-1] for line in done.out.splitlines() if line.startswith("still in")]
    assert named == ["lille/runs/ab/report.json", "lille/up.log"]
    assert "by hand" in done.err and "erased       reason of entry 2" in done.out
    assert TEXT in printed.read_text()


def test_nothing_is_named_where_the_text_was_the_only_one(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = do(capsys, "audit", "erase", "lille", "2", "--json")
    assert json.loads(done.out) == {"erased": [[2, "reason"]], "wiped": True, "copies": []} and not done.err
    assert not any(TEXT.encode() in path.read_bytes() for path in home.rglob("*") if path.is_file())


def test_what_cannot_be_read_may_have_it(home: Path) -> None:
    (home / "up.log").write_text(TEXT)
    assert copies_of([TEXT], home) == [home / "up.log"] and copies_of([""], home) == []


@pytest.mark.parametrize("end", ["9999-12-31", "9999-12-31T23:59", "9999-12-31T23:59:59"])
def test_the_last_day_there_is(home: Path, capsys: pytest.CaptureFixture[str], end: str) -> None:
    done = do(capsys, "audit", "export", "lille", "--to", end)
    assert done.code == 0 and len(done.out.splitlines()) == 1 + 4, done.err
