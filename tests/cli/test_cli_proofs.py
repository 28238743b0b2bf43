"""`audit prove` and `audit check-proof`: one entry as a file, checked with the charter alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_worlds import do, told

from p2pfl.audit import AuditLog, NewEntry
from p2pfl.peer import open_home

NOW = 1_700_000_000_000


@pytest.fixture
def logged(world: Path) -> Path:
    """Lille's log in the consortium of its charter: three entries in two commits."""
    home = open_home(world / "lille")
    with AuditLog.create(home.audit, home.identity(None), NOW, home.charter().name) as log:
        log.append(
            [NewEntry("peer_started", {"name": "lille"}), NewEntry("link_up", {"peer": "x", "kind": "tcp"})], NOW
        )
    return world


def test_an_entry_becomes_a_file_that_the_charter_alone_checks(
    logged: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    verified = do(capsys, "audit", "verify", "lille", "--json")
    assert (verified.code, json.loads(verified.out)["heads"]) == (0, 2)
    assert do(capsys, "audit", "prove", "lille", 2, "-o", "entry").code == 0
    assert do(capsys, "audit", "prove", "lille/audit.db", 2).out == (logged / "entry").read_text()
    done = do(capsys, "audit", "check-proof", "entry", "--charter", "signed.charter")
    assert done.code == 0 and "entry 2 of 3 in the log of lille" in done.out
    assert told(logged, "signed") in done.out and "link up" in done.out
    facts = json.loads(do(capsys, "audit", "check-proof", "entry", "--charter", "signed.charter", "--json").out)
    assert facts["entry"] == json.loads(do(capsys, "audit", "show", "lille", "--from", 2, "--json").out)[0]
    assert facts["root"] == json.loads(verified.out)["root"]


def test_a_proof_that_does_not_hold_or_cannot_be_made_is_one_sentence(
    logged: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "there is no entry 3" in do(capsys, "audit", "prove", "lille", 3).sentence()
    assert "no p2pfl home" in do(capsys, "audit", "prove", "plan", 0).sentence()
    (logged / "entry").write_text(do(capsys, "audit", "prove", "lille", 1).out)
    good = (logged / "entry").read_text()
    lines = good.split("\n")
    altered = {
        "another place": good.replace("index 1\n", "index 0\n"),
        "another size": good.replace("\n3\n", "\n4\n"),
        "another hash": good.replace(lines[3], ("B" if lines[3][0] == "A" else "A") + lines[3][1:]),
        "no text of ours": "hello\n",
        "cut": good[:-1],
    }
    for name, content in altered.items():
        (logged / "altered").write_text(content)
        assert content != good, name
        said = do(capsys, "audit", "check-proof", "altered", "--charter", "signed.charter").sentence()
        assert "does not hold" in said or "no member" in said, name
    for charter, reason in {"other": "of no member of south", "fresh": "not signed by all"}.items():
        assert reason in do(capsys, "audit", "check-proof", "entry", "--charter", f"{charter}.charter").sentence()
        assert reason in do(capsys, "audit", "verify", "lille/audit.db", "--charter", f"{charter}.charter").sentence()
    assert "member       lille" in do(capsys, "audit", "verify", "lille", "--charter", "signed.charter").out.lower()


def test_verify_knows_the_consortium(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = open_home(world / "lille")
    AuditLog.create(home.audit, home.identity(None), NOW, "south").close()
    done = do(capsys, "audit", "verify", "lille")
    assert done.code == 1 and "meta: the log is p2pfl/south/" in done.out
    assert "use a home of its own" in do(capsys, "up", "lille").sentence()
