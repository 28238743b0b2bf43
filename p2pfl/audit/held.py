"""The checkpoints of other members' logs that a witness holds: what each of them once showed, under its own signature.

They are what a comparison of logs is made against: a log that was rewritten before it was handed over has other roots
than its neighbours were shown at the time.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from p2pfl.audit import store
from p2pfl.audit.cosigned import split_origin
from p2pfl.crypto.checkpoints import epoch_of, open_checkpoint
from p2pfl.crypto.proofs import grow, join
from p2pfl.errors import MalformedMessage, RemoteError, StoreError

OF_EACH = 8
"""Checkpoints given of one log, the newest checked ones, and those that were only seen."""

MOST_HELD = 1024
"""In one export: of 64 logs."""

HELD_LIMIT = 4 * 1024 * 1024
"""Bytes of a file of them."""


@dataclass(frozen=True, slots=True)
class HeldNote:
    """A checkpoint that the log's owner signed: the first ``size`` leaves of ``origin`` had this root."""

    log: str
    origin: str
    epoch: int
    size: int
    root: bytes


def held_of_others(path: Path, own: str) -> tuple[bytes, ...]:
    """The notes of others' logs in the witness store at ``path``; none where there is no store. Raises StoreError."""
    if not path.is_file():
        return ()
    try:
        with closing(store.connect(path, "mode=rw")) as witnesses:  # a killed writer's journal is rolled back
            rows = witnesses.execute(
                "SELECT note FROM (SELECT log, epoch, size, note, row_number() OVER "
                "(PARTITION BY log ORDER BY epoch DESC, size DESC) AS place FROM heads) "
                "WHERE place <= ?1 AND log != ?2 "
                "UNION SELECT note FROM seen WHERE log != ?2 ORDER BY note LIMIT ?3",
                (OF_EACH, own, MOST_HELD),
            ).fetchall()
    except sqlite3.Error as error:
        remedy = "restore it from a backup, or move it away to go on without"
        raise StoreError(f"the witness store {path} cannot be read ({error}); {remedy}") from error
    return tuple(bytes(row[0]) for row in rows)


def read_held(value: object) -> tuple[bytes, ...]:
    """Out of JSON; nothing is verified. Raises MalformedMessage."""
    if not isinstance(value, list) or len(value) > MOST_HELD or not all(isinstance(note, str) for note in value):
        raise MalformedMessage("the held checkpoints are no list of texts, or too many; ask for another export")
    return tuple(note.encode(errors="replace") for note in value)


def decode_held(text: str) -> tuple[bytes, ...]:
    """The notes in a file of its own. Raises MalformedMessage."""
    try:
        return read_held(json.loads(text))
    except (ValueError, RecursionError):
        raise MalformedMessage("the held checkpoints are no JSON; ask for another export") from None


def encode_held(notes: Iterable[bytes]) -> str:
    """A file of its own."""
    return json.dumps([note.decode() for note in notes], indent=1) + "\n"


def check_held(notes: Iterable[bytes]) -> list[HeldNote]:
    """Each with its owner's signature found good. Raises RemoteError for one that does not hold."""
    found = []
    for note in notes:
        _, origin, peer = split_origin(note.partition(b"\n")[0].decode(errors="replace"))
        checkpoint = open_checkpoint(note, origin, peer)
        epoch = epoch_of(checkpoint.origin, origin) or 0
        found.append(HeldNote(peer, origin, epoch, checkpoint.size, checkpoint.root))
    return found


def roots_at(leaves: Iterable[bytes], sizes: Collection[int]) -> dict[int, bytes]:
    """The roots, 32 bytes, over the first so many of these leaf hashes, for each size that they reach."""
    edge: list[bytes] = []
    found = {0: join(edge)} if 0 in sizes else {}
    for number, leaf in enumerate(leaves):
        grow(edge, number, leaf)
        if number + 1 in sizes:
            found[number + 1] = join(edge)
    return found


def notes_or_refusal(path: Path, notes: Iterable[bytes]) -> list[HeldNote]:
    """`check_held`, with the place named. Raises StoreError."""
    try:
        return check_held(notes)
    except RemoteError as error:
        raise StoreError(f"the checkpoints of others held in {path} do not hold: {error}") from None
