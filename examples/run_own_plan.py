"""Run an own plan with several peers in one process: the quickest way to see whether a plan learns.

    python examples/run_own_plan.py

The peers are real: homes, signatures, sealed deltas, logs and worker processes. Only the links are in memory.
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from patients import write_patients

import p2pfl

PLAN = Path(__file__).parent / "own_plan"


async def main() -> None:
    """Three sites with unequal amounts of data."""
    with tempfile.TemporaryDirectory() as folder:
        sizes = (160, 80, 40)
        files = [write_patients(Path(folder) / f"{size}.csv", size, seed=size) for size in sizes]
        async with p2pfl.local(PLAN, files, peers=len(files)) as peers:
            runs = await peers.run(seed=7)
            for peer, run in zip(peers, runs, strict=True):
                report = run.report()
                figures = report["at_home"]
                print(f"{peer.name}: {report['rounds_done']} rounds, right at home: {figures['right']:.0%}")
            model = await runs[0].result()
            print(f"the model has {sum(value.numel() for value in model.parameters())} parameters")


if __name__ == "__main__":
    asyncio.run(main())
