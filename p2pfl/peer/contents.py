"""Files that neighbours pull: ciphertexts of own deltas until they are acknowledged, and files named by their hash."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from p2pfl.crypto import CHUNK, Opener
from p2pfl.errors import ConfigError, StoreError
from p2pfl.files import write_atomic
from p2pfl.net import Host
from p2pfl.types import Digest, PeerId

SEALED_CHUNK = CHUNK + 16  # the authentication tag of XChaCha20-Poly1305
AT_ONCE = 16  # chunks read in one visit to a thread: the visit costs about as much as one chunk's work
READ_AHEAD = 16  # blocks of AT_ONCE chunks kept for the next questions: 16 MiB, one for each of 16 neighbours


@dataclass(slots=True)
class Held:
    """A neighbour's ciphertext that is held for others."""

    path: Path
    recipients: frozenset[PeerId]  # whom its origin names
    offered: set[PeerId] = field(default_factory=set)  # those of them to whom it was offered: the log says so


class Contents:
    """What this peer serves chunk by chunk: a ciphertext only to its recipients, an open file to any member.

    Of neighbours' ciphertexts, too, it serves those that it holds for others.
    """

    def __init__(self, home: Path) -> None:
        self._outbox = home / "outbox"
        self._files = home / "contents"
        self._recipients: dict[str, frozenset[PeerId]] = {}
        self._held: dict[str, Held] = {}  # by core
        self._blocks: dict[tuple[Path, int], bytes] = {}  # in the order of their last use
        self._coming: dict[tuple[Path, int], asyncio.Task[bytes | None]] = {}  # the next ones, read meanwhile
        for folder in (self._outbox, self._files):
            folder.mkdir(exist_ok=True, mode=0o700)

    # --- ciphertexts

    async def put_ciphertext(self, core: Digest, chunks: list[bytes], recipients: frozenset[PeerId]) -> None:
        """Store the chunks of one sealed delta durably."""
        await asyncio.to_thread(lambda: write_atomic(self._outbox / core, b"".join(chunks)))
        self._recipients[core] = recipients

    def restore_ciphertext(self, core: Digest, recipients: frozenset[PeerId]) -> bool:
        """Serve a ciphertext from before a restart again; False when its file is gone."""
        if not (self._outbox / core).is_file():
            return False
        self._recipients[core] = recipients
        return True

    def is_for(self, core: Digest, peer: PeerId) -> bool:
        """Whether this peer may have the ciphertext; others are only told that there is one."""
        return peer in self._recipients.get(core, ())

    def first_chunk(self, core: Digest) -> bytes:
        """The first chunk of a stored ciphertext, for a small delta that rides inside its announcement."""
        with (self._outbox / core).open("rb") as file:
            return file.read(SEALED_CHUNK)

    def release(self, core: Digest) -> None:
        """Everybody has it: delete the file."""
        self._recipients.pop(core, None)
        path = self._outbox / core
        self._forget(path)
        path.unlink(missing_ok=True)

    def _forget(self, path: Path) -> None:
        self._blocks = {key: block for key, block in self._blocks.items() if key[0] != path}
        for key in [key for key in self._coming if key[0] == path]:
            self._coming.pop(key).cancel()

    def prune(self) -> int:
        """Delete ciphertexts that no open run knows any more; returns how many."""
        gone = [path for path in self._outbox.iterdir() if path.name not in self._recipients]
        gone += self._files.glob("*.new")  # half written when the process was killed
        for path in gone:
            path.unlink(missing_ok=True)
        return len(gone)

    # --- neighbours' ciphertexts, held for others

    def hold(self, core: Digest, path: Path, recipients: frozenset[PeerId]) -> None:
        """From now on this file may be offered to these members."""
        self._held[core] = Held(path, recipients)

    def offer(self, core: Digest, peer: PeerId) -> bool:
        """From now on this member may pull it; False if it is not here or not for that member."""
        held = self._held.get(core)
        if held is None or peer not in held.recipients:
            return False
        held.offered.add(peer)
        return True

    def let_go(self, core: Digest) -> None:
        """It is not served any more."""
        held = self._held.pop(core, None)
        if held is not None:
            self._forget(held.path)

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
        held = self._held.get(content)
        if held is not None:
            return await self._read(held.path, index, SEALED_CHUNK) if peer in held.offered else None
        if content in self._recipients:
            if peer not in self._recipients[content]:
                return None
            return await self._read(self._outbox / content, index, SEALED_CHUNK)
        return await self._read(self._files / content, index, CHUNK)

    async def _read(self, path: Path, index: int, size: int) -> bytes | None:
        """Chunk ``index`` of a file; the chunks after it stay at hand. A file never changes under its name."""
        number, place = divmod(index, AT_ONCE)
        block = self._blocks.pop((path, number), None)
        if block is None:
            block = await (self._coming.pop((path, number), None) or self._start(path, number, size))
            if block is None:
                return None
            if len(block) == AT_ONCE * size:
                # while this block travels: a thread waits up to 5 ms for the interpreter when the loop is busy
                self._coming[path, number + 1] = self._start(path, number + 1, size)
                if len(self._coming) > READ_AHEAD:  # one that nobody came for
                    self._coming.pop(next(iter(self._coming))).cancel()
        self._blocks[path, number] = block
        if len(self._blocks) > READ_AHEAD:
            del self._blocks[next(iter(self._blocks))]
        return block[place * size : (place + 1) * size] or None

    def _start(self, path: Path, number: int, size: int) -> asyncio.Task[bytes | None]:
        reading = asyncio.create_task(asyncio.to_thread(_read_at, path, number * AT_ONCE * size, AT_ONCE * size))
        reading.add_done_callback(lambda done: done.cancelled() or done.exception())  # seen, where nobody comes for it
        return reading


class Keep(Protocol):
    """Where sealed chunks go, one after the other, that are to be kept."""

    async def add(self, chunk: bytes) -> None:
        """The next one."""
        ...


async def pull_sealed(host: Host, peer: PeerId, content: Digest, opener: Opener, keep: Keep | None = None) -> bytes:
    """Pull the chunks of a sealed content from a neighbour and open them; the plaintext, once the root holds.

    Each chunk is opened on the loop as it comes, 0.2 ms for 64 KiB: a thread would wait up to 5 ms for the interpreter
    beside a busy loop, and was slower over every transport (docs/performance.md). Raises LinkError, SignatureRefused
    or LimitExceeded.
    """
    parts: list[bytes] = []
    async with contextlib.aclosing(host.fetch(peer, content, opener.manifest.chunks, SEALED_CHUNK)) as chunks:
        async for chunk in chunks:
            parts.append(opener.open(len(parts), chunk))
            if keep is not None:
                await keep.add(chunk)
    return await asyncio.to_thread(_finish, opener, parts)


def _finish(opener: Opener, parts: list[bytes]) -> bytes:
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
