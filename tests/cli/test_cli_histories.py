"""`audit reconcile` against what witnesses hold: a log that was rewritten, cut or forked before it was handed over."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_logs import NOW, data, holds, name_of, write
from cli_worlds import do

from p2pfl.audit import AuditLog, NewEntry, gather_source, gather_sources, reconcile
from p2pfl.audit.held import roots_at
from p2pfl.crypto import sha256
from p2pfl.crypto.proofs import root_of_hashes
from p2pfl.peer import open_home


def places(capsys: pytest.CaptureFixture[str], world: Path, form: str) -> list[str]:
    """The two logs as homes, or exported."""
    if form == "home":
        return ["lille", "rouen"]
    for name in ("lille", "rouen"):
        assert do(capsys, "audit", "export", name, "--format", form, "-o", f"{name}.{form}").code == 0
    return [f"lille.{form}", f"rouen.{form}"]


@pytest.mark.parametrize("seen", [False, True])
@pytest.mark.parametrize("form", ["home", "json", "tlog"])
def test_a_log_rewritten_before_it_is_handed_over(
    world: Path, capsys: pytest.CaptureFixture[str], form: str, seen: bool
) -> None:
    """Every hash and signature in order, and longer than what was witnessed: the witness holds another root."""
    holds(world, "rouen", write(world, "lille", "one", "two"), seen=seen)
    holds(world, "lille", write(world, "rouen"))
    done = do(capsys, "audit", "reconcile", *places(capsys, world, form), "--charter", "signed.charter")
    assert (
        done.code == 0
        and (
            "agree        1 checkpoints that witnesses hold of the log of lille (in 1 of the given logs, its first 4 of 4 "
        )
        in done.out
    )
    for place in world.glob("*.json"):
        place.unlink()
    write(world, "lille", "one", "another", "three")
    again = ["lille", "rouen"] if form == "home" else [f"lille2.{form}", f"rouen.{form}"]
    if form != "home":
        assert do(capsys, "audit", "export", "rouen", "--format", form, "-o", f"r2.{form}").code == 0
        assert do(capsys, "audit", "export", "lille", "--format", form, "-o", f"lille2.{form}").code == 0
        again = [f"lille2.{form}", f"r2.{form}"]
    done = do(capsys, "audit", "reconcile", *again, "--charter", "signed.charter")
    assert done.code == 1, done.out
    assert "rouen holds a signed checkpoint of 4 entries, which are not the first ones of the log given of lille" in (
        done.out
    )


def test_a_shorter_log_was_given_in_part(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What was cut off may have been changed as well: nothing is clean, and the holders are named in one line."""
    for texts in (["one"], ["one", "two"], ["one", "two", "three"]):
        holds(world, "rouen", write(world, "lille", *texts))
    holds(world, "lille", write(world, "rouen"))
    for texts, agreed in ((["one"], True), (["false"], False)):
        write(world, "lille", *texts)
        done = do(capsys, "audit", "reconcile", "lille", "rouen")
        assert done.code == (3 if agreed else 1), done.out
        assert (
            "NOT JUDGED   lille gave entries 0 to 2 of 5 or more, as checkpoints that rouen hold show: it was cut"
        ) in done.out
    write(world, "lille")
    done = do(capsys, "audit", "reconcile", "lille", "rouen", "--json")
    value = json.loads(done.out)
    assert done.code == 3 and not value["clean"] and list(value["parts"].values()) == [[0, 1, 5]]
    assert len(value["cut"]) == 1 and value["unwitnessed"] == []


def loss(kept: int, *rows: tuple[int, int, bytes], epoch: int = 1) -> NewEntry:
    return NewEntry("epoch_opened", {"epoch": epoch, "kept": kept, "lost": [list(row) for row in rows], "reason": "r"})


def told_of(log: AuditLog, kept: int) -> NewEntry:
    return NewEntry("loss_witnessed", {"peer": name_of(log), "epoch": 1, "kept": kept, "held": log.head.size})


def test_a_declared_loss_explains_what_it_names_once_a_witness_was_told(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lost = write(world, "lille", "one", "two", "three")
    holds(world, "rouen", lost, seen=True)
    holds(world, "lille", write(world, "rouen"))
    write(world, "lille", "one", epoch=loss(3, (0, lost.head.size, lost.head.root)))
    done = do(capsys, "audit", "reconcile", "lille", "rouen")
    assert done.code == 3 and "explained    1 checkpoints of another end of a log: it declared the loss" in done.out
    assert "NOT JUDGED   the loss that lille declares (entry 3): others hold checkpoints of what was lost" in done.out
    log = write(world, "lille", "one", "again", epoch=loss(3, (0, lost.head.size, lost.head.root)))
    holds(world, "rouen", log, epoch=1)
    write(world, "rouen", more=[told_of(lost, 3)])
    done = do(capsys, "audit", "reconcile", "lille", "rouen")
    assert done.code == 0 and done.out.splitlines()[-1] == "clean", done.out


@pytest.mark.parametrize(
    "entry",
    [loss(3, (0, 4, bytes(32))), loss(3, (0, 5, bytes(32))), loss(3, (8, 9, bytes(32)), epoch=9)],
    ids=["of one entry", "of the same size with another root", "of another epoch"],
)
def test_a_small_loss_excuses_no_rewritten_history(
    world: Path, capsys: pytest.CaptureFixture[str], entry: NewEntry
) -> None:
    """A witness holds five entries with another root; none of these declarations covers them."""
    holds(world, "rouen", write(world, "lille", "one", "two", "three"))
    holds(world, "lille", write(world, "rouen"))
    write(world, "lille", "one", "another", "three", epoch=entry)
    write(world, "rouen", more=[told_of(write(world, "stranger"), 3)])
    done = do(capsys, "audit", "reconcile", "lille", "rouen")
    assert done.code == 1 and "UNEXPLAINED  rouen holds a signed checkpoint of 5 entries, epoch 0" in done.out
    assert "(entry 5 of lille)" in done.out and "explained    " not in done.out


def test_a_restored_site_whose_witness_has_not_asked_yet_is_not_contradicted(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It grew before it met a witness of 6 entries, so it says to have kept 5; rouen, away, has seen another fifth."""
    holds(world, "rouen", write(world, "lille", "a", "b", "c"))
    holds(world, "lille", write(world, "rouen"))
    lost = write(world, "lille", "a", "b", "c", "d")
    write(world, "lille", "a", "x", "y", epoch=loss(5, (0, lost.head.size, lost.head.root)))
    done = do(capsys, "audit", "reconcile", "lille", "rouen")
    assert done.code == 1 and "CONTRADICTORY" not in done.out
    assert "neither in the log given nor covered by the loss it declares (link both sites, then copy again" in done.out


def test_histories_that_no_witness_saw_are_not_clean(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever has the logs of two sites without their witness stores has compared nothing of either history."""
    lille, rouen = write(world, "lille", "one"), write(world, "rouen")
    done = do(capsys, "audit", "reconcile", "lille/audit.db", "rouen")
    assert done.code == 3 and done.out.count("NOT JUDGED   the history of ") == 2
    assert done.out.splitlines()[-1] == "NOT JUDGED   2 histories were compared with no witness's"
    holds(world, "lille", rouen)
    done = do(capsys, "audit", "reconcile", "lille", "rouen")
    assert done.code == 3 and done.out.count("NOT JUDGED   the history of lille: ") == 1
    holds(world, "rouen", lille)
    assert do(capsys, "audit", "reconcile", "lille", "rouen").code == 0


def test_a_later_epoch_without_a_declared_loss_is_no_excuse(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Shorter, and signed under epoch 1: witnesses would take that as evidence, and it is not an older copy."""
    holds(world, "rouen", write(world, "lille", "one", "two", "three"))
    holds(world, "lille", write(world, "rouen"))
    write(world, "lille", epoch=NewEntry("data_registered", {**data("x").body, "epoch": 1}))
    done = do(capsys, "audit", "reconcile", "lille", "rouen")
    assert done.code == 1 and "CONTRADICTORY rouen holds a signed checkpoint of 5 entries" in done.out


def test_a_log_is_no_witness_of_itself(world: Path) -> None:
    """An export may bring anything that verifies, its own checkpoints and copies of them too."""
    write(world, "lille", "one")
    log = gather_source(world / "lille" / "audit.db")
    log.held = [*log.shown, *log.shown]
    log.roots = {note.size: note.root for note in log.shown}
    outcome = reconcile([log])
    assert outcome.unwitnessed == [log.peer] and outcome.histories[log.peer].agreed == 0 and not outcome.clean


def test_a_log_whose_roots_were_not_read_is_not_judged(world: Path) -> None:
    holds(world, "rouen", write(world, "lille", "one"))
    holds(world, "lille", write(world, "rouen"))
    paths = [world / name / "audit.db" for name in ("lille", "rouen")]
    outcome = reconcile([gather_source(path) for path in paths])
    assert not outcome.findings and len(outcome.unwitnessed) == 2 and outcome.not_judged.total() == 2
    assert reconcile(gather_sources((path, None, None) for path in paths)).verdict == "clean"


def test_a_rewritten_log_that_is_shorter_than_the_newest_checkpoints_still_meets_older_ones(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = open_home(world / "lille")
    (world / "rouen").mkdir(exist_ok=True)
    with AuditLog.create(home.audit, home.identity(None), NOW, "north") as log:
        for number in range(30):
            log.append([data(f"true {number} {place}") for place in range(10)], NOW)
            holds(world, "rouen", log)
    write(world, "lille", *(f"false {number}" for number in range(150)))
    holds(world, "lille", write(world, "rouen"))
    done = do(capsys, "audit", "reconcile", "lille", "rouen")
    assert done.code == 1 and "CONTRADICTORY rouen holds a signed checkpoint of 11 entries" in done.out


def test_a_held_checkpoint_that_was_changed_spoils_the_export(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    holds(world, "rouen", write(world, "lille", "one"), seen=True)
    write(world, "rouen")
    for form, name in (("json", "rouen.jsonl"), ("tlog", "tiles")):
        assert do(capsys, "audit", "export", "rouen", "--format", form, "-o", name).code == 0
        assert do(capsys, "audit", "verify", name).code == 0
        place = world / name if form == "json" else world / name / "held"
        text = place.read_text()
        assert text.count("\\n3\\n") == 1
        place.write_text(text.replace("\\n3\\n", "\\n4\\n"))
        assert do(capsys, "audit", "verify", name).code == 1
        place.write_text("[[[" if form == "tlog" else text[:300])
        assert do(capsys, "audit", "verify", name).code == 1


def test_roots_at_every_size() -> None:
    leaves = [bytes.fromhex(sha256(bytes([number]))) for number in range(40)]
    found = roots_at(leaves, range(45))
    assert found == {size: root_of_hashes(leaves[:size]) for size in range(41)}
