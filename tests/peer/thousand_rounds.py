"""Three peers and their workers for a thousand rounds, alone in a process: prints what stayed in memory.

In the process of the test suite some hundred tests before would be measured, too: once 7.0 MB were seen there, where
these peers alone grow by 1.0 to 1.4 MB, and by no more in three times as many rounds.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
from pathlib import Path

from bottle import Quadratic
from test_peer_local import write_plan

import p2pfl

ROUNDS = 1000
WARM = 300  # rounds until every window and cache is full


def resident(process: int | str) -> int:
    """Bytes of a process that are in memory."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * 4096


async def measure(folder: Path) -> dict[str, int | list[int]]:
    """Rounds done, and by how much this process and each worker grew after the warm rounds, in bytes."""
    files = Quadratic.make((30, 20, 10)).write(folder)
    plan = write_plan(folder, rule="kgt", kind="full", rate=0.1, steps=1, rounds=ROUNDS)
    samples: dict[int, list[int]] = {}
    async with p2pfl.local(plan, files, peers=3) as peers:
        running = asyncio.create_task(peers.run(seed=1))
        while not all(peer.runs for peer in peers):
            await asyncio.sleep(0)
        (run,) = peers[0].runs.values()
        async for event in run.events():
            if event.topic == "round" and event.facts["round"] in (WARM, ROUNDS - 1):
                gc.collect()
                workers = [peer._book.runners[run.id].worker for peer in peers]
                assert all(worker and worker.pid for worker in workers)
                pids = [worker.pid for worker in workers if worker and worker.pid]
                samples[event.facts["round"]] = [resident(pid) for pid in ["self", *pids]]
        done = min(handle.report()["rounds_done"] for handle in await running)
    own, *workers_grown = [after - before for before, after in zip(samples[WARM], samples[ROUNDS - 1], strict=True)]
    return {"rounds_done": done, "own": own, "workers": workers_grown}


if __name__ == "__main__":
    print(json.dumps(asyncio.run(measure(Path(sys.argv[1])))))
