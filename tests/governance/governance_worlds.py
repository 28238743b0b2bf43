"""A small consortium for the tests of this room: fixed identities and certificates."""

from __future__ import annotations

from functools import cache
from typing import Any

from p2pfl.crypto import Certificate, Identity, create_certificate
from p2pfl.governance import Charter, make_record, new_charter, sign_charter

NOW = 1_790_000_000
EXPIRES = NOW + 1_000_000
NAMES = ("Lille", "Rouen", "Caen", "Amiens")


@cache
def identity(number: int) -> Identity:
    return Identity.from_seed(bytes([number + 1]) * 32)


@cache
def certificate(number: int) -> Certificate:
    return create_certificate(f"site {number}", not_before=NOW - 10, not_after=EXPIRES, password=b"x")


def record(number: int, **changes: Any) -> bytes:
    fields: dict[str, Any] = {
        "name": NAMES[number % 4] if number < 4 else f"Site {number}",
        "addresses": [f"/ip4/10.0.0.{number + 1}/tcp/4101"],
        "listens": True,
        "certificates": [certificate(number).der],
        "sequence": 1,
        "expires": EXPIRES,
    }
    return make_record(identity(number), **{**fields, **changes})


def unsigned(members: int = 4, **options: Any) -> Charter:
    return new_charter("Nord", [record(number) for number in range(members)], **options)


def signed(members: int = 4, **options: Any) -> Charter:
    charter = unsigned(members, **options)
    for number in range(members):
        charter = sign_charter(charter, identity(number))
    return charter


def assert_one_sentence(error: BaseException) -> None:
    """A message for people: one line, says what to do after a semicolon or comma, not endless."""
    text = str(error)
    assert text and "\n" not in text and len(text) < 700, text
    assert ";" in text or ", and" in text, text
    assert "Traceback" not in text
