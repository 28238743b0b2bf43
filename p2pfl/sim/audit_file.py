"""A real audit log under a simulated site, for runs with real signatures."""

from __future__ import annotations

import shutil
from pathlib import Path

from p2pfl.audit import AuditLog, NewEntry, Verification, verify_log
from p2pfl.crypto import Identity, LogProof, Signer
from p2pfl.errors import ConfigError
from p2pfl.gossip.anchors import SENT
from p2pfl.sim.clock import Clock
from p2pfl.sim.disk import Row
from p2pfl.types import Digest

EPOCH_MS = 1_700_000_000_000  # Unix milliseconds at virtual time 0


class AuditFile:
    """The audit database of one site. Appended where the simulated commit ends; it follows its disk's fate."""

    def __init__(self, folder: Path, identity: Signer, clock: Clock) -> None:
        if not isinstance(identity, Identity):
            raise ConfigError('an audit log needs real signatures; pass signatures="real"')
        self._identity, self._clock = identity, clock
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "audit.db"
        self._log = AuditLog.create(self.path, identity, self._now())
        self._declared: list[int] = []  # positions of declared losses, which are no rows of the disk

    def append(self, rows: list[Row]) -> None:
        """One transaction."""
        self._log.append([NewEntry(row.kind, row.body, row.documents) for row in rows], self._now())

    def prove(self, rows: list[Row], core: Digest) -> LogProof:
        """The entry that names ``core`` under the newest checkpoint; ``rows`` are the disk's, in the file's order."""
        (place,) = (place for place, row in enumerate(rows) if row.kind == SENT and row.body["core"] == core)
        position = place + 1  # entry 0 is the log's own
        for declared in self._declared:
            position += declared <= position
        return self._log.prove(position)

    def backup(self) -> Path:
        """A copy as a backup program takes it of a closed file."""
        self._log.close()
        copy = self.path.with_name(f"backup-{self._clock.handled}.db")
        shutil.copyfile(self.path, copy)
        self._log = AuditLog.open(self.path, self._identity)
        return copy

    def put_back(self, backup: Path | None) -> None:
        """The disk is an older one from now on, or an empty one. The loss is declared, as witnesses would have it."""
        lost, epoch = self._log.head, self._log.epoch
        self._log.close()
        for path in self.path.parent.glob("audit.db*"):
            path.unlink()
        if backup is None:
            self._log = AuditLog.create(self.path, self._identity, self._now())
        else:
            shutil.copyfile(backup, self.path)
            self._log = AuditLog.open(self.path, self._identity)
        kept = self._log.head.size
        self._declared = [*(position for position in self._declared if position < kept), kept]
        body = {"epoch": epoch + 1, "kept": kept, "lost": [[epoch, lost.size, lost.root]], "reason": "an older disk"}
        self._log.append([NewEntry("epoch_opened", body)], self._now(), epoch + 1)

    def verify(self) -> Verification:
        """Check the whole file, as `p2pfl audit verify` does."""
        self._log.close()
        try:
            return verify_log(self.path, self._identity.peer_id)
        finally:
            self._log = AuditLog.open(self.path, self._identity)

    def close(self) -> None:
        """Close the database."""
        self._log.close()

    def _now(self) -> int:
        return EPOCH_MS + round(self._clock.now * 1000)
