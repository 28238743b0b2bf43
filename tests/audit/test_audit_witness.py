"""What a witness stores, what an owner's answer shows, and what evidence is: nothing but the owner's own words."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from audit_logs import NOW, owner

from p2pfl.audit import (
    Answer,
    AuditLog,
    Evidence,
    HeldHead,
    LogMisbehaviour,
    NewEntry,
    WitnessFinding,
    WitnessStore,
    check_evidence,
    compare_notes,
    judge,
    read_evidence,
    verify_log,
)
from p2pfl.crypto import Cosignature, Identity, cosign, log_origin, open_checkpoint, open_cosignature, staple
from p2pfl.crypto.checkpoints import epoch_of, epoch_origin
from p2pfl.crypto.cosignatures import MAX_STAPLED, decode_cosignature
from p2pfl.crypto.notes import read_note
from p2pfl.errors import ConfigError, IllegalStep, RemoteError, SignatureRefused

NAME = "North"
OWNER = owner()
ME = OWNER.peer_id
ORIGIN = log_origin(NAME, ME)
WITNESS = Identity.from_seed(bytes(reversed(range(32))))
OTHER = Identity.from_seed(b"\x07" * 32)


def refused(reason: str) -> NewEntry:
    return NewEntry("refused", {"peer": "x", "reason": reason})


@pytest.fixture
def log(tmp_path: Path) -> Iterator[AuditLog]:
    with AuditLog.create(tmp_path / "audit.db", OWNER, NOW, NAME) as made:
        yield made


@pytest.fixture
def other(tmp_path: Path) -> Iterator[AuditLog]:
    """Another history under the same key, of the same size at each commit."""
    with AuditLog.create(tmp_path / "other.db", OWNER, NOW + 1, NAME) as made:
        yield made


def notes(log: AuditLog, *counts: int) -> list[bytes]:
    """Append so many entries in turn; the note after each."""
    return [log.append([refused(f"{log.path.name} {n}") for n in range(count)], NOW + 2).note for count in counts]


def honest(log: AuditLog, held: bytes, newest: bytes) -> bytes:
    old, new = (open_checkpoint(note, ORIGIN, ME).size for note in (held, newest))
    return Answer(held, newest, log.prove_growth(old, new)).sign(OWNER)


def declare(log: AuditLog, kept: int, lost: list[list[Any]], *, epoch: int = 1, kind: str = "epoch_opened") -> bytes:
    """Open an epoch; the tlog-proof of its entry under its own checkpoint."""
    body = {"epoch": epoch, "kept": kept, "lost": lost, "reason": "restored"}
    log.append([NewEntry(kind, body)], NOW + 3, epoch if epoch > log.epoch else None)
    return log.prove(log.head.size - 1).encode()


def head_of(note: bytes) -> list[Any]:
    checkpoint = open_checkpoint(note, ORIGIN, ME)
    return [epoch_of(checkpoint.origin, ORIGIN), checkpoint.size, checkpoint.root]


def claim_of(answer: bytes, held: bytes) -> str:
    with pytest.raises(LogMisbehaviour) as shown:
        judge(answer, held, ORIGIN, ME)
    found = Evidence(shown.value.claim, ME, ORIGIN, shown.value.notes, shown.value.answer, {"by": "x", "at": 1})
    assert read_evidence(found.encode()) == found
    check_evidence(found, ORIGIN, ME)
    return shown.value.claim


def test_an_honest_owner_is_believed_at_every_pair_of_sizes(log: AuditLog) -> None:
    made = [log.head.note, *notes(log, *[1] * 20)]
    for place, held in enumerate(made):
        for newest in made[place:]:
            judged = judge(honest(log, held, newest), held, ORIGIN, ME)
            assert (judged.note, judged.epoch, judged.kept) == (newest, 0, None)
    assert judge(Answer(b"", made[3]).sign(OWNER), b"", ORIGIN, ME).newest.size == 4


def test_what_contradicts_is_evidence(log: AuditLog, other: AuditLog) -> None:
    small, middle, large = notes(log, 3, 4, 5)
    _, elsewhere, longer = notes(other, 3, 4, 9)
    with pytest.raises(LogMisbehaviour):
        compare_notes(middle, elsewhere, ORIGIN, ME)
    compare_notes(small, elsewhere, ORIGIN, ME)
    assert claim_of(Answer(middle, elsewhere).sign(OWNER), middle) == "fork"
    assert claim_of(honest(other, middle, longer), middle) == "growth"
    assert claim_of(Answer(middle, longer, (bytes(32),)).sign(OWNER), middle) == "growth"
    assert claim_of(Answer(large, middle).sign(OWNER), large) == "rollback"
    assert claim_of(Answer(middle, large).sign(OWNER), middle) == "growth", "an empty proof shows nothing"


def test_what_somebody_else_says_is_never_evidence(log: AuditLog, other: AuditLog) -> None:
    (held,) = notes(log, 3)
    (newest,) = notes(other, 9)
    foreign = log_origin("South", ME)
    useless = [
        Answer(held, newest).sign(OTHER),
        Answer(newest, newest).sign(OWNER),  # not what was asked about
        Answer(held, held[:-5] + b"AAA=\n").sign(OWNER),
        Answer(held, b"no note").sign(OWNER),
        b"",
        Answer(held, newest).sign(OWNER)[:-1],
    ]
    for answer in useless:
        with pytest.raises(RemoteError) as error:
            judge(answer, held, ORIGIN, ME)
        assert not isinstance(error.value, LogMisbehaviour)
    with pytest.raises(SignatureRefused):
        judge(honest(log, held, held), held, foreign, ME)


def test_a_declared_loss_is_no_fork_and_covers_no_more_than_it_names(log: AuditLog, other: AuditLog) -> None:
    kept, lost, more = notes(log, 3, 10, 10)
    size = open_checkpoint(kept, ORIGIN, ME).size
    other_kept = notes(other, 3)[0]
    loss = declare(other, size, [head_of(lost)])
    newest = other.head.note
    judged = judge(Answer(lost, newest, loss=loss).sign(OWNER), lost, ORIGIN, ME)
    assert (judged.epoch, judged.kept, judged.newest.size) == (1, size, other.head.size)
    assert claim_of(Answer(more, newest, loss=loss).sign(OWNER), more) == "rollback", "more was lost than it says"
    assert claim_of(Answer(kept, newest, loss=loss).sign(OWNER), kept) == "rollback", "what it kept it must prove"
    assert claim_of(honest(other, kept, newest), kept) == "growth", "and it cannot: the beginning is another one"
    assert judge(honest(other, other_kept, newest), other_kept, ORIGIN, ME).kept is None
    later = declare(other, size, [head_of(more)], kind="loss_declared")
    assert judge(Answer(more, other.head.note, loss=later).sign(OWNER), more, ORIGIN, ME).kept == size
    assert claim_of(Answer(newest, more).sign(OWNER), newest) == "rollback", "back in the epoch that was left"
    stale = Answer(lost, other.head.note, loss=loss).sign(OWNER)  # a proof under another checkpoint than the newest
    assert claim_of(stale, lost) == "rollback"


def test_an_epoch_is_kept_in_the_file_and_checked(log: AuditLog) -> None:
    notes(log, 3)
    declare(log, 2, [[0, 9, bytes(32)]], epoch=3)
    notes(log, 1)
    path = log.path
    with pytest.raises(ConfigError, match="epoch 3 cannot begin"):
        log.append([refused("x")], NOW, 3)
    log.close()
    assert verify_log(path, ME, ORIGIN).ok
    with AuditLog.open(path, OWNER) as again:
        assert (again.epoch, again.origin) == (3, ORIGIN)
        assert again.head.note.startswith(f"{ORIGIN}/3\n".encode())
        again.append([refused("y")], NOW + 9)
        assert again.epoch == 3


@pytest.mark.parametrize("line", ["/0", "/01", "/10000", "/1/1", "/x", "/-1", "/", "x"])
def test_other_lines_are_no_epoch_of_the_log(line: str) -> None:
    assert epoch_of(ORIGIN + line, ORIGIN) is None
    assert [epoch_of(epoch_origin(ORIGIN, number), ORIGIN) for number in (0, 1, 9999)] == [0, 1, 9999]


def test_no_altered_evidence_holds(log: AuditLog, other: AuditLog) -> None:
    held, newest = notes(log, 4)[0], notes(other, 9)[0]
    with pytest.raises(LogMisbehaviour) as shown:
        judge(honest(other, held, newest), held, ORIGIN, ME)
    good = Evidence("growth", ME, ORIGIN, shown.value.notes, shown.value.answer, {"by": "x", "at": 1})
    check_evidence(good, ORIGIN, ME)
    for bit in range(0, 8 * len(good.answer), 7):
        answer = bytearray(good.answer)
        answer[bit // 8] ^= 1 << bit % 8
        with pytest.raises(RemoteError):
            check_evidence(replace(good, answer=bytes(answer)), ORIGIN, ME)
    wrong: list[Callable[[Evidence], Evidence]] = [
        lambda e: replace(e, claim="fork"),
        lambda e: replace(e, claim="rollback"),
        lambda e: replace(e, notes=(e.notes[1], e.notes[0])),
        lambda e: replace(e, owner=OTHER.peer_id),
        lambda e: replace(e, origin=log_origin("South", ME)),
        lambda e: replace(e, answer=honest(log, held, held), notes=(held, held)),
    ]
    for change in wrong:
        with pytest.raises(RemoteError):
            check_evidence(change(good), ORIGIN, ME)
    for data in (
        b"",
        b"{}",
        b"[]",
        b"null",
        good.encode()[:-9],
        b"[" * 10_000,
        good.encode().replace(b'"growth"', b'"x"'),
    ):
        with pytest.raises(RemoteError):
            read_evidence(data)


# --- the store


def held_head(size: int, epoch: int = 0) -> HeldHead:
    return HeldHead(epoch, size, bytes([size % 256]) * 32, b"note %d %d" % (epoch, size), 1000 + size)


def test_the_store_takes_one_of_two_answers_and_forgets_nothing(tmp_path: Path) -> None:
    store = WitnessStore(tmp_path / "witness.db")
    assert store.newest("a") is None
    store.accept("a", None, held_head(1))
    outcomes: list[str] = []
    ready = threading.Barrier(8)

    def race(size: int) -> None:
        ready.wait()
        try:
            store.accept("a", held_head(1), held_head(size))
            outcomes.append("taken")
        except IllegalStep:
            outcomes.append("late")

    threads = [threading.Thread(target=race, args=(size,)) for size in range(2, 10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["late"] * 7 + ["taken"], "two proofs against one head: the second would go back"
    newest = store.newest("a")
    assert newest is not None and newest.size > 1
    store.close()
    again = WitnessStore(tmp_path / "witness.db")
    assert again.newest("a") == newest and again.newest("b") is None
    again.accept("a", newest, held_head(5, epoch=1))
    assert again.before("a", 1, newest.size) == newest and again.before("a", 1, newest.size - 1) == held_head(1)
    assert again.last_of_epochs("a") == [newest.note, b"note 1 5"]
    assert again.at("a", 1, 5) == b"note 1 5" and again.at("a", 1, 6) is None
    assert again.find(WitnessFinding("a", "fork", "file", 1)) and not again.find(
        WitnessFinding("a", "fork", "file2", 2)
    )
    assert again.findings() == [WitnessFinding("a", "fork", "file", 1)]
    again.close()
    assert (tmp_path / "witness.db").stat().st_mode & 0o777 == 0o600


def test_the_store_stays_small(tmp_path: Path) -> None:
    store = WitnessStore(tmp_path / "witness.db")
    held: HeldHead | None = None
    for size in range(1, 300):
        store.accept("a", held, held := held_head(size))
    assert store.at("a", 0, 43) is None and store.at("a", 0, 44) is not None
    store.close()


# --- cosignatures


def test_a_cosignature_is_checked_with_the_charter_alone(log: AuditLog) -> None:
    (note,) = notes(log, 3)
    item = cosign(WITNESS, NAME, note, 1_700_000_000)
    assert decode_cosignature(item.encode()) == item
    assert open_cosignature(item, NAME) == (WITNESS.peer_id, read_note(note).text, 1_700_000_000)
    assert open_checkpoint(item.note, ORIGIN, ME) == open_checkpoint(note, ORIGIN, ME)
    key = read_note(item.note).signatures[1]
    assert key.name == f"{log_origin(NAME, WITNESS.peer_id)}/witness"
    (other_note,) = notes(log, 1)
    bad = [
        replace(item, note=note),  # no line of the witness
        replace(item, statement=cosign(OTHER, NAME, note, 1).statement),
        replace(item, statement=item.statement[:-1]),
        replace(item, note=item.note.replace(b"\n4\n", b"\n5\n")),
        replace(item, note=other_note.rpartition(b"\n\n")[0] + b"\n\n" + item.note.rpartition(b"\n\n")[2]),
    ]
    for wrong in bad:
        with pytest.raises(RemoteError):
            open_cosignature(wrong, NAME)
    with pytest.raises(SignatureRefused):
        open_cosignature(item, "South")


def test_lines_of_many_witnesses_are_stapled_and_bounded(log: AuditLog) -> None:
    before, note = notes(log, 3, 1)
    witnesses = [Identity.from_seed(bytes([number]) * 32) for number in range(1, 20)]
    items: list[Cosignature] = [cosign(witness, NAME, note, 5) for witness in witnesses]
    stapled = staple(note, [cosign(WITNESS, NAME, before, 5), *items])
    lines = read_note(stapled).signatures
    assert len(lines) == 1 + MAX_STAPLED and lines[0].name == ORIGIN
    assert lines[1].name == f"{log_origin(NAME, witnesses[0].peer_id)}/witness", "the one over another text is left out"
    assert open_checkpoint(stapled, ORIGIN, ME).size == 5
