"""Neighbours' states that this peer holds for others, on disk: the sealed chunks as they came, and the announcement.

Owns the folder ``holdings/`` of one run: ``CORE`` (the chunks, one after the other) and ``CORE.announcement``, without
inline content. Nothing is in clear there, and nothing is synced: a crash of the machine may leave less, which the root
that the origin signed shows at the next start. The content is there before its announcement.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from pathlib import Path

from p2pfl.crypto import ciphertext_size, leaf_hash, root_of_hashes
from p2pfl.errors import ConfigError, RemoteError
from p2pfl.files import read_bounded
from p2pfl.gossip import effects
from p2pfl.gossip.messages import ANNOUNCEMENT_LIMIT, decode_announcement, open_core
from p2pfl.gossip.offers import Offer
from p2pfl.peer.contents import AT_ONCE, SEALED_CHUNK, Contents
from p2pfl.types import Digest, RunId

ENDING = ".announcement"
AFTER_THE_END = 24 * 3600.0  # seconds that states are held once the run is over, if the peer runs on for so long


class Spool:
    """A content on its way to the disk: a block is written while the next one comes in."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._block: list[bytes] = []
        self._writing: asyncio.Task[None] | None = None
        self._begun = self._failed = False

    async def add(self, chunk: bytes) -> None:
        """Take the next chunk; at most two blocks of AT_ONCE chunks are in memory."""
        self._block.append(chunk)
        if len(self._block) == AT_ONCE:
            await self._flush()

    async def _flush(self) -> None:
        await self._written()
        block, self._block = b"".join(self._block), []
        self._writing = asyncio.create_task(asyncio.to_thread(self._write, block))

    async def _written(self) -> None:
        if self._writing is not None:
            with contextlib.suppress(OSError):
                await self._writing
            self._failed = self._failed or self._writing.exception() is not None
            self._writing = None

    def _write(self, block: bytes) -> None:
        if self._failed:
            return
        self._path.parent.mkdir(mode=0o700, exist_ok=True)
        mode, self._begun = ("ab" if self._begun else "wb"), True
        with self._path.open(mode) as file:
            file.write(block)

    async def close(self) -> None:
        """All of it is here; where the disk did not take it, nothing is left of it."""
        if self._block:
            await self._flush()
        await self._written()
        if self._failed:
            await self.abandon()

    async def abandon(self) -> None:
        """It is of no use."""
        self._block = []
        await self._written()
        await asyncio.to_thread(_remove, self._path)


class Holdings:
    """What one run's machine has held here, served through the peer's contents."""

    def __init__(self, folder: Path, contents: Contents) -> None:
        self._folder = folder
        self._contents = contents
        self._in_order = asyncio.Lock()
        self._over = False
        self._retiring: asyncio.TimerHandle | None = None

    def load(self) -> tuple[bytes, ...]:
        """After a restart: the announcements whose contents are whole; all else is deleted. Blocks while it hashes."""
        found: dict[str, bytes] = {}
        for path in sorted(self._folder.glob(f"*{ENDING}")):
            with contextlib.suppress(ConfigError, RemoteError, OSError):
                data = read_bounded(path, ANNOUNCEMENT_LIMIT)
                if self._is_whole(path.name.removesuffix(ENDING), data):
                    found[path.name.removesuffix(ENDING)] = data
        for path in self._folder.glob("*"):
            if path.name.removesuffix(ENDING) not in found:
                path.unlink(missing_ok=True)
        return tuple(found.values())

    def _is_whole(self, name: str, data: bytes) -> bool:
        envelope, core = open_core(decode_announcement(data).core)
        path = self._folder / name
        if envelope.digest != name or path.stat().st_size != ciphertext_size(core.manifest.size):
            return False
        hashes = []
        with path.open("rb") as file:
            while chunk := file.read(SEALED_CHUNK):
                hashes.append(leaf_hash(chunk))
        return root_of_hashes(hashes).hex() == core.manifest.root

    def spool(self, core: Digest) -> Spool:
        """Where a content goes that is being fetched to be held."""
        return Spool(self._folder / f"{core}.new")

    async def perform(self, effect: effects.Hold | effects.LetGo | effects.SendOffer, run: RunId) -> bytes:
        """Carry out one effect, in the order they come; the offer to send, if it is one."""
        async with self._in_order:
            match effect:
                case effects.Hold() if not self._over:
                    if await asyncio.to_thread(self._keep, effect.core, effect.announcement):
                        self._contents.hold(effect.core, self._folder / effect.core, effect.recipients)
                case effects.LetGo(core=core):
                    self._contents.let_go(core)
                    await asyncio.to_thread(self._delete, core)
                case effects.SendOffer(peer=peer, origin=origin, core=core):
                    data = b""
                    if core is not None and self._contents.offer(core, peer):
                        data = await asyncio.to_thread(self._announcement, core)
                    return Offer(run, origin, data).encode()
        return b""

    def _keep(self, core: Digest, announcement: bytes) -> bool:
        """Give a kept content its name, then its announcement; False where the disk did not take it."""
        path = self._folder / core
        try:
            spooled = path.with_name(f"{core}.new")
            if spooled.exists():
                spooled.replace(path)
            written = path.with_name(f"{core}{ENDING}.new")
            if path.exists():
                written.write_bytes(announcement)
                written.replace(path.with_name(f"{core}{ENDING}"))
        except OSError:
            self._delete(core)
        return path.exists()

    def _delete(self, core: Digest) -> None:
        for name in (f"{core}{ENDING}", core, f"{core}.new"):
            _remove(self._folder / name)

    def _announcement(self, core: Digest) -> bytes:
        """As the origin sent it, with a small content inside; nothing where the file is gone."""
        try:
            parts = decode_announcement((self._folder / f"{core}{ENDING}").read_bytes())
            with (self._folder / core).open("rb") as file:
                first = file.read(SEALED_CHUNK)
        except (OSError, RemoteError):
            return b""
        return parts.encode_with(first)

    def retire(self) -> None:
        """The run is over here; a member that was away may still come for what it missed, for a day."""
        if self._retiring is None:
            self._retiring = asyncio.get_running_loop().call_later(AFTER_THE_END, self.clear)

    def stop(self) -> None:
        """The process ends; what is held stays on disk."""
        if self._retiring is not None:
            self._retiring.cancel()

    def clear(self) -> None:
        """Nobody can need them any more."""
        self._over = True
        for path in self._folder.glob("*"):
            self._contents.let_go(Digest(path.name))
        shutil.rmtree(self._folder, ignore_errors=True)


def _remove(path: Path) -> None:
    """What cannot be removed now is not whole at the next start, or goes with the run's end."""
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
