"""The charter: founding, signatures, merging, checks, acceptance."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from governance_worlds import (
    EXPIRES,
    NOW,
    assert_one_sentence,
    certificate,
    identity,
    record,
    signed,
    unsigned,
)
from nacl import bindings

from p2pfl.crypto import Identity, pack, sign_envelope, unpack
from p2pfl.errors import ConfigError, PolicyRefusal, StoreError
from p2pfl.governance import (
    Charter,
    accept_charter,
    charter_to_text,
    check_charter,
    fingerprint,
    merge_charters,
    missing_signatures,
    new_charter,
    parse_charter,
    read_document,
    sign_charter,
)


def test_a_charter_of_four_founders_gives_the_roster() -> None:
    charter = signed()
    roster = check_charter(parse_charter(charter_to_text(charter)), NOW)
    assert roster.charter == charter.digest
    assert roster.quorum == 3
    assert [member.name for member in roster.members] == ["Lille", "Rouen", "Caen", "Amiens"]
    assert charter.topology == {"kind": "ring"}
    assert charter.previous is None


@pytest.mark.parametrize(("members", "quorum"), [(2, 2), (3, 2), (4, 3), (5, 3)])
def test_the_default_quorum_is_the_smallest_majority(members: int, quorum: int) -> None:
    assert unsigned(members).quorum == quorum


def test_the_text_form_round_trips_and_says_who_has_signed() -> None:
    charter = sign_charter(unsigned(), identity(1))
    text = charter_to_text(charter)
    assert parse_charter(text) == charter
    assert parse_charter(text.replace("\n", "\r\n")) == charter
    assert f"# member: Lille, {identity(0).peer_id}, NOT SIGNED" in text
    assert f"# member: Rouen, {identity(1).peer_id}, signed" in text
    assert f"# fingerprint: {fingerprint(charter)}" in text


def test_readable_lines_are_not_read_back() -> None:
    text = charter_to_text(signed()).replace("# quorum: 3 of 4", "# quorum: 1 of 4")
    assert charter_to_text(parse_charter(text)) == charter_to_text(signed())


def test_merging_gives_the_same_bytes_in_any_order() -> None:
    apart = [sign_charter(unsigned(), identity(number)) for number in range(4)]
    texts = {charter_to_text(merge_charters(order)) for order in permutations(apart)}
    assert texts == {charter_to_text(signed())}
    nested = merge_charters([merge_charters(apart[2:]), merge_charters(apart[:2]), apart[0]])
    assert charter_to_text(nested) == charter_to_text(signed())


def test_two_different_charters_do_not_merge() -> None:
    with pytest.raises(ConfigError, match="the charters differ") as caught:
        merge_charters([unsigned(), unsigned(quorum=4)])
    assert_one_sentence(caught.value)
    with pytest.raises(ConfigError, match="no charter files"):
        merge_charters([])


def _another_signature(number: int, message: bytes) -> bytes:
    """A second valid signature by the same key: RFC 8032 5.1.6 with a nonce of our own choice."""
    key = hashlib.sha512(identity(number).seed).digest()
    scalar = bytes([key[0] & 248, *key[1:31], key[31] & 127 | 64])
    nonce = bindings.crypto_core_ed25519_scalar_reduce(b"n" * 64)
    point = bindings.crypto_scalarmult_ed25519_base_noclamp(nonce)
    hashed = hashlib.sha512(point + identity(number).public_key + message).digest()
    challenge = bindings.crypto_core_ed25519_scalar_reduce(hashed)
    product = bindings.crypto_core_ed25519_scalar_mul(
        challenge, bindings.crypto_core_ed25519_scalar_reduce(scalar + bytes(32))
    )
    return point + bindings.crypto_core_ed25519_scalar_add(nonce, product)


def test_two_valid_signatures_of_one_founder_merge_to_one() -> None:
    usual = sign_charter(unsigned(), identity(0))
    envelope = sign_envelope(identity(0), "charter-signature", bytes.fromhex(usual.digest))
    other = replace(usual, signatures=((identity(0).peer_id, _another_signature(0, envelope.signed_bytes)),))
    assert other.signatures != usual.signatures
    assert merge_charters([usual, other]) == merge_charters([other, usual])


def test_a_copied_certificate_subject_is_refused() -> None:
    genuine = x509.load_der_x509_certificate(certificate(0).der)
    key = Ed25519PrivateKey.generate()
    copied = (
        x509.CertificateBuilder()
        .subject_name(genuine.subject)
        .issuer_name(genuine.subject)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(genuine.not_valid_before_utc)
        .not_valid_after(genuine.not_valid_after_utc)
        .sign(key, None)
        .public_bytes(Encoding.DER)
    )
    with pytest.raises(ConfigError, match="ask Rouen for a record with a new certificate"):
        new_charter("Nord", [record(0), record(1, certificates=[copied])])


def test_signing_twice_changes_nothing() -> None:
    once = sign_charter(unsigned(), identity(2))
    assert sign_charter(once, identity(2)) == once


def test_missing_founders_are_named() -> None:
    charter = sign_charter(sign_charter(unsigned(), identity(3)), identity(1))
    assert [member.name for member in missing_signatures(charter)] == ["Lille", "Caen"]
    with pytest.raises(ConfigError, match="lacks the signature of Lille, Caen") as caught:
        check_charter(charter, NOW)
    assert_one_sentence(caught.value)


def test_a_stranger_cannot_sign() -> None:
    with pytest.raises(ConfigError, match="does not name as a member") as caught:
        sign_charter(unsigned(), Identity.from_seed(b"s" * 32))
    assert_one_sentence(caught.value)


def test_a_wrong_signature_names_its_signer_everywhere() -> None:
    bad = replace(signed(), signatures=((identity(0).peer_id, bytes(64)), *signed().signatures[1:]))
    for call in (lambda: check_charter(bad, NOW), lambda: merge_charters([bad]), lambda: _reparsed(bad)):
        with pytest.raises(ConfigError, match=r"the signature of Lille .* does not hold") as caught:
            call()
        assert_one_sentence(caught.value)


def _reparsed(charter: Charter) -> Charter:
    return parse_charter(charter_to_text(charter))


def test_a_signature_counts_for_one_charter_only() -> None:
    other = unsigned(quorum=4)
    with pytest.raises(ConfigError, match="does not hold"):
        check_charter(replace(other, signatures=signed().signatures), NOW)


def test_every_flipped_byte_of_a_document_fails() -> None:
    charter = signed(2)
    for place in range(len(charter.document)):
        altered = bytearray(charter.document)
        altered[place] ^= 0x01
        with pytest.raises(ConfigError):
            check_charter(replace(read_document(bytes(altered)), signatures=charter.signatures), NOW)


def test_every_flipped_byte_of_a_signature_fails() -> None:
    charter = signed(2)
    peer_id, signature = charter.signatures[0]
    for place in range(len(signature)):
        altered = bytearray(signature)
        altered[place] ^= 0x01
        bad = replace(charter, signatures=((peer_id, bytes(altered)), charter.signatures[1]))
        with pytest.raises(ConfigError, match="Lille"):
            check_charter(bad, NOW)


@pytest.mark.parametrize(
    ("records", "options", "words"),
    [
        ([record(0)], {}, "needs 2"),
        ([], {}, "needs 2"),
        ([record(0), record(0, sequence=2)], {}, "one peer id twice, as Lille and Lille"),
        ([record(0), record(1, name="lille")], {}, "called Lille"),
        ([record(0), record(1, certificates=[certificate(0).der])], {}, "Lille and Rouen have certificates"),
        ([record(0), record(1)], {"quorum": 1}, "from 2 to 2"),
        ([record(0), record(1)], {"quorum": 3}, "from 2 to 2"),
        ([record(0), record(1)], {"quorum": -1}, "from 2 to 2"),
        ([record(n) for n in range(4)], {"quorum": 2}, "from 3 to 4"),
        ([record(0), record(1)], {"quorum": True}, "quorum is bool"),
        ([record(0), record(1)], {"topology": {"kind": "moon"}}, "topology kind is 'moon'"),
        ([record(0), record(1)], {"topology": {}}, "topology kind is missing"),
        ([record(0), record(1)], {"topology": {"kind": "ring", "size": 2}}, "the keys kind, size"),
        ([record(0), record(1)], {"limits": {"max_speed": 3}}, "cannot enforce"),
        ([record(0), record(1)], {"limits": {"max_parameters_bytes": 0}}, "from 1 to"),
        ([record(0), record(1)], {"limits": {"max_parameters_bytes": 1.5}}, "is 1.5"),
        ([record(0), record(1)], {"limits": {"minimum_participants": True}}, "is True"),
        ([record(0), record(1)], {"limits": {"minimum_participants": 3}}, "above its 2 members"),
        ([record(0), b"rubbish"], {}, "record number 2"),
    ],
)
def test_a_bad_charter_cannot_be_founded(records: list[bytes], options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        new_charter("Nord", records, **options)
    assert_one_sentence(caught.value)


def test_a_bad_name_is_refused() -> None:
    with pytest.raises(ConfigError, match="charter's name"):
        new_charter("No\nrd", [record(0), record(1)])


def test_too_many_members_are_refused() -> None:
    with pytest.raises(ConfigError, match="at most 64"):
        new_charter("Nord", [record(0)] * 65)


def test_limits_are_kept() -> None:
    charter = unsigned(limits={"max_parameters_bytes": 10**9, "minimum_participants": 3})
    assert _reparsed(charter).limits == {"max_parameters_bytes": 10**9, "minimum_participants": 3}
    assert "# limit: minimum_participants = 3" in charter_to_text(charter)


def test_an_expired_record_is_named() -> None:
    check_charter(signed(), EXPIRES - 1)
    with pytest.raises(ConfigError, match="member record of Lille expired on 20") as caught:
        check_charter(signed(), EXPIRES)
    assert_one_sentence(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"version": 2, "previous": "0" * 64}, "version 2"),
        ({"version": 0}, "version 0"),
        ({"previous": "0" * 64}, "version 1"),
        ({"previous": "no digest"}, "SHA-256"),
        ({"records": ["text"]}, "not bytes"),
        ({"quorum": "3"}, "quorum is str"),
        ({"surplus": 1}, "wrong fields"),
    ],
)
def test_documents_of_other_shapes_are_refused(changes: dict[str, Any], words: str) -> None:
    fields = unpack(unsigned().document, what="test", limit=10**6)
    with pytest.raises(ConfigError, match=words) as caught:
        sign_charter(read_document(pack({**fields, **changes})), identity(0))
    assert_one_sentence(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("p2pfl charter v1", "p2pfl member record v1", "begins with"),
        ("\nsignature ", "\nsignatur ", "begins with 'signatur'"),
        ("\nsignature ", "\nsignature more ", "begins with 'signature'"),
        ("\nsignature ", "\nAAAA\nsignature ", "couldn't read the charter|damaged"),  # as its length falls
        ("\nsignature 12D", "\nsignature 13D", "does not name as a member"),
        ("==\nsignature", "=\nsignature", "damaged"),
    ],
)
def test_a_damaged_charter_file_is_refused(old: str, new: str, words: str) -> None:
    text = charter_to_text(signed())
    assert old in text
    with pytest.raises(ConfigError, match=words) as caught:
        parse_charter(text.replace(old, new, 1))
    assert_one_sentence(caught.value)


def test_a_signature_has_one_spelling() -> None:
    text = charter_to_text(signed())
    # 64 bytes leave four unused bits in the last base64 digit, which most decoders ignore
    digit = text.rstrip("\n")[-3]
    other = chr(ord(digit) + 1)
    assert digit in "AQgw"
    with pytest.raises(ConfigError, match="damaged"):
        parse_charter(text.rstrip("\n")[:-3] + other + "==\n")


def test_one_founder_has_one_signature_line() -> None:
    text = charter_to_text(signed())
    with pytest.raises(ConfigError, match="two signatures of one member"):
        parse_charter(text + text.splitlines()[-1] + "\n")


def test_the_fingerprint_is_the_digest_in_groups() -> None:
    charter = unsigned()
    groups = fingerprint(charter).split("-")
    assert [len(group) for group in groups] == [4] * 16
    assert "".join(groups) == charter.digest


@pytest.mark.parametrize("spelling", ["{}", " {} ", "upper", "blanks", "plain"])
def test_the_fingerprint_may_be_typed_in_several_ways(tmp_path: Path, spelling: str) -> None:
    charter = signed()
    typed = {
        "upper": fingerprint(charter).upper(),
        "blanks": fingerprint(charter).replace("-", " "),
        "plain": charter.digest,
    }.get(spelling, spelling.format(fingerprint(charter)))
    accept_charter(tmp_path / "charter", charter, typed)
    assert parse_charter((tmp_path / "charter").read_text()) == charter
    assert (tmp_path / "charter").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("heard", ["", "0" * 64, "short"])
def test_another_fingerprint_is_refused(tmp_path: Path, heard: str) -> None:
    charter = signed()
    for attempt in (heard, fingerprint(charter)[:-1], fingerprint(unsigned(quorum=4))):
        with pytest.raises(PolicyRefusal, match="not that of this charter") as caught:
            accept_charter(tmp_path / "charter", charter, attempt)
        assert_one_sentence(caught.value)
    assert not (tmp_path / "charter").exists()


def test_an_unsigned_or_expired_charter_is_not_accepted(tmp_path: Path) -> None:
    charter = sign_charter(unsigned(), identity(0))
    with pytest.raises(ConfigError, match="Rouen, Caen, Amiens"):
        accept_charter(tmp_path / "charter", charter, fingerprint(charter))
    with pytest.raises(ConfigError, match="expired"):
        accept_charter(tmp_path / "charter", signed(), fingerprint(signed()), now=EXPIRES)
    assert not (tmp_path / "charter").exists()


def test_an_accepted_charter_is_not_replaced(tmp_path: Path) -> None:
    file = tmp_path / "charter"
    accept_charter(file, signed(), fingerprint(signed()))
    accept_charter(file, signed(), fingerprint(signed()))
    before = file.read_bytes()
    other = signed(quorum=4)
    with pytest.raises(PolicyRefusal, match="already accepted") as caught:
        accept_charter(file, other, fingerprint(other))
    assert_one_sentence(caught.value)
    file.write_bytes(before[:-200])
    with pytest.raises(ConfigError, match="damaged"):
        accept_charter(file, signed(), fingerprint(signed()))
    assert file.read_bytes() == before[:-200]
    assert os.listdir(tmp_path) == ["charter"]


def test_a_charter_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="couldn't write"):
        accept_charter(tmp_path / "absent" / "charter", signed(), fingerprint(signed()))
