"""Member records: what a hospital says about itself, signed by its identity, versioned and expiring."""

from __future__ import annotations

import base64
import binascii
import time
from collections.abc import Sequence

from p2pfl.crypto import CERTIFICATE_LIMIT, Identity, open_envelope, pack, read_fields, sign_envelope, unpack
from p2pfl.errors import ConfigError, IllegalStep, LimitExceeded, MalformedMessage, RemoteError
from p2pfl.types import Member

KIND = "member-record"
RECORD_LIMIT = 16 * 1024  # bytes; addresses and up to four certificates of some 400 bytes
MAX_ADDRESSES = 8
MAX_CERTIFICATES = 4  # the current one and those still valid in a rotation
MAX_NAME = 64
HEADER = "p2pfl member record v1"


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
    """A signed member record as an encoded envelope. ``expires`` in Unix seconds. Raises ConfigError."""
    _check_name(name)
    fields = {
        "peer": identity.peer_id,
        "name": name,
        "addresses": list(addresses),
        "listens": listens,
        "certificates": list(certificates),
        "sequence": sequence,
        "expires": expires,
    }
    data = sign_envelope(identity, KIND, pack(fields)).encode()
    try:
        open_record(data)
    except RemoteError as error:
        raise ConfigError(f"this member record cannot be made: {error}") from error
    return data


def open_record(data: bytes) -> Member:
    """Verify and decode a record. Raises SignatureRefused, MalformedMessage or LimitExceeded."""
    envelope = open_envelope(data, kinds=(KIND,), limit=RECORD_LIMIT)
    spec: dict[str, type | tuple[type, ...]] = {
        "peer": str,
        "name": str,
        "addresses": list,
        "listens": bool,
        "certificates": list,
        "sequence": int,
        "expires": int,
    }
    fields = read_fields(unpack(envelope.payload, what="member record", limit=RECORD_LIMIT), "member record", spec)
    if fields["peer"] != envelope.signer:
        raise MalformedMessage("member record names another peer than the one that signed it")
    try:
        _check_name(fields["name"])
    except ConfigError as error:
        raise MalformedMessage(f"member record: {error}") from error
    addresses, certificates = fields["addresses"], fields["certificates"]
    if len(addresses) > MAX_ADDRESSES or not all(isinstance(a, str) and len(a) <= 400 for a in addresses):
        raise LimitExceeded(f"member record of {fields['name']}: more than {MAX_ADDRESSES} addresses, or long ones")
    if not 1 <= len(certificates) <= MAX_CERTIFICATES or not all(
        isinstance(der, bytes) and 0 < len(der) <= CERTIFICATE_LIMIT for der in certificates
    ):
        raise LimitExceeded(f"member record of {fields['name']}: 1 to {MAX_CERTIFICATES} certificates are allowed")
    if fields["sequence"] < 0 or fields["expires"] < 0:
        raise MalformedMessage("member record: sequence and expiry cannot be negative")
    return Member(
        envelope.signer, fields["name"], tuple(addresses), fields["listens"], tuple(certificates),
        fields["sequence"], fields["expires"],
    )  # fmt: skip


def _check_name(name: str) -> None:
    if not 1 <= len(name) <= MAX_NAME or not name.isprintable() or name != name.strip() or "/" in name:
        raise ConfigError(f"name {name[:80]!r}: use 1 to {MAX_NAME} printable characters without / or outer spaces")


def record_to_text(data: bytes) -> str:
    """The text file of a record. The # lines are for people; the base64 lines alone count."""
    member = open_record(data)
    body = base64.b64encode(data).decode()
    lines = [HEADER, f"# name      {member.name}", f"# peer      {member.peer_id}"]
    listening = ", ".join(member.addresses) or ("a port told by discovery" if member.listens else "no port")
    lines.append(f"# listens   {listening}")
    lines.append(f"# expires   {time.strftime('%Y-%m-%d', time.gmtime(member.expires))}")
    lines += [body[start : start + 76] for start in range(0, len(body), 76)]
    return "\n".join(lines) + "\n"


def record_from_text(text: str) -> bytes:
    """The record in a text file; verified. Raises ConfigError in plain words."""
    lines = [line.strip() for line in text[: 4 * RECORD_LIMIT].splitlines()]
    if not lines or lines[0] != HEADER:
        raise ConfigError(f"not a member record: its first line must be {HEADER!r}; ask the hospital for its record")
    try:
        body = "".join(line for line in lines[1:] if not line.startswith("#"))
        data = base64.b64decode(body, validate=True)
        open_record(data)
    except (binascii.Error, ValueError, RemoteError, IllegalStep) as error:
        raise ConfigError(f"member record is damaged: {error}; ask the hospital to send it again") from error
    return data
