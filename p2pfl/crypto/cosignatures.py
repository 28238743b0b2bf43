"""Owns the cosignatures of witnesses (c2sp.org/tlog-cosignature, Ed25519): their key, who vouches for it, their lines.

A witness cosigns with a key of its own, derived from its identity: a cosigning key must sign nothing else. Its name is
the witness's own log origin with ``/witness``. The identity signs the verifier key in an envelope of kind
`WITNESS_KEY`, which travels with each cosignature: whoever has the charter needs nothing else to check one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from p2pfl.crypto.checkpoints import log_origin
from p2pfl.crypto.envelope import open_envelope, sign_envelope
from p2pfl.crypto.identity import Identity
from p2pfl.crypto.notes import (
    COSIGNATURE,
    Note,
    NoteKey,
    check_note,
    cosign_note,
    cosignature_time,
    read_note,
    read_note_key,
)
from p2pfl.crypto.packing import pack, read_fields, unpack
from p2pfl.errors import MalformedMessage, SignatureRefused
from p2pfl.types import PeerId

WITNESS_KEY = "witness-key"
MAX_STAPLED = 8
"""Cosignature lines on a checkpoint in a cover: about 2 KiB. More witnesses are kept, but do not travel."""

COSIGNATURE_LIMIT = 8192
"""Bytes of one cosigned checkpoint with the statement of its key."""

_KEY_LIMIT = 2048
_PURPOSE = "p2pfl witness"


@dataclass(frozen=True, slots=True)
class Cosignature:
    """One witness's line on a checkpoint: the owner's note with it, and the witness's signed statement of its key."""

    note: bytes
    statement: bytes

    def encode(self) -> bytes:
        """What the witness gives to the owner."""
        fields: dict[str, object] = {"note": self.note, "statement": self.statement}
        return pack(fields)


def decode_cosignature(data: bytes) -> Cosignature:
    """Take one apart; nothing is verified. Raises MalformedMessage or LimitExceeded."""
    what = "a cosignature"
    fields = read_fields(unpack(data, what=what, limit=COSIGNATURE_LIMIT), what, {"note": bytes, "statement": bytes})
    return Cosignature(fields["note"], fields["statement"])


def cosign(identity: Identity, consortium: str, note: bytes, seconds: int) -> Cosignature:
    """Cosign a checkpoint, at a time in Unix seconds. The caller has checked and stored it.

    Raises MalformedMessage if this is no note.
    """
    signer = Identity.from_seed(identity.derive(_PURPOSE, consortium.encode()))
    name = _key_name(consortium, identity.peer_id)
    whole = read_note(note)
    line = cosign_note(whole.text, name, signer, seconds)
    key = NoteKey(name, COSIGNATURE, signer.public_key)
    statement = sign_envelope(identity, WITNESS_KEY, key.text.encode())
    return Cosignature(Note(whole.text, (whole.signatures[0], line)).encode(), statement.encode())


def open_cosignature(item: Cosignature, consortium: str) -> tuple[PeerId, str, int]:
    """The witness, the checkpoint's text that it cosigned, and when (Unix seconds).

    Whether the witness is a member, and the checkpoint's owner signed the note, is the caller's question. Raises
    MalformedMessage, LimitExceeded or SignatureRefused.
    """
    envelope = open_envelope(item.statement, kinds=(WITNESS_KEY,), limit=_KEY_LIMIT)
    try:
        key = read_note_key(envelope.payload.decode())
    except UnicodeDecodeError:
        raise MalformedMessage("a witness states a key that is no text; ask it for another") from None
    if key.kind != COSIGNATURE or key.name != _key_name(consortium, envelope.signer):
        raise SignatureRefused(f"{envelope.signer} states a witness key under another name; drop it")
    note = read_note(item.note)
    check_note(note, (key,))
    times = [cosignature_time(line) for line in note.signatures if (line.name, line.key_id) == (key.name, key.key_id)]
    return envelope.signer, note.text, max(times)


def staple(note: bytes, cosigned: Iterable[Cosignature]) -> bytes:
    """The owner's note with the witnesses' lines, at most `MAX_STAPLED`; those over another text are left out."""
    whole = read_note(note)
    lines = [read_note(item.note).signatures[-1] for item in cosigned if read_note(item.note).text == whole.text]
    return Note(whole.text, (whole.signatures[0], *lines[:MAX_STAPLED])).encode()


def _key_name(consortium: str, peer_id: str) -> str:
    return f"{log_origin(consortium, peer_id)}/witness"
