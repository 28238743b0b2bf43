"""Owns short secrets for one member's identity: a sealed box to the X25519 form of its Ed25519 key.

For signalling that a third member carries: whoever knows a peer id can write to it, and only that peer can read.
One key pair signs and agrees here; Thormarker, "On using the same key pair for Ed25519 and an X25519 based KEM"
(IACR ePrint 2021/509), proves this combination sound. There is no forward secrecy for the recipient: what must stay
closed after an identity key is stolen goes to a prekey (:mod:`p2pfl.crypto.prekeys`). A box names no sender; the
signed message inside it does.
"""

from __future__ import annotations

from nacl.exceptions import CryptoError
from nacl.exceptions import RuntimeError as SodiumError
from nacl.public import SealedBox
from nacl.signing import SigningKey, VerifyKey

from p2pfl.crypto.identity import Identity
from p2pfl.crypto.peer_ids import public_key_from_peer_id
from p2pfl.crypto.uvarint import frame
from p2pfl.errors import IllegalStep, MalformedMessage, SignatureRefused

BOX_STEP = 2048
"""Plaintexts are padded to a multiple of this many bytes, so that a box does not tell how long its content is."""

BOX_OVERHEAD = 48 + 4
"""Bytes beside the padded content: 32 ephemeral public key, 16 tag, 4 length."""

_LENGTH = 4


def seal_box(peer_id: str, content: bytes, purpose: str) -> bytes:
    """``content`` for the owner of ``peer_id`` alone, padded. ``purpose`` must be the same at both ends.

    Raises MalformedMessage for a peer id that holds no usable key.
    """
    if not purpose:
        raise IllegalStep("a box needs a purpose; name the protocol it is for")
    public = public_key_from_peer_id(peer_id)
    body = frame(purpose.encode(), public) + content
    room = -(len(body) + _LENGTH) % BOX_STEP
    try:
        key = VerifyKey(public).to_curve25519_public_key()
    except (CryptoError, SodiumError):
        raise MalformedMessage(f"{peer_id} holds no usable key; ask that site for its peer id") from None
    return bytes(SealedBox(key).encrypt(len(body).to_bytes(_LENGTH, "big") + body + bytes(room)))


def open_box(identity: Identity, box: bytes, purpose: str) -> bytes:
    """The content of a box that was sealed for ``identity`` and ``purpose``.

    Raises SignatureRefused for another recipient, another purpose or any changed byte; its ``peer`` stays None, since
    a box names no sender.
    """
    try:
        padded = SealedBox(SigningKey(identity.seed).to_curve25519_private_key()).decrypt(box)
    except (CryptoError, ValueError, TypeError):
        raise SignatureRefused("a sealed message does not open with our key: altered, or meant for another") from None
    head = frame(purpose.encode(), identity.public_key)
    length = int.from_bytes(padded[:_LENGTH], "big")
    body = padded[_LENGTH : _LENGTH + length]
    if len(body) != length or not body.startswith(head):
        raise SignatureRefused("a sealed message was made for another purpose; drop it")
    return body[len(head) :]
