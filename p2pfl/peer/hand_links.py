"""Offers and answers as text blocks that people carry: `p2pfl link offer` and `p2pfl link accept`."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from p2pfl.errors import ConfigError, LinkError, P2PFLError, RemoteError
from p2pfl.governance import TextForm, from_text, to_text
from p2pfl.types import Member, PeerId

if TYPE_CHECKING:
    from p2pfl.peer.peer import Peer

OFFER_HEADER = "p2pfl link offer v1"
ANSWER_HEADER = "p2pfl link answer v1"
TEXT_LIMIT = 64 * 1024  # characters; a block has about 12,000
MINUTES = 15  # an offer's life; the same as VALID_BY_HAND of the transport


async def make_offer(peer: Peer, to: str) -> dict[str, Any]:
    """A text block for the member called ``to`` (name, peer id or its beginning)."""
    member = find_member(peer, to)
    box = await _transport(peer).by_hand.offer(member.peer_id)
    text = _text(OFFER_HEADER, peer, member, box)
    return {"kind": "offer", "member": member.name, "peer": member.peer_id, "text": text}


async def accept_text(peer: Peer, text: str) -> dict[str, Any]:
    """Take an offer (the answer's text comes back) or an answer (the link is up when this returns)."""
    first = text.lstrip("\ufeff \t\r\n").split("\n", 1)[0].strip()
    if first == ANSWER_HEADER:
        return await _take_answer(peer, _body(text, ANSWER_HEADER))
    if first != OFFER_HEADER:
        raise ConfigError(
            f"the text begins with {first[:40]!r}; it should begin with {OFFER_HEADER!r} or {ANSWER_HEADER!r}"
        )
    try:
        signer, box = await _transport(peer).by_hand.take_offer(_body(text, OFFER_HEADER))
    except RemoteError as error:
        raise _refused(peer, error) from None
    member = _known(peer, signer)
    return {"kind": "answer", "member": member.name, "peer": signer, "text": _text(ANSWER_HEADER, peer, member, box)}


async def _take_answer(peer: Peer, box: bytes) -> dict[str, Any]:
    try:
        other = await _transport(peer).by_hand.take_answer(box)
    except RemoteError as error:
        raise _refused(peer, error) from None
    member = _known(peer, other)
    link = peer.links().get(member.name)
    if link is None:
        why = peer.why_not(other)
        raise LinkError(f"the connection to {member.name} stood and then ended: {why}; make a new offer")
    return {"kind": "link", "member": member.name, "peer": other, "link": link}


def find_member(peer: Peer, name: str) -> Member:
    """The one other member with this name, peer id or beginning of a peer id. Raises ConfigError."""
    others = [member for member in peer.roster.members if member.peer_id != peer.peer_id]
    exact = [member for member in others if name in (member.name, member.peer_id)]
    found = exact or [member for member in others if name and member.peer_id.startswith(name)]
    if len(found) == 1:
        return found[0]
    known = ", ".join(member.name for member in others)
    raise ConfigError(f"{name!r} names {len(found) or 'no'} other member; choose one of: {known}")


def _transport(peer: Peer) -> Any:
    if peer.webrtc is None:
        raise ConfigError("this peer makes no WebRTC connections; set enabled = true in [webrtc] of home.toml")
    return peer.webrtc


def _known(peer: Peer, peer_id: PeerId) -> Member:
    member = peer.roster.member(peer_id)
    assert member is not None  # the transport took its signature
    return member


def _refused(peer: Peer, error: RemoteError) -> P2PFLError:
    peer.note_refusal(error)
    return ConfigError(f"this text is refused: {error}")


def _text(header: str, peer: Peer, to: Member, box: bytes) -> str:
    made = datetime.fromtimestamp(int(time.time()), UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    readable = (
        f"from: {peer.name} ({peer.peer_id})",
        f"to: {to.name} ({to.peer_id})",
        f"made: {made}, good for {MINUTES} minutes",
        "sealed for its receiver; whoever carries it can read nothing else",
    )
    return to_text(header, TextForm(readable, box))


def _body(text: str, header: str) -> bytes:
    return from_text(text, header, what="the text", limit=TEXT_LIMIT).body
