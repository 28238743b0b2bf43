"""Length-prefixed frames over an asyncio byte stream: 4 bytes big-endian length, then the body."""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from typing import cast

from p2pfl.errors import IllegalStep, LimitExceeded, LinkError, P2PFLError
from p2pfl.net.limits import FRAME_LIMIT, HELLO_LIMIT, INBOX_BYTES, WRITE_BUFFER

_PREFIX = 4
_READ_BUFFER = 256 << 10  # asyncio's TLS hands over up to 256 KiB at once
_READ_AT_LEAST = 32 << 10  # below this much room the buffer is tidied; two TLS records fit
_JOIN_BELOW = 16 << 10  # parts of a small frame go out as one TLS record; joining large ones would only copy

_PROBABLY_REFUSED = (
    "closed before it said a word: probably it refused our certificate, since its charter does not name us "
    "or it holds an older member record of ours; compare charter fingerprints with that site"
)
# asyncio drops the alert of a failed handshake: a refused dialler sees a bare end (sslproto, Python 3.11)


class FrameProtocol(asyncio.BufferedProtocol):
    """Splits the stream into frames, holds a bounded inbox, and lets writers wait for room."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray(_READ_BUFFER)
        self._view = memoryview(self._buffer)
        self._start = self._end = 0
        self._limit = HELLO_LIMIT
        self._frames: deque[bytes] = deque()
        self._held = 0
        self._reading_paused = False
        self._writing_paused = False
        self._receiver: asyncio.Future[None] | None = None
        self._writers: deque[asyncio.Future[None]] = deque()
        self._failure: P2PFLError | None = None
        self.closed: asyncio.Future[None] = self._loop.create_future()
        self.bytes_in = 0
        self.bytes_out = 0

    def allow(self, limit: int) -> None:
        """Accept frames of up to ``limit`` bytes."""
        self._limit = limit

    @property
    def transport(self) -> asyncio.Transport:
        """The stream below; only after the connection was made."""
        assert self._transport is not None
        return self._transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=WRITE_BUFFER)

    def get_buffer(self, sizehint: int) -> memoryview:
        if len(self._buffer) - self._end < _READ_AT_LEAST:
            self._make_room()
        return self._view[self._end :]

    def _make_room(self) -> None:
        """Move the unfinished frame to the front, into a larger buffer where it needs one."""
        rest = bytes(self._view[self._start : self._end])
        wanted = _READ_BUFFER
        if len(rest) >= _PREFIX:
            wanted = max(wanted, _PREFIX + int.from_bytes(rest[:_PREFIX], "big") + _READ_AT_LEAST)
        if wanted != len(self._buffer):
            self._buffer = bytearray(wanted)
            self._view = memoryview(self._buffer)
        self._view[: len(rest)] = rest
        self._start, self._end = 0, len(rest)

    def buffer_updated(self, nbytes: int) -> None:
        self.bytes_in += nbytes
        self._end += nbytes
        while self._failure is None and self._end - self._start >= _PREFIX:
            body = self._start + _PREFIX
            length = int.from_bytes(self._view[self._start : body], "big")
            if length > self._limit:
                self._fail(LimitExceeded(f"a frame of {length} bytes exceeds {self._limit}; closing the connection"))
                self.transport.abort()
                return
            if self._end - body < length:
                break
            self._frames.append(bytes(self._view[body : body + length]))
            self._held += length + _PREFIX  # the prefix counts, so that empty frames cannot pile up for free
            self._start = body + length
        if self._start == self._end:
            self._start = self._end = 0
        if self._held > INBOX_BYTES and not self._reading_paused:
            self._reading_paused = True
            self.transport.pause_reading()
        self._wake_receiver()

    def eof_received(self) -> bool:
        return False  # TLS has no half-close

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(LinkError(_reason(exc, unheard=self.bytes_in == 0)))
        if not self.closed.done():
            self.closed.set_result(None)

    def pause_writing(self) -> None:
        self._writing_paused = True

    def resume_writing(self) -> None:
        self._writing_paused = False
        self._wake_writers()

    def _fail(self, failure: P2PFLError) -> None:
        if self._failure is None:
            self._failure = failure
        self._wake_receiver()
        self._wake_writers()

    def _wake_receiver(self) -> None:
        if self._receiver is not None and not self._receiver.done():
            self._receiver.set_result(None)

    def _wake_writers(self) -> None:
        for writer in self._writers:
            if not writer.done():
                writer.set_result(None)
        self._writers.clear()

    def _check(self) -> None:
        if self._failure is not None:
            # a new object: one instance raised in several tasks would collect all their tracebacks
            raise type(self._failure)(str(self._failure))

    async def send(self, *parts: bytes) -> None:
        """Send one frame; see Connection.send."""
        self._check()
        size = sum(map(len, parts))
        if size > FRAME_LIMIT:
            raise IllegalStep(f"a frame of {size} bytes exceeds {FRAME_LIMIT}; send large content by fetch")
        prefix = size.to_bytes(_PREFIX, "big")
        if size < _JOIN_BELOW:
            self.transport.write(b"".join((prefix, *parts)))
        else:
            self.transport.writelines((prefix + parts[0], *parts[1:]))
        self.bytes_out += size + _PREFIX
        if self._writing_paused:
            room = self._loop.create_future()
            self._writers.append(room)
            try:
                await room
            finally:
                if room in self._writers:
                    self._writers.remove(room)
            self._check()

    async def receive(self) -> bytes:
        """The next frame; see Connection.receive."""
        while not self._frames:
            self._check()
            self._receiver = self._loop.create_future()
            try:
                await self._receiver
            finally:
                self._receiver = None
        frame = self._frames.popleft()
        self._held -= len(frame) + _PREFIX
        if self._reading_paused and self._held <= INBOX_BYTES // 2:
            self._reading_paused = False
            if self._failure is None:
                self.transport.resume_reading()
        return frame

    async def close(self, seconds: float) -> None:
        """Flush and tear down within ``seconds``."""
        self.transport.close()
        await asyncio.wait([self.closed], timeout=seconds)
        self.transport.abort()

    def abort(self) -> None:
        """Tear down at once."""
        self._fail(LinkError("closed by us"))
        self.transport.abort()


def _reason(exc: Exception | None, *, unheard: bool) -> str:
    if unheard and (exc is None or isinstance(exc, (ssl.SSLError, ConnectionError))):
        return _PROBABLY_REFUSED
    if exc is None:
        return "closed by the other side"
    if isinstance(exc, ssl.SSLError):
        return f"TLS failed: {exc.reason or exc}"
    return f"connection lost: {exc}"
