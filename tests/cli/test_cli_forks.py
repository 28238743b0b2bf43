"""`audit reconcile` holds two signed checkpoints that differ: it says so, and writes the evidence; what stores give."""

from __future__ import annotations

import contextlib
import sqlite3
from collections import Counter
from pathlib import Path

import pytest
from cli_logs import holds, write
from cli_worlds import do

from p2pfl.audit import AuditLog, HeldHead, SeenHead, WitnessStore
from p2pfl.audit.held import MOST_HELD, check_held, held_of_others
from p2pfl.crypto import Identity
from p2pfl.crypto.checkpoints import Checkpoint, log_origin, sign_checkpoint
from p2pfl.peer import open_home


def signed(owner: Identity, size: int, root: bytes) -> bytes:
    return sign_checkpoint(owner, Checkpoint(log_origin("north", owner.peer_id), size, root))


def sees(world: Path, witness: str, owner: Identity, note: bytes, size: int) -> None:
    with contextlib.closing(WitnessStore(world / witness / "witness.db")) as store:
        store.see([SeenHead(owner.peer_id, owner.peer_id, 0, size, note)])


@pytest.mark.parametrize("given", [False, True])
def test_two_witnesses_were_shown_different_histories(
    world: Path, capsys: pytest.CaptureFixture[str], given: bool
) -> None:
    """One size, two roots, both signed by the owner: whether its log is here or not, in part or whole."""
    owner = open_home(world / "lille").identity(None)
    for name in ("lille", "rouen", "stranger"):
        write(world, name, "one")
    sees(world, "rouen", owner, signed(owner, 50, bytes(32)), 50)
    sees(world, "stranger", owner, signed(owner, 50, b"\1" * 32), 50)
    places = ["rouen", "stranger"]
    if given:
        assert do(capsys, "audit", "export", "lille", "--from", "1", "--to", "1", "-o", "part").code == 0
        places.append("part")
    done = do(capsys, "audit", "reconcile", *places, "--evidence", "proofs")
    assert done.code == 1
    assert "has another signed checkpoint of 50 entries than" in done.out
    (line,) = [line for line in done.out.splitlines() if line.startswith("CONTRADICTORY")]
    assert line.endswith(("both of the log of lille", f"both of the log of …{owner.peer_id[-12:]}"))
    (file,) = (world / "proofs").iterdir()
    checked = do(capsys, "audit", "check-evidence", file, "--charter", "signed.charter")
    assert checked.code == 0 and "the log of lille contradicts itself: fork" in checked.out
    assert "--evidence" in do(capsys, "audit", "reconcile", *places).err


def test_one_witness_was_shown_both(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It has checked one of them, and seen the other elsewhere; its log alone is given."""
    owner = open_home(world / "lille").identity(None)
    write(world, "rouen")
    holds(world, "rouen", write(world, "lille", "one"))
    sees(world, "rouen", owner, signed(owner, 3, bytes(32)), 3)
    done = do(capsys, "audit", "reconcile", "rouen", "--charter", "signed.charter")
    assert done.code == 1
    assert "rouen has two different signed checkpoints of 3 entries, both of the log of lille" in done.out


@pytest.mark.parametrize("form", ["home", "part"])
def test_a_log_whose_newest_checkpoint_is_not_the_one_shown(
    world: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    """Rewritten to the same length: with its newest checkpoint the owner hands over the evidence against itself."""
    holds(world, "rouen", write(world, "lille", "one", "two"))
    write(world, "rouen")
    write(world, "lille", "one", "false")
    place = "lille"
    if form == "part":
        place = "part"
        assert do(capsys, "audit", "export", "lille", "--from", "0", "--to", "1", "-o", place).code == 0
    done = do(capsys, "audit", "reconcile", place, "rouen", "--evidence", "proofs")
    assert done.code == 1 and "has another signed checkpoint of 4 entries than" in done.out
    (file,) = (world / "proofs").iterdir()
    assert do(capsys, "audit", "check-evidence", file, "--charter", "signed.charter").code == 0


def test_logs_of_two_consortia_are_not_compared(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(world, "lille")
    home = open_home(world / "stranger")
    AuditLog.create(home.audit, home.identity(None), 1, "south").close()
    done = do(capsys, "audit", "reconcile", "lille", "stranger")
    assert "the logs are of different consortia (north, south); give those of one" in done.sentence()


# --- what a witness's store gives


def test_each_member_has_its_share_of_what_is_given(tmp_path: Path) -> None:
    """Fifty members, twenty tellers: more than fits, and nobody is left out; the newest and the first are there."""
    owners = [Identity.generate() for _ in range(49)]
    with contextlib.closing(WitnessStore(tmp_path / "witness.db")) as store:
        seen = []
        for owner in owners:
            held = None
            for size in range(1, 41):
                note = signed(owner, size, bytes([size]) * 32)
                new = HeldHead(0, size, bytes([size]) * 32, note, 1)
                store.accept(owner.peer_id, held, new)
                held = new
            seen += [
                SeenHead(owner.peer_id, teller.peer_id, 0, 100 + n, signed(owner, 100 + n, bytes(32)))
                for n, teller in enumerate(owners[:20])
            ]
        store.see(seen)
    found = held_of_others(tmp_path / "witness.db", owners[0].peer_id)
    notes = check_held(found.notes)
    assert found.damaged == 0 and len(notes) == 48 * 16 < MOST_HELD
    assert Counter(note.log for note in notes) == dict.fromkeys([owner.peer_id for owner in owners[1:]], 16)
    for owner in owners[1:]:
        sizes = sorted(note.size for note in notes if note.log == owner.peer_id)
        assert sizes == [1, 10, 19, 28, 37, 38, 39, 40, *range(112, 120)]


def test_more_logs_than_fit_share_what_fits(tmp_path: Path) -> None:
    owners = [Identity.generate() for _ in range(150)]
    with contextlib.closing(WitnessStore(tmp_path / "witness.db")) as store:
        store.see(
            SeenHead(owner.peer_id, teller.peer_id, 0, n + 1, signed(owner, n + 1, bytes(32)))
            for owner in owners
            for n, teller in enumerate(owners[:8])
        )
    counted = Counter(note.log for note in check_held(held_of_others(tmp_path / "witness.db", "me").notes))
    assert counted.total() == MOST_HELD and len(counted) == 150 and {6, 7} == set(counted.values())


@pytest.mark.parametrize(
    "damage",
    [
        "note = 'abc'", "note = NULL", "note = 5", "note = x'ff00ff'", "note = replace(note, x'0a', x'0b')",
        "note = 3000000000000", "note = zeroblob(5000)", "log = 7", "log = x'00'",
    ],
)  # fmt: skip
@pytest.mark.parametrize("table", ["seen", "heads"])
def test_a_damaged_row_of_the_witness_store_is_left_out_with_a_word(
    world: Path, capsys: pytest.CaptureFixture[str], damage: str, table: str
) -> None:
    """The log beside it is whole, and nothing says otherwise."""
    rouen = write(world, "rouen", "one")
    holds(world, "lille", rouen, seen=table == "seen")
    holds(world, "rouen", write(world, "lille"))
    with contextlib.closing(sqlite3.connect(world / "lille" / "witness.db")) as store:
        store.execute(f"UPDATE {table} SET {damage}")
        store.commit()
    assert do(capsys, "audit", "verify", "lille").code == 0
    done = do(capsys, "audit", "export", "lille", "-o", "lille.jsonl")
    assert done.code == 0 and "1 damaged rows of lille/witness.db were left out" in done.err
    assert do(capsys, "audit", "verify", "lille.jsonl").code == 0
    done = do(capsys, "audit", "reconcile", "lille", "rouen")
    assert done.code == 3 and "NOT JUDGED   the history of rouen" in done.out, done.err
    assert "said         lille has 1 damaged rows in its witness.db, which were left out" in done.out


@pytest.mark.parametrize("damage", ["UPDATE cosigned SET note = 5", "DROP TABLE cosigned", "garbage"])
def test_a_witness_store_that_cannot_be_read_is_named_and_the_log_verifies(
    world: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    write(world, "lille")
    path = world / "lille" / "witness.db"
    WitnessStore(path).close()
    with contextlib.closing(sqlite3.connect(path)) as store:
        store.execute("INSERT INTO cosigned VALUES ('w', 0, 1, x'00', x'00', 1)")
        if damage != "garbage":
            store.execute(damage)
        store.commit()
    if damage == "garbage":
        path.write_bytes(b"no database" * 1000)
    done = do(capsys, "audit", "verify", "lille")
    assert done.code == 0 and "not told     who cosigned it: the witness store" in done.out, done.err
    for line in (("export", "lille", "-o", "x"), ("checkpoint", "lille"), ("reconcile", "lille")):
        assert "witness.db" in do(capsys, "audit", *line).sentence()
