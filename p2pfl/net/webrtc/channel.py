"""Frames over a data channel: cut into messages, paid for with credit, ended with FIN and FIN_ACK.

One SCTP message is one type byte and a body:

    MORE, LAST   a piece of a frame, the last one
    CREDIT       8 bytes: how much of what arrived has been taken out, in all, since the beginning
    FIN          nothing follows; answered with FIN_ACK, after which both ends tear down

aiortc pushes whatever arrives and its sender ignores the receiver's window, so back-pressure is ours: a sender may
be ahead of the receiver's CREDIT by WINDOW at most. Each message counts OVERHEAD bytes more than it has, so that
tiny ones cannot pile up for free.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import deque

from p2pfl.errors import IllegalStep, LimitExceeded, LinkError, MalformedMessage, P2PFLError
from p2pfl.net.connection import certificate_binding
from p2pfl.net.limits import FRAME_LIMIT, HELLO_LIMIT
from p2pfl.net.webrtc.stack import MESSAGE_LIMIT, Stack
from p2pfl.types import PeerId

WINDOW = 2 << 20
"""Bytes sent and not yet taken out at the other end: 100 ms of round trip at 10 MB/s, twice, and one frame."""

CREDIT_STEP = WINDOW // 8
OVERHEAD = 32
QUEUE = 64 << 10
"""Bytes we hand to aiortc ahead of its sending; control waits behind no more than these and one own write buffer."""

WRITE_BUFFER = 64 << 10

_MORE, _LAST, _CREDIT, _FIN, _FIN_ACK = b"\x00", b"\x01", b"\x02", b"\x03", b"\x04"
_PIECE = MESSAGE_LIMIT - 1

_log = logging.getLogger("p2pfl.net")


class WebRtcConnection:
    """One open data channel as a Connection."""

    kind = "webrtc"

    def __init__(
        self, stack: Stack, peer: PeerId, *, dialled: bool, introducer: PeerId | None, close_seconds: float
    ) -> None:
        self._stack = stack
        self._channel = stack.channel
        self._loop = asyncio.get_running_loop()
        self._close_seconds = close_seconds
        self.dialled = dialled
        self.pinned: PeerId | None = peer
        self.introducer = introducer
        self.remote_certificate = stack.remote_certificate
        ends = (stack.own_certificate, stack.remote_certificate)
        pair = certificate_binding(*(ends if dialled else ends[::-1]))
        self.binding = hashlib.sha256(pair + stack.exported).digest()
        self.bytes_in = self.bytes_out = 0
        self._limit = HELLO_LIMIT
        self._failure: P2PFLError | None = None
        # outgoing
        self._outbound: deque[bytes] = deque()
        self._waiting = 0  # bytes in _outbound
        self._spent = self._credited = 0
        self._writers: deque[asyncio.Future[None]] = deque()
        self._drained = asyncio.Event()
        self._drained.set()
        # incoming
        self._pieces: list[bytes] = []
        self._assembled = 0  # bytes in _pieces
        self._cost = 0  # of _pieces, as credit counts
        self._frames: deque[tuple[bytes, int]] = deque()
        self._arrived = self._taken = self._told = 0
        self._receiver: asyncio.Future[None] | None = None
        self._finished = asyncio.Event()  # FIN_ACK or FIN has arrived, or the channel is gone
        self._listen()

    def _listen(self) -> None:
        channel = self._channel
        channel.bufferedAmountLowThreshold = QUEUE // 2
        channel.on("bufferedamountlow", self._on_room)
        channel.on("close", lambda: self._fail(LinkError("closed by the other side")))
        self._stack.ice.on("statechange", self._on_ice)
        self._stack.receive_with(self._on_message)
        if channel.readyState != "open":  # it closed while we were made
            self._fail(LinkError("closed by the other side"))

    @property
    def address(self) -> str:
        """Where the other end is now; ICE may still choose a better pair after the first one."""
        _, _, host, port = self._stack.pair
        return f"/{'ip6' if ':' in host else 'ip4'}/{host}/udp/{port}/webrtc"

    @property
    def path(self) -> str:
        """``relayed`` where a TURN server of either side forwards, else ``direct``."""
        own_type, other_type, _, _ = self._stack.pair
        return "relayed" if "relay" in (own_type, other_type) else "direct"

    # --- incoming; an exception in a handler would close aiortc's transport without a word

    def _on_ice(self) -> None:
        if self._stack.ice.state == "failed":
            self._fail(LinkError("the UDP path has gone: no answer to ICE's consent checks"))

    def _on_room(self) -> None:
        try:
            self._pump()
        except Exception:
            _log.exception("a WebRTC channel could not be written")
            self._fail(LinkError("an internal error; our own log says more"))

    def _on_message(self, data: bytes | str) -> None:
        if self._failure is not None:
            return
        try:
            if isinstance(data, str) or not data:
                raise MalformedMessage("a text or empty message on a binary channel; closing the connection")
            self._take(data)
        except P2PFLError as error:
            self._fail(error)
        except Exception:
            _log.exception("a WebRTC message could not be handled")
            self._fail(LinkError("an internal error; our own log says more"))

    def _take(self, data: bytes) -> None:
        self.bytes_in += len(data)
        kind = data[:1]
        if kind in (_MORE, _LAST):
            self._take_piece(data, last=kind == _LAST)
        elif kind == _CREDIT and len(data) == 9:
            credited = int.from_bytes(data[1:], "big")
            if not self._credited <= credited <= self._spent:
                raise MalformedMessage("credit for bytes that were never sent; closing the connection")
            self._credited = credited
            self._pump()
        elif kind == _FIN and len(data) == 1:
            self._say(_FIN_ACK)
            self._fail(LinkError("closed by the other side"))
        elif kind == _FIN_ACK and len(data) == 1:
            self._finished.set()
        else:
            raise MalformedMessage("a message of unknown type; closing the connection")

    def _take_piece(self, data: bytes, *, last: bool) -> None:
        size, cost = len(data) - 1, len(data) + OVERHEAD
        self._arrived += cost
        if self._assembled + size > self._limit:
            raise LimitExceeded(f"a frame exceeds {self._limit} bytes; closing the connection")
        if self._arrived - self._taken > WINDOW:
            raise LimitExceeded(f"more than {WINDOW} bytes without credit; closing the connection")
        self._pieces.append(data[1:])
        self._assembled += size
        self._cost += cost
        if last:
            frame = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
            self._frames.append((frame, self._cost))
            self._pieces.clear()
            self._assembled = self._cost = 0
            if self._receiver is not None and not self._receiver.done():
                self._receiver.set_result(None)

    def allow(self, limit: int) -> None:
        """Accept frames of up to ``limit`` bytes."""
        self._limit = limit

    async def receive(self) -> bytes:
        """The next frame; see Connection.receive. At most WINDOW bytes wait here."""
        while not self._frames:
            self._check()
            self._receiver = self._loop.create_future()
            try:
                await self._receiver
            finally:
                self._receiver = None
        frame, cost = self._frames.popleft()
        self._taken += cost
        if self._taken - self._told >= CREDIT_STEP and self._failure is None:
            self._told = self._taken
            self._say(_CREDIT + self._taken.to_bytes(8, "big"))
        return frame

    # --- outgoing

    async def send(self, *parts: bytes) -> None:
        """Send one frame; see Connection.send."""
        self._check()
        frame = b"".join(parts)
        if len(frame) > FRAME_LIMIT:
            raise IllegalStep(f"a frame of {len(frame)} bytes exceeds {FRAME_LIMIT}; send large content by fetch")
        start = 0
        while start + _PIECE < len(frame):
            self._queue(_MORE + frame[start : start + _PIECE])
            start += _PIECE
        self._queue(_LAST + frame[start:])
        self._pump()
        while self._waiting > WRITE_BUFFER:
            room = self._loop.create_future()
            self._writers.append(room)
            try:
                await room
            finally:
                if room in self._writers:
                    self._writers.remove(room)
            self._check()
        self._check()

    def _queue(self, message: bytes) -> None:
        self._outbound.append(message)
        self._waiting += len(message)
        self.bytes_out += len(message)
        self._drained.clear()

    def _pump(self) -> None:
        """Hand over what credit and aiortc's queue have room for."""
        while self._outbound and self._channel.bufferedAmount < QUEUE and self._failure is None:
            message = self._outbound[0]
            cost = len(message) + OVERHEAD
            if self._spent + cost - self._credited > WINDOW:
                break
            self._outbound.popleft()
            self._waiting -= len(message)
            self._spent += cost
            self._say(message)
        if self._waiting <= WRITE_BUFFER:
            self._wake_writers()
        if not self._outbound:
            self._drained.set()

    def _say(self, message: bytes) -> None:
        if self._channel.readyState == "open":
            self._channel.send(message)

    # --- the end

    def _check(self) -> None:
        if self._failure is not None:
            # a new object: one instance raised in several tasks would collect all their tracebacks
            raise type(self._failure)(str(self._failure))

    def _wake_writers(self) -> None:
        for writer in self._writers:
            if not writer.done():
                writer.set_result(None)
        self._writers.clear()

    def _fail(self, failure: P2PFLError) -> None:
        """No more is sent or taken; what had arrived can still be received. Tears down."""
        if self._failure is None:
            self._failure = failure
        self._finished.set()
        self._drained.set()
        self._wake_writers()
        if self._receiver is not None and not self._receiver.done():
            self._receiver.set_result(None)
        self._stack.close()

    async def close(self) -> None:
        """Flush, say FIN, wait for FIN_ACK, tear down; never longer than the close time and aiortc's own."""
        if self._failure is None:
            try:
                async with asyncio.timeout(self._close_seconds):
                    await self._drained.wait()
                    self._say(_FIN)
                    await self._finished.wait()
            except TimeoutError:
                pass  # the other end is gone or does not read
        self._fail(LinkError("closed by us"))
        await asyncio.shield(self._stack.close())

    def abort(self) -> None:
        """Tear down at once."""
        self._fail(LinkError("closed by us"))
        self._outbound.clear()
