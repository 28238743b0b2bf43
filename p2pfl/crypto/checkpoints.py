"""Owns the checkpoint of a log (c2sp.org/tlog-checkpoint): a signed note that says origin, size and root of its tree.

The origin is also the name of the key: ``p2pfl/<consortium>/<peer id>``, the consortium's name percent-encoded
(RFC 3986, UTF-8). Name and peer id stand in the charter, and the peer id is the public key, so the charter alone says
what to expect. After a declared loss the log goes on in a new epoch, under ``<origin>/<epoch>``: what a restored backup
writes never stands beside what was lost, under one name.

No other statement of the key begins like a checkpoint: framed ones begin with the length of their domain, and ``p``
would be a domain of 112 bytes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import quote

from p2pfl.crypto.base64_text import from_base64, to_base64
from p2pfl.crypto.digests import DIGEST_BYTES
from p2pfl.crypto.envelope import Signer, Verify
from p2pfl.crypto.identity import verify_signature
from p2pfl.crypto.notes import ED25519, Note, NoteKey, check_note, read_note, sign_note
from p2pfl.crypto.peer_ids import public_key_from_peer_id
from p2pfl.errors import MalformedMessage, SignatureRefused

MAX_SIZE = 2**63 - 1

MAX_EPOCH = 9999
"""Each restored backup opens one epoch."""

_SIZE = re.compile(r"0|[1-9][0-9]{0,18}")
_EPOCH = re.compile(r"/([1-9][0-9]{0,3})")
_LINES = 3


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The first ``size`` leaves of the log named ``origin`` have this RFC 6962 root (32 bytes)."""

    origin: str
    size: int
    root: bytes

    @property
    def text(self) -> str:
        """What is signed: three lines."""
        return f"{self.origin}\n{self.size}\n{to_base64(self.root)}\n"


def log_origin(consortium: str, peer_id: str) -> str:
    """The origin line of a member's log; of a log outside of any consortium without its part."""
    return f"p2pfl/{quote(consortium, safe='')}/{peer_id}" if consortium else f"p2pfl/{peer_id}"


def epoch_origin(origin: str, epoch: int) -> str:
    """The first line of the checkpoints of an epoch; epoch 0 has the log's own origin."""
    return f"{origin}/{epoch}" if epoch else origin


def epoch_of(line: str, origin: str) -> int | None:
    """Which epoch of the log named ``origin`` a checkpoint's first line names; None if it is of another log."""
    if line == origin:
        return 0
    found = _EPOCH.fullmatch(line.removeprefix(origin)) if line.startswith(origin) else None
    return int(found[1]) if found else None


def log_key(origin: str, peer_id: str) -> NoteKey:
    """The verifier key of that log. Raises MalformedMessage for what is no peer id."""
    return NoteKey(origin, ED25519, public_key_from_peer_id(peer_id))


def read_checkpoint(text: str) -> Checkpoint:
    """The checkpoint in a note's text; extension lines, discouraged by C2SP, are not kept. Raises MalformedMessage."""
    lines = text.split("\n")
    if len(lines) <= _LINES or lines[-1] or not all(lines[:-1]):
        raise MalformedMessage("a checkpoint is not three lines of text; ask the log's owner for another")
    origin, size, encoded = lines[:_LINES]
    root = from_base64(encoded)
    if not _SIZE.fullmatch(size) or int(size) > MAX_SIZE or root is None or len(root) != DIGEST_BYTES:
        raise MalformedMessage(
            "a checkpoint's size or root is written in no form we know; ask the log's owner for another"
        )
    return Checkpoint(origin, int(size), root)


def sign_checkpoint(identity: Signer, checkpoint: Checkpoint) -> bytes:
    """The signed note. Whoever signs two that no consistency proof joins has forked its log."""
    text = checkpoint.text
    return Note(text, (sign_note(text, checkpoint.origin, identity),)).encode()


def open_checkpoint(data: bytes, origin: str, peer_id: str, verify: Verify = verify_signature) -> Checkpoint:
    """The checkpoint in a note that the log's owner signed under its origin, in any epoch of the log.

    Raises MalformedMessage, LimitExceeded or SignatureRefused; also for extension lines: our logs write none.
    """
    return _open(read_note(data), origin, peer_id, verify)[0]


def plain_checkpoint(data: bytes, origin: str, peer_id: str) -> tuple[Checkpoint, bytes]:
    """As `open_checkpoint`, and the note with the owner's line alone: whatever else was on it is not passed on.

    Raises as `open_checkpoint` does.
    """
    note = read_note(data)
    checkpoint, key = _open(note, origin, peer_id, verify_signature)
    line = next(item for item in note.signatures if (item.name, item.key_id) == (key.name, key.key_id))
    return checkpoint, Note(note.text, (line,)).encode()


def _open(note: Note, origin: str, peer_id: str, verify: Verify) -> tuple[Checkpoint, NoteKey]:
    line = note.text.partition("\n")[0]
    key = log_key(line if epoch_of(line, origin) else origin, peer_id)
    check_note(note, (key,), verify)
    checkpoint = read_checkpoint(note.text)
    if epoch_of(checkpoint.origin, origin) is None or checkpoint.text != note.text:
        raise SignatureRefused(f"a checkpoint of {peer_id} names another log, or says more than it may; drop it")
    return checkpoint, key
