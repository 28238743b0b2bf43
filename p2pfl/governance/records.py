"""Owns member records: what one hospital says about itself, signed by its identity, versioned and expiring.

A record is an encoded envelope of kind ``member-record``; its payload is the msgpack map of ``_FIELDS``. Who
may be a member is the charter's question; here a record only has to be signed and within the limits.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime

from p2pfl.crypto import (
    CERTIFICATE_LIMIT,
    ENVELOPE_OVERHEAD,
    Identity,
    certificate_expiry,
    open_envelope,
    pack,
    read_fields,
    sign_envelope,
    unpack,
)
from p2pfl.errors import ConfigError, LimitExceeded, MalformedMessage, RemoteError
from p2pfl.governance.texts import TextForm, from_text, one_line, to_text
from p2pfl.types import Member

RECORD_KIND = "member-record"
RECORD_HEADER = "p2pfl member record v1"

NAME_LIMIT = 64  # characters; fits a column of a table, and a certificate's common name
ADDRESS_LIMIT = 400  # characters; a DNS name has 253 at most, a peer id 65
MAX_ADDRESSES = 8  # a site has one or two networks, each with IPv4, IPv6 and a name
MAX_CERTIFICATES = 3  # the current one, the one before during a rotation, and one spare
RECORD_LIMIT = MAX_CERTIFICATES * CERTIFICATE_LIMIT + MAX_ADDRESSES * ADDRESS_LIMIT + 1024
"""Bytes of an encoded record: 10,368. The 1024 hold name, numbers, keys of the map and the envelope."""

LAST_TIME = 253_402_300_799  # Unix seconds of the end of the year 9999, the last that datetime can show
LAST_SEQUENCE = 2**63 - 1  # msgpack and SQLite both take it

_TEXT_LIMIT = 4 * RECORD_LIMIT  # base64 takes 4/3; the rest are readable lines
_ADDRESS = re.compile(r"(/[!-.0-~]+){2,}")  # the shape of a multiaddr; each transport reads its own
_FIELDS: dict[str, type | tuple[type, ...]] = {
    "name": str,
    "addresses": list,
    "listens": bool,
    "certificates": list,
    "sequence": int,
    "expires": int,
}


def make_record(
    identity: Identity,
    *,
    name: str,
    addresses: Sequence[str],
    listens: bool,
    certificates: Sequence[bytes],
    sequence: int,
    expires: int,
) -> bytes:
    """A signed record, encoded. ``addresses`` are multiaddrs without ``/p2p/``, ``certificates`` DER, the
    current one first, ``expires`` Unix seconds; the record with the highest ``sequence`` counts.

    Raises ConfigError, naming the first value that is wrong.
    """
    member = Member(identity.peer_id, name, tuple(addresses), listens, tuple(certificates), sequence, expires)
    problem = _problem(member)
    if problem:
        raise ConfigError(f"couldn't make the member record: {problem}")
    payload = {
        "name": name,
        "addresses": list(addresses),
        "listens": listens,
        "certificates": [bytes(certificate) for certificate in certificates],
        "sequence": sequence,
        "expires": expires,
    }
    return sign_envelope(identity, RECORD_KIND, pack(payload)).encode()


def open_record(data: bytes) -> Member:
    """What a record says, its signature verified; expiry is the caller's question.

    Raises LimitExceeded, MalformedMessage or SignatureRefused.
    """
    envelope = open_envelope(data, kinds=(RECORD_KIND,), limit=RECORD_LIMIT)
    limit = RECORD_LIMIT - ENVELOPE_OVERHEAD
    value = unpack(envelope.payload, what="a member record", limit=limit, max_items=16)
    fields = read_fields(value, "a member record", _FIELDS)
    for field, wanted in (("addresses", str), ("certificates", bytes)):
        if any(type(item) is not wanted for item in fields[field]):
            raise MalformedMessage(
                f"a member record: field {field} holds something else than {wanted.__name__}; "
                "ask its owner for a new record",
                peer=envelope.signer,
            )
        fields[field] = tuple(fields[field])
    member = Member(peer_id=envelope.signer, **fields)
    problem = _problem(member)
    if problem:
        raise MalformedMessage(
            f"the member record of {envelope.signer}: {problem}, and sign it anew", peer=envelope.signer
        )
    return member


def record_to_text(data: bytes) -> str:
    """The record as a short text file that a person can read and mail. Raises what `open_record` raises."""
    return to_text(RECORD_HEADER, TextForm(_readable(open_record(data)), data))


def record_from_text(text: str) -> bytes:
    """The encoded record in a text file. The readable lines are not trusted: they must say what is signed.

    Raises ConfigError for a damaged file, a signature that does not hold, or readable lines that differ.
    """
    form = from_text(text, RECORD_HEADER, what="the member record file", limit=_TEXT_LIMIT)
    try:
        member = open_record(form.body)
    except RemoteError as error:
        raise ConfigError(f"the member record file does not hold: {error}") from error
    expected = _readable(member)
    for found, wanted in zip(form.readable, expected, strict=False):
        if found != wanted:
            raise ConfigError(
                f"the member record file says {found[:80]!r}, but its signed part says {wanted!r}; "
                "ask its owner for the file again"
            )
    if len(form.readable) != len(expected):
        raise ConfigError("the member record file has lost or gained readable lines; ask its owner for the file again")
    return form.body


def name_problem(name: str) -> str | None:
    """What is wrong with the name of a member or consortium, and what to do; None if nothing."""
    if not 1 <= len(name) <= NAME_LIMIT:
        return f"a name has {len(name)} characters; give it 1 to {NAME_LIMIT}"
    if not name.isprintable() or name != " ".join(name.split()):
        return f"the name {name!r} has control characters or stray blanks; write it plainly"
    return None


def _problem(member: Member) -> str | None:
    if len(member.addresses) > MAX_ADDRESSES:
        return f"{len(member.addresses)} addresses; keep at most {MAX_ADDRESSES}"
    if member.addresses and not member.listens:
        return "it names an address but says that it does not listen; leave the addresses out or let it listen"
    if not 1 <= len(member.certificates) <= MAX_CERTIFICATES:
        return f"{len(member.certificates)} certificates; give 1 to {MAX_CERTIFICATES}"
    if len(set(member.certificates)) != len(member.certificates):
        return "one certificate is there twice; give each once"
    if not 1 <= member.sequence <= LAST_SEQUENCE:
        return f"sequence {member.sequence}; use a whole number from 1 up, higher than in the record before"
    if not 1 <= member.expires <= LAST_TIME:
        return f"it expires at {member.expires}; give Unix seconds before the year 10000"
    return name_problem(member.name) or _address_problem(member) or _certificate_problem(member)


def _address_problem(member: Member) -> str | None:
    for address in member.addresses:
        if len(address) > ADDRESS_LIMIT or not _ADDRESS.fullmatch(address):
            return f"address {address[:80]!r} is not of the form /ip4/10.1.2.3/tcp/4101; write it like that"
        if "p2p" in address.split("/"):
            return f"address {address[:80]!r} names a peer; leave /p2p/ and what follows out"
    return None


def _certificate_problem(member: Member) -> str | None:
    for certificate in member.certificates:
        try:
            certificate_expiry(certificate)
        except (MalformedMessage, LimitExceeded) as error:
            # the hint of the inner message says the same as ours
            return f"{str(error).split(';')[0]}; make a new certificate"
    return None


def _readable(member: Member) -> tuple[str, ...]:
    listening = "found by discovery on the local network" if member.listens else "none, it dials out"
    expires = datetime.fromtimestamp(member.expires, UTC).strftime("%Y-%m-%d %H:%M UTC")
    return (
        f"name: {member.name}",
        f"peer: {member.peer_id}",
        f"address: {one_line(member.addresses, listening)}",
        f"record number: {member.sequence}",
        f"expires: {expires}",
    )
