"""A long check: it says how far it is, and can be interrupted without a trace."""

from __future__ import annotations

from pathlib import Path

import pytest
from audit_logs import NOW, owner, write_small_log

from p2pfl.audit import AuditLog, NewEntry, verify_log
from p2pfl.cli.app import INTERRUPTED, run


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("p2pfl.audit.verify.TOLD_EVERY", 2)
    place = tmp_path / "audit.db"
    write_small_log(place)
    return place


def test_a_check_tells_how_far_it_is(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told: list[tuple[int, int]] = []
    assert verify_log(path, progress=lambda done, of: told.append((done, of))).ok
    assert told == [(2, 6), (4, 6), (6, 6)]
    assert run(["audit", "verify", str(path), "--json"]) == 0
    assert capsys.readouterr().err.splitlines() == [f"p2pfl: {done} of 6 entries checked" for done in (2, 4, 6)]


def test_an_interrupted_check_leaves_the_log_as_it_was(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(text: str) -> None:
        if "checked" in text:
            raise KeyboardInterrupt

    before = path.read_bytes()
    monkeypatch.setattr("p2pfl.cli.audit.note", interrupt)
    assert run(["audit", "verify", str(path)]) == INTERRUPTED
    assert capsys.readouterr().err == "p2pfl: interrupted\n"
    assert path.read_bytes() == before
    with AuditLog.open(path, owner()) as log:
        assert log.append([NewEntry("link_up", {"peer": "x"})], NOW).size == 7
