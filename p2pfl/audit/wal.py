"""Reading SQLite's write-ahead log for damage that SQLite itself passes over in silence.

On open SQLite takes the frames up to the first bad checksum and drops the rest
(https://sqlite.org/walformat.html): right for a torn last write, but one flipped byte in the middle would
cut off durable commits, and the peer would forget what it has already sent. Every commit is synced before
the next begins, so at most one commit, the last, can be torn. Two or more commits behind a bad frame were
durable once: that is damage, never a crash. Of the last one alone, this file cannot say which it was; the
checkpoint beside the log can (`p2pfl.audit.last_head`).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from p2pfl.audit.format import Prepared

HEADER_SIZE = 32
FRAME_HEADER_SIZE = 24

TORN_COMMITS = 1
"""Commits that a crash can tear: the one whose sync had not returned."""

_MAGIC = 0x377F0682  # the lowest bit says in which byte order checksums read their words
_ATTEMPTS = 3  # a file at rest settles at the second look
_SMALLEST_PAGE = 512
_LARGEST_PAGE = 65536

_FRAME = 4096 + FRAME_HEADER_SIZE  # of SQLite's default page, which our files have
_COMMIT_PAGES = 5  # where the entries, their index and the heads end, and more of them when a page is full
_KIND_PAGES = 2  # each kind goes on at a place of its own in the index
_DOCUMENTS_PAGES = 4  # table, key, the index of the roles, the root of that of the digests
_DOCUMENT_PAGES = 2  # its digest lies anywhere in the index, and its end has a page of its own
_TEXTS_PAGES = 2  # table and key
_ROW_BYTES = 160  # hashes, numbers, names and their places in the indexes


def expected_growth(prepared: Sequence[Prepared]) -> int:
    """Bytes that one commit of these entries adds to the write-ahead log: rather too many than too few.

    Entries of one commit share the pages at the ends of the tables. A page may be filled by half only.
    """
    kinds, bodies, listed, set_apart = zip(*prepared, strict=True)
    documents = [content for found in listed if found for _, _, content in found]
    texts = [text for found in set_apart if found for _, _, text in found]
    pages = _COMMIT_PAGES + _KIND_PAGES * (len(set(kinds)) - 1)
    pages += _DOCUMENTS_PAGES * bool(documents) + _DOCUMENT_PAGES * len(documents) + _TEXTS_PAGES * bool(texts)
    rows = sum(map(len, bodies)) + sum(map(len, texts)) + _ROW_BYTES * (len(bodies) + len(texts))
    return _FRAME * pages + 2 * rows + sum(map(len, documents))


def wal_problem(database: Path) -> str | None:
    """What is damaged in the write-ahead log beside ``database``, or None. Raises OSError."""
    return wal_state(database).problem


@dataclass(frozen=True, slots=True)
class WalState:
    """What is damaged, if anything; and whether the end is ``torn``: frames that no whole commit covers are dropped."""

    problem: str | None
    torn: bool


_SOUND = WalState(None, torn=False)


def wal_state(database: Path) -> WalState:
    """How the write-ahead log beside ``database`` ends. Raises OSError.

    A running peer may write meanwhile: a frame caught half-written is whole at the next look, damage stays. What it is
    writing just now looks torn.
    """
    seen: WalState | None = None
    for _ in range(_ATTEMPTS):
        try:
            with database.with_name(database.name + "-wal").open("rb") as file:
                header = file.read(HEADER_SIZE)
                found = _scan(file, header, os.fstat(file.fileno()).st_size - HEADER_SIZE)
                file.seek(0)
                settled = file.read(HEADER_SIZE) == header
        except FileNotFoundError:
            return _SOUND
        if settled and found in (_SOUND, seen):
            return found
        seen = found
    return WalState(None, torn=seen is not None and seen.torn)


def _scan(file: BinaryIO, header: bytes, length: int) -> WalState:
    """Walk over the frames; only those with the header's salts belong to this generation of the file.

    ``length`` is the size of all frames when the walk began: it must not chase a running peer.
    """
    if len(header) < HEADER_SIZE:
        return WalState(None, torn=bool(header))
    magic, _, page, _ = struct.unpack(">IIII", header[:16])
    order = ">" if magic & 1 else "<"
    size = page if _SMALLEST_PAGE <= page <= _LARGEST_PAGE else _SMALLEST_PAGE
    state = _checksum(order, header[:24], (0, 0))
    if magic & ~1 != _MAGIC or page != size or struct.pack(">II", *state) != header[24:]:
        # The header is synced before the first frame is written: with frames behind it, it cannot be torn.
        behind = file.read(FRAME_HEADER_SIZE + size)
        return WalState("write-ahead log: its header is damaged" if behind else None, torn=not behind)
    number, bad, lost, uncovered = 0, 0, 0, 0
    while number < length // (FRAME_HEADER_SIZE + size):
        frame = file.read(FRAME_HEADER_SIZE + size)
        if len(frame) < FRAME_HEADER_SIZE + size:
            break  # cut shorter meanwhile
        number += 1
        ours = frame[8:16] == header[16:24]
        if not bad:
            state = _checksum(order, frame[FRAME_HEADER_SIZE:], _checksum(order, frame[:8], state))
            if not ours or struct.pack(">II", *state) != frame[16:24]:
                bad = number
        commits = frame[4:8] != bytes(4)  # a commit frame names the size of the database
        if ours:
            lost += bool(bad) and commits
            uncovered = 0 if commits and not bad else uncovered + 1
    if lost > TORN_COMMITS:
        problem = f"write-ahead log: frame {bad} is damaged and {lost} commits behind it cannot be read"
        return WalState(problem, torn=True)
    rest = file.read(FRAME_HEADER_SIZE)[8:16]
    return WalState(None, torn=uncovered > 0 or rest == header[16:24])


def _checksum(order: str, data: bytes, state: tuple[int, int]) -> tuple[int, int]:
    """s0 += x[i] + s1; s1 += x[i+1] + s0 over pairs of 32-bit words (walformat, section 4.2)."""
    first, second = state
    for left, right in struct.iter_unpack(f"{order}II", data):
        first = (first + left + second) & 0xFFFFFFFF
        second = (second + right + first) & 0xFFFFFFFF
    return first, second
