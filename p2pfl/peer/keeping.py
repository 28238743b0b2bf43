"""The deltas that a home keeps where its owner says so: what was sent, what was mixed, what came out. Owns ``kept/``.

kept/RUN/proposal      the run's signed proposal: with the plan's settings
kept/RUN/base          the vector that deltas of the model channel stand on; its SHA-256 is the base in every core
kept/RUN/names         how its entries are called, for people: msgpack [[name, count], ...]
kept/RUN/CORE.delta    4 bytes length, the signed core, the opened delta; CORE is the digest that log entries name
kept/RUN/DIGEST.mixed  the parameters after a mixing; DIGEST is their SHA-256, and in the entry of the mixing
kept/RUN/ended         no more is kept of this run

Nothing is sealed here, so that a copy can be replayed without a key: parameters of partners lie on the disk in clear.
All files are durable before the log entry that names them. What is left out is said in the log first.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from p2pfl.audit import NewEntry
from p2pfl.crypto import pack
from p2pfl.errors import StoreError
from p2pfl.files import write_atomic
from p2pfl.types import Digest

LENGTH = 4  # bytes, big-endian, before the core in a kept delta
ENDED = "ended"
Base = Callable[[], Awaitable[dict[str, Any]]]
"""Asks the worker for the base vector and the names of its entries."""


class Shelf:
    """The folder of all kept runs, ``limit`` bytes at most; where it is full the oldest run that is over goes first."""

    def __init__(self, folder: Path, limit: int, commit: Callable[[Sequence[NewEntry]], Awaitable[int]]) -> None:
        self.limit = limit
        self._folder = folder
        self._commit = commit
        self._sizes = {path.name: _size(path) for path in folder.iterdir()} if folder.is_dir() else {}
        self._open: set[str] = set()
        self._in_order = asyncio.Lock()

    def open(self, run: str, proposal: bytes) -> KeptRun:
        """A run that is under way: it is not deleted to make room."""
        self._open.add(run)
        return KeptRun(self, run, proposal)

    def close(self, run: str) -> None:
        """It is over: the next run that needs its room may have it."""
        self._open.discard(run)

    def status(self) -> dict[str, Any]:
        """Bytes in use, the limit, and the runs of which no more is kept."""
        ended = sorted(run for run in self._sizes if (self._folder / run / ENDED).exists())
        return {"bytes": sum(self._sizes.values()), "limit": self.limit, "runs": sorted(self._sizes), "ended": ended}

    async def begin(self, run: str, proposal: bytes, names: bytes, base: bytes) -> bool:
        """Begin to keep a run, once: the log's entry before the last of its first files. False if it ends already."""
        folder = self._folder / run
        if (folder / ENDED).exists():
            return False
        if (folder / "base").exists():
            return True
        await asyncio.to_thread(_make, folder)
        await self._commit([NewEntry("keeping_begun", {"run": run, "limit": self.limit})])
        for name, data in (("proposal", proposal), ("names", names), ("base", base)):
            if not await self.put(run, name, data):
                return False
        return True

    async def put(self, run: str, name: str, data: bytes) -> bool:
        """Keep one file, durably. False if there is no room: then the log says so, and no more of this run is kept."""
        path = self._folder / run / name
        async with self._in_order:
            if (path.parent / ENDED).exists():
                return False
            if path.exists():
                return True
            if not await self._make_room(run, len(data)):
                await self._end(run, "the limit is reached")
                return False
            await asyncio.to_thread(write_atomic, path, data)
            self._sizes[run] = self._sizes.get(run, 0) + len(data)
            return True

    async def end_open_runs(self, over: Callable[[str], bool]) -> None:
        """The owner has switched keeping off: of a run under way the log must not look as if it went on."""
        for run in sorted(self._sizes):
            if not over(run) and not (self._folder / run / ENDED).exists():
                await self._end(run, "it was switched off")

    async def _make_room(self, run: str, size: int) -> bool:
        while sum(self._sizes.values()) + size > self.limit:
            others = [item for item in self._sizes if item not in self._open]
            if not others:
                return False
            oldest = min(others, key=lambda item: (_begun_at(self._folder / item), item))
            body = {"run": oldest, "deleted": True, "bytes": self._sizes[oldest], "why": "to make room"}
            await self._commit([NewEntry("keeping_ended", body)])
            await asyncio.to_thread(_delete, self._folder / oldest)
            del self._sizes[oldest]
        return True

    async def _end(self, run: str, why: str) -> None:
        """First the log: a gap that nobody is told of would look like a fault, or hide one."""
        body = {"run": run, "deleted": False, "bytes": self._sizes.get(run, 0), "why": why}
        await self._commit([NewEntry("keeping_ended", body)])
        await asyncio.to_thread(write_atomic, self._folder / run / ENDED, b"")


@dataclass(frozen=True, slots=True)
class _Heard:
    signed: bytes
    payload: bytes


class KeptRun:
    """What is kept of one run. A delta that arrives is written only when it goes into a mixing."""

    def __init__(self, shelf: Shelf, run: str, proposal: bytes) -> None:
        self._shelf = shelf
        self._run = run
        self._proposal = proposal
        self._heard: dict[str, _Heard] = {}
        self._keeps: bool | None = None  # None: not begun
        self._beginning = asyncio.Lock()

    def hear(self, core: Digest, signed: bytes, payload: bytes) -> None:
        """A delta was opened and checked."""
        if self._keeps is not False:
            self._heard[core] = _Heard(signed, payload)

    def forget(self, cores: Iterable[str]) -> None:
        """They are mixed already, or never will be."""
        for core in cores:
            self._heard.pop(core, None)

    async def sent(self, core: Digest, signed: bytes, payload: bytes, base: Base) -> None:
        """An own delta is about to be committed. Raises StoreError."""
        if await self._begun(base):
            await self._put(f"{core}.delta", framed(signed, payload))

    async def mixes(self, cores: Iterable[str], base: Base) -> None:
        """These deltas are about to be mixed. Raises StoreError."""
        for core in cores:
            heard = self._heard.get(core)
            if heard is not None and await self._begun(base):
                await self._put(f"{core}.delta", framed(heard.signed, heard.payload))

    async def mixed(self, digest: Digest, shared: Callable[[], Awaitable[bytes]]) -> None:
        """A mixing is done; ``shared`` asks the worker for what travels of the parameters. Raises StoreError."""
        if self._keeps:
            await self._put(f"{digest}.mixed", await shared())

    async def _begun(self, base: Base) -> bool:
        async with self._beginning:
            if self._keeps is None:
                value = await base()
                first = self._proposal, pack(value["names"]), bytes(value["vector"])
                self._keeps = await self._shelf.begin(self._run, *first)
        return bool(self._keeps)

    async def _put(self, name: str, data: bytes) -> None:
        if self._keeps and not await self._shelf.put(self._run, name, data):
            self._keeps = False
            self._heard.clear()


def framed(signed: bytes, payload: bytes) -> bytes:
    """The contents of a kept delta."""
    return len(signed).to_bytes(LENGTH, "big") + signed + payload


def unframed(data: bytes) -> tuple[bytes, bytes]:
    """The signed core and the opened delta; both are whatever the file holds."""
    end = LENGTH + int.from_bytes(data[:LENGTH], "big")
    return data[LENGTH:end], data[end:]


def _make(folder: Path) -> None:
    try:
        folder.parent.mkdir(mode=0o700, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise StoreError(f"couldn't make {folder}: {error.strerror}; check space and rights") from error


def _delete(folder: Path) -> None:
    try:
        shutil.rmtree(folder)
    except OSError as error:
        raise StoreError(f"couldn't delete {folder}: {error.strerror}; delete it by hand") from error


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir()) if folder.is_dir() else 0


def _begun_at(folder: Path) -> float:
    path = folder / "proposal"
    return path.stat().st_mtime if path.exists() else 0.0
