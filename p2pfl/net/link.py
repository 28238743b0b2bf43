"""One live link to one proven neighbour: requests, notifications, bulk pulls, keep-alive."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Any

from p2pfl.errors import IllegalStep, LinkError, MalformedMessage, Refusal, RemoteError
from p2pfl.net import wire
from p2pfl.net.connection import Connection
from p2pfl.net.handlers import Handlers
from p2pfl.net.handshake import Greeting
from p2pfl.net.limits import HANDLERS_IN_FLIGHT, REASON_LIMIT, REQUESTS_IN_FLIGHT, Limits
from p2pfl.net.outcomes import printable
from p2pfl.net.pulls import Puller, Server
from p2pfl.types import PeerId

_log = logging.getLogger("p2pfl.net")


@dataclass(frozen=True, slots=True)
class LinkInfo:
    """One live link as ``status`` shows it. ``since`` is on the event loop's monotonic clock, in seconds;
    ``path`` and ``introducer`` as in :class:`p2pfl.net.connection.Connection`.
    """

    kind: str
    since: float
    bytes_in: int
    bytes_out: int
    address: str
    path: str
    introducer: PeerId | None


class Link:
    """Lives from ``run`` until that returns the reason of its end. Never raises into the host."""

    def __init__(self, connection: Connection, greeting: Greeting, handlers: Handlers, limits: Limits) -> None:
        loop = asyncio.get_running_loop()
        self.peer = greeting.peer
        self.greeting = greeting
        self.connection = connection
        self.since = loop.time()
        self.fault: RemoteError | None = None
        """What the neighbour did wrong, where that ended the link."""
        self.handler_faults = 0
        self.dropped_requests = 0
        self._handlers = handlers
        self._limits = limits
        self._loop = loop
        self._write_lock = asyncio.Lock()
        self._slots = asyncio.Semaphore(REQUESTS_IN_FLIGHT)
        self._answers: dict[int, asyncio.Future[bytes]] = {}
        self._next = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._puller = Puller(self.peer, self._send)
        self._server = Server(self.peer, self._send, lambda: handlers.provider)
        self.deaf = False
        """Whether frames of the neighbour are ignored: it is being closed, or no longer a member."""
        self._ended: asyncio.Future[str] = loop.create_future()
        self.on_end: Callable[[str], None] = lambda reason: None
        """Told the reason at the moment the link ends, before anything is torn down."""

    @property
    def info(self) -> LinkInfo:
        """The facts of now."""
        below = self.connection
        return LinkInfo(
            below.kind, self.since, below.bytes_in, below.bytes_out, below.address, below.path, below.introducer
        )

    @property
    def ended(self) -> bool:
        """Whether the link is of no more use."""
        return self._ended.done()

    @property
    def idle(self) -> bool:
        """Whether nothing is under way that a closing would break."""
        return not (self._answers or self._tasks) and self._server.idle

    async def run(self) -> str:
        """Carry traffic until the link ends; returns why it ended, in plain words."""
        parts = [self._loop.create_task(part) for part in (self._read(), self._beat(), self._server.run())]
        try:
            waiting: list[asyncio.Future[Any]] = [*parts, self._ended]
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for part in parts:
                if part.done() and (error := part.exception()) is not None:
                    self._end_with(error)
            return self._ended.result()
        finally:
            await self._tear_down(parts)

    def _end_with(self, error: BaseException) -> None:
        if isinstance(error, RemoteError):
            self.fault = error
        elif not isinstance(error, LinkError):
            _log.error("link to %s failed", self.peer, exc_info=error)
        self.close(str(error) or type(error).__name__)

    async def _tear_down(self, parts: list[asyncio.Task[None]]) -> None:
        reason = self._ended.result() if self._ended.done() else "stopped"
        self.close(reason)
        self._puller.fail(f"the link to {self.peer} ended: {reason}")
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(LinkError(f"the link to {self.peer} ended before it answered: {reason}"))
                answer.exception()  # marked as seen: its caller may have been cancelled
        tasks = [*parts, *self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.connection.close()

    def close(self, reason: str) -> None:
        """End the link; ``run`` returns soon after."""
        if not self._ended.done():
            self._ended.set_result(reason)
            self.on_end(reason)

    async def say_goodbye(self, reason: str) -> None:
        """Tell the neighbour why, best effort and bounded, then end the link. From now on nothing it
        sends is used.
        """
        self.deaf = True
        try:
            async with asyncio.timeout(self._limits.close):
                await self._send(bytes([wire.BYE]), reason[:REASON_LIMIT].encode())
        except (LinkError, RemoteError, TimeoutError):
            pass  # it will notice the closed connection
        self.close(reason)

    async def _send(self, *parts: bytes) -> None:
        """Write one frame in turn. A neighbour that reads too slowly loses the link, not our memory."""
        async with self._write_lock:
            if self._ended.done():
                raise LinkError(f"the link to {self.peer} has ended: {self._ended.result()}")
            size = sum(map(len, parts))
            seconds = self._limits.write + size / self._limits.write_rate
            try:
                async with asyncio.timeout(seconds):
                    await self.connection.send(*parts)
            except TimeoutError:
                self.close(f"it took no data for {seconds:.0f} s")
                raise LinkError(f"{self.peer} took no data for {seconds:.0f} s; the link is closed") from None

    async def request(self, protocol: str, payload: bytes, seconds: float) -> bytes:
        """Ask and wait for the answer. LinkError: no answer. Refusal: the other side's handler says no."""
        _check_size(payload)
        try:
            async with asyncio.timeout(seconds), self._slots:
                self._next = number = (self._next + 1) & 0xFFFFFFFF
                answer: asyncio.Future[bytes] = self._loop.create_future()
                self._answers[number] = answer
                try:
                    await self._send(wire.request_head(number, protocol), payload)
                    return await answer
                finally:
                    del self._answers[number]
        except TimeoutError:
            raise LinkError(f"{self.peer} did not answer {protocol} within {seconds:g} s; try again later") from None

    async def notify(self, protocol: str, payload: bytes) -> None:
        """Send without an answer; returns once the medium has taken it."""
        _check_size(payload)
        await self._send(wire.notify_head(protocol), payload)

    def fetch(
        self, content: str, start: int, chunks: int, chunk_limit: int, seconds: float
    ) -> AsyncGenerator[bytes, None]:
        """Pull chunks in order; see Puller.fetch."""
        return self._puller.fetch(content, start, chunks, chunk_limit, seconds)

    async def _beat(self) -> None:
        """Ping, and notice silence: any byte that arrives is a sign of life.

        Looks once per quarter of a ping, so silence is noticed at most that much after ``silent_after``.
        """
        step = self._limits.ping_every / 4
        heard, heard_at = self.connection.bytes_in, self._loop.time()
        pinged_at = heard_at
        while True:
            before = self._loop.time()
            await asyncio.sleep(step)
            now = self._loop.time()
            if self.connection.bytes_in != heard or now - before > self._limits.ping_every:
                # the second case: we ourselves were paused; the neighbour gets a full time to show itself
                heard, heard_at = self.connection.bytes_in, now
            if now - heard_at >= self._limits.silent_after:
                raise LinkError(f"silent for {now - heard_at:.0f} s")
            if now - pinged_at >= self._limits.ping_every - step / 2:
                pinged_at = now
                if not self._write_lock.locked():  # else something is on its way already
                    await self._send(bytes([wire.PING]))

    async def _read(self) -> None:
        """Dispatch frames. Never waits for a write: two readers waiting for each other's reading would
        stand still.
        """
        kinds: dict[int, Callable[[bytes], None]] = {
            wire.CHUNK: self._puller.take,
            wire.NOTIFY: self._on_notify,
            wire.REQUEST: self._on_request,
            wire.REPLY: self._on_reply,
            wire.ERROR: self._on_error,
            wire.PULL: self._server.queue,
            wire.MISSING: self._puller.miss,
            wire.PING: lambda frame: None,
            wire.BYE: self._on_bye,
        }
        while True:
            frame = await self.connection.receive()
            if self.deaf:
                continue
            handle = kinds.get(frame[0]) if frame else None
            if handle is None:
                raise MalformedMessage(f"{self.peer} sent a frame of unknown type; closing the link", peer=self.peer)
            handle(frame)

    def _on_bye(self, frame: bytes) -> None:
        raise LinkError(f"the other side closed: {printable(frame[1:])}")

    def _on_notify(self, frame: bytes) -> None:
        protocol, payload = wire.read_notify(frame)
        handler = self._handlers.notifications.get(protocol)
        if handler is None:
            self.dropped_requests += 1
            return
        try:
            handler(self.peer, payload)
        except Exception as error:
            self._count_fault(protocol, error)

    def _on_request(self, frame: bytes) -> None:
        number, protocol, payload = wire.read_request(frame)
        if len(self._tasks) >= HANDLERS_IN_FLIGHT:
            self.dropped_requests += 1
            return
        task = self._loop.create_task(self._answer(number, protocol, payload))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, number: int, protocol: str, payload: bytes) -> None:
        handler = self._handlers.requests.get(protocol)
        try:
            if handler is None:
                await self._send(wire.error_frame(number, wire.UNKNOWN, ""))
                return
            try:
                answer = await handler(self.peer, payload)
                _check_size(answer)
            except Exception as error:
                code, text = self._count_fault(protocol, error)
                await self._send(wire.error_frame(number, code, text))
                return
            await self._send(wire.reply_head(number), answer)
        except LinkError:
            pass  # the link has gone, and with it whoever waits for this answer

    def _count_fault(self, protocol: str, error: Exception) -> tuple[int, str]:
        """A handler's exception never ends the link. Only what is meant for the neighbour is told to it."""
        self.handler_faults += 1
        if isinstance(error, (RemoteError, Refusal)):
            return wire.REFUSED, str(error)[:REASON_LIMIT]
        _log.error("the handler of %s failed on a message of %s", protocol, self.peer, exc_info=error)
        return wire.FAILED, ""

    def _on_reply(self, frame: bytes) -> None:
        number, payload = wire.read_reply(frame)
        answer = self._answers.get(number)
        if answer is not None and not answer.done():  # else its caller has given up: late, not wrong
            answer.set_result(payload)

    def _on_error(self, frame: bytes) -> None:
        number, code, text = wire.read_error(frame)
        answer = self._answers.get(number)
        if answer is None or answer.done():
            return
        if code == wire.REFUSED:
            answer.set_exception(Refusal(f"{self.peer} refused: {printable(text)}"))
        elif code == wire.UNKNOWN:
            answer.set_exception(LinkError(f"{self.peer} does not know this protocol; it may run another version"))
        else:
            answer.set_exception(LinkError(f"{self.peer} failed to answer; its own log says why"))


def _check_size(payload: bytes) -> None:
    if len(payload) > wire.PAYLOAD_LIMIT:
        raise IllegalStep(f"a payload of {len(payload)} bytes exceeds {wire.PAYLOAD_LIMIT}; send it by fetch")
