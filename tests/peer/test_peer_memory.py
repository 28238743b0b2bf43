"""A peer's memory stays flat over a thousand rounds: its own process and its worker."""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path

import pytest
from bottle import Quadratic
from test_peer_local import write_plan

import p2pfl

ROUNDS = 1000
WARM = 300  # rounds until every window and cache is full
GROWTH = 6 << 20  # bytes in 700 rounds of three peers: 3 kB for each round and peer, of an allocator that fragments


def resident(process: int) -> int:
    """Bytes of a process that are in memory."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * 4096


@pytest.mark.slow
@pytest.mark.timeout(400)
async def test_memory_stays_flat_over_a_thousand_rounds(tmp_path: Path) -> None:
    files = Quadratic.make((30, 20, 10)).write(tmp_path)
    plan = write_plan(tmp_path, rule="kgt", kind="full", rate=0.1, steps=1, rounds=ROUNDS)
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
                samples[event.facts["round"]] = [resident(pid) for pid in ["self", *pids]]  # type: ignore[arg-type]
        runs = await running
        assert all(handle.report()["rounds_done"] == ROUNDS + 2 for handle in runs)
    own, *workers_growth = [after - before for before, after in zip(samples[WARM], samples[ROUNDS - 1], strict=True)]
    print(f"grown over {ROUNDS - WARM} rounds: own {own / 1e6:.2f} MB, workers {[g / 1e6 for g in workers_growth]} MB")
    assert own < GROWTH
    assert max(workers_growth) < GROWTH
