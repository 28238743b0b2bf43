"""Peers inside an event loop that runs already, as in a notebook; `# %%` begins a cell.

    python examples/in_a_notebook.py

In a notebook the cells' bodies are written as they stand, with `await` at top level. Here one loop runs them one
after the other; nothing of p2pfl starts a loop of its own, and what one cell opened the next one uses.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from pathlib import Path

from patients import write_patients

import p2pfl

PLAN = Path(__file__).parent / "own_plan"


async def cells() -> None:
    """What a person types."""
    # %% the peers stay open from here on
    stack = contextlib.AsyncExitStack()
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    data = write_patients(folder / "all.csv", 150, seed=5)  # one file: its rows are dealt out
    peers = await stack.enter_async_context(p2pfl.local(PLAN, data, peers=3))
    try:
        # %% start the run and go on working: the loop belongs to the notebook
        training = asyncio.create_task(peers.run(rounds=6, seed=2))
        run = await peers[1].next_proposal()
        print(f"training goes on: {not training.done()}")

        # %% look at it as it runs
        async for event in run.events():
            if event.topic == "mixed":
                print(f"round {event.facts['round']}: distance to the neighbours {event.facts['distance']:.4f}")

        # %% the result is a torch module
        runs = await training
        print(await runs[1].result())
    finally:
        # %% the last cell
        await stack.aclose()


if __name__ == "__main__":
    notebook = asyncio.new_event_loop()
    try:
        notebook.run_until_complete(cells())
    finally:
        notebook.close()
