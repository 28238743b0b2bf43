"""The stored states of one run: what its machine remembers, with the worker's checkpoint. Owns their folder.

A state is written whole before the log's transaction that names its digest, and older ones go after it, so the
newest digest in the log always has its files.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from p2pfl.crypto import pack, read_fields, sha256, unpack
from p2pfl.errors import MalformedMessage, RemoteError, StoreError
from p2pfl.files import write_atomic
from p2pfl.types import Digest

STATE_FILE_LIMIT = 64 << 20  # bytes; see p2pfl.gossip.memory.STATE_LIMIT
_OVERHEAD = 1024


@dataclass(frozen=True, slots=True)
class StoredState:
    """What a machine remembers, and the digest of the worker's checkpoint that belongs to it."""

    machine: bytes
    checkpoint: Digest


class States:
    """The folder ``state/`` of one run: ``DIGEST.state`` and ``DIGEST.safetensors``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._waiting: set[str] = set()  # files made by this process that no commit has named yet

    def fresh(self, number: int) -> Path:
        """Where the worker writes its next checkpoint; each one has a number of its own."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        path = self._folder / f"fresh-{number}.safetensors"
        self._waiting.add(path.name)
        return path

    def checkpoint(self, digest: str) -> Path:
        """The file of a checkpoint."""
        return self._folder / f"{digest}.safetensors"

    def keep(self, path: Path, digest: Digest) -> None:
        """Give a fresh checkpoint, whose bytes have this digest, its name. Raises StoreError."""
        self._waiting.add(self.checkpoint(digest).name)
        try:
            path.replace(self.checkpoint(digest))
        except OSError as error:
            raise StoreError(f"couldn't keep the checkpoint {path}: {error.strerror}; check the folder") from error
        self._waiting.discard(path.name)

    def write(self, machine: bytes, checkpoint: Digest) -> Digest:
        """Store what a machine remembers, durably; its name. Raises StoreError."""
        name = sha256(machine)
        self._folder.mkdir(mode=0o700, exist_ok=True)
        self._waiting.add(f"{name}.state")
        write_atomic(self._folder / f"{name}.state", pack({"machine": machine, "checkpoint": checkpoint}))
        return name

    def read(self, name: str) -> StoredState | None:
        """The state of this digest; None when it or its checkpoint is not here, or is damaged."""
        path = self._folder / f"{name}.state"
        try:
            value = unpack(path.read_bytes(), what="stored state", limit=STATE_FILE_LIMIT + _OVERHEAD)
            fields = read_fields(value, "stored state", {"machine": bytes, "checkpoint": str})
        except (OSError, RemoteError, MalformedMessage):
            return None
        found = StoredState(fields["machine"], Digest(fields["checkpoint"]))
        whole = sha256(found.machine) == name and self.checkpoint(found.checkpoint).exists()
        return found if whole else None

    def prune(self, name: str, checkpoint: str) -> None:
        """Delete all that is older than this state and this checkpoint; to be called after the commit that names them.

        What was made since then waits for its own commit and stays; half-written files are somebody's work.
        """
        kept = {f"{name}.state", f"{checkpoint}.safetensors"}
        self._waiting -= kept
        for path in self._folder.glob("*") if self._folder.is_dir() else ():
            if path.name not in kept | self._waiting and path.suffix != ".new":
                path.unlink(missing_ok=True)

    def clear(self) -> None:
        """The run is over and its result is stored."""
        self._waiting.clear()
        self.prune("", "")
