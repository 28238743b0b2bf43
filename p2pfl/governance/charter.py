"""Owns the charter: the consortium's constitution, one document signed by every founder.

digest = SHA-256(document bytes); a founder signs the digest in an envelope of kind ``charter-signature``. The
received document bytes are kept and are the only thing ever hashed: msgpack has several spellings of one value.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from p2pfl.crypto import (
    Envelope,
    Identity,
    pack,
    parse_digest,
    read_fields,
    sha256,
    sign_envelope,
    unpack,
    verify_signature,
)
from p2pfl.errors import ConfigError, MalformedMessage, RemoteError, SignatureRefused
from p2pfl.governance.records import RECORD_LIMIT, open_record
from p2pfl.governance.topologies import DEFAULT_TOPOLOGY
from p2pfl.types import Digest, Member, PeerId

SIGNATURE_KIND = "charter-signature"
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


def new_charter(
    name: str,
    records: Sequence[bytes],
    *,
    quorum: int | None = None,
    topology: Mapping[str, Any] | None = None,
    limits: Mapping[str, int] | None = None,
) -> Charter:
    """Version 1, not yet signed; the members stand in the order of ``records``, which is also the ring's.

    ``quorum`` defaults to the smallest majority, ``topology`` to a ring. Raises ConfigError for whatever
    `check_charter` would refuse, but for expiry and signatures.
    """
    from p2pfl.governance.charter_checks import check_document

    document = pack(
        {
            "version": 1,
            "name": name,
            "records": [bytes(record) for record in records],
            "quorum": len(records) // 2 + 1 if quorum is None else quorum,
            "topology": dict(DEFAULT_TOPOLOGY if topology is None else topology),
            "limits": dict(limits or {}),
            "previous": None,
        }
    )
    charter = read_document(document)
    check_document(charter)
    return charter


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


def sign_charter(charter: Charter, identity: Identity) -> Charter:
    """The charter with this founder's signature added. Raises ConfigError for a key that it does not name."""
    from p2pfl.governance.charter_checks import check_document

    check_document(charter)
    signature = sign_envelope(identity, SIGNATURE_KIND, _signed(charter)).signature
    return with_signatures(charter, [*charter.signatures, (identity.peer_id, signature)])


def merge_charters(charters: Sequence[Charter]) -> Charter:
    """One charter with all signatures; the result does not depend on the order.

    Raises ConfigError when two files hold different documents or a signature does not hold.
    """
    if not charters:
        raise ConfigError("no charter files to merge; name at least one")
    first = charters[0]
    for other in charters[1:]:
        if other.document != first.document:
            raise ConfigError(
                f"the charters differ: one has the fingerprint {fingerprint(first)[:14]}..., another "
                f"{fingerprint(other)[:14]}...; merge only files that come from one `p2pfl charter new`"
            )
    return with_signatures(first, [pair for charter in charters for pair in charter.signatures])


def missing_signatures(charter: Charter) -> tuple[Member, ...]:
    """The founders who have not signed, in the charter's order."""
    signed = {peer_id for peer_id, _ in charter.signatures}
    return tuple(member for member in charter.members if member.peer_id not in signed)


def fingerprint(charter: Charter) -> str:
    """The digest in 16 groups of four digits, joined by ``-``: read out by telephone, pasted into a shell."""
    digest = charter.digest
    return "-".join(digest[start : start + 4] for start in range(0, len(digest), 4))


def with_signatures(charter: Charter, signatures: Iterable[tuple[PeerId, bytes]]) -> Charter:
    """The charter with exactly these signatures, verified, one per signer, in the members' order.

    Raises ConfigError naming the signer whose signature does not hold or who is no founder.
    """
    names = {member.peer_id: member.name for member in charter.members}
    kept: dict[PeerId, bytes] = {}
    for peer_id, signature in signatures:
        if peer_id not in names:
            raise ConfigError(
                f"the charter is signed by {peer_id}, whom it does not name as a member; "
                "remove that signature or make a new charter with that member's record"
            )
        _verify(charter, peer_id, names[peer_id], signature)
        # one key can make many valid signatures (RFC 8032 does not forbid it): the smallest is kept, so that
        # merging gives the same file in any order
        kept[peer_id] = min(signature, kept.get(peer_id, signature))
    ordered = tuple((peer_id, kept[peer_id]) for peer_id in names if peer_id in kept)
    return replace(charter, signatures=ordered)


def _verify(charter: Charter, peer_id: PeerId, name: str, signature: bytes) -> None:
    envelope = Envelope(peer_id, SIGNATURE_KIND, _signed(charter), signature)
    try:
        verify_signature(peer_id, envelope.signed_bytes, signature)
    except SignatureRefused as error:
        raise ConfigError(
            f"the signature of {name} ({peer_id}) does not hold for this charter; "
            f"ask {name} to sign this very file (fingerprint {fingerprint(charter)[:14]}...)"
        ) from error


def _signed(charter: Charter) -> bytes:
    return bytes.fromhex(charter.digest)


def _member(place: int, record: bytes) -> Member:
    try:
        return open_record(record)
    except RemoteError as error:
        raise ConfigError(f"member record number {place} of the charter: {error}") from error
