"""The address book: what it refuses and in which words, what it keeps, and that the order of arrival does not matter."""

from __future__ import annotations

import stat
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from governance_worlds import EXPIRES, NOW, assert_one_sentence, certificate, identity, record, signed
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pfl.crypto import create_certificate, pack, sign_envelope
from p2pfl.errors import (
    ConfigError,
    Equivocation,
    LimitExceeded,
    MalformedMessage,
    NotAMember,
    RemoteError,
    SignatureRefused,
    StoreError,
)
from p2pfl.governance import AddressBook, StaleRecord, check_charter, record_to_text
from p2pfl.governance.address_book import FURTHEST_EXPIRY, NOTES, RECORDS_PER_HOUR

CHARTER = signed()
ROSTER = check_charter(CHARTER, NOW)
ROUEN = identity(1).peer_id
MOVED = "/ip4/10.9.9.9/tcp/5000"


def book(folder: Path, now: int = NOW) -> AddressBook:
    return AddressBook(folder / "records", CHARTER, now)


def moved(sequence: int = 2, **changes: Any) -> bytes:
    """Rouen's record with another address."""
    return record(1, sequence=sequence, addresses=[MOVED], **changes)


def addresses(found: AddressBook) -> list[tuple[str, ...]]:
    return [member.addresses for member in found.roster(ROSTER).members]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_newer_record_counts_and_nothing_else_changes(tmp_path: Path) -> None:
    found = book(tmp_path)
    assert found.roster(ROSTER) == ROSTER and not found.newer
    assert not (tmp_path / "records").exists(), "a home without news has no folder"
    verdict = found.take(moved(), NOW)
    assert verdict.new and verdict.member.addresses == (MOVED,)
    roster = found.roster(ROSTER)
    assert roster.charter == ROSTER.charter and roster.quorum == ROSTER.quorum
    assert roster.peer_ids == ROSTER.peer_ids, "the order is the charter's"
    assert roster.member(ROUEN) == verdict.member
    assert replace(roster, members=ROSTER.members) == ROSTER
    assert [a == b for a, b in zip(roster.members, ROSTER.members, strict=True)] == [True, False, True, True]
    assert found.record(ROUEN) == moved()
    assert found.summary(NOW)[ROUEN] == 2 and len(found.summary(NOW)) == 4


def test_the_same_record_again_has_no_effect(tmp_path: Path) -> None:
    found = book(tmp_path)
    assert not found.take(record(1), NOW).new, "the charter's own"
    assert contents(tmp_path) == {}
    found.take(moved(), NOW)
    before = contents(tmp_path)
    for _ in range(3 * RECORDS_PER_HOUR):
        assert not found.take(moved(), NOW).new
    assert contents(tmp_path) == before


def twin(expires: int = EXPIRES) -> bytes:
    return record(1, sequence=5, addresses=["/ip4/10.9.9.8/tcp/5000"], expires=expires)


def copied_subject() -> bytes:
    """A certificate of Rouen's own making with the subject of Lille's."""
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding

    original = x509.load_der_x509_certificate(certificate(0).der)
    key = Ed25519PrivateKey.generate()
    built = x509.CertificateBuilder(
        issuer_name=original.subject, subject_name=original.subject, public_key=key.public_key(), serial_number=7,
        not_valid_before=original.not_valid_before_utc, not_valid_after=original.not_valid_after_utc,
    )  # fmt: skip
    return built.sign(key, None).public_bytes(Encoding.DER)


REFUSALS: dict[str, tuple[Callable[[], bytes], type[RemoteError], str]] = {
    "a stranger's": (lambda: record(7), NotAMember, f"{identity(7).peer_id}.*charter does not name"),
    "a stranger's with a member's name": (lambda: record(7, name="Rouen"), NotAMember, identity(7).peer_id),
    "stale": (lambda: moved(4), StaleRecord, rf"number 4 of Rouen \({ROUEN}\) is stale.*number 5 is known"),
    "the charter's again": (lambda: record(1), StaleRecord, "number 1 of Rouen .*number 5"),
    "a twin": (lambda: twin(), Equivocation, r"number 5 of Rouen .*signed twice.*[0-9a-f]{16} .*[0-9a-f]{16}"),
    "expired": (lambda: moved(6, expires=NOW), LimitExceeded, "number 6 of Rouen .*expired on 2026-09-21"),
    "for ever": (
        lambda: moved(6, expires=NOW + FURTHEST_EXPIRY + 1), LimitExceeded, "number 6 of Rouen .*until 2027-.*400 days",
    ),
    "another name": (lambda: moved(6, name="Paris"), RemoteError, "number 6 of Rouen .*'Paris'.*version of the charter"),
    "another member's name": (lambda: moved(6, name="Lille"), RemoteError, "number 6 of Rouen .*'Lille'"),
    "another member's certificate": (
        lambda: moved(6, certificates=[certificate(0).der]), RemoteError, "number 6 of Rouen .*cannot tell.*of Lille",
    ),
    "another member's subject": (
        lambda: moved(6, certificates=[copied_subject()]), RemoteError, "number 6 of Rouen .*cannot tell.*of Lille",
    ),
    "nothing": (lambda: b"", MalformedMessage, "decoded"),
    "too long": (lambda: bytes(20_000), LimitExceeded, "bytes"),
    "another kind": (lambda: sign_envelope(identity(1), "closing", pack({})).encode(), MalformedMessage, "closing"),
    "signed rubbish": (lambda: sign_envelope(identity(1), "member-record", pack({})).encode(), MalformedMessage, "field"),
}  # fmt: skip


@pytest.mark.parametrize(("make", "kind", "words"), [pytest.param(*row, id=name) for name, row in REFUSALS.items()])
def test_what_is_refused(tmp_path: Path, make: Callable[[], bytes], kind: type[RemoteError], words: str) -> None:
    found = book(tmp_path)
    found.take(moved(5), NOW)
    before, known = contents(tmp_path), found.roster(ROSTER)
    with pytest.raises(kind, match=words) as caught:
        found.take(make(), NOW)
    assert_one_sentence(caught.value)
    assert found.roster(ROSTER) == known and contents(tmp_path) == before
    assert found.take(moved(7), NOW).new, "the true owner's next one is taken all the same"


def test_no_altered_byte_passes(tmp_path: Path) -> None:
    """Every byte, one bit each; the second half of the record would suffice to move an address."""
    found, data = book(tmp_path), moved()
    for place in range(len(data)):
        altered = bytearray(data)
        altered[place] ^= 1 << place % 8
        with pytest.raises((MalformedMessage, SignatureRefused, LimitExceeded)):
            found.take(bytes(altered), NOW)
    assert found.roster(ROSTER) == ROSTER and contents(tmp_path) == {}


def test_a_members_key_signs_for_itself_alone(tmp_path: Path) -> None:
    """Caen's signature over Rouen's words makes it Caen's record, with a wrong name."""
    found = book(tmp_path)
    forged = record(2, name="Rouen", addresses=[MOVED], sequence=2, certificates=[certificate(2).der])
    with pytest.raises(RemoteError, match=r"of Caen .*'Rouen'"):
        found.take(forged, NOW)
    assert found.roster(ROSTER) == ROSTER


def test_too_many_within_an_hour(tmp_path: Path) -> None:
    found = book(tmp_path)
    for number in range(RECORDS_PER_HOUR):
        assert found.take(moved(2 + number), NOW + number).new
    next_one = moved(100)
    with pytest.raises(LimitExceeded, match=f"number 100 of Rouen .*{RECORDS_PER_HOUR} were taken.*too many"):
        found.take(next_one, NOW + 3599)
    assert found.take(record(2, sequence=2), NOW + 3599).new, "the others' pace is their own"
    assert found.take(next_one, NOW + 3600).new
    assert found.take(moved(101), NOW - 9999).new, "a clock that was set back does not block for ever"
    assert len(contents(tmp_path)) == 2, "one file per member, however many were taken"


def test_the_newest_record_is_the_whole_truth_about_certificates(tmp_path: Path) -> None:
    found = book(tmp_path)
    new = create_certificate("rouen 2", not_before=NOW - 10, not_after=EXPIRES, password=b"x").der
    found.take(moved(2, certificates=[certificate(1).der, new]), NOW)
    assert found.roster(ROSTER).member(ROUEN).certificates == (certificate(1).der, new)  # type: ignore[union-attr]
    found.take(moved(3, certificates=[new]), NOW)
    assert found.roster(ROSTER).member(ROUEN).certificates == (new,)  # type: ignore[union-attr]


HISTORY = [record(number, sequence=step, addresses=[f"/ip4/10.{number}.{step}.1/tcp/1"])
           for number in range(4) for step in (2, 3, 7)]  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.permutations(range(len(HISTORY))), st.lists(st.integers(0, len(HISTORY) - 1), max_size=6))
def test_the_order_of_arrival_does_not_change_the_roster(order: list[int], again: list[int]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = book(Path(folder))
        for place in [*order, *again]:
            try:
                found.take(HISTORY[place], NOW)
            except StaleRecord:
                pass
        expected = [(f"/ip4/10.{number}.7.1/tcp/1",) for number in range(4)]
        assert addresses(found) == expected
        assert addresses(book(Path(folder))) == expected, "and so after a restart"


def test_a_restart_forgets_nothing(tmp_path: Path) -> None:
    book(tmp_path).take(moved(5), NOW)
    file = tmp_path / "records" / f"{ROUEN}.record"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600 and stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    again = book(tmp_path)
    assert again.notes == [] and again.roster(ROSTER).member(ROUEN).addresses == (MOVED,)  # type: ignore[union-attr]
    assert again.record(ROUEN) == moved(5)
    with pytest.raises(StaleRecord):
        again.take(moved(4), NOW)


def test_an_expired_record_is_dropped_and_no_older_one_comes_back(tmp_path: Path) -> None:
    found = book(tmp_path)
    found.take(moved(5, expires=NOW + 100), NOW)
    assert not found.drop_expired(NOW + 99)
    assert found.summary(NOW + 100).get(ROUEN) is None, "what has expired is told to nobody"
    for expired in (found, book(tmp_path, NOW + 100)):
        expired.drop_expired(NOW + 100)
        assert expired.roster(ROSTER) == ROSTER and not expired.newer and expired.notes == []
        assert expired.record(ROUEN) == record(1)
        with pytest.raises(StaleRecord, match="number 5 is known"):
            expired.take(moved(4), NOW + 100)
        with pytest.raises(Equivocation, match="another, which has expired"):
            expired.take(moved(5), NOW + 100)
        with pytest.raises(LimitExceeded, match="expired on"):
            expired.take(moved(5, expires=NOW + 100), NOW + 100)
    assert found.take(moved(6), NOW + 100).new


def damage(text: bytes) -> bytes:
    place = len(text) // 2
    return text[:place] + bytes([text[place] ^ 1]) + text[place + 1 :]


FILES: dict[str, tuple[str, bytes, str]] = {
    "damaged": (f"{ROUEN}.record", damage(record_to_text(moved(5)).encode()), "ignored"),
    "empty": (f"{ROUEN}.record", b"", "ignored"),
    "binary": (f"{ROUEN}.record", bytes(range(256)), "ignored"),
    "huge": (f"{ROUEN}.record", b"x" * 100_000, "larger than"),
    "another member's": (f"{ROUEN}.record", record_to_text(record(2, sequence=9)).encode(), "it is the record of"),
    "a stranger's": (f"{identity(7).peer_id}.record", record_to_text(record(7)).encode(), "no record of a member"),
    "a foreign file": ("notes.txt", b"hello", "no record of a member"),
    "another name": (f"{ROUEN}.record", record_to_text(moved(5, name="Paris")).encode(), "version of the charter"),
}


@pytest.mark.parametrize(("name", "data", "words"), [pytest.param(*row, id=name) for name, row in FILES.items()])
def test_a_bad_file_is_ignored_and_said(tmp_path: Path, name: str, data: bytes, words: str) -> None:
    book(tmp_path).take(record(3, sequence=2, addresses=[MOVED]), NOW)
    (tmp_path / "records" / name).write_bytes(data)
    found = book(tmp_path)
    assert addresses(found) == [*(member.addresses for member in ROSTER.members[:3]), (MOVED,)]
    assert len(found.notes) == 1 and words in found.notes[0] and name in found.notes[0]
    assert (tmp_path / "records" / name).read_bytes() == data, "left for its owner to look at"
    assert found.take(moved(6), NOW).new
    assert book(tmp_path).roster(ROSTER) == found.roster(ROSTER)


def test_a_folder_that_is_none_and_one_full_of_files(tmp_path: Path) -> None:
    (tmp_path / "records").write_text("x")
    found = book(tmp_path)
    assert found.roster(ROSTER) == ROSTER and len(found.notes) == 1
    with pytest.raises(StoreError):
        found.take(moved(), NOW)
    assert found.roster(ROSTER) == ROSTER, "not half taken"
    (tmp_path / "records").unlink()
    (tmp_path / "records").mkdir()
    for number in range(3 * NOTES):
        (tmp_path / "records" / str(number)).touch()
    assert len(book(tmp_path).notes) == NOTES


def test_a_newer_record_keeps_the_charter_in_force(tmp_path: Path) -> None:
    """A year after the founding every record in the charter has expired; those renewed in time count."""
    later = EXPIRES + 10
    found = book(tmp_path)
    for number in range(3):
        found.take(record(number, sequence=2, expires=later + 100), NOW)
    with pytest.raises(ConfigError, match=r"record of Amiens expired .*--take") as caught:
        check_charter(CHARTER, later, found.newer)
    assert_one_sentence(caught.value)
    found.take(record(3, sequence=2, expires=later + 100), NOW)
    assert check_charter(CHARTER, later, found.newer) == ROSTER, "the base stays the charter's"
    with pytest.raises(ConfigError, match="record of Lille expired"):
        check_charter(CHARTER, later + 100, found.newer)
