"""Tasks that end with their owner, and whose errors end the peer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from p2pfl.errors import P2PFLError


class Tasks:
    """Everything that one part of a peer has under way."""

    def __init__(self, failed: Callable[[P2PFLError], None]) -> None:
        self._failed = failed
        self._tasks: set[asyncio.Task[None]] = set()

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run it beside everything else."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            unknown = P2PFLError(f"internal error ({error!r}); please report it")
            self._failed(error if isinstance(error, P2PFLError) else unknown)

    async def stop(self) -> None:
        """Cancel all of them and wait until they have ended."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
