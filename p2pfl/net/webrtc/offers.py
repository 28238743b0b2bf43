"""Offers and answers: what two members tell each other, through a third, to open a WebRTC connection.

Each is an identity-signed envelope inside a box sealed for its one recipient (:mod:`p2pfl.crypto.boxes`). It names
charter, recipient, a fresh nonce and its time of birth, and carries the fingerprint of the DTLS certificate, the ICE
password and the candidates. An answer also names the digest of the offer it answers. So whoever carries them learns
who wants to talk to whom; it can drop and delay them, but what it alters, repeats or redirects is refused.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import asdict, dataclass
from typing import Any

from p2pfl.crypto.boxes import BOX_OVERHEAD, BOX_STEP, open_box, seal_box
from p2pfl.crypto.envelope import Envelope, open_envelope, sign_envelope
from p2pfl.crypto.identity import Identity
from p2pfl.crypto.packing import pack, read_fields, unpack
from p2pfl.errors import LimitExceeded, MalformedMessage, NotAMember, RemoteError, SignatureRefused
from p2pfl.net.outcomes import name_of
from p2pfl.types import Digest, PeerId, Roster

OFFER_KIND = "/p2pfl/webrtc-offer/1"
ANSWER_KIND = "/p2pfl/webrtc-answer/1"

NONCE = 32  # bytes; no collision in the lifetime of any key
FINGERPRINT = 32  # bytes of a SHA-256 over the certificate's DER
CANDIDATES = 24  # of one description; eight interfaces, each with a reflexive one, and a relay
DESCRIPTION_LIMIT = 3 * BOX_STEP  # bytes of an envelope: 24 candidates of about 120 bytes and the rest
BOX_LIMIT = DESCRIPTION_LIMIT + BOX_STEP + BOX_OVERHEAD

VALID = 60  # seconds; three times what gathering and carrying may take
VALID_BY_HAND = 900  # seconds for a text that people carry
SKEW = 300  # seconds two hospitals' clocks may differ; Kerberos (RFC 4120) allows as much
REMEMBERED = 256
"""Offers of one member within their lifetime (6 minutes): four times what redialling every 5 s makes."""


_ICE_TEXT = re.compile(r"[a-zA-Z0-9+/]{4,256}")  # RFC 8445 section 5.3: ice-char
_FOUNDATION = re.compile(r"[a-zA-Z0-9+/]{1,32}")  # RFC 8839 section 5.1
_TYPES = ("host", "srflx", "relay")
_FIELDS: dict[str, type | tuple[type, ...]] = {
    "network": str,
    "to": str,
    "nonce": bytes,
    "made": int,
    "valid": int,
    "offer": str,
    "fingerprint": bytes,
    "username": str,
    "password": str,
    "candidates": list,
}


@dataclass(frozen=True, slots=True)
class Candidate:
    """One UDP address at which the other end may be reached (RFC 8445)."""

    foundation: str
    host: str
    port: int
    priority: int
    type: str  # "host", "srflx" or "relay"


@dataclass(frozen=True, slots=True)
class Description:
    """One end of a connection to be: certificate fingerprint (SHA-256), ICE credentials, candidates."""

    fingerprint: bytes
    username: str
    password: str
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True, slots=True)
class Opened:
    """A description that holds: who signed it, and the digest that an answer to it must name."""

    signer: PeerId
    digest: Digest
    nonce: bytes
    made: int  # Unix seconds by the signer's clock
    expires: int  # Unix seconds by our clock, the clocks' difference included
    description: Description


def seal_offer(
    identity: Identity,
    network: str,
    to: PeerId,
    description: Description,
    *,
    nonce: bytes,
    now: int,
    valid: int = VALID,
    offer: Digest | None = None,
) -> tuple[bytes, Digest]:
    """An offer (or, with ``offer``, the answer to it) as a box for ``to``, and its digest. ``now`` is Unix seconds."""
    fields = asdict(description)
    payload = {
        "network": network,
        "to": to,
        "nonce": nonce,
        "made": now,
        "valid": valid,
        "offer": offer or "",
        **fields,
        "candidates": [list(candidate.values()) for candidate in fields["candidates"]],
    }
    kind = ANSWER_KIND if offer else OFFER_KIND
    envelope = sign_envelope(identity, kind, pack(payload))
    return seal_box(to, envelope.encode(), kind), envelope.digest


def open_offer(
    identity: Identity, roster: Roster, claimed: PeerId | None, box: bytes, *, now: int, offer: Digest | None = None
) -> Opened:
    """The description in a box for us; with ``offer``, it must be the answer to exactly that one.

    ``claimed`` is the member in whose name it came (None: whoever signed it). Raises RemoteError saying what does
    not hold; who is to blame is the caller's question, since the carrier may have altered what an honest member made.
    """
    kind = ANSWER_KIND if offer else OFFER_KIND
    if len(box) > BOX_LIMIT:
        raise LimitExceeded(f"a sealed description of {len(box)} bytes; at most {BOX_LIMIT} are read")
    envelope = open_envelope(open_box(identity, box, kind), kinds=(kind,), limit=DESCRIPTION_LIMIT)
    what = "answer" if offer else "offer"
    if claimed is not None and envelope.signer != claimed:
        raise SignatureRefused(f"the {what} came in the name of {claimed} but is signed by {envelope.signer}")
    member = roster.member(envelope.signer)
    if member is None:
        raise NotAMember(f"the {what} is signed by {envelope.signer}, who is not a member of this charter")
    fields = _fields(envelope, what)
    who = name_of(member)
    if fields["network"] != roster.charter:
        raise NotAMember(f"the {what} of {who} is for another charter ({fields['network'][:16]}…)")
    if fields["to"] != identity.peer_id:
        raise SignatureRefused(f"the {what} of {who} is meant for {fields['to'][:80]}, not for us")
    if (fields["offer"] or None) != offer:
        raise SignatureRefused(f"the answer of {who} belongs to another offer")
    _check_time(fields, what, who, now)
    expires = fields["made"] + fields["valid"] + SKEW
    description = _description(fields, what, envelope.signer)
    return Opened(envelope.signer, envelope.digest, fields["nonce"], fields["made"], expires, description)


def _fields(envelope: Envelope, what: str) -> dict[str, Any]:
    name = f"the {what} of {envelope.signer}"
    value = unpack(envelope.payload, what=name, limit=DESCRIPTION_LIMIT, max_items=max(CANDIDATES, len(_FIELDS)))
    try:
        fields = read_fields(value, name, _FIELDS)
    except MalformedMessage as error:
        error.peer = envelope.signer  # it has signed this, whoever brought it
        raise
    if len(fields["nonce"]) != NONCE or not 1 <= fields["valid"] <= VALID_BY_HAND:
        raise MalformedMessage(f"{name} has a nonce or a lifetime of a wrong size", peer=envelope.signer)
    return fields


def _check_time(fields: dict[str, Any], what: str, who: str, now: int) -> None:
    age = now - fields["made"]
    if age > fields["valid"] + SKEW:
        raise LimitExceeded(f"the {what} of {who} is {age} s old, it was valid for {fields['valid']} s: stale")
    if age < -SKEW:
        raise LimitExceeded(f"the {what} of {who} comes from {-age} s in the future; compare the clocks of both sites")


def _description(fields: dict[str, Any], what: str, signer: PeerId) -> Description:
    try:
        candidates = tuple(_candidate(item) for item in fields["candidates"])
        if (
            len(candidates) > CANDIDATES
            or len(fields["fingerprint"]) != FINGERPRINT
            or not _ICE_TEXT.fullmatch(fields["username"])
            or not _ICE_TEXT.fullmatch(fields["password"])
            or len(fields["password"]) < 22
        ):
            raise ValueError
    except (ValueError, TypeError):
        raise MalformedMessage(
            f"the {what} of {signer} holds a candidate or credential that cannot be", peer=signer
        ) from None
    return Description(fields["fingerprint"], fields["username"], fields["password"], candidates)


def _candidate(item: Any) -> Candidate:
    foundation, host, port, priority, kind = item
    address = ipaddress.ip_address(host)  # no names: a name would make us ask a resolver
    if (
        [type(value) for value in item] != [str, str, int, int, str]
        or kind not in _TYPES
        or not _FOUNDATION.fullmatch(foundation)
        or not 1 <= port <= 65535
        or not 0 <= priority < 2**32
        or address.is_multicast
        or address.is_unspecified
        or "%" in host
        or host == "255.255.255.255"
    ):
        raise ValueError
    return Candidate(foundation, str(address), port, priority, kind)


class SeenOffers:
    """The offers taken lately: each is good for one connection."""

    def __init__(self) -> None:
        self._seen: dict[PeerId, dict[bytes, int]] = {}

    def check(self, opened: Opened, now: int) -> None:
        """Raises RemoteError for an offer that was taken before, or when its signer sends too many."""
        seen = self._seen.setdefault(opened.signer, {})
        for nonce in [nonce for nonce, expires in seen.items() if expires < now]:
            del seen[nonce]
        if opened.nonce in seen:
            raise SignatureRefused(f"the offer of {opened.signer} was taken before: replayed")
        if len(seen) >= REMEMBERED:
            raise LimitExceeded(
                f"{opened.signer} sends more than {REMEMBERED} offers in some minutes; wait", peer=opened.signer
            )

    def take(self, opened: Opened, now: int) -> None:
        """Note this offer; raises what ``check`` raises."""
        self.check(opened, now)
        self._seen[opened.signer][opened.nonce] = opened.expires


def blame(carrier: PeerId, carrier_name: str, error: RemoteError) -> RemoteError:
    """The same fault in words that name who brought it; the blame is his, unless another has signed what is wrong."""
    reason = str(error).split(";")[0]
    if error.peer is not None and error.peer != carrier:
        return type(error)(f"{reason}; it was brought by {carrier_name}", peer=error.peer)
    return type(error)(f"{carrier_name} brought a message that is refused: {reason}", peer=carrier)
