"""A peer's host: its transports, its live links, and the calls the other rooms use."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from types import MappingProxyType

from p2pfl.crypto.identity import Identity
from p2pfl.errors import ConfigError, IllegalStep, LinkError, P2PFLError, RemoteError
from p2pfl.net.connection import Connection, Transport
from p2pfl.net.dialling import Dialler
from p2pfl.net.handlers import Handlers, NotifyHandler, RequestHandler
from p2pfl.net.handshake import PROCESS, Greeter
from p2pfl.net.instances import ALIVE, Instances
from p2pfl.net.limits import CHUNK_LIMIT, DEFAULT, Limits
from p2pfl.net.link import Link, LinkInfo
from p2pfl.net.outcomes import SecondInstanceError, SelfConnectionError
from p2pfl.net.pulls import ContentProvider
from p2pfl.net.table import LinkTable
from p2pfl.net.ways import KnownWays
from p2pfl.types import PeerId, Roster

OnLink = Callable[[PeerId, bool, str], None]
"""(peer, up, the transport's kind or why it went down)."""

OnReplaced = Callable[[PeerId, str, str], None]
"""(peer, the old kind, the new kind): a link went over to another kind of connection without an interruption."""

OnWorked = Callable[[PeerId, str], None]
"""(peer, address): this way has just led to the peer; hand it back as ``worked`` after a restart."""

OnRefused = Callable[[str, str], None]
"""(peer id or address, why)."""

OnSecondInstance = Callable[[PeerId, str], None]
"""(whose key, why): a second process with a member's key was refused here; with our own, a neighbour says."""

_log = logging.getLogger("p2pfl.net")


class Host:
    """Joins transports, hello, links and dialling. All calls belong to one event loop.

    The ``on_`` functions are called on the loop; they must not block, and an exception in them is logged.
    ``worked`` is what ``on_worked`` told in an earlier life: of ways of one cost that one is tried first.
    """

    def __init__(
        self,
        identity: Identity,
        roster: Roster,
        transports: Sequence[Transport],
        *,
        on_link: OnLink,
        on_refused: OnRefused | None = None,
        on_replaced: OnReplaced | None = None,
        on_worked: OnWorked | None = None,
        on_second_instance: OnSecondInstance = lambda peer, why: None,
        worked: Mapping[PeerId, str] = MappingProxyType({}),
        limits: Limits = DEFAULT,
    ) -> None:
        self._own = identity.peer_id
        self._roster = roster
        self._transports = tuple(transports)
        self._on_refused = on_refused
        self._on_second_instance = on_second_instance
        self._limits = limits
        self._handlers = Handlers()
        self.handle(ALIVE, self._say_alive)
        self._costs = {transport.kind: transport.cost for transport in self._transports}
        self._table = LinkTable(on_link, limits, costs=self._costs, on_replaced=on_replaced)
        self._instances = Instances(self._table, limits)
        self._listens_cheaply = False
        self._number = 0
        self._connecting: set[Connection] = set()
        self._hellos: set[asyncio.Task[PeerId]] = set()
        self._started = False
        self._refusals: list[float] = []
        self.refused = 0
        """All refusals since the start, told to ``on_refused`` or not."""
        self._greeter = Greeter(
            identity,
            roster=lambda: self._roster,
            protocols=lambda: [*self._handlers.requests, *self._handlers.notifications],
            needless=self._table.needless,
            make_way=self._instances.make_way,
            next_number=self._next_number,
            limits=limits,
            process=secrets.token_bytes(PROCESS),
        )
        self._known = KnownWays(self._transports, lambda: self._roster, limits, worked=worked, on_worked=on_worked)
        self._dialler = Dialler(
            self._known,
            self._connect,
            self._table.cost,
            lambda: self._roster,
            limits,
            can_be_dialled=self._can_be_dialled,
        )
        self._table.on_change = self._dialler.changed
        self._table.on_fault = self._report

    def _next_number(self) -> int:
        self._number += 1
        return self._number

    def _transport(self, address: str) -> Transport:
        for transport in self._transports:
            if transport.handles(address):
                return transport
        kinds = ", ".join(transport.kind for transport in self._transports)
        raise ConfigError(f"no transport for address {address!r}; this peer has: {kinds}")

    def _can_be_dialled(self) -> bool:
        """Whether members can be expected to reach us by themselves."""
        own = self._roster.member(self._own)
        ours = [own] if own is not None else []
        return self._listens_cheaply or any(t.ways(member) for t in self._transports if t.cost == 0 for member in ours)

    async def start(self, listen: Sequence[str]) -> list[str]:
        """Listen on these addresses (none: dial only) and return the real ones, port 0 replaced.

        Raises ConfigError naming address and remedy; then nothing listens.
        """
        for transport in self._transports:
            transport.trust(self._roster)
        self._started = True
        self._listens_cheaply = any(t.cost == 0 and t.handles(address) for t in self._transports for address in listen)
        try:
            return [await self._transport(address).listen(address, self._accept, self._report) for address in listen]
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Say goodbye on every link and end everything, bounded in time. May be called again."""
        self._started = False
        await self._dialler.stop()
        await self._instances.stop()
        for transport in self._transports:
            await transport.close()
        for connection in list(self._connecting):
            connection.abort()
        await self._table.stop("the peer stopped")

    def handle(self, protocol: str, handler: RequestHandler) -> None:
        """Answer requests of this protocol. The handler runs as a task, cancelled when the link ends.

        RemoteError and Refusal raised in it are told to the requester, anything else only to our own log.
        """
        self._handlers.requests[protocol] = handler

    def handle_notify(self, protocol: str, handler: NotifyHandler) -> None:
        """Take notifications of this protocol, in order, on the loop: the handler must be quick."""
        self._handlers.notifications[protocol] = handler

    def serve(self, content_provider: ContentProvider) -> None:
        """Give content to neighbours: (asking peer, content, index) -> chunk of at most CHUNK_LIMIT
        bytes, or None.
        """
        self._handlers.provider = content_provider

    async def dial(self, peer: PeerId) -> None:
        """Have a link to ``peer``, dialling where there is none. LinkError says why that failed."""
        if not self._started:
            raise IllegalStep("the host is not started; call start first")
        await self._dialler.dial(peer)

    def want(self, peers: Collection[PeerId]) -> None:
        """Keep links to exactly these members up from now on, redialling with back-off."""
        if not self._started:
            raise IllegalStep("the host is not started; call start first")
        self._dialler.want([peer for peer in peers if peer != self._own])

    def candidate(self, address: str) -> None:
        """A hint: some member may listen at this address. Tried while a wanted listening member is not
        linked, or linked over a dearer way.
        """
        self._dialler.candidate(address)

    async def request(self, peer: PeerId, protocol: str, payload: bytes, timeout: float | None = None) -> bytes:
        """Ask and wait for the answer (both at most 1 MiB less a header).

        Raises LinkError (no link, no answer in ``timeout`` seconds, unknown protocol) or Refusal (the
        handler there says no).
        """
        return await self._link(peer).request(protocol, payload, self._limits.request if timeout is None else timeout)

    async def notify(self, peer: PeerId, protocol: str, payload: bytes) -> None:
        """Send without an answer; returns when the link has taken it. LinkError when there is no link."""
        await self._link(peer).notify(protocol, payload)

    async def fetch(
        self, peer: PeerId, content: str, chunks: int, chunk_limit: int, timeout: float | None = None
    ) -> AsyncGenerator[bytes, None]:
        """Pull chunks 0 to ``chunks - 1`` in order, each at most ``chunk_limit`` bytes (LimitExceeded
        ends the link).

        ``timeout`` bounds the wait for each chunk, in seconds. If the link breaks, the fetch waits for it
        to come back and goes on with the next chunk, once; then, or when a chunk is missing, LinkError.
        """
        if not 0 < chunk_limit <= CHUNK_LIMIT:
            raise IllegalStep(f"chunk limit {chunk_limit}; links carry chunks of 1 to {CHUNK_LIMIT} bytes")
        seconds = self._limits.stall if timeout is None else timeout
        done, broken = 0, False
        while True:
            link = self._link(peer)
            try:
                async with contextlib.aclosing(link.fetch(content, done, chunks, chunk_limit, seconds)) as pulled:
                    async for chunk in pulled:
                        done += 1
                        yield chunk
                return
            except LinkError:
                if link.fault is not None:
                    raise link.fault from None  # what the neighbour did wrong, not that the link ended
                if not link.ended or (broken and not self._is_cheaper_than(peer, link)):
                    raise
            if not self._is_cheaper_than(peer, link):  # a link given up for a cheaper one is no break
                broken = True
                await self._back(peer)

    def _is_cheaper_than(self, peer: PeerId, old: Link) -> bool:
        cost = self._table.cost(peer)
        return cost is not None and cost < self._costs[old.connection.kind]

    async def _back(self, peer: PeerId) -> None:
        """Wait for a broken link to come back, by our dialling or the other side's."""
        loop = asyncio.get_running_loop()
        until = loop.time() + self._limits.resume
        while not self._table.has(peer) and loop.time() < until:
            try:
                async with asyncio.timeout_at(until):
                    await self._dialler.dial(peer)
            except (LinkError, TimeoutError):
                await self._table.wait_for(peer, min(self._limits.redial_first, max(until - loop.time(), 0)))

    def _link(self, peer: PeerId) -> Link:
        link = self._table.get(peer)
        if link is None:
            raise LinkError(f"no link to {peer}: {self.why_not(peer)}")
        return link

    @property
    def roster(self) -> Roster:
        """The members this host trusts now."""
        return self._roster

    @property
    def links(self) -> dict[PeerId, LinkInfo]:
        """All live links."""
        return {link.peer: link.info for link in self._table.all()}

    @property
    def worked(self) -> dict[PeerId, str]:
        """By peer, the address over which our dialling last made a link."""
        return self._known.worked

    @property
    def bytes_sent(self) -> int:
        """Bytes sent over all links since the start."""
        return self._table.bytes_out

    def why_not(self, peer: PeerId) -> str:
        """Why there is no link to ``peer``: every way that was tried, with its fault; empty when there is one."""
        return "" if self._table.has(peer) else self._dialler.why_not(peer)

    def update_roster(self, roster: Roster) -> None:
        """Follow a new charter version or new member records: trust exactly these, close links of all
        others.
        """
        self._roster = roster
        for transport in self._transports:
            transport.trust(roster)
        self._known.forget_strangers()
        for link in self._table.all():
            if not self._current(link.peer, link.connection):
                self._table.close(link.peer, "no longer a member, or its certificate is no longer in its record")
        for peer in roster.peer_ids:
            self._dialler.changed(peer)

    def _current(self, peer: PeerId, connection: Connection) -> bool:
        member = self._roster.member(peer)
        if member is None or connection.pinned is not None:
            return member is not None and connection.pinned == peer
        return connection.remote_certificate in member.certificates

    async def _say_alive(self, peer: PeerId, payload: bytes) -> bytes:
        """Nobody asks unless another process has just said hello with our key."""
        self._on_second_instance(self._own, f"{peer} has met another process with this peer's key")
        return b""

    async def _connect(self, address: str, expected: PeerId | None) -> PeerId:
        """Dial one address and bring the link up; returns who answered."""
        try:
            return await self._hello(await self._transport(address).dial(address), expected, address)
        except SelfConnectionError:
            raise  # a heard address that is our own: no refusal worth a record
        except RemoteError as error:
            self._report(error.peer or address, error)
            raise

    async def _hello(self, connection: Connection, expected: PeerId | None, way: str) -> PeerId:
        """The hello of a dialled connection. Cancelling ends it, unless a dearer link is up.

        Then the other end may just have put this connection in that link's place, and both would be lost.
        """
        task = asyncio.get_running_loop().create_task(self._greet(connection, expected, way))
        self._hellos.add(task)
        task.add_done_callback(self._hellos.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            link = self._table.get(expected) if expected is not None else None
            if link is None or self._costs[link.connection.kind] <= self._costs[connection.kind]:
                task.cancel()
            raise

    async def _accept(self, connection: Connection) -> None:
        try:
            await self._greet(connection, None, None)
        except SelfConnectionError:
            pass
        except RemoteError as error:
            self._report(error.peer or connection.address, error)
        except P2PFLError as error:
            _log.debug("incoming connection from %s ended: %s", connection.address, error)

    async def _greet(self, connection: Connection, expected: PeerId | None, way: str | None) -> PeerId:
        self._connecting.add(connection)
        try:
            greeting = await self._greeter.greet(connection, expected)
        finally:
            self._connecting.discard(connection)
        peer = greeting.peer
        if not self._started or not self._current(peer, connection):  # both may have changed during the hello
            connection.abort()
            raise LinkError(f"{peer} left the charter, or we stopped, while it connected")
        if self._instances.other(peer, greeting.process) is not None:
            connection.abort()
            raise LinkError(f"another process of {peer} came up while this one connected; it may ask again")
        if not self._table.has(peer) and len(self._table.all()) >= self._limits.links:
            connection.abort()
            raise LinkError(f"{self._limits.links} links are up, no room for {peer}; close some")
        if way is not None:
            self._known.note_worked(peer, way)
        self._table.adopt(Link(connection, greeting, self._handlers, self._limits))
        return peer

    def _report(self, who: str, error: RemoteError) -> None:
        """Tell the owner of a refusal, at a bounded rate."""
        self.refused += 1
        if isinstance(error, SecondInstanceError):
            self._on_second_instance(PeerId(str(error.peer)), str(error))
        now = asyncio.get_running_loop().time()
        self._refusals = [time for time in self._refusals if now - time < 60]
        if self._on_refused is None or len(self._refusals) >= self._limits.refusals_per_minute:
            return
        self._refusals.append(now)
        try:
            self._on_refused(who, str(error))
        except Exception:
            _log.exception("on_refused failed")
