"""The log's Merkle tree in the file: where its hashes lie, and the proofs that are read from them.

The leaves are the entries' hashes. Beside each entry stand the hashes of the subtrees that it completes, level 1 first:
none for an even position, one on average. So appending writes no further row, and any complete subtree is one read.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from pathlib import Path

from p2pfl.audit import store
from p2pfl.audit.format import HASH_SIZE, Head
from p2pfl.crypto.log_entries import entry_data
from p2pfl.crypto.log_proofs import LogProof
from p2pfl.crypto.proofs import Node, consistency_proof, inclusion_proof
from p2pfl.errors import ConfigError, RemoteError, StoreError


@dataclass(frozen=True, slots=True)
class End:
    """Where the next entry goes: the newest head, and the hashes of the complete subtrees it is made of."""

    head: Head
    edge: tuple[bytes, ...]


def node_of(connection: sqlite3.Connection) -> Node:
    """The hashes of complete subtrees in this file. The function raises StoreError for one that is not there."""

    def node(level: int, place: int) -> bytes:
        last = ((place + 1) << level) - 1
        row = connection.execute("SELECT hash, subtrees FROM entries WHERE position = ?", (last,)).fetchone()
        found = None if row is None or not all(type(value) is bytes for value in row) else b"".join(row)
        start = level * HASH_SIZE
        if found is None or len(found) < start + HASH_SIZE:
            raise StoreError(f"the tree of the audit log has no sound hash at entry {last}; run p2pfl audit verify")
        return found[start : start + HASH_SIZE]

    return node


def prove(connection: sqlite3.Connection, position: int) -> LogProof:
    """The entry at a position, with its way into the newest checkpoint.

    Checked before it is handed out: raises StoreError if the file's tree is damaged there, ConfigError where there is
    no such entry.
    """
    log, origin, size, note = newest_head(connection)
    if not 0 <= position < size:
        raise ConfigError(f"the log has {size} entries; there is no entry {position}, the first is entry 0")
    row = connection.execute(f"SELECT {store.ENTRY_COLUMNS} FROM entries WHERE position = ?", (position,)).fetchone()
    if row is None or not store.entry_row_is_sound(row):
        raise StoreError(f"entry {position} of the audit log has a damaged row; run p2pfl audit verify")
    proof = LogProof(entry_data(*row[:6]), position, inclusion_proof(position, size, node_of(connection)), note)
    try:
        proof.open(origin, log)
    except RemoteError as error:
        raise StoreError(f"entry {position} is not in the log's tree ({error}); run p2pfl audit verify") from None
    return proof


def prove_under(connection: sqlite3.Connection, position: int, size: int, note: bytes) -> LogProof:
    """The entry at a position, with its way into an earlier checkpoint of this log: ``note``, over ``size`` entries.

    Raises StoreError if the file's tree is damaged there.
    """
    row = connection.execute(f"SELECT {store.ENTRY_COLUMNS} FROM entries WHERE position = ?", (position,)).fetchone()
    if row is None or not store.entry_row_is_sound(row):
        raise StoreError(f"entry {position} of the audit log has a damaged row; run p2pfl audit verify")
    return LogProof(entry_data(*row[:6]), position, inclusion_proof(position, size, node_of(connection)), note)


def prove_growth(connection: sqlite3.Connection, old: int, new: int) -> tuple[bytes, ...]:
    """The consistency proof from ``old`` to ``new`` entries, both sizes the log has had."""
    return consistency_proof(old, new, node_of(connection))


def prove_entry(path: Path | str, position: int) -> LogProof:
    """`prove` on a file that a running peer may be using. Raises ConfigError or StoreError."""
    with store.reading_log(Path(path)) as connection:
        return prove(connection, position)


def newest_head(connection: sqlite3.Connection) -> tuple[str, str, int, bytes]:
    """Log, origin, size and note of the newest head; whether they hold shows when the proof is opened."""
    meta = connection.execute("SELECT log, origin FROM meta").fetchone()
    head = connection.execute("SELECT size, note FROM heads ORDER BY size DESC LIMIT 1").fetchone()
    if meta is None or head is None or [type(value) for value in (*meta, *head)] != [str, str, int, bytes]:
        raise StoreError("the audit log has no sound head; run p2pfl audit verify")
    return (*meta, *head)
