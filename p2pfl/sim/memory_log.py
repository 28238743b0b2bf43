"""The log of a simulated site in memory: a real Merkle tree, signed with whatever the world signs with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from p2pfl.crypto import (
    Checkpoint,
    LogProof,
    Signer,
    entry_data,
    leaf_hash,
    log_origin,
    pack,
    sign_checkpoint,
)
from p2pfl.crypto.proofs import grow, inclusion_proof, join
from p2pfl.gossip.anchors import SENT
from p2pfl.sim.disk import Row
from p2pfl.types import Digest

_START = bytes(32)


class MemoryLog:
    """The tree over the rows of a disk, brought up to date when it is asked: most rows of a run are never proved.

    Each row is a commit of its own, and the time is always 0; nothing else differs from a `p2pfl.audit.AuditLog`.
    """

    def __init__(self, identity: Signer) -> None:
        self._identity = identity
        self._origin = log_origin("", identity.peer_id)
        self._rows: list[Row] = []
        self._empty()

    def _empty(self) -> None:
        self._levels: list[list[bytes]] = []  # hashes of complete subtrees, by level
        self._edge: list[bytes] = []
        self._sent: dict[Digest, tuple[int, bytes]] = {}  # core -> position and data of its entry
        self._size, self._previous, self._note = 0, _START, (0, b"")

    def prove(self, rows: list[Row], core: Digest) -> LogProof:
        """The entry that names ``core`` under a checkpoint over all ``rows``."""
        if rows is not self._rows:  # the site has another disk: a backup, or an empty one
            self._empty()
            self._rows = rows
        for row in rows[self._size :]:
            self._append(row)
        if self._note[0] != self._size:
            checkpoint = Checkpoint(self._origin, self._size, join(self._edge))
            self._note = self._size, sign_checkpoint(self._identity, checkpoint)
        position, data = self._sent[core]
        path = inclusion_proof(position, self._size, lambda level, place: self._levels[level][place])
        return LogProof(data, position, path, self._note[1])

    def _append(self, row: Row) -> None:
        position = self._size
        data = entry_data(position, 0, position, row.kind, pack(dict(row.body)), self._previous)
        self._previous = leaf_hash(data)
        for level, digest in enumerate((self._previous, *grow(self._edge, position, self._previous))):
            if level == len(self._levels):
                self._levels.append([])
            self._levels[level].append(digest)
        if row.kind == SENT:
            self._sent[Digest(row.body["core"])] = position, data
        self._size += 1


def lone_proof(identity: Signer, body: Mapping[str, Any], consortium: str = "") -> LogProof:
    """A log of one ``delta_sent`` entry: what a member can always sign beside its true log, until witnesses look."""
    data = entry_data(0, 0, 0, SENT, pack(dict(body)), _START)
    origin = log_origin(consortium, identity.peer_id)
    return LogProof(data, 0, (), sign_checkpoint(identity, Checkpoint(origin, 1, leaf_hash(data))))
