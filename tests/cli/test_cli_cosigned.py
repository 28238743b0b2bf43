"""`audit checkpoint`, `check-checkpoint`, and what exports say of cosignatures: checked with the charter alone."""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from cli_worlds import do, told

from p2pfl.audit import AuditLog, NewEntry, WitnessStore
from p2pfl.crypto import cosign
from p2pfl.crypto.notes import read_note
from p2pfl.peer import open_home

NOW = 1_700_000_000_000
SECONDS = NOW // 1000


def entries(log: AuditLog, count: int, epoch: int | None = None) -> bytes:
    log.append([NewEntry("round_started", {"run": "ab" * 32, "round": number}) for number in range(count)], NOW, epoch)
    return log.head.note


def cosigned_by(world: Path, name: str, note: bytes, size: int, epoch: int = 0) -> None:
    """As the peer keeps it when the cosignature has come in."""
    witness = open_home(world / name).identity(None)
    store = WitnessStore(world / "lille" / "witness.db")
    store.keep_cosignature(witness.peer_id, epoch, size, cosign(witness, "north", note, SECONDS + size), SECONDS + size)
    store.close()


@pytest.fixture
def home(world: Path) -> Path:
    """Lille's log, of which rouen has cosigned 121 entries, and a stranger (no member) 150."""
    lille = open_home(world / "lille")
    with AuditLog.create(lille.audit, lille.identity(None), NOW, "north") as log:
        for count, witness in ((59, "rouen"), (61, "rouen"), (29, "stranger"), (20, None)):
            note = entries(log, count)
            if witness is not None:
                cosigned_by(world, witness, note, log.head.size)
    return world / "lille"


def test_a_checkpoint_file_is_checked_with_the_charter_alone(
    world: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert do(capsys, "audit", "checkpoint", "lille", "-o", "out").code == 0
    shutil.rmtree(home)
    done = do(capsys, "audit", "check-checkpoint", "out", "--charter", "signed.charter")
    assert done.code == 0, done.err
    assert "holds        the log of lille, 170 entries" in done.out and told(world, "signed") in done.out
    assert "cosigned     by rouen up to entry 120, at 2023-11-14 22:15:21Z" in done.out
    assert "not counted  a cosignature by 12D3" in done.out
    facts = json.loads(do(capsys, "audit", "check-checkpoint", "out", "--charter", "signed.charter", "--json").out)
    assert [(row["name"], row["size"]) for row in facts["cosigned"]] == [(None, 150), ("rouen", 121)]
    wrong = do(capsys, "audit", "check-checkpoint", "out", "--charter", "other.charter")
    assert wrong.code != 0


def test_the_plain_note_is_a_signed_note(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    note = read_note(do(capsys, "audit", "checkpoint", "lille", "--note").out.encode())
    assert [line.name.rpartition("/")[2] for line in note.signatures[1:]] == ["witness"]
    assert note.text.split("\n")[1] == "150"


@pytest.mark.parametrize(
    ("form", "part"), [("json", ()), ("json", ("--from", "30", "--to", "40")), ("json", ("--no-texts",)), ("tlog", ())]
)
def test_exports_say_who_has_cosigned_them(
    world: Path, home: Path, form: str, part: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert do(capsys, "audit", "export", "lille", "--format", form, *part, "-o", "out").code == 0
    shutil.rmtree(home)
    done = do(capsys, "audit", "verify", "out", "--charter", "signed.charter")
    assert done.code == 0, done.err
    last = 40 if "--to" in part else 120
    assert f"cosigned     by rouen up to entry {last}," in done.out and "not counted" in done.out
    assert ("part         entries 30 to 40 of 170: " in done.out) == ("--to" in part)
    facts = json.loads(do(capsys, "audit", "verify", "out", "--json").out)
    assert [row["size"] for row in facts["cosigned"]] == [150, 121]
    assert [facts[name] for name in ("first", "last", "size")] == ([30, 40, 170] if "--to" in part else [0, 169, 170])


def test_of_a_part_behind_what_was_cosigned_nothing_is(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert do(capsys, "audit", "export", "lille", "--from", "121", "--to", "160", "-o", "out").code == 0
    done = do(capsys, "audit", "verify", "out", "--charter", "signed.charter")
    assert done.code == 0 and "cosigned     by rouen none of these entries, at 2023" in done.out
    assert "entries 121 to 160 of 170" in done.out and "entry 120" not in done.out


def test_the_home_itself_says_it_too_and_a_log_without_witnesses_says_nobody(
    world: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "cosigned     by rouen up to entry 120" in do(capsys, "audit", "verify", "lille").out
    (home / "witness.db").unlink()
    assert "cosigned     by nobody" in do(capsys, "audit", "verify", "lille", "--charter", "signed.charter").out
    done = do(capsys, "audit", "checkpoint", "lille")
    assert done.code != 0 and "nobody has cosigned" in done.sentence()


def test_a_lost_head_is_left_out_and_an_epoch_is_named(
    world: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The log was put back: what rouen had cosigned before is not in it; a later epoch is."""
    lille = open_home(home)
    lille.audit.unlink()
    with AuditLog.create(lille.audit, lille.identity(None), NOW + 1, "north") as log:
        entries(log, 200)
        assert do(capsys, "audit", "checkpoint", "lille").code != 0
        cosigned_by(world, "rouen", entries(log, 9, epoch=1), log.head.size, epoch=1)
    for form in ("json", "tlog"):
        assert do(capsys, "audit", "export", "lille", "--format", form, "-o", form).code == 0
        done = do(capsys, "audit", "verify", form, "--charter", "signed.charter")
        assert done.code == 0 and "member       lille" in done.out, done.err
        assert "cosigned     by rouen up to entry 209 of epoch 1" in done.out and "not counted" not in done.out


def altered(value: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """One change each to a list of cosigned checkpoints' first item."""

    def flipped(text: str) -> str:
        raw = bytearray(base64.b64decode(text))
        raw[len(raw) // 2] ^= 1
        return base64.b64encode(raw).decode()

    first, second = value["cosigned"]
    lines = first["note"].split("\n")
    last = lines[-2].rpartition(" ")
    return {
        "another size": {**first, "note": first["note"].replace("\n150\n", "\n149\n")},
        "another line": {**first, "note": "\n".join([*lines[:-2], f"{last[0]} {flipped(last[2])}", ""])},
        "no text": {**first, "note": "\ud800" + first["note"]},
        "no line": {**first, "note": "\n".join([*lines[:-2], ""])},
        "another statement": {**first, "statements": [flipped(first["statements"][0])]},
        "another witness's statement": {**first, "statements": second["statements"]},
        "no statement": {**first, "statements": []},
        "another proof": {**first, "growth": [flipped(first["growth"][0]), *first["growth"][1:]]},
        "another checkpoint's proof": {**first, "growth": second["growth"]},
        "no proof": {**first, "growth": []},
        "more than we know": {**first, "more": 1},
    }


def test_no_altered_cosignature_passes(world: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    do(capsys, "audit", "checkpoint", "lille", "-o", "out")
    do(capsys, "audit", "export", "lille", "-o", "export")
    do(capsys, "audit", "export", "lille", "--format", "tlog", "-o", "tiles")
    value = json.loads((world / "out").read_text())
    header, *rest = (world / "export").read_text().splitlines(keepends=True)
    for name, item in altered(value).items():
        changed = {**value, "cosigned": [item, value["cosigned"][1]]}
        (world / "out").write_text(json.dumps(changed))
        done = do(capsys, "audit", "check-checkpoint", "out", "--charter", "signed.charter")
        assert done.code != 0 and done.out == "", name
        (world / "tiles" / "cosigned").write_text(json.dumps(changed))
        assert do(capsys, "audit", "verify", "tiles").code == 1, name
        line = json.dumps({**json.loads(header), "cosigned": changed["cosigned"]}) + "\n"
        (world / "export").write_text("".join([line, *rest]))
        assert do(capsys, "audit", "verify", "export").code == 1, name
    for text in ("", "{}", "[]", "x", json.dumps({**value, "cosigned": 7}), json.dumps({**value, "p2pfl_cosigned": 2})):
        (world / "out").write_text(text)
        assert do(capsys, "audit", "check-checkpoint", "out", "--charter", "signed.charter").code != 0
