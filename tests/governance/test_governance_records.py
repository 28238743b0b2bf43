"""Member records: limits, text form, and that no altered byte passes."""

from __future__ import annotations

from typing import Any

import pytest
from governance_worlds import EXPIRES, assert_one_sentence, certificate, identity, record

from p2pfl.crypto import pack, sign_envelope
from p2pfl.errors import ConfigError, LimitExceeded, MalformedMessage, RemoteError, SignatureRefused
from p2pfl.governance import open_record, record_from_text, record_to_text
from p2pfl.governance.records import RECORD_LIMIT

PAYLOAD: dict[str, Any] = {
    "name": "Lille",
    "addresses": [],
    "listens": False,
    "certificates": [certificate(0).der],
    "sequence": 1,
    "expires": EXPIRES,
}


def test_a_record_comes_back_as_it_was_made() -> None:
    member = open_record(record(0))
    assert member.peer_id == identity(0).peer_id
    assert member.name == "Lille"
    assert member.addresses == ("/ip4/10.0.0.1/tcp/4101",)
    assert member.listens
    assert member.certificates == (certificate(0).der,)
    assert (member.sequence, member.expires) == (1, EXPIRES)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": ""}, "0 characters"),
        ({"name": "x" * 65}, "65 characters"),
        ({"name": "Li\nlle"}, "control characters"),
        ({"name": " Lille"}, "stray blanks"),
        ({"name": "Li\u202elle"}, "control characters"),
        ({"addresses": ["10.0.0.1:4101"]}, "not of the form"),
        ({"addresses": ["/ip4/10.0.0.1/tcp/41 01"]}, "not of the form"),
        ({"addresses": ["/ip4/10.0.0.1/tcp/1\n"]}, "not of the form"),
        ({"addresses": ["/dns4/" + "a" * 400]}, "not of the form"),
        ({"addresses": [f"/ip4/10.0.0.1/tcp/1/p2p/{identity(0).peer_id}"]}, "leave /p2p/"),
        ({"addresses": [f"/ip4/10.0.0.{n}/tcp/1" for n in range(9)]}, "at most 8"),
        ({"listens": False}, "does not listen"),
        ({"certificates": []}, "0 certificates"),
        ({"certificates": [certificate(n).der for n in range(4)]}, "4 certificates"),
        ({"certificates": [certificate(0).der] * 2}, "twice"),
        ({"certificates": [b"no certificate"]}, "cannot be decoded"),
        ({"certificates": [b"x" * 3000]}, "3000 bytes"),
        ({"sequence": 0}, "sequence 0"),
        ({"sequence": 2**63}, "sequence"),
        ({"expires": 0}, "expires"),
        ({"expires": 2**40}, "expires"),
    ],
)
def test_bad_values_are_refused_when_a_record_is_made(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        record(0, **changes)
    assert_one_sentence(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": 7}, "name is int"),
        ({"name": ""}, "0 characters"),
        ({"listens": 1}, "listens is int"),
        ({"sequence": True}, "sequence is bool"),
        ({"addresses": [7]}, "something else than str"),
        ({"addresses": [[]]}, "something else than str"),
        ({"certificates": ["text"]}, "something else than bytes"),
        ({"certificates": [b""]}, "cannot be decoded"),
        ({"addresses": ["/ip4/1.2.3.4/tcp/1"]}, "does not listen"),
        ({"surplus": 1}, "wrong fields"),
        ({"expires": -1}, "expires"),
    ],
)
def test_validly_signed_rubbish_is_refused(changes: dict[str, Any], words: str) -> None:
    data = sign_envelope(identity(0), "member-record", pack({**PAYLOAD, **changes})).encode()
    with pytest.raises(MalformedMessage, match=words) as caught:
        open_record(data)
    assert_one_sentence(caught.value)


def test_other_kinds_and_sizes_are_refused() -> None:
    with pytest.raises(MalformedMessage):
        open_record(sign_envelope(identity(0), "proposal", pack(PAYLOAD)).encode())
    with pytest.raises(LimitExceeded):
        open_record(bytes(RECORD_LIMIT + 1))
    with pytest.raises(MalformedMessage):
        open_record(b"")


def test_the_limit_admits_the_largest_record() -> None:
    # DER certificates reach their limit only with long subjects; three of ours stand for them
    addresses = ["/dns4/" + "a" * 393 + str(n) for n in range(8)]
    largest = record(
        0, name="\N{SNOWMAN}" * 64, addresses=addresses, certificates=[certificate(n).der for n in range(3)]
    )
    assert open_record(largest).addresses == tuple(addresses)
    assert len(largest) + 3 * (2048 - len(certificate(0).der)) <= RECORD_LIMIT


def test_every_flipped_byte_of_a_record_fails() -> None:
    data = record(0)
    for place in range(len(data)):
        altered = bytearray(data)
        altered[place] ^= 0x01
        with pytest.raises((MalformedMessage, SignatureRefused, LimitExceeded)):
            open_record(bytes(altered))


def test_the_text_form_is_readable_and_survives_mail_programs() -> None:
    text = record_to_text(record(0))
    assert text.startswith("p2pfl member record v1\n# name: Lille\n# peer: 12D3KooW")
    assert "# address: /ip4/10.0.0.1/tcp/4101\n" in text
    assert record_from_text(text) == record(0)
    assert record_from_text(text.replace("\n", "\r\n\r\n") + "\n ") == record(0)
    assert record_from_text("\ufeff" + text) == record(0)
    assert "dials out" in record_to_text(record(0, addresses=[], listens=False))


def test_no_flipped_byte_of_the_text_changes_the_record() -> None:
    text = record_to_text(record(0)).encode()
    accepted = 0
    for place in range(len(text)):
        altered = bytearray(text)
        altered[place] ^= 0x02
        try:
            data = record_from_text(altered.decode("utf-8"))
        except (ConfigError, UnicodeDecodeError):
            continue
        assert data == record(0)
        accepted += 1
    assert accepted <= 40  # only white space can change


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("p2pfl member record v1", "p2pfl charter v1", "begins with"),
        ("# name: Lille", "# name: Rouen", "says 'name: Rouen'"),
        ("# address: /ip4/10.0.0.1", "# address: /ip4/10.0.0.2", "signed part says"),
        ("# name: Lille\n", "", "signed part says"),
        ("# expires", "# note: pay here\n# expires", "signed part says"),
        ("UTC\n", "UTC\n# one more line\n", "lost or gained"),
        ("UTC\n", "UTC\nsome words\n", "where none belong"),
        ("UTC\n", "UTC\nAAAA\n", "does not hold"),
        ("UTC\n", "UTC\n====\n", "damaged"),
    ],
)
def test_a_text_that_was_tampered_with_is_refused(old: str, new: str, words: str) -> None:
    text = record_to_text(record(0))
    assert old in text
    with pytest.raises(ConfigError, match=words) as caught:
        record_from_text(text.replace(old, new, 1))
    assert_one_sentence(caught.value)


@pytest.mark.parametrize("text", ["", "\n\n", "hello", "p2pfl member record v1\n", "x" * 100_000])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        record_from_text(text)
    assert_one_sentence(caught.value)


def test_a_bad_record_names_its_signer() -> None:
    data = sign_envelope(identity(0), "member-record", pack({**PAYLOAD, "name": ""})).encode()
    with pytest.raises(RemoteError) as caught:
        open_record(data)
    assert caught.value.peer == identity(0).peer_id
