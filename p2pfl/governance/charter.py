"""Owns the charter: the consortium's constitution, one document signed by every founder.

digest = SHA-256(document bytes); a founder signs it in an envelope of kind ``charter-signature``. The
received document bytes are kept and are all that is ever hashed: msgpack has several spellings of one value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from p2pfl.crypto import parse_digest, read_fields, sha256, unpack
from p2pfl.errors import ConfigError, MalformedMessage, RemoteError
from p2pfl.governance.records import RECORD_LIMIT, open_record
from p2pfl.types import Digest, Member, PeerId

MAX_MEMBERS = 64  # DESIGN: consortia of some 2 to 50 hospitals
DOCUMENT_LIMIT = MAX_MEMBERS * RECORD_LIMIT + 64 * 1024  # bytes; the 64 KiB hold a topology of 2016 edges

_FIELDS: dict[str, type | tuple[type, ...]] = {
    "version": int,
    "name": str,
    "records": list,
    "quorum": int,
    "topology": dict,
    "limits": dict,
    "previous": (str, type(None)),
}


@dataclass(frozen=True, slots=True)
class Charter:
    """One version of the charter and the signatures collected so far; made by `read_document` only."""

    document: bytes
    version: int
    name: str
    records: tuple[bytes, ...]
    members: tuple[Member, ...]  # what the records say, in the same order
    quorum: int  # signatures that a decision needs, more than half of the members
    topology: Mapping[str, Any]
    limits: Mapping[str, int]
    previous: Digest | None  # digest of the version before; None in version 1
    signatures: tuple[tuple[PeerId, bytes], ...] = ()  # in the members' order

    @property
    def digest(self) -> Digest:
        """SHA-256 of the document: what runs pin and founders sign."""
        return sha256(self.document)


def read_document(document: bytes) -> Charter:
    """The unsigned charter in these bytes. Raises ConfigError if they are no charter, or a record is bad."""
    try:
        value = unpack(document, what="the charter", limit=DOCUMENT_LIMIT)
        fields = read_fields(value, "the charter", _FIELDS)
        if any(type(record) is not bytes for record in fields["records"]):
            raise MalformedMessage("the charter: a member record is not bytes; make the charter anew")
        previous = fields["previous"]
        if previous is not None:
            parse_digest(previous, "the charter's previous version")
    except RemoteError as error:
        raise ConfigError(f"couldn't read the charter: {error}") from error
    if len(fields["records"]) > MAX_MEMBERS:
        raise ConfigError(
            f"the charter names {len(fields['records'])} members; at most {MAX_MEMBERS} fit, leave some out"
        )
    fields["records"] = tuple(fields["records"])
    members = tuple(_member(place, record) for place, record in enumerate(fields["records"], start=1))
    return Charter(document=document, members=members, **fields)


def fingerprint(charter: Charter) -> str:
    """The digest in 16 groups of four digits, joined by ``-``: read out by telephone, pasted into a shell."""
    digest = charter.digest
    return "-".join(digest[start : start + 4] for start in range(0, len(digest), 4))


def _member(place: int, record: bytes) -> Member:
    try:
        return open_record(record)
    except RemoteError as error:
        raise ConfigError(f"member record number {place} of the charter: {error}") from error
