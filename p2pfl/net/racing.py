"""Several ways to one member, tried one after the other without waiting for each to fail; the first link wins.

After the idea of Happy Eyeballs version 2 (RFC 8305, section 5): ways stand in the order of preference, and the
next one starts when the former has failed or a short delay has passed. A dearer way waits longer.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

from p2pfl.errors import P2PFLError
from p2pfl.net.limits import Limits
from p2pfl.net.ways import Way
from p2pfl.types import PeerId

FAULTS_LIMIT = 4000
"""Characters of the words about one attempt; every way gets its part."""

_log = logging.getLogger("p2pfl.net")


class Race:
    """One attempt at one peer over ``ways``, the cheapest first.

    ``attempt`` tries one way and raises what is wrong with it; ``over`` tells whether there is nothing left to win.
    ``head_start``: seconds from the beginning in which no way that costs anything starts.
    """

    def __init__(
        self,
        peer: PeerId,
        ways: Sequence[Way],
        attempt: Callable[[Way], Awaitable[None]],
        over: Callable[[], bool],
        limits: Limits,
        *,
        head_start: float = 0.0,
    ) -> None:
        self.peer = peer
        self.ways = tuple(ways)
        self._attempt = attempt
        self._over = over
        self._limits = limits
        self._head_start = head_start
        self._left = deque(ways)
        self._running: dict[Way, asyncio.Task[None]] = {}
        self._faults: dict[Way, Exception] = {}
        self._news = asyncio.Event()
        self._begin = 0.0  # loop time, as the next
        self._last: Way | None = None  # the one started last
        self._last_start = 0.0

    def wake(self) -> None:
        """Something about the peer has changed: look whether it is over."""
        self._news.set()

    @property
    def faults(self) -> list[str]:
        """Why each way failed, in the ways' order; readable and of bounded length."""
        limit = FAULTS_LIMIT // max(len(self._faults), 1)
        return [way.tried(self._faults[way], limit) for way in self.ways if way in self._faults]

    async def run(self) -> bool:
        """True once it is over, False when every way has failed. Ends the other attempts, cancelled or not."""
        self._begin = asyncio.get_running_loop().time()
        try:
            while not self._over():
                self._news.clear()
                pause = self._start_due()
                if pause is None and not self._running:
                    return self._over()
                await self._pause(pause)
            return True
        finally:
            tasks = list(self._running.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _start_due(self) -> float | None:
        """Start what may start now; seconds until the next way, None after the last one."""
        while self._left:
            pause = self._hold(self._left[0])
            if pause > 0:
                return pause
            way = self._left.popleft()
            self._last, self._last_start = way, asyncio.get_running_loop().time()
            self._running[way] = asyncio.get_running_loop().create_task(self._try(way))
        return None

    def _hold(self, way: Way) -> float:
        """How long this way, the next one, still has to wait."""
        now = asyncio.get_running_loop().time()
        start = self._begin + self._head_start if way.cost else now
        if self._last is None:
            pass
        elif way.cost > self._last.cost and self._running:
            start = max(start, self._last_start + self._limits.dearer_after)
        elif way.cost == self._last.cost and self._last in self._running:
            start = max(start, self._last_start + self._limits.stagger)
        return start - now

    async def _try(self, way: Way) -> None:
        try:
            await self._attempt(way)
        except P2PFLError as error:
            self._faults[way] = error
        except Exception as error:
            _log.exception("dialling over %s failed", way)
            self._faults[way] = error
        finally:
            del self._running[way]
            self._news.set()

    async def _pause(self, seconds: float | None) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._news.wait()
        except TimeoutError:
            pass
