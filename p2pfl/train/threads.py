"""Independent pieces of work on as many threads as torch may use, each of which computes on one thread alone.

Threads inside each operation wait for each other thousands of times per round; whole pieces side by side do not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch


def on_threads(jobs: Sequence[Callable[[], None]]) -> None:
    """Run the jobs side by side, and wait for all; the first error is raised then."""
    before = torch.get_num_threads()

    def alone(job: Callable[[], None]) -> None:
        torch.set_num_threads(1)  # of this thread
        job()

    try:
        with ThreadPoolExecutor(max(1, len(jobs))) as pool:
            running = [pool.submit(alone, job) for job in jobs]
        for one in running:
            one.result()
    finally:
        torch.set_num_threads(before)  # what later threads begin with


def dealt(pieces: int, parts: int) -> list[range]:
    """``pieces`` pieces of work dealt out to at most ``parts`` threads in turn."""
    return [range(start, pieces, parts) for start in range(min(parts, pieces))]
