"""Bulk content over one link, pulled chunk by chunk.

The receiver asks for ranges and keeps at most PULL_WINDOW chunks in flight; the sender produces one chunk
at a time and waits until the medium has taken it. So neither side's memory grows with the content, and a
slow reader slows its own transfer only.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable

from p2pfl.errors import LimitExceeded, LinkError, MalformedMessage
from p2pfl.net import wire
from p2pfl.net.limits import CHUNK_LIMIT, FETCHES_IN_FLIGHT, PULL_RANGE, PULL_WINDOW, QUEUED_RANGES
from p2pfl.types import PeerId

ContentProvider = Callable[[PeerId, str, int], Awaitable[bytes | None]]
"""(asking peer, content name, index) -> that chunk, or None where we do not hold it or do not give it to
that peer.
"""

Send = Callable[..., Awaitable[None]]

_log = logging.getLogger("p2pfl.net")


class _Pull:
    """One fetch under way at the receiver. Chunks arrive strictly in order, since ranges are served in
    order.
    """

    def __init__(self, chunk_limit: int) -> None:
        self.chunk_limit = chunk_limit
        self.asked = 0  # first chunk not asked for yet
        self.arrived = 0  # index of the next chunk to arrive
        self.chunks: deque[bytes] = deque()
        self.missing: int | None = None
        self.failure: str | None = None
        self.waiter: asyncio.Future[None] | None = None

    def wake(self) -> None:
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)

    async def next_chunk(self, seconds: float) -> bytes:
        if not self.chunks and self.missing is None and self.failure is None:
            self.waiter = asyncio.get_running_loop().create_future()
            try:
                async with asyncio.timeout(seconds):
                    await self.waiter
            finally:
                self.waiter = None
        if self.chunks:
            return self.chunks.popleft()
        raise LinkError(self.failure or f"the other side does not hold chunk {self.missing}")


class Puller:
    """All fetches of one link, receiving side."""

    def __init__(self, peer: PeerId, send: Send) -> None:
        self._peer = peer
        self._send = send
        self._pulls: dict[int, _Pull] = {}
        self._next = 0
        self._slots = asyncio.Semaphore(FETCHES_IN_FLIGHT)
        self._failure: str | None = None
        self.stale = 0
        """Chunks that arrived for a fetch already given up."""

    async def fetch(
        self, content: str, start: int, chunks: int, chunk_limit: int, seconds: float
    ) -> AsyncGenerator[bytes, None]:
        """Chunks ``start`` to ``chunks - 1`` in order; LinkError when they stall, are missing, or the
        link goes.
        """
        async with self._slots:
            number, pull = self._open(start, chunk_limit)
            try:
                for index in range(start, chunks):
                    await self._ask(number, pull, content, index, chunks)
                    try:
                        yield await pull.next_chunk(seconds)
                    except TimeoutError:
                        raise LinkError(
                            f"{self._peer} sent no chunk {index} of {content} within {seconds:g} s; "
                            "try another neighbour"
                        ) from None
            finally:
                del self._pulls[number]

    def _open(self, start: int, chunk_limit: int) -> tuple[int, _Pull]:
        pull = _Pull(chunk_limit)
        pull.asked = pull.arrived = start
        pull.failure = self._failure
        self._next = (self._next + 1) & 0xFFFFFFFF
        self._pulls[self._next] = pull
        return self._next, pull

    async def _ask(self, number: int, pull: _Pull, content: str, index: int, chunks: int) -> None:
        """Ask for whole ranges while the window has room. ``index`` is the next chunk the caller will get."""
        while pull.asked < chunks and pull.asked - index <= PULL_WINDOW - PULL_RANGE:
            count = min(PULL_RANGE, chunks - pull.asked)
            first, pull.asked = pull.asked, pull.asked + count
            await self._send(wire.pull_frame(number, first, count, content))

    def take(self, frame: bytes) -> None:
        """A CHUNK has arrived."""
        number, index = wire.read_chunk(frame)
        pull = self._pulls.get(number)
        if pull is None:
            self.stale += 1
            return
        size = len(frame) - wire.CHUNK_HEADER
        if index != pull.arrived or index >= pull.asked:
            raise MalformedMessage(
                f"{self._peer} sent chunk {index}, which was not asked for; closing", peer=self._peer
            )
        if size > pull.chunk_limit:
            raise LimitExceeded(
                f"{self._peer} sent a chunk of {size} bytes, agreed were {pull.chunk_limit}; closing",
                peer=self._peer,
            )
        pull.arrived += 1
        pull.chunks.append(frame[wire.CHUNK_HEADER :])
        pull.wake()

    def miss(self, frame: bytes) -> None:
        """A MISSING has arrived."""
        number, index = wire.read_chunk(frame)
        pull = self._pulls.get(number)
        if pull is not None:
            pull.missing = index
            pull.wake()

    def fail(self, reason: str) -> None:
        """The link has gone."""
        self._failure = reason
        for pull in self._pulls.values():
            pull.failure = reason
            pull.wake()


class Server:
    """The sending side: answers the neighbour's ranges one chunk at a time."""

    def __init__(self, peer: PeerId, send: Send, provider: Callable[[], ContentProvider | None]) -> None:
        self._peer = peer
        self._send = send
        self._provider = provider
        self._ranges: deque[tuple[int, int, int, str]] = deque()
        self._work = asyncio.Event()
        self._last_missing: int | None = None
        self.faults = 0
        """Provider calls that failed."""

    @property
    def idle(self) -> bool:
        """Whether nothing is being sent."""
        return not self._ranges

    def queue(self, frame: bytes) -> None:
        """A PULL has arrived."""
        if len(self._ranges) >= QUEUED_RANGES:
            raise LimitExceeded(f"{self._peer} has more than {QUEUED_RANGES} pulls waiting; closing", peer=self._peer)
        self._ranges.append(wire.read_pull(frame))
        self._work.set()

    async def run(self) -> None:
        """Serve until cancelled."""
        while True:
            while not self._ranges:
                self._work.clear()
                await self._work.wait()
            number, first, count, content = self._ranges[0]
            await self._serve(number, first, count, content)
            self._ranges.popleft()

    async def _serve(self, number: int, first: int, count: int, content: str) -> None:
        for index in range(first, first + count):
            chunk = None if number == self._last_missing else await self._chunk(content, index)
            if chunk is None:
                if number != self._last_missing:  # one answer per fetch is enough
                    self._last_missing = number
                    await self._send(wire.missing_frame(number, index))
                return
            await self._send(wire.chunk_head(number, index), chunk)

    async def _chunk(self, content: str, index: int) -> bytes | None:
        provider = self._provider()
        if provider is None:
            return None
        try:
            chunk = await provider(self._peer, content, index)
        except Exception:
            # a provider's fault must not cost the link; the neighbour learns only that we do not have it
            self.faults += 1
            _log.exception("the content provider failed on chunk %d of %s", index, content)
            return None
        if chunk is not None and len(chunk) > CHUNK_LIMIT:
            self.faults += 1
            _log.error("chunk %d of %s has %d bytes, at most %d travel", index, content, len(chunk), CHUNK_LIMIT)
            return None
        return chunk
