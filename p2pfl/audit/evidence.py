"""Evidence that a log contradicts itself: one text file, checked by anybody who has the charter.

Nothing in the file is believed: the two notes and the answer carry the owner's signatures, and the claim is drawn from
them anew. Who found it, and when, is said for people and proves nothing.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from p2pfl.audit.growth import CLAIMS, FORK, LogMisbehaviour, compare_notes, judge
from p2pfl.crypto.base64_text import from_base64, to_base64
from p2pfl.crypto.checkpoints import Checkpoint, open_checkpoint
from p2pfl.errors import MalformedMessage, SignatureRefused

FORMAT = "p2pfl log evidence 1"
EVIDENCE_LIMIT = 2**20
"""Bytes of one file: two notes, and an answer with one entry of a log."""

_FIELDS = {"format": str, "claim": str, "owner": str, "origin": str, "notes": list, "answer": str, "found": dict}


@dataclass(frozen=True, slots=True)
class Evidence:
    """What contradicts what.

    ``found`` has ``by`` (a peer id, or the command that compared) and ``at`` (Unix milliseconds).
    """

    claim: str
    owner: str
    origin: str
    notes: tuple[bytes, bytes]
    answer: bytes
    found: dict[str, Any]

    def encode(self) -> bytes:
        """The file."""
        value = {
            "format": FORMAT,
            "claim": self.claim,
            "meaning": CLAIMS[self.claim],
            "owner": self.owner,
            "origin": self.origin,
            "notes": [note.decode() for note in self.notes],
            "answer": to_base64(self.answer),
            "found": self.found,
        }
        return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()


def read_evidence(data: bytes) -> Evidence:
    """Take a file apart; nothing is verified. Raises MalformedMessage."""
    try:
        value: Any = json.loads(data.decode()) if len(data) <= EVIDENCE_LIMIT else None
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        value = {}
    if any(type(value.get(name)) is not kind for name, kind in _FIELDS.items()):
        raise MalformedMessage(f"this is no evidence of the form {FORMAT}; ask for the file again")
    notes, answer = value["notes"], from_base64(value["answer"])
    if answer is None or value["claim"] not in CLAIMS or [type(note) for note in notes] != [str, str]:
        raise MalformedMessage("the evidence has no claim, notes or answer that can be read; ask for the file again")
    try:
        first, second = (note.encode() for note in notes)
    except UnicodeEncodeError:  # JSON can write what is no text
        raise MalformedMessage("a note in the evidence is no text; ask for the file again") from None
    return Evidence(value["claim"], value["owner"], value["origin"], (first, second), answer, value["found"])


def check_evidence(evidence: Evidence, origin: str, owner: str) -> tuple[Checkpoint, Checkpoint]:
    """The two checkpoints, after finding that the owner's own signatures prove the claim.

    ``origin`` and ``owner`` come from the charter. Raises MalformedMessage, LimitExceeded or
    SignatureRefused otherwise.
    """
    if evidence.owner != owner or evidence.origin != origin:
        raise SignatureRefused("the evidence is about another log than the charter says; drop it")
    first, second = evidence.notes
    try:
        if evidence.claim == FORK:
            compare_notes(first, second, origin, owner)
        else:
            judge(evidence.answer, first, origin, owner)
    except LogMisbehaviour as shown:
        if shown.claim == evidence.claim and shown.notes == evidence.notes:
            return open_checkpoint(first, origin, owner), open_checkpoint(second, origin, owner)
    raise SignatureRefused(f"what is signed here does not show the claim {evidence.claim!r}; ask for the file again")
