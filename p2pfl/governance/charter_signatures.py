"""Owns the founding of a consortium: a new charter, its signatures, and merging what was signed apart."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from p2pfl.crypto import Envelope, Identity, pack, sign_envelope, verify_signature
from p2pfl.errors import ConfigError, SignatureRefused
from p2pfl.governance.charter import Charter, fingerprint, read_document
from p2pfl.governance.charter_rules import check_document
from p2pfl.governance.topologies import DEFAULT_TOPOLOGY
from p2pfl.types import Member, PeerId

SIGNATURE_KIND = "charter-signature"


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


def sign_charter(charter: Charter, identity: Identity) -> Charter:
    """The charter with this founder's signature added. Raises ConfigError for a key that it does not name."""
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
