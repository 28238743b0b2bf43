"""Several peers in one process, for notebooks and tests: temporary homes, memory links, real machines and workers."""

from __future__ import annotations

import asyncio
import contextlib
import csv
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from p2pfl.errors import ConfigError, DataError
from p2pfl.governance import (
    Plan,
    accept_charter,
    fingerprint,
    new_charter,
    read_plan,
    record_from_text,
    sign_charter,
)
from p2pfl.net import MemoryNetwork
from p2pfl.peer.home import init_home, open_home
from p2pfl.peer.home_settings import WebRtcSettings
from p2pfl.peer.peer import Peer
from p2pfl.peer.run import Run

MAX_LOCAL_PEERS = 32  # each has a worker process that imports torch


class LocalPeers(Sequence[Peer]):
    """The running peers; ``await peers.run()`` proposes at the first and joins at all others."""

    def __init__(self, peers: Sequence[Peer], plan: Plan) -> None:
        self._peers = tuple(peers)
        self.plan = plan

    def __len__(self) -> int:
        return len(self._peers)

    def __getitem__(self, index: Any) -> Any:
        return self._peers[index]

    async def run(self, **options: Any) -> list[Run]:
        """Run the plan to its end at all peers (options as in `Peer.propose`); returns one Run per peer."""
        first = await self._peers[0].propose(self.plan, **options)
        proposals = await asyncio.gather(*(peer.next_proposal() for peer in self._peers[1:]))
        joined = await asyncio.gather(
            *(peer.join(run.id) for peer, run in zip(self._peers[1:], proposals, strict=True))
        )
        runs = [first, *joined]
        await asyncio.gather(*(run.finished() for run in runs))
        return runs


@contextlib.asynccontextmanager
async def local(
    plan: str | Path | Plan, data: str | Path | Sequence[str | Path], *, peers: int = 4
) -> AsyncIterator[LocalPeers]:
    """Start ``peers`` peers in this process and event loop.

    ``data`` is one CSV file, whose rows are dealt out to the peers in turn, or one CSV file per peer. The homes are
    temporary. Raises ConfigError, DataError or PlanError.
    """
    read = plan if isinstance(plan, Plan) else read_plan(Path(plan))
    if not 2 <= peers <= MAX_LOCAL_PEERS:
        raise ConfigError(f"peers={peers}: between 2 and {MAX_LOCAL_PEERS} peers fit into one process")
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="p2pfl-local-")))
        files = _deal(data, peers, folder)
        network = MemoryNetwork()
        names = [f"peer-{number}" for number in range(peers)]
        found_consortium({folder / name: None for name in names}, "local", read.settings.topology_spec())
        for name, file in zip(names, files, strict=True):
            open_home(folder / name).registry.add(read.settings.data.tag, file, now=int(time.time()))
        running = [await stack.enter_async_context(Peer(folder / name, network=network)) for name in names]
        yield LocalPeers(running, read)


def found_consortium(
    homes: Mapping[Path, str | None],
    name: str,
    topology: Mapping[str, Any],
    *,
    listen: Mapping[Path, str] | None = None,
    discover: str | None = None,
    names: Sequence[str] | None = None,
    webrtc: WebRtcSettings | None = None,
    keep_deltas: bool = False,
) -> str:
    """Make homes (path -> passphrase), let all found one consortium, and accept its charter; returns the fingerprint.

    What `p2pfl init`, `charter new`, `sign`, `merge` and `accept` do, for consortia that live on one machine.

    ``listen`` gives the address of each home with a port; without it all listen in memory.
    """
    texts = {}
    for (path, passphrase), called in zip(homes.items(), names or [path.name for path in homes], strict=True):
        address = f"/memory/{called}" if listen is None else listen.get(path)
        texts[path] = init_home(
            path, name=called, listen=address, discover=discover, webrtc=webrtc, keep_deltas=keep_deltas,
            passphrase=passphrase,
        )  # fmt: skip
    records = [record_from_text(text) for text in texts.values()]
    charter = new_charter(name, records, topology=dict(topology))
    for path, passphrase in homes.items():
        charter = sign_charter(charter, open_home(path).identity(passphrase))
    for path in homes:
        accept_charter(path / "charter", charter, fingerprint(charter))
    return fingerprint(charter)


def _deal(data: str | Path | Sequence[str | Path], peers: int, folder: Path) -> list[Path]:
    if not isinstance(data, (str, Path)):
        files = [Path(file) for file in data]
        if len(files) != peers:
            raise ConfigError(f"{len(files)} data files for {peers} peers; give one file per peer, or a single one")
        return files
    try:
        with Path(data).open(newline="", encoding="utf-8") as file:
            header, *rows = list(csv.reader(file))
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"couldn't read {data} as a CSV file with a header: {error}") from error
    if len(rows) < peers:
        raise DataError(f"{data} has {len(rows)} rows for {peers} peers; every peer needs at least one")
    files = []
    for number in range(peers):
        path = folder / f"part-{number}.csv"
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([header, *rows[number::peers]])
        files.append(path)
    return files
