"""The checkpoints of other members' logs that a witness holds: what each of them once showed, under its own signature.

They are what a comparison of logs is made against: a log that was rewritten before it was handed over has other roots
than its neighbours were shown at the time.
"""

from __future__ import annotations

import json
import sqlite3
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice, zip_longest
from pathlib import Path

from p2pfl.audit import store
from p2pfl.audit.cosigned import split_origin
from p2pfl.crypto.checkpoints import epoch_of, open_checkpoint
from p2pfl.crypto.notes import NOTE_LIMIT
from p2pfl.crypto.proofs import grow, join
from p2pfl.errors import MalformedMessage, RemoteError, StoreError

OF_EACH = 8
"""Checkpoints given of one log that were checked: half of them the newest, the others spread back to the first. And as
many of those that were only seen, the newest."""

MOST_HELD = 1024
"""In one export: of 64 logs. Where there are more, each has as many as the others."""

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
    note: bytes


@dataclass(frozen=True, slots=True)
class Holding:
    """The notes of others' logs in a witness store; ``damaged`` is how many of its rows hold no such note."""

    notes: tuple[bytes, ...] = ()
    damaged: int = 0


def held_of_others(path: Path, own: str) -> Holding:
    """What the witness store at ``path`` holds of other logs than ``own``; nothing where there is no store.

    Of each log some (`OF_EACH`), with their owners' signatures found good. Raises StoreError for a file that cannot be
    read; a damaged row in it is left out and counted.
    """
    if not path.is_file():
        return Holding()
    try:
        with closing(store.connect(path, "mode=rw")) as witnesses:  # a killed writer's journal is rolled back
            checked = witnesses.execute("SELECT log, note FROM heads ORDER BY log, epoch DESC, size DESC").fetchall()
            seen = witnesses.execute("SELECT log, note FROM seen ORDER BY log, epoch DESC, size DESC").fetchall()
    except sqlite3.Error as error:
        remedy = "restore it from a backup, or move it away to go on without"
        raise StoreError(f"the witness store {path} cannot be read ({error}); {remedy}") from error
    by_log: defaultdict[str, list[bytes]] = defaultdict(list)
    damaged = 0
    for table, choose in ((checked, _spread), (seen, _newest)):
        notes, bad = _of_logs(table, own)
        damaged += bad
        for log, found in notes.items():
            good = [note for note in choose(found) if _is_of(note, log)]
            damaged += len(choose(found)) - len(good)
            by_log[log] += [note for note in dict.fromkeys(good) if note not in by_log[log]]
    in_turn = (note for turn in zip_longest(*by_log.values()) for note in turn if note is not None)
    return Holding(tuple(islice(in_turn, MOST_HELD)), damaged)


def _of_logs(rows: Iterable[tuple[object, object]], own: str) -> tuple[dict[str, list[bytes]], int]:
    """The notes of each log but the own one, in the order of the rows; and how many rows have no form of ours."""
    found: defaultdict[str, list[bytes]] = defaultdict(list)
    damaged = 0
    for log, note in rows:
        if type(log) is not str or type(note) is not bytes or len(note) > NOTE_LIMIT:
            damaged += 1
        elif log != own:
            found[log].append(note)
    return found, damaged


def _newest(notes: Sequence[bytes]) -> Sequence[bytes]:
    return notes[:OF_EACH]


def _spread(notes: Sequence[bytes]) -> Sequence[bytes]:
    """The newest half, which come first, and steps from there to the last: a log that was cut still meets some."""
    if len(notes) <= OF_EACH:
        return notes
    half = OF_EACH // 2
    steps = (half + (len(notes) - 1 - half) * step // half for step in range(1, half + 1))
    return [*notes[:half], *(notes[place] for place in steps)]


def _is_of(note: bytes, log: str) -> bool:
    try:
        return check_held([note])[0].log == log
    except RemoteError:
        return False


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
        found.append(HeldNote(peer, origin, epoch, checkpoint.size, checkpoint.root, note))
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
