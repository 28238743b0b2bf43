"""Owns the signed envelope: every statement between members travels in one.

signature = Ed25519(uvarint(len) || domain || uvarint(len) || kind || uvarint(len) || payload), the framing of
libp2p RFC 0002, with domain ``p2pfl/1``. On the wire: msgpack array [public key, kind, payload, signature].
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Protocol

from p2pfl.crypto.identity import SIGNATURE_BYTES, verify_signature
from p2pfl.crypto.key_encodings import KEY_BYTES
from p2pfl.crypto.packing import pack, unpack
from p2pfl.crypto.peer_ids import peer_id_from_public_key, public_key_from_peer_id
from p2pfl.crypto.uvarint import frame
from p2pfl.errors import IllegalStep, MalformedMessage, RemoteError, SignatureRefused
from p2pfl.types import Digest, PeerId

DOMAIN = "p2pfl/1"
"""Separates our signatures from those that the same key makes elsewhere, libp2p peer records for instance."""

KIND_LIMIT = 64
"""Characters of a kind; the longest in use has about 20."""

ENVELOPE_OVERHEAD = 192
"""Bytes an envelope adds to its payload at most: 1 + 34 + 66 + 5 + 66, rounded up."""

Verify = Callable[[str, bytes, bytes], None]
"""(peer id, message, signature): returns, or raises SignatureRefused. Simulations pass cheap tags instead."""

_KIND = re.compile(r"[!-~]{1,64}")  # visible ASCII: one spelling, safe to print


class Signer(Protocol):
    """Whoever can sign: an Identity, or a simulation's stand-in for one."""

    @property
    def peer_id(self) -> PeerId:
        """Whose signature it is."""
        ...

    def sign(self, message: bytes) -> bytes:
        """64 bytes."""
        ...


@dataclass(frozen=True, slots=True)
class Envelope:
    """A statement and who signed it. ``open_envelope`` and ``sign_envelope`` make only valid ones."""

    signer: PeerId
    kind: str
    payload: bytes
    signature: bytes

    def encode(self) -> bytes:
        """The wire form; an envelope has exactly one."""
        return pack([public_key_from_peer_id(self.signer), self.kind, self.payload, self.signature])

    @property
    def signed_bytes(self) -> bytes:
        """The exact bytes under the signature."""
        return _signed_bytes(self.kind, self.payload)

    @property
    def digest(self) -> Digest:
        """SHA-256 over the signer's public key and the signed bytes.

        The signature is left out: a signer can make many signatures over one statement, and those must not
        look like two statements.
        """
        public_key = public_key_from_peer_id(self.signer)
        return Digest(hashlib.sha256(public_key + self.signed_bytes).hexdigest())


def sign_envelope(identity: Signer, kind: str, payload: bytes) -> Envelope:
    """The payload, signed. Raises IllegalStep for a kind that is not 1 to 64 visible ASCII characters."""
    if not _KIND.fullmatch(kind):
        raise IllegalStep(f"an envelope's kind is 1 to {KIND_LIMIT} visible ASCII characters; rename {kind!r}")
    payload = bytes(payload)
    return Envelope(identity.peer_id, kind, payload, identity.sign(_signed_bytes(kind, payload)))


def open_envelope(data: bytes, *, kinds: Collection[str], limit: int, verify: Verify = verify_signature) -> Envelope:
    """The envelope in ``data``, its signature verified. Only then may the caller decode the payload.

    ``kinds`` are the kinds the caller understands here, ``limit`` is the largest ``data`` in bytes (payload
    and ENVELOPE_OVERHEAD). Whether the signer is a member is the caller's question. Raises LimitExceeded,
    MalformedMessage (also for a kind that is not expected) or SignatureRefused, all with ``peer`` None: the
    signer may be innocent of what a third party altered.
    """
    fields = unpack(data, what="an envelope", limit=limit, max_items=4)
    if (
        not isinstance(fields, list)
        or [type(field) for field in fields] != [bytes, str, bytes, bytes]
        or len(fields[0]) != KEY_BYTES
        or len(fields[3]) != SIGNATURE_BYTES
    ):
        raise MalformedMessage("an envelope is not [public key, kind, payload, signature]; drop it")
    public_key, kind, payload, signature = fields
    if kind not in kinds:
        raise MalformedMessage(f"an envelope of kind {kind[:KIND_LIMIT]!r} is not expected here; drop it")
    envelope = Envelope(peer_id_from_public_key(public_key), kind, payload, signature)
    verify(envelope.signer, envelope.signed_bytes, signature)
    if envelope.encode() != data:
        # msgpack has several spellings of one array; letting them pass would give one statement many byte
        # forms, and a stranger could grow any cache that is keyed by bytes
        raise SignatureRefused(f"an envelope of {envelope.signer} was re-encoded on its way; drop it")
    return envelope


def claimed(data: bytes, limit: int) -> tuple[bytes, str] | None:
    """Public key and kind that ``data`` names, nothing verified; None if it is no envelope.

    For deciding whether a signature is worth checking, and for what was verified when it was stored.
    """
    try:
        fields = unpack(data, what="an envelope", limit=limit, max_items=4)
    except RemoteError:
        return None
    if not isinstance(fields, list) or [type(field) for field in fields] != [bytes, str, bytes, bytes]:
        return None
    return fields[0], fields[1]


def _signed_bytes(kind: str, payload: bytes) -> bytes:
    return frame(DOMAIN.encode(), kind.encode(), payload)
