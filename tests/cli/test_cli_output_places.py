"""What `-o` may not replace, and places that look like a log and are none."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from cli_logs import holds, write
from cli_worlds import do, snapshot

from p2pfl.audit import WitnessStore

EXPORT, PROVE = "export lille", "prove lille 1"


def files(world: Path) -> dict[str, object]:
    """All but what SQLite makes beside a database that is read."""
    return {name: row for name, row in snapshot(world).items() if not name.endswith(("-wal", "-shm"))}


@pytest.mark.parametrize(
    "line",
    [
        *(f"{EXPORT} -o {place}" for place in ("lille/audit.db", "lille/identity.key", "./rouen/../lille/charter")),
        f"{EXPORT} --format csv -o lille/witness.db", f"{EXPORT} -o lille/audit.db-wal", f"{EXPORT} -o rouen/audit.db",
        f"{EXPORT} -o lille/evidence/note.json", f"{EXPORT} -o link", f"{EXPORT} -o copy.db", f"{EXPORT} -o copy.db-wal",
        "export copy.db -o copy.db", "prove copy.db 1 -o copy.db", f"{PROVE} -o lille/charter",
        f"{PROVE} -o lille/identity.key",
        f"{PROVE} -o lille/audit.db", "charter merge signed.charter signed.charter -o lille/member.record",
    ],
)  # fmt: skip
def test_no_result_replaces_a_file_of_a_home_or_a_database(
    world: Path, capsys: pytest.CaptureFixture[str], line: str
) -> None:
    write(world, "lille", "one")
    WitnessStore(world / "lille" / "witness.db").close()
    (world / "lille" / "evidence").mkdir()
    (world / "lille" / "evidence" / "note.json").write_text("evidence")
    shutil.copy(world / "lille" / "audit.db", world / "copy.db")
    (world / "link").symlink_to(world / "lille" / "identity.key")
    before = files(world)
    words = line.split()
    done = do(capsys, *([] if words[0] == "charter" else ["audit"]), *words)
    assert "choose another" in done.sentence()
    assert files(world) == before


def test_new_files_may_lie_anywhere_and_be_replaced_outside_of_homes(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(world, "lille", "one")
    for place in ("out.jsonl", "out.jsonl", "lille/new.jsonl"):
        assert do(capsys, "audit", "export", "lille", "-o", place).code == 0
        assert do(capsys, "audit", "verify", place).code == 0
    assert (
        "new.jsonl is a file of the home" in do(capsys, "audit", "export", "lille", "-o", "lille/new.jsonl").sentence()
    )


def test_an_export_in_place_of_a_homes_log_is_no_log(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(world, "lille")
    assert do(capsys, "audit", "export", "lille", "-o", "out").code == 0
    (world / "out").replace(world / "lille" / "audit.db")
    for verb in ("verify", "show", "export"):
        assert "is an export and no log of this home" in do(capsys, "audit", verb, "lille").sentence()


@pytest.mark.parametrize("verb", ["verify", "show", "reconcile", "export"])
def test_what_is_no_log_is_named_for_what_it_is(world: Path, capsys: pytest.CaptureFixture[str], verb: str) -> None:
    holds(world, "rouen", write(world, "lille"))
    assert do(capsys, "audit", "export", "lille", "--format", "csv", "-o", "table.csv").code == 0
    assert "is an export in csv" in do(capsys, "audit", verb, "table.csv").sentence()
    assert "is no log itself" in do(capsys, "audit", "prove", "table.csv", "1").sentence()
    assert do(capsys, "audit", "export", "lille", "--format", "tlog", "-o", "tiles").code == 0
    (world / "tiles" / "checkpoint").unlink()
    assert "their export was cut off" in do(capsys, "audit", verb, "tiles").sentence()
