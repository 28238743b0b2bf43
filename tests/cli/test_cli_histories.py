"""`audit reconcile` against what witnesses hold: a log that was rewritten, cut or forked before it was handed over."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from cli_worlds import do

from p2pfl.audit import AuditLog, HeldHead, NewEntry, SeenHead, WitnessStore
from p2pfl.audit.held import roots_at
from p2pfl.crypto import sha256
from p2pfl.crypto.proofs import root_of_hashes
from p2pfl.peer import open_home

NOW = 1_700_000_000_000


def write(world: Path, name: str, *texts: str, epoch: NewEntry | None = None) -> AuditLog:
    """A log of a home's key, anew; closed."""
    home = open_home(world / name)
    for file in (world / name).glob("audit.db*"):
        file.unlink()
    identity = home.identity(None)
    with AuditLog.create(home.audit, identity, NOW, "north") as log:
        log.append([NewEntry("peer_started", {"peer": identity.peer_id, "name": name})], NOW)
        for text in texts:
            log.append([NewEntry("refused", {"peer": "x", "reason": text})], NOW)
        if epoch is not None:
            log.append([epoch], NOW, 1)
    return log


def holds(world: Path, witness: str, owner: AuditLog, *, seen: bool) -> None:
    """The witness has checked, or only seen, the newest checkpoint of this log."""
    head = owner.head
    peer = owner.origin.rpartition("/")[2]
    with contextlib.closing(WitnessStore(world / witness / "witness.db")) as store:
        if seen:
            store.see([SeenHead(peer, peer, 0, head.size, head.note)])
        else:
            store.accept(peer, None, HeldHead(0, head.size, head.root, head.note, NOW // 1000))


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
    write(world, "rouen")
    done = do(capsys, "audit", "reconcile", *places(capsys, world, form), "--charter", "signed.charter")
    assert done.code == 0 and "agree        1 checkpoints that witnesses hold" in done.out
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


def test_a_shorter_log_is_asked_for_again_and_a_declared_loss_explains(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lost = write(world, "lille", "one", "two", "three")
    holds(world, "rouen", lost, seen=True)
    write(world, "rouen")
    write(world, "lille", "one")
    done = do(capsys, "audit", "reconcile", "lille", "rouen")
    assert done.code == 0 and "holds a checkpoint of 5 entries, and 3 were given: copy again" in done.out
    assert done.out.splitlines()[-1] == "clean, as far as the given logs go"
    body = {"epoch": 1, "kept": 3, "lost": [[0, lost.head.size, lost.head.root]], "reason": "a disk"}
    write(world, "lille", "one", epoch=NewEntry("epoch_opened", body))
    done = do(capsys, "audit", "reconcile", "lille", "rouen")
    assert "checkpoints of another end of a log: it declared the loss of that end" in done.out
    assert done.out.splitlines()[-1] == "clean"


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
