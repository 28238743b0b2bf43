"""The checkpoints of a log that witnesses have cosigned, with all that a third party needs to check them.

Each witness's newest one: the note with the owner's line and those of its witnesses, the witnesses' signed statements
of their keys, and the hashes that join it to the checkpoint it is shown with (RFC 6962 consistency proof).
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from p2pfl.audit import store
from p2pfl.audit.tree import node_of, prove_growth
from p2pfl.crypto.base64_text import from_base64, to_base64
from p2pfl.crypto.checkpoints import Checkpoint, epoch_of, log_origin, open_checkpoint
from p2pfl.crypto.cosignatures import Cosignature, open_cosignature
from p2pfl.crypto.notes import Note, read_note
from p2pfl.crypto.proofs import check_consistency, tree_root
from p2pfl.errors import MalformedMessage, RemoteError, SignatureRefused, StoreError
from p2pfl.types import PeerId

MOST = 64
"""Cosigned checkpoints in one place: one per possible witness and some."""

COSIGNED_LIMIT = 4 * 1024 * 1024
"""Bytes of a file of cosigned checkpoints."""

MOST_HASHES = 128
"""Of one consistency proof: two per level of the largest tree."""

_EPOCH = re.compile(r"(.*)/[1-9][0-9]{0,3}", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Cosigned:
    """One checkpoint with its witnesses' lines, their statements in any order, and the way to the newest one."""

    note: bytes
    statements: tuple[bytes, ...]
    growth: tuple[bytes, ...]

    def fields(self) -> dict[str, Any]:
        """For JSON."""
        statements, growth = ([to_base64(item) for item in items] for items in (self.statements, self.growth))
        return {"note": self.note.decode(), "statements": statements, "growth": growth}


@dataclass(frozen=True, slots=True)
class Witnessed:
    """What one witness has cosigned, checked: the first ``size`` entries; ``time`` is the witness's, Unix seconds."""

    witness: PeerId
    epoch: int
    size: int
    time: int


def read_cosigned(value: object) -> tuple[Cosigned, ...]:
    """Out of JSON; nothing is verified. Raises MalformedMessage."""
    if not isinstance(value, list) or len(value) > MOST:
        raise MalformedMessage("the cosigned checkpoints are no list, or too many; ask for another export")
    try:
        return tuple(map(_read, value))
    except UnicodeEncodeError:  # JSON can write what is no text
        raise MalformedMessage("a cosigned checkpoint is no text; ask for another export") from None


def _read(value: object) -> Cosigned:
    match value:
        case {"note": str(note), "statements": list(statements), "growth": list(growth), **rest} if not rest:
            lists = [[from_base64(item) if isinstance(item, str) else None for item in x] for x in (statements, growth)]
            if None not in [*lists[0], *lists[1]] and 0 < len(statements) <= MOST and len(growth) <= MOST_HASHES:
                first, second = (tuple(item or b"" for item in items) for items in lists)
                return Cosigned(note.encode(), first, second)
    raise MalformedMessage("a cosigned checkpoint is written in no form we know; ask for another export")


def split_origin(line: str) -> tuple[str, str, str]:
    """Consortium, log's own origin and peer id in the first line of a checkpoint of any epoch, as it claims them."""
    epoch = _EPOCH.fullmatch(line)
    origin = epoch[1] if epoch is not None and line.count("/") > 1 else line
    rest, _, peer = origin.rpartition("/")
    return unquote(rest.partition("/")[2]), origin, peer


def check_cosigned(items: Sequence[Cosigned], newest: Checkpoint, origin: str, peer: str) -> list[Witnessed]:
    """Who has cosigned how much of the log that ``newest`` is a checkpoint of, the most first.

    Whether the witnesses are members is the caller's question. Raises MalformedMessage, LimitExceeded or
    SignatureRefused for a line or a statement that does not hold, or a checkpoint of another history.
    """
    consortium = split_origin(origin)[0]
    if log_origin(consortium, peer) != origin:
        raise SignatureRefused(f"{origin[:200]} is not the log of {peer}; ask for another export")
    found: dict[PeerId, Witnessed] = {}
    for item in items:
        checkpoint = open_checkpoint(item.note, origin, peer)
        if checkpoint.size:
            check_consistency(checkpoint.size, newest.size, item.growth, checkpoint.root, newest.root)
        epoch = epoch_of(checkpoint.origin, origin) or 0
        for statement in item.statements:
            witness, _, seconds = open_cosignature(Cosignature(item.note, statement), consortium)
            known = found.get(witness)
            if witness != peer and (known is None or known.size < checkpoint.size):
                found[witness] = Witnessed(witness, epoch, checkpoint.size, seconds)
    return sorted(found.values(), key=lambda row: (-row.size, row.witness))


def held_cosigned(
    connection: sqlite3.Connection, origin: str, peer: str, size: int, path: Path
) -> tuple[Cosigned, ...]:
    """What the witness store at ``path`` holds of the open log, whose newest checkpoint has ``size`` entries.

    Each witness's newest checkpoint that this log contains; none where there is no store. Raises StoreError.
    """
    chosen: dict[str, Checkpoint] = {}
    grouped: dict[str, list[Cosignature]] = {}
    for witness, item in _rows(path):
        try:
            checkpoint = open_checkpoint(item.note, origin, peer)
        except RemoteError as error:
            raise StoreError(f"the witness store {path} holds a bad cosignature ({error}); move it away") from None
        if witness in chosen or not _contains(connection, checkpoint, size):
            continue
        chosen[witness] = checkpoint
        grouped.setdefault(checkpoint.text, []).append(item)
    found = []
    for items in grouped.values():
        whole = [read_note(item.note) for item in items]
        note = Note(whole[0].text, (whole[0].signatures[0], *(each.signatures[-1] for each in whole)))
        old = open_checkpoint(items[0].note, origin, peer).size
        growth = prove_growth(connection, old, size) if old else ()
        found.append(Cosigned(note.encode(), tuple(item.statement for item in items), growth))
    return tuple(found[:MOST])


def _contains(connection: sqlite3.Connection, checkpoint: Checkpoint, size: int) -> bool:
    return checkpoint.size <= size and tree_root(checkpoint.size, node_of(connection)) == checkpoint.root


def _rows(path: Path) -> list[tuple[str, Cosignature]]:
    """(witness, cosignature) of the own log, the newest checkpoint first."""
    if not path.is_file():
        return []
    try:
        with closing(store.connect(path, "mode=rw")) as witnesses:  # a killed writer's journal is rolled back
            rows = witnesses.execute(
                "SELECT witness, note, statement FROM cosigned ORDER BY epoch DESC, size DESC, witness"
            ).fetchall()
    except sqlite3.Error as error:
        remedy = "restore it from a backup, or move it away to go on without"
        raise StoreError(f"the witness store {path} cannot be read ({error}); {remedy}") from error
    if any([type(value) for value in row] != [str, bytes, bytes] for row in rows):
        raise StoreError(f"the witness store {path} has a damaged row; restore it from a backup, or move it away")
    return [(witness, Cosignature(note, statement)) for witness, note, statement in rows]


def encode_cosigned(items: Sequence[Cosigned], note: bytes) -> str:
    """A file of its own: the newest checkpoint and what was cosigned of it."""
    value = {"p2pfl_cosigned": 1, "checkpoint": note.decode(), "cosigned": [item.fields() for item in items]}
    return json.dumps(value, indent=1) + "\n"


def decode_cosigned(text: str) -> tuple[bytes, tuple[Cosigned, ...]]:
    """The newest checkpoint's note, and what was cosigned; nothing is verified. Raises MalformedMessage."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    match value:
        case {"p2pfl_cosigned": 1, "checkpoint": str(note), "cosigned": cosigned, **rest} if not rest:
            return note.encode(errors="replace"), read_cosigned(cosigned)
    raise MalformedMessage("this is no file of cosigned checkpoints; ask its log's owner for another")
