"""The newest acknowledged checkpoint, kept beside the log: it tells a torn end from one that was damaged or cut off.

After each commit has returned, its note is written over the one before in ``audit.db.head``, without a sync. So the
file never names more than was durable, and after SIGKILL it names exactly what was acknowledged; a power loss may take
it back. Entries that it covers and the log lacks were on the disk once: no crash takes them away. It carries the
owner's signature: somebody without the key can remove it or put an older one there, and then it says less, never more.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from p2pfl.crypto.checkpoints import Checkpoint, epoch_of, open_checkpoint
from p2pfl.crypto.notes import NOTE_LIMIT
from p2pfl.errors import RemoteError


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """The newest checkpoint that a writer of this log is known to have acknowledged, and its epoch."""

    epoch: int
    checkpoint: Checkpoint


def last_head_path(log: Path) -> Path:
    """The file beside the log."""
    return log.with_name(log.name + ".head")


def read_last_head(log: Path) -> bytes:
    """What lies beside the log, empty where there is nothing to read. To be read before the log itself, which grows."""
    try:
        with last_head_path(log).open("rb") as file:
            return file.read(NOTE_LIMIT)
    except OSError:
        return b""


def open_last_head(note: bytes, origin: str, owner: str) -> Acknowledged | None:
    """The checkpoint in it; None without one that this owner signed for this log: it may be torn itself."""
    try:
        checkpoint = open_checkpoint(note, origin, owner)
    except RemoteError:
        return None
    return Acknowledged(epoch_of(checkpoint.origin, origin) or 0, checkpoint)


class LastHead:
    """The writer's side. A disk that refuses this file says so at the next commit as well: errors are passed over."""

    def __init__(self, log: Path) -> None:
        self._length = 0
        try:
            self._file: int | None = os.open(last_head_path(log), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self._length = os.fstat(self._file).st_size
        except OSError:
            self._file = None

    def write(self, note: bytes) -> None:
        """The commit of this checkpoint has returned."""
        if self._file is None:
            return
        try:
            os.pwrite(self._file, note, 0)
            if self._length > len(note):
                os.ftruncate(self._file, len(note))
            self._length = len(note)
        except OSError:
            self.close()

    def close(self) -> None:
        """Harmless when called twice."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
