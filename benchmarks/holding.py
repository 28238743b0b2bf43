"""What it costs to hold a neighbour's state: pulling and opening a delta, with and without keeping its sealed chunks.

Processor time of this process is what counts (it hardly depends on what else runs); elapsed time is beside it. The
two ways alternate, so that a busy machine disturbs both alike. The chunks come from a file, not over a link.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

from figures import machine, show, table

from p2pfl.crypto import Opener, Sealed, seal
from p2pfl.peer.contents import Contents, pull_sealed
from p2pfl.peer.holdings import Holdings
from p2pfl.types import Digest, PeerId

CORE, ANNA = Digest("ab" * 32), PeerId("anna")
CONTEXT = b"benchmark"


class StoreHost:
    """A host whose neighbour is a store in the same process."""

    def __init__(self, store: Contents) -> None:
        self._store = store

    async def fetch(self, peer: PeerId, content: str, chunks: int, limit: int) -> AsyncGenerator[bytes, None]:
        """The chunks, one after the other."""
        for index in range(chunks):
            chunk = await self._store.chunk(ANNA, content, index)
            assert chunk is not None
            yield chunk


async def pull(host: Any, sealed: Sealed, holdings: Holdings | None) -> tuple[float, float]:
    """Processor and elapsed seconds of one pull, kept or not."""
    spool = holdings.spool(CORE) if holdings is not None else None
    processor, elapsed = time.process_time(), time.perf_counter()
    await pull_sealed(host, ANNA, CORE, Opener(sealed.manifest, sealed.key, CONTEXT), spool)
    if spool is not None:
        await spool.close()
    return time.process_time() - processor, time.perf_counter() - elapsed


async def measure(folder: Path, size: int, times: int) -> dict[str, Any]:
    """Both ways, one after the other."""
    store = Contents(folder)
    sealed = seal(bytes(size), CONTEXT)
    await store.put_ciphertext(CORE, sealed.chunks, frozenset([ANNA]))
    holdings = Holdings(folder / "holdings", store)
    rows: dict[str, list[tuple[float, float]]] = {"opened": [], "opened and held": []}
    for _ in range(times):
        rows["opened"].append(await pull(StoreHost(store), sealed, None))
        rows["opened and held"].append(await pull(StoreHost(store), sealed, holdings))
    held = (folder / "holdings" / f"{CORE}.new").stat().st_size
    return {
        "bytes": size,
        "held_bytes": held,
        "times": times,
        "ways": {
            name: {
                "processor_ms": statistics.median(row[0] for row in found) * 1e3,
                "elapsed_ms": statistics.median(row[1] for row in found) * 1e3,
            }
            for name, found in rows.items()
        },
    }


def tables(result: dict[str, Any]) -> str:
    """The figures as text."""
    rows = [[name, way["processor_ms"], way["elapsed_ms"]] for name, way in result["ways"].items()]
    title = (
        f"one delta of {result['bytes']:,} bytes, median of {result['times']}; {result['held_bytes']:,} bytes on disk"
    )
    return table(title, ["what", "processor ms", "elapsed ms"], rows)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bytes", type=int, default=44_000_000)
    parser.add_argument("--times", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--folder", type=Path, default=None, help="where the files go; the disk measured")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="p2pfl-holding-", dir=arguments.folder) as name:
        result = {"machine": machine(), **asyncio.run(measure(Path(name), arguments.bytes, arguments.times))}
    show(result, tables(result), arguments.json)


if __name__ == "__main__":
    main()
