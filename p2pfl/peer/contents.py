"""Files that neighbours pull: ciphertexts of own deltas until they are acknowledged, and files named by their hash."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

from p2pfl.crypto import CHUNK, Opener
from p2pfl.errors import ConfigError, StoreError
from p2pfl.files import write_atomic
from p2pfl.net import Host
from p2pfl.types import Digest, PeerId

SEALED_CHUNK = CHUNK + 16  # the authentication tag of XChaCha20-Poly1305


class Contents:
    """What this peer serves chunk by chunk. A ciphertext only to its recipients, an open file to any member."""

    def __init__(self, home: Path) -> None:
        self._outbox = home / "outbox"
        self._files = home / "contents"
        self._recipients: dict[str, frozenset[PeerId]] = {}
        for folder in (self._outbox, self._files):
            folder.mkdir(exist_ok=True, mode=0o700)

    # --- ciphertexts

    async def put_ciphertext(self, core: Digest, chunks: list[bytes], recipients: frozenset[PeerId]) -> None:
        """Store the chunks of one sealed delta durably."""
        await asyncio.to_thread(write_atomic, self._outbox / core, b"".join(chunks))
        self._recipients[core] = recipients

    def restore_ciphertext(self, core: Digest, recipients: frozenset[PeerId]) -> bool:
        """Serve a ciphertext from before a restart again; False when its file is gone."""
        if not (self._outbox / core).is_file():
            return False
        self._recipients[core] = recipients
        return True

    def first_chunk(self, core: Digest) -> bytes:
        """The first chunk of a stored ciphertext, for a small delta that rides inside its announcement."""
        with (self._outbox / core).open("rb") as file:
            return file.read(SEALED_CHUNK)

    def release(self, core: Digest) -> None:
        """Everybody has it: delete the file."""
        self._recipients.pop(core, None)
        (self._outbox / core).unlink(missing_ok=True)

    def prune(self) -> int:
        """Delete ciphertexts that no open run knows any more; returns how many."""
        gone = [path for path in self._outbox.iterdir() if path.name not in self._recipients]
        for path in gone:
            path.unlink(missing_ok=True)
        return len(gone)

    # --- files named by their hash

    def put_file(self, data: bytes) -> Digest:
        """Store a file under its SHA-256."""
        digest = Digest(hashlib.sha256(data).hexdigest())
        path = self._files / digest
        if not path.exists():
            write_atomic(path, data)
        return digest

    def file(self, digest: Digest) -> bytes | None:
        """A stored file, checked against its name; None when it is not here."""
        path = self._files / digest
        if not path.is_file():
            return None
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != digest:
            raise StoreError(f"{path} is damaged; delete it and ask a partner for it again")
        return data

    # --- serving

    async def chunk(self, peer: PeerId, content: str, index: int) -> bytes | None:
        """One chunk for a member that asks; None when there is nothing for it."""
        if len(content) != 64 or not content.isalnum() or index < 0:
            return None
        if content in self._recipients:
            if peer not in self._recipients[content]:
                return None
            return await asyncio.to_thread(_read_at, self._outbox / content, index * SEALED_CHUNK, SEALED_CHUNK)
        return await asyncio.to_thread(_read_at, self._files / content, index * CHUNK, CHUNK)


async def pull_sealed(host: Host, peer: PeerId, content: Digest, opener: Opener) -> bytes:
    """Pull the chunks of a sealed content from a neighbour and open each; the plaintext, once the root holds.

    Raises LinkError, SignatureRefused or LimitExceeded.
    """
    parts: list[bytes] = []
    async for chunk in host.fetch(peer, content, opener.manifest.chunks, SEALED_CHUNK):
        parts.append(await asyncio.to_thread(opener.open, len(parts), chunk))
    opener.finish()
    return b"".join(parts)


def _read_at(path: Path, offset: int, size: int) -> bytes | None:
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(size) or None
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"couldn't read {path}: {error.strerror}") from error
