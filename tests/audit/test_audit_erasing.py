"""Free text beside a log: it reads as before, it can be erased, and the log says so and still holds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from audit_logs import NOW, everything, owner, tamperer

from p2pfl.audit import (
    NOTES,
    AuditLog,
    NewEntry,
    as_dict,
    describe,
    entry_from_data,
    erase_texts,
    json_lines,
    open_part,
    prove_entry,
    read_entries,
    read_source,
    verify_log,
    verify_source,
)
from p2pfl.audit.texts import ERASABLE, ERASED, MAX_TEXT
from p2pfl.crypto.log_entries import read_entry_data
from p2pfl.errors import ConfigError

SECRET = "patient 4711 of Doctor Nemo"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Entries 1 to 4: a name, two reasons, and a kind without free text."""
    place = tmp_path / "audit.db"
    with AuditLog.create(place, owner(), NOW) as log:
        log.append([NewEntry("peer_started", {"peer": "x", "name": "Clinic Nemo"})], NOW + 1)
        log.append([NewEntry("absent", {"run": "ab" * 32, "round": 3, "reason": SECRET})], NOW + 2)
        log.append(
            [NewEntry("refused", {"peer": "y", "reason": "too long"}), NewEntry("link_up", {"peer": "y"})], NOW + 3
        )
    return place


def texts_in(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in folder.glob("audit.db*"))


def test_readers_see_the_text_and_the_entry_has_its_hash(path: Path) -> None:
    entries = list(read_entries(path))
    assert [entry.body.get("reason", entry.body.get("name")) for entry in entries[1:4]] == [
        "Clinic Nemo",
        SECRET,
        "too long",
    ]
    stored = b"".join(row[4] for row in everything(path)["entries"])
    assert SECRET.encode() not in stored and b"Clinic" not in stored and b"too long" not in stored
    assert verify_log(path, owner().peer_id).ok


def test_equal_texts_do_not_show_as_equal(tmp_path: Path) -> None:
    """Or an erased text could be guessed from another entry, or from a list of likely ones."""
    with AuditLog.create(tmp_path / "audit.db", owner(), NOW) as log:
        log.append([NewEntry("refused", {"peer": "y", "reason": "same"})] * 2, NOW)
    bodies = [row[4] for row in everything(tmp_path / "audit.db")["entries"]][1:]
    assert bodies[0] != bodies[1]


def test_an_erased_text_is_gone_from_every_file_and_the_log_holds(path: Path) -> None:
    before = [as_dict(entry)["hash"] for entry in read_entries(path)]
    assert SECRET.encode() in texts_in(path.parent)
    with AuditLog.open(path, owner()) as log:
        done = erase_texts(log, [2], NOW + 9)
        assert done.texts == ((2, "reason"),) and done.wiped
        assert SECRET.encode() not in texts_in(path.parent), "also while it is open"
    assert SECRET.encode() not in texts_in(path.parent)
    entries = list(read_entries(path))
    assert [as_dict(entry)["hash"] for entry in entries][: len(before)] == before
    assert entries[2].body["reason"] == ERASED and describe(entries[2]).endswith("absent from round 3: (erased)")
    assert entries[1].body["name"] == "Clinic Nemo" and entries[3].body["reason"] == "too long"
    assert (entries[-1].kind, entries[-1].body) == ("text_erased", {"entries": [[2, "reason"]]})
    assert verify_log(path, owner().peer_id).ok


def test_many_texts_at_once(tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    with AuditLog.create(path, owner(), NOW) as log:
        for _ in range(3):
            log.append([NewEntry("link_down", {"peer": "y", "reason": f"gone {n}"}) for n in range(500)], NOW)
        assert len(erase_texts(log, range(2, 1600), NOW).texts) == 1499
        with pytest.raises(ConfigError, match="none of these entries"):
            erase_texts(log, range(2, 1600), NOW)
        with pytest.raises(ConfigError, match="none of these entries"):
            erase_texts(log, [1], NOW, field="name")
        assert len(erase_texts(log, [1], NOW, field="reason").texts) == 1
    assert verify_log(path).ok and not everything(path)["texts"]


def test_what_is_said_to_be_erased_must_be_gone(path: Path) -> None:
    for position, name in ((2, "reason"), (2, "peer"), (99, "reason"), (4, "reason")):
        copy = path.with_name(f"copy-{position}-{name}.db")
        copy.write_bytes(path.read_bytes())
        with AuditLog.open(copy, owner()) as log:
            log.append([NewEntry("text_erased", {"entries": [[position, name]]})], NOW)
        assert verify_log(copy).problem == "entry 5: it says that a text was erased which is there, or never was"


def test_an_erased_text_cannot_be_replaced(path: Path) -> None:
    with AuditLog.open(path, owner()) as log:
        erase_texts(log, [2], NOW)
    connection = tamperer(path)
    connection.execute("INSERT INTO texts VALUES (2, 'reason', zeroblob(32), 'another reason')")
    connection.close()
    assert verify_log(path).problem == "text reason of entry 2: it is not the one that was signed"


def test_a_proof_shows_no_text(path: Path) -> None:
    proof = prove_entry(path, 2)
    assert SECRET.encode() not in proof.encode()
    entry = entry_from_data(read_entry_data(proof.entry))
    assert "text not at hand" in describe(entry)
    json.dumps(as_dict(entry))


@pytest.mark.parametrize("with_texts", [True, False])
def test_an_export_verifies_with_and_without_its_texts(path: Path, tmp_path: Path, with_texts: bool) -> None:
    file = tmp_path / "export.jsonl"
    with open_part(path) as part:
        file.write_text("".join(json_lines(part, with_texts=with_texts)))
    assert verify_source(file, owner().peer_id).ok
    assert (SECRET in file.read_text()) is with_texts
    assert (list(read_source(file)) == list(read_entries(path))) is with_texts
    if with_texts:
        file.write_text(file.read_text().replace(SECRET, SECRET.lower()))
        assert "not the one that was signed" in str(verify_source(file).problem)


@pytest.mark.parametrize("text", ["", "é" * 200, "\x00\n", "x" * MAX_TEXT, "x" * (MAX_TEXT + 1), "(erased)"])
def test_every_text_comes_back_as_it_was(tmp_path: Path, text: str) -> None:
    """An empty one and one that is too long to stand beside the log stay in the entry."""
    path = tmp_path / "audit.db"
    with AuditLog.create(path, owner(), NOW) as log:
        log.append([NewEntry("refused", {"peer": "y", "reason": text})], NOW)
        assert [entry.body["reason"] for entry in log.entries(1)] == [text]
    assert verify_log(path).ok
    assert len(everything(path)["texts"]) == (0 < len(text) <= MAX_TEXT)


def test_every_kind_with_words_in_it_was_thought_of() -> None:
    """Words of others, of users and of libraries are erasable; these here come from this program's own fixed list."""
    fixed = {"delta_ignored", "epoch_opened", "loss_declared", "keeping_ended"}
    wordy = {str(kind) for kind, note in NOTES.items() if {"reason", "what", "why", "name"} & {*note.fields}}
    assert wordy == {str(kind) for kind in ERASABLE} | fixed


def test_no_text_is_set_apart_that_a_restart_needs() -> None:
    """`p2pfl.gossip.restoring` reads these kinds back; of them only the closing's reason is free text, and unread."""
    read_back = {"plan_approved", "start_signed", "run_started", "delta_sent", "acknowledged", "state_stored", "mixed"}
    assert not read_back & {str(kind) for kind in ERASABLE}
