"""Ciphertext files: served by chunk to their recipients alone, pulled and opened, pruned once acknowledged."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

from p2pfl.crypto import CHUNK, Opener, Sealed, seal
from p2pfl.errors import LinkError, SignatureRefused
from p2pfl.peer import contents as room
from p2pfl.peer.contents import AT_ONCE, READ_AHEAD, SEALED_CHUNK, Contents, pull_sealed
from p2pfl.types import Digest, PeerId

ANNA, BERT = PeerId("anna"), PeerId("bert")
CORE = Digest("ab" * 32)
CONTEXT = b"context"


class StoreHost:
    """A host whose neighbour is a store in the same process; counts what it gave and whether the pull was closed."""

    def __init__(self, store: Contents, asking: PeerId, spoil: int | None = None, end: int | None = None) -> None:
        self._store, self._asking, self._spoil, self._end = store, asking, spoil, end
        self.given = 0
        self.closed = False

    async def fetch(self, peer: PeerId, content: str, chunks: int, limit: int) -> AsyncGenerator[bytes, None]:
        try:
            for index in range(chunks):
                chunk = await self._store.chunk(self._asking, content, index)
                if chunk is None or index == self._end:
                    raise LinkError("the other side does not hold it")
                assert len(chunk) <= limit
                if index == self._spoil:
                    chunk = chunk[:-1] + bytes([chunk[-1] ^ 1])
                self.given += 1
                yield chunk
        finally:
            self.closed = True


async def stored(folder: Path, size: int) -> tuple[Contents, Sealed, bytes]:
    plaintext = bytes(index * 7 % 251 for index in range(997)) * (size // 997 + 1)
    plaintext = plaintext[:size]
    sealed = seal(plaintext, CONTEXT)
    store = Contents(folder)
    await store.put_ciphertext(CORE, sealed.chunks, frozenset([ANNA]))
    return store, sealed, plaintext


async def pull(host: Any, sealed: Sealed) -> bytes:
    return await pull_sealed(host, BERT, CORE, Opener(sealed.manifest, sealed.key, CONTEXT))


@pytest.mark.parametrize(
    "size", [0, 1, CHUNK, CHUNK * AT_ONCE - 1, CHUNK * AT_ONCE, CHUNK * AT_ONCE + 1, CHUNK * AT_ONCE * 3 + 5]
)
async def test_pull_gives_the_plaintext(size: int, tmp_path: Path) -> None:
    store, sealed, plaintext = await stored(tmp_path, size)
    host = StoreHost(store, ANNA)
    assert await pull(host, sealed) == plaintext
    assert host.closed and host.given == sealed.manifest.chunks


async def test_each_chunk_is_the_files_own(tmp_path: Path) -> None:
    store, sealed, _ = await stored(tmp_path, CHUNK * (2 * AT_ONCE) + 9)
    for index in [0, AT_ONCE - 1, AT_ONCE, 5, 2 * AT_ONCE, 2 * AT_ONCE - 1, 1]:
        assert await store.chunk(ANNA, CORE, index) == sealed.chunks[index]
    for index in [2 * AT_ONCE + 1, 10 * AT_ONCE, -1]:
        assert await store.chunk(ANNA, CORE, index) is None
    assert (tmp_path / "outbox" / CORE).stat().st_size == sum(map(len, sealed.chunks))


async def test_only_recipients_are_served(tmp_path: Path) -> None:
    store, _, _ = await stored(tmp_path, CHUNK * 3)
    assert await store.chunk(ANNA, CORE, 1) is not None
    assert await store.chunk(BERT, CORE, 1) is None  # also when the block is at hand


async def test_released_is_gone_from_disk_and_memory(tmp_path: Path) -> None:
    store, _, _ = await stored(tmp_path, CHUNK * 3)
    assert await store.chunk(ANNA, CORE, 0) is not None
    store.release(CORE)
    assert await store.chunk(ANNA, CORE, 0) is None
    assert list((tmp_path / "outbox").iterdir()) == []
    assert store._blocks == {}


async def test_memory_for_reading_ahead_is_bounded(tmp_path: Path) -> None:
    store = Contents(tmp_path)
    names = [store.put_file(bytes([number]) * (CHUNK * AT_ONCE + 1)) for number in range(READ_AHEAD)]
    for name in names:
        assert len(await store.chunk(BERT, name, 0) or b"") == CHUNK
        assert await store.chunk(BERT, name, AT_ONCE) is not None
    assert len(store._blocks) == READ_AHEAD
    assert max(map(len, store._blocks.values())) <= AT_ONCE * SEALED_CHUNK


@pytest.mark.parametrize("place", [0, AT_ONCE - 1, AT_ONCE + 3, 2 * AT_ONCE])
async def test_an_altered_chunk_is_refused(place: int, tmp_path: Path) -> None:
    store, sealed, _ = await stored(tmp_path, CHUNK * 2 * AT_ONCE + 1)
    host = StoreHost(store, ANNA, spoil=place)
    with pytest.raises(SignatureRefused, match=f"chunk {place} does not open"):
        await pull(host, sealed)
    assert host.closed


async def test_a_broken_pull_is_a_link_error(tmp_path: Path) -> None:
    store, sealed, _ = await stored(tmp_path, CHUNK * 2 * AT_ONCE)
    with pytest.raises(LinkError):
        await pull(StoreHost(store, ANNA, end=AT_ONCE + 2), sealed)


async def test_every_block_is_read_once_and_the_next_one_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, sealed, plaintext = await stored(tmp_path, CHUNK * 5 * AT_ONCE + 1)
    read: list[int] = []
    real = room._read_at

    def counted(path: Path, offset: int, size: int) -> bytes | None:
        read.append(offset // size)
        return real(path, offset, size)

    monkeypatch.setattr(room, "_read_at", counted)
    host = StoreHost(store, ANNA)
    assert await pull(host, sealed) == plaintext
    assert sorted(read) == [0, 1, 2, 3, 4, 5] and not store._coming
    for number in range(3 * READ_AHEAD):  # pulls that nobody goes on with
        name = f"{number:064x}"
        (store._outbox / name).write_bytes(bytes(2 * AT_ONCE * SEALED_CHUNK))
        assert store.restore_ciphertext(Digest(name), frozenset([ANNA]))
        await store.chunk(ANNA, name, 0)
    assert len(store._coming) <= READ_AHEAD and len(store._blocks) <= READ_AHEAD
    store.release(Digest(name))
    assert all(path.name != name for path, _ in [*store._coming, *store._blocks])


async def test_cancelling_a_pull_closes_it(tmp_path: Path) -> None:
    store, sealed, _ = await stored(tmp_path, CHUNK * 4)
    reached, never = asyncio.Event(), asyncio.Event()

    class Slow(StoreHost):
        async def fetch(self, *arguments: Any) -> AsyncGenerator[bytes, None]:
            async for chunk in super().fetch(*arguments):
                yield chunk
                reached.set()
                await never.wait()

    task = asyncio.create_task(pull(Slow(store, ANNA), sealed))
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
