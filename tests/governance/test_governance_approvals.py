"""The book of approved plan hashes: durable, and closed when damaged."""

from __future__ import annotations

from pathlib import Path

import pytest
from governance_worlds import assert_one_sentence

from p2pfl.crypto import sha256
from p2pfl.errors import ConfigError, StoreError
from p2pfl.governance import Approval, ApprovalBook
from p2pfl.types import Digest

ONE, TWO = sha256(b"one"), sha256(b"two")


def test_approvals_outlive_the_object(tmp_path: Path) -> None:
    path = tmp_path / "approvals.json"
    assert not ApprovalBook(path).is_approved(ONE)
    ApprovalBook(path).approve(ONE, at=5)
    ApprovalBook(path).approve(TWO, at=6)
    ApprovalBook(path).approve(ONE, at=7)
    assert ApprovalBook(path).list() == (Approval(ONE, 5), Approval(TWO, 6))
    assert ApprovalBook(path).is_approved(TWO)
    assert not ApprovalBook(path).is_approved(sha256(b"three"))
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("plan", ["", "abc", ONE.upper(), ONE + "0", "*"])
def test_only_digests_are_approved(tmp_path: Path, plan: str) -> None:
    book = ApprovalBook(tmp_path / "approvals.json")
    with pytest.raises(ConfigError) as caught:
        book.approve(Digest(plan), at=1)
    assert_one_sentence(caught.value)
    assert book.list() == ()


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"[]",
        b"null",
        b"\xff",
        b"[" * 100_000,
        b'{"format": "p2pfl approvals v2", "approved": []}',
        b'{"format": "p2pfl approvals v1", "approved": {}}',
        b'{"format": "p2pfl approvals v1", "approved": [1]}',
        b'{"format": "p2pfl approvals v1", "approved": [{"plan": "x", "at": 1}]}',
        b'{"format": "p2pfl approvals v1", "approved": [{"plan": "%s", "at": "1"}]}' % ONE.encode(),
        b'{"format": "p2pfl approvals v1", "approved": [{"plan": "%s"}]}' % ONE.encode(),
        b" " * (2**20 + 1),
    ],
)
def test_a_damaged_book_approves_nothing_and_is_kept(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "approvals.json"
    path.write_bytes(damage)
    book = ApprovalBook(path)
    for call in (lambda: book.is_approved(ONE), book.list, lambda: book.approve(ONE, at=1)):
        with pytest.raises(ConfigError) as caught:
            call()
        assert_one_sentence(caught.value)
    assert path.read_bytes() == damage


def test_every_cut_of_the_book_approves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "approvals.json"
    ApprovalBook(path).approve(ONE, at=5)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ConfigError):
            ApprovalBook(path).is_approved(ONE)


def test_a_book_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="couldn't write"):
        ApprovalBook(tmp_path / "absent" / "approvals.json").approve(ONE, at=1)
