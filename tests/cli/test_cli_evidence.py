"""`audit check-evidence`, and what doctor and status say of witnesses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_worlds import do, told

from p2pfl.audit import AuditLog, Evidence, NewEntry, WitnessFinding, WitnessStore
from p2pfl.crypto import cosign, log_origin
from p2pfl.peer import open_home
from p2pfl.peer.log_findings import STALE, log_findings

NOW = 1_700_000_000


@pytest.fixture
def evidence(world: Path) -> Evidence:
    """Lille has signed two logs of one size; the file lies in the folder of the test."""
    home = open_home(world / "lille")
    identity, name = home.identity(None), home.charter().name
    notes = []
    for number in range(2):
        with AuditLog.create(world / f"log-{number}.db", identity, NOW, name) as log:
            notes.append(log.append([NewEntry("refused", {"reason": f"{number}"})], NOW).note)
    first, second = notes
    origin = log_origin(name, identity.peer_id)
    made = Evidence("fork", identity.peer_id, origin, (first, second), b"", {"by": "x", "at": NOW})
    (world / "fork.json").write_bytes(made.encode())
    return made


def test_evidence_holds_with_the_charter_alone(
    world: Path, evidence: Evidence, capsys: pytest.CaptureFixture[str]
) -> None:
    done = do(capsys, "audit", "check-evidence", "fork.json", "--charter", "signed.charter")
    assert done.code == 0 and "the log of lille contradicts itself: fork" in done.out
    assert told(world, "signed") in done.out
    facts = json.loads(do(capsys, "audit", "check-evidence", "fork.json", "--charter", "signed.charter", "--json").out)
    assert [item["size"] for item in facts["checkpoints"]] == [2, 2]
    assert facts["checkpoints"][0]["root"] != facts["checkpoints"][1]["root"]


def test_evidence_that_does_not_hold_is_one_sentence(
    world: Path, evidence: Evidence, capsys: pytest.CaptureFixture[str]
) -> None:
    good = (world / "fork.json").read_text()
    note = evidence.notes[0].decode()
    altered = {
        "same twice": good.replace(json.dumps(evidence.notes[1].decode(), ensure_ascii=False), json.dumps(note, ensure_ascii=False)),
        "another claim": good.replace('"claim": "fork"', '"claim": "growth"'),
        "another size": good.replace("\\n2\\n", "\\n3\\n", 1),
        "no text of ours": "hello\n",
    }  # fmt: skip
    for name, content in altered.items():
        assert content != good, name
        (world / "altered").write_text(content)
        assert (
            "does not hold"
            in do(capsys, "audit", "check-evidence", "altered", "--charter", "signed.charter").sentence()
        )
    for charter, reason in {"other": "about another log than the charter says", "fresh": "not signed by all"}.items():
        said = do(capsys, "audit", "check-evidence", "fork.json", "--charter", f"{charter}.charter").sentence()
        assert reason in said


def test_the_doctor_knows_evidence_and_who_has_cosigned_last(world: Path, evidence: Evidence) -> None:
    home = open_home(world / "lille")
    names = {"witness": "caen", evidence.owner: "lille"}
    assert [item.verdict for item in log_findings(home, names, NOW)] == ["ok"]
    store = WitnessStore(home.witness_store)
    assert [item.verdict for item in log_findings(home, names, NOW)] == ["look"]
    item = cosign(home.identity(None), home.charter().name, evidence.notes[0], NOW)
    store.keep_cosignature("witness", 0, 2, item, NOW)
    store.find(WitnessFinding(evidence.owner, "fork", "fork.json", NOW))
    store.close()
    broken, fresh = log_findings(home, names, NOW + 3 * 3600)
    assert (broken.verdict, fresh.verdict) == ("broken", "ok")
    assert "the log of lille contradicts itself" in broken.text and "3 hours ago" in fresh.text
    assert "caen has cosigned this site's log last, its first 2 entries" in fresh.text
    assert log_findings(home, names, NOW + STALE + 1)[1].verdict == "look"
