"""`audit reconcile` and `lineage` with a charter: members' logs alone, under the charter's names; `verify` and epochs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_logs import NOW, holds
from cli_worlds import do, told

from p2pfl.audit import AuditLog, NewEntry
from p2pfl.peer import open_home


def write(world: Path, name: str, called: str, *entries: NewEntry, epoch: int | None = None) -> str:
    """A log of a home's key that calls its owner as it likes; returns the peer id."""
    home = open_home(world / name)
    identity = home.identity(None)
    with AuditLog.create(home.audit, identity, NOW, "north") as log:
        log.append([NewEntry("peer_started", {"peer": identity.peer_id, "name": called})], NOW)
        for entry in entries:
            log.append([entry], NOW, epoch)
    return str(identity.peer_id)


def witnessed(world: Path) -> None:
    """Each of the two holds the newest checkpoint of the other's log."""
    for witness, owner in (("lille", "rouen"), ("rouen", "lille")):
        with AuditLog.open(world / owner / "audit.db", open_home(world / owner).identity(None)) as log:
            holds(world, witness, log, epoch=log.epoch)


def exported(capsys: pytest.CaptureFixture[str], *names: str) -> list[str]:
    for name in names:
        assert do(capsys, "audit", "export", name, "-o", f"{name}.jsonl").code == 0
    return [f"{name}.jsonl" for name in names]


def test_names_come_from_the_charter(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(world, "lille", "Rouen, the honest")
    write(world, "rouen", "rouen")
    witnessed(world)
    places = exported(capsys, "lille", "rouen")
    done = do(capsys, "audit", "reconcile", *places)
    assert done.code == 0 and "log          Rouen, the honest: 2 entries" in done.out
    assert done.out.startswith("names        are the logs' and homes' own")
    done = do(capsys, "audit", "reconcile", *places, "--charter", "signed.charter")
    assert done.code == 0 and done.out.splitlines()[0] == f"charter      {told(world, 'signed')}"
    assert "log          lille: 2 entries" in done.out and "honest" not in done.out
    value = json.loads(do(capsys, "audit", "reconcile", *places, "--charter", "signed.charter", "--json").out)
    assert [row["name"] for row in value["logs"]] == ["lille", "rouen"]
    assert value["fingerprint"] == told(world, "signed") and value["verdict"] == "clean"


@pytest.mark.parametrize("verb", [("reconcile",), ("lineage", "ab" * 32)])
def test_a_strangers_log_is_refused(world: Path, capsys: pytest.CaptureFixture[str], verb: tuple[str, ...]) -> None:
    write(world, "lille", "lille")
    write(world, "stranger", "rouen")
    places = exported(capsys, "lille", "stranger")
    done = do(capsys, "audit", *verb, *places, "--charter", "signed.charter")
    assert "is of no member of north" in done.sentence()
    value = json.loads(do(capsys, "audit", "reconcile", *places, "--json").out)
    assert not value["findings"], "only the charter knows who is a member"


def test_what_logs_say_of_each_other_is_told(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loss = NewEntry("epoch_opened", {"epoch": 1, "kept": 2, "lost": [[0, 9, bytes(32)]], "heads": [], "reason": "r"})
    lille = write(world, "lille", "lille", loss, epoch=1)
    seen = NewEntry("loss_witnessed", {"peer": lille, "epoch": 1, "kept": 2, "held": 9})
    withheld = NewEntry("head_withheld", {"peer": lille, "asked": 3, "size": 9, "reason": "x"})
    write(world, "rouen", "rouen", seen, withheld)
    witnessed(world)
    done = do(capsys, "audit", "reconcile", "lille", "rouen", "--charter", "signed.charter")
    assert done.code == 0, done.out
    declared = "said         lille declares the loss of its entries 2 to 8, epoch 1; 1 of the given logs witnessed it"
    assert declared in done.out and "said         rouen asked 3 times in vain" in done.out
    proof = NewEntry("log_misbehaviour", {"peer": lille, "claim": "fork", "sizes": [3, 3], "file": "evidence/x.json"})
    for path in (world / "rouen").glob("audit.db*"):
        path.unlink()
    write(world, "rouen", "rouen", proof)
    done = do(capsys, "audit", "reconcile", "lille", "rouen", "--charter", "signed.charter")
    assert done.code == 1 and "rouen keeps evidence (fork) against the log of lille (entry 2 of rouen)" in done.out


def test_a_loss_that_opened_no_epoch_is_no_excuse(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Witnesses hear of a loss by the epoch alone: an entry that only says so was written for whoever compares."""
    loss = NewEntry("epoch_opened", {"epoch": 1, "kept": 2, "lost": [[0, 9, bytes(32)]], "heads": [], "reason": "r"})
    write(world, "lille", "lille", loss)
    write(world, "rouen", "rouen")
    done = do(capsys, "audit", "reconcile", "lille", "rouen", "--charter", "signed.charter")
    assert done.code == 1
    said = (
        "CONTRADICTORY lille declares a loss under epoch 1, and signs its checkpoints under epoch 0 (entry 2 of lille)"
    )
    assert said in done.out.splitlines()


@pytest.mark.parametrize("form", ["home", "json", "tlog"])
def test_verify_names_the_epoch(world: Path, capsys: pytest.CaptureFixture[str], form: str) -> None:
    loss = NewEntry("epoch_opened", {"epoch": 1, "kept": 2, "lost": [[0, 9, bytes(32)]], "heads": [], "reason": "r"})
    write(world, "lille", "lille", loss, epoch=1)
    place = "lille"
    if form != "home":
        place = f"out-{form}"
        assert do(capsys, "audit", "export", "lille", "--format", form, "-o", place).code == 0
    done = do(capsys, "audit", "verify", place, "--charter", "signed.charter")
    assert done.code == 0 and "epoch        1: it lost its end" in done.out, done.err
    assert json.loads(do(capsys, "audit", "verify", place, "--json").out)["epoch"] == 1
    write(world, "rouen", "rouen")
    assert "epoch " not in do(capsys, "audit", "verify", "rouen").out
