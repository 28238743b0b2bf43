"""Owns C2SP signed notes (c2sp.org/signed-note): text that one or more named keys have signed.

A note is text that ends in a newline, an empty line, and lines ``— name base64(key id || signature)``. Type 0x01 is
Ed25519 over the text. Type 0x04 is a witness's cosignature (c2sp.org/tlog-cosignature): Ed25519 over
``cosignature/v1\\ntime T\\n`` and the text, with u64 T (Unix seconds, big-endian) in front of the signature.

Of the base64 spellings only the canonical one is read: no bit of a note can change unseen.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from p2pfl.crypto.base64_text import from_base64, to_base64
from p2pfl.crypto.envelope import Signer, Verify
from p2pfl.crypto.identity import SIGNATURE_BYTES, verify_signature
from p2pfl.crypto.key_encodings import KEY_BYTES
from p2pfl.crypto.peer_ids import peer_id_from_public_key, public_key_from_peer_id
from p2pfl.errors import IllegalStep, LimitExceeded, MalformedMessage, SignatureRefused

ED25519 = 0x01
COSIGNATURE = 0x04
"""Signature types that we verify; lines of other types are by unknown keys, and ignored."""

KEY_ID_BYTES = 4
MAX_SIGNATURES = 100
"""Signature lines of one note: at least 16 must be accepted, Go's reader takes 100."""

NOTE_LIMIT = 64 * 1024
"""Bytes of one note: our checkpoint with a cosignature of each of 64 members has about 15 KiB."""

_START = "— "
_TIME = struct.Struct(">Q")
_SHOWN = 80  # characters of a foreign text in an error


@dataclass(frozen=True, slots=True)
class NoteKey:
    """Who may sign: a name, what its signatures mean, and an Ed25519 public key of 32 bytes."""

    name: str
    kind: int
    key: bytes

    @property
    def key_id(self) -> bytes:
        """4 bytes: SHA-256(name || 0x0A || type || key), cut."""
        return hashlib.sha256(self.name.encode() + b"\n" + bytes([self.kind]) + self.key).digest()[:KEY_ID_BYTES]

    @property
    def text(self) -> str:
        """The verifier key as others' tools read it: ``name+hex(id)+base64(type || key)``."""
        return f"{self.name}+{self.key_id.hex()}+{to_base64(bytes([self.kind]) + self.key)}"


@dataclass(frozen=True, slots=True)
class NoteSignature:
    """One signature line; ``value`` is what stands behind the key id."""

    name: str
    key_id: bytes
    value: bytes


@dataclass(frozen=True, slots=True)
class Note:
    """A note that is well formed. Its text counts only once `check_note` has found a known key's signature."""

    text: str
    signatures: tuple[NoteSignature, ...]

    def encode(self) -> bytes:
        """The note's bytes; there is one spelling."""
        lines = (f"{_START}{item.name} {to_base64(item.key_id + item.value)}\n" for item in self.signatures)
        return (self.text + "\n" + "".join(lines)).encode()


def read_note_key(text: str) -> NoteKey:
    """The verifier key in this text. Raises MalformedMessage, also for a type that is not verified here."""
    name, _, rest = text.partition("+")
    key_id, _, encoded = rest.partition("+")
    data = from_base64(encoded)
    if not is_key_name(name) or data is None or len(data) != 1 + KEY_BYTES or data[0] not in (ED25519, COSIGNATURE):
        raise MalformedMessage(f"{text[:_SHOWN]!r} is no verifier key of Ed25519; ask its owner for name+id+key")
    key = NoteKey(name, data[0], data[1:])
    if key.key_id.hex() != key_id:
        raise MalformedMessage(f"the verifier key of {name[:_SHOWN]} has another id than its key; ask its owner again")
    return key


def is_key_name(name: str) -> bool:
    """Whether a key may have this name: not empty, no blanks of any script, no ``+``, no control characters."""
    return bool(name) and not any(letter.isspace() or letter == "+" or letter < " " for letter in name)


def read_note(data: bytes) -> Note:
    """Take a note apart; nothing is verified. Raises MalformedMessage or LimitExceeded."""
    if len(data) > NOTE_LIMIT:
        raise LimitExceeded(f"a signed note has {len(data)} bytes, more than {NOTE_LIMIT}; ask for a shorter one")
    try:
        whole = data.decode()
    except UnicodeDecodeError:
        raise _malformed("it is not UTF-8") from None
    if any(letter < " " and letter != "\n" for letter in whole):
        raise _malformed("it has control characters")
    text, gap, block = whole.rpartition("\n\n")
    if not gap or not block.endswith("\n"):
        raise _malformed("it has no signature lines, or no newline at its end")
    lines = block[:-1].split("\n")
    if len(lines) > MAX_SIGNATURES:
        raise LimitExceeded(f"a signed note has {len(lines)} signatures, more than {MAX_SIGNATURES}; drop some")
    return Note(text + "\n", tuple(_signature(line) for line in lines))


def _signature(line: str) -> NoteSignature:
    name, blank, encoded = line.removeprefix(_START).partition(" ")
    data = from_base64(encoded)
    if not line.startswith(_START) or not blank or not is_key_name(name) or data is None or len(data) <= KEY_ID_BYTES:
        raise _malformed(f"{line[:_SHOWN]!r} is no signature line")
    return NoteSignature(name, data[:KEY_ID_BYTES], data[KEY_ID_BYTES:])


def check_note(note: Note, keys: Sequence[NoteKey], verify: Verify = verify_signature) -> tuple[NoteKey, ...]:
    """The keys, each known to the caller, that have signed the note; at least one.

    Signatures of unknown keys are ignored; one of a known key that does not hold makes the whole note invalid. Raises
    SignatureRefused, with ``peer`` None.
    """
    known = {(key.name, key.key_id): key for key in keys}
    signed: list[NoteKey] = []
    for item in note.signatures:
        key = known.get((item.name, item.key_id))
        if key is not None:
            _check_signature(note.text, item, key, verify)
            if key not in signed:
                signed.append(key)
    if not signed:
        raise SignatureRefused("a signed note has no signature of a key that counts here; drop it")
    return tuple(signed)


def _check_signature(text: str, item: NoteSignature, key: NoteKey, verify: Verify) -> None:
    message, signature = text.encode(), item.value
    if key.kind == COSIGNATURE:
        if len(signature) != _TIME.size + SIGNATURE_BYTES:
            raise SignatureRefused(f"a cosignature of {key.name} has {len(signature)} bytes; drop the note")
        message, signature = cosigned_bytes(text, cosignature_time(item)), signature[_TIME.size :]
    verify(peer_id_from_public_key(key.key), message, signature)


def sign_note(text: str, name: str, identity: Signer) -> NoteSignature:
    """An Ed25519 line over the text. Raises IllegalStep for a name or text that no note can have."""
    _require_text(text, name)
    key = NoteKey(name, ED25519, public_key_from_peer_id(identity.peer_id))
    return NoteSignature(name, key.key_id, identity.sign(text.encode()))


def cosign_note(text: str, name: str, identity: Signer, seconds: int) -> NoteSignature:
    """A witness's line over a checkpoint's text at a time in Unix seconds. Its key must sign nothing else."""
    _require_text(text, name)
    key = NoteKey(name, COSIGNATURE, public_key_from_peer_id(identity.peer_id))
    return NoteSignature(name, key.key_id, _TIME.pack(seconds) + identity.sign(cosigned_bytes(text, seconds)))


def cosigned_bytes(text: str, seconds: int) -> bytes:
    """What a cosignature covers."""
    return f"cosignature/v1\ntime {seconds}\n{text}".encode()


def cosignature_time(item: NoteSignature) -> int:
    """Unix seconds in a cosignature line of a known key, which has them before its signature."""
    return int(_TIME.unpack_from(item.value)[0])


def _require_text(text: str, name: str) -> None:
    if not text.endswith("\n") or any(letter < " " and letter != "\n" for letter in text) or not is_key_name(name):
        raise IllegalStep(f"no note has this text, or a key of the name {name[:_SHOWN]!r}; end it with a newline")


def _malformed(reason: str) -> MalformedMessage:
    return MalformedMessage(f"a signed note cannot be read: {reason}; ask its sender for it again")
