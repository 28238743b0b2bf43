"""Independent pieces of work on as many threads as torch may use, each of which computes on one thread alone.

Threads inside each operation wait for each other thousands of times per round; whole pieces side by side do not. The
threads stay: oneDNN keeps the kernels that it generates, and the allocator its free memory, for each thread. An
executor of the standard library does not fit: an interrupt while it starts a thread leaves one that never ends.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from functools import cache, partial
from queue import SimpleQueue

import torch


def on_threads(jobs: Sequence[Callable[[], None]]) -> None:
    """Run the jobs side by side, and wait for all; the first error is raised then. Jobs must not wait for others."""
    before = torch.get_num_threads()
    turn, at_work, left, stopped = threading.Condition(), 0, len(jobs), False
    errors: dict[int, BaseException] = {}

    def alone(place: int) -> None:
        nonlocal at_work, left
        with turn:
            if stopped:
                return
            at_work += 1
        try:
            torch.set_num_threads(1)  # of this thread
            jobs[place]()
        except BaseException as error:  # it is the caller's
            errors[place] = error
        finally:
            with turn:
                at_work, left = at_work - 1, left - 1
                turn.notify_all()

    try:
        workers = _workers()
        workers.grow(len(jobs))
        for place in range(len(jobs)):
            workers.queue.put(partial(alone, place))
        with turn:
            turn.wait_for(lambda: not left)
    except KeyboardInterrupt:
        with turn:
            stopped = True
            turn.wait_for(lambda: not at_work)  # what they change is whole again before anybody looks at it
        raise
    finally:
        torch.set_num_threads(before)  # what later threads begin with
    if errors:
        raise errors[min(errors)]


def dealt(pieces: int, parts: int) -> list[range]:
    """``pieces`` pieces of work dealt out to at most ``parts`` threads in turn."""
    return [range(start, pieces, parts) for start in range(min(parts, pieces))]


class _Workers:
    def __init__(self) -> None:
        self.queue: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._count = 0

    def grow(self, count: int) -> None:
        """So many threads at least."""
        while self._count < count:
            threading.Thread(target=self._serve, name="p2pfl-compute", daemon=True).start()
            self._count += 1

    def _serve(self) -> None:
        while True:
            self.queue.get()()


@cache
def _workers() -> _Workers:
    return _Workers()


os.register_at_fork(after_in_child=_workers.cache_clear)  # a forked process has none of the threads
