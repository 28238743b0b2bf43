"""The memory transport: hosts of one process joined by a MemoryNetwork, for notebooks and tests.

It keeps the contracts of :mod:`p2pfl.net.connection`, back-pressure included, and can cut, drop and hold
what is sent. There is no eavesdropper inside a process: frames are not encrypted, and the certificate
shown is believed.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from p2pfl.errors import ConfigError, IllegalStep, LimitExceeded, LinkError, NotAMember, P2PFLError
from p2pfl.net.connection import Accept, Refused, certificate_binding
from p2pfl.net.limits import FRAME_LIMIT, HELLO_LIMIT, INBOX_BYTES
from p2pfl.types import Member, PeerId, Roster

_PREFIX = "/memory/"  # multiaddr code 777
_HEADER = 4  # counted per frame like the tcp transport's length prefix


class MemoryNetwork:
    """Joins transports by name. All faults are set by the caller; nothing happens by chance or by time."""

    def __init__(self) -> None:
        self.listeners: dict[str, tuple[MemoryTransport, Accept]] = {}
        self._cut: set[frozenset[str]] = set()
        self._held: set[tuple[str, str]] = set()
        self._waiting: list[MemoryConnection] = []
        self.drop: Callable[[str, str, bytes], bool] | None = None
        """Called with (sender, receiver, frame); True loses the frame (as no real transport does)."""

    def transport(self, name: str, certificate: bytes) -> MemoryTransport:
        """A transport for one host. ``certificate`` is the DER it shows."""
        return MemoryTransport(self, name, certificate)

    def cut(self, one: str, other: str) -> None:
        """From now on nothing passes between the two, in silence, like a packet filter."""
        self._cut.add(frozenset((one, other)))

    def mend(self, one: str, other: str) -> None:
        """Undo ``cut``; what was sent meanwhile is lost."""
        self._cut.discard(frozenset((one, other)))

    def hold(self, sender: str, receiver: str) -> None:
        """Keep frames of this direction back until ``release``."""
        self._held.add((sender, receiver))

    def release(self, sender: str, receiver: str) -> None:
        """Deliver held frames in their order, and later ones at once."""
        self._held.discard((sender, receiver))
        for connection in list(self._waiting):
            connection.flush()

    def is_cut(self, one: str, other: str) -> bool:
        """Whether nothing passes between the two."""
        return frozenset((one, other)) in self._cut

    def is_held(self, sender: str, receiver: str) -> bool:
        """Whether this direction is held back."""
        return (sender, receiver) in self._held

    def enrol(self, connection: MemoryConnection) -> None:
        """Register a connection for ``release``."""
        self._waiting.append(connection)

    def forget(self, connection: MemoryConnection) -> None:
        """Undo ``enrol``."""
        if connection in self._waiting:
            self._waiting.remove(connection)


class MemoryConnection:
    """One end. ``peer_end`` is the other; frames go straight into its inbox."""

    kind = "memory"
    prefix = _PREFIX
    pinned: PeerId | None = None  # the member's record names its certificates
    path = "direct"
    introducer: PeerId | None = None

    def __init__(
        self, network: MemoryNetwork, names: tuple[str, str], dialled: bool, certificates: tuple[bytes, bytes]
    ):
        own, remote = certificates
        self._network = network
        self._own_name, self._remote_name = names
        self.address = self.prefix + names[1]
        self.dialled = dialled
        self.remote_certificate = remote
        self.binding = certificate_binding(own, remote) if dialled else certificate_binding(remote, own)
        self.peer_end: MemoryConnection | None = None
        self._limit = HELLO_LIMIT
        self._inbox: deque[bytes] = deque()
        self._outbox: deque[bytes] = deque()  # held back by the network
        self._held = 0
        self._failure: P2PFLError | None = None
        self._changed = asyncio.Event()
        self.bytes_in = 0
        self.bytes_out = 0
        network.enrol(self)

    def allow(self, limit: int) -> None:
        """Accept frames of up to ``limit`` bytes."""
        self._limit = limit

    def _check(self) -> None:
        if self._failure is not None:
            raise type(self._failure)(str(self._failure))

    async def send(self, *parts: bytes) -> None:
        """Send one frame; see Connection.send."""
        self._check()
        frame = b"".join(parts)
        if len(frame) > FRAME_LIMIT:
            raise IllegalStep(f"a frame of {len(frame)} bytes exceeds {FRAME_LIMIT}; send large content by fetch")
        self.bytes_out += len(frame) + _HEADER
        self._outbox.append(frame)
        self.flush()
        while self.unsent > INBOX_BYTES and self._failure is None:
            await self._wait()
        self._check()

    @property
    def unsent(self) -> int:
        """Bytes the other end has not taken yet."""
        waiting = sum(map(len, self._outbox))
        return waiting + (self.peer_end._held if self.peer_end else 0)

    async def _wait(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    def flush(self) -> None:
        """Hand held frames over, unless the network still holds, cuts or drops them."""
        network, other = self._network, self.peer_end
        if network.is_held(self._own_name, self._remote_name):
            return
        while self._outbox:
            frame = self._outbox.popleft()
            lost = network.is_cut(self._own_name, self._remote_name) or (
                network.drop is not None and network.drop(self._own_name, self._remote_name, frame)
            )
            if other is not None and not lost:
                other.deliver(frame)
        self._changed.set()

    def deliver(self, frame: bytes) -> None:
        """Take a frame from the other end."""
        if self._failure is not None:
            return
        self.bytes_in += len(frame) + _HEADER
        if len(frame) > self._limit:
            self._fail(LimitExceeded(f"a frame of {len(frame)} bytes exceeds {self._limit}; closing the connection"))
            self.abort()
            return
        self._inbox.append(frame)
        self._held += len(frame) + _HEADER
        self._changed.set()

    async def receive(self) -> bytes:
        """The next frame; see Connection.receive."""
        while not self._inbox:
            self._check()
            await self._wait()
        frame = self._inbox.popleft()
        self._held -= len(frame) + _HEADER
        if self.peer_end is not None:
            self.peer_end._changed.set()
        return frame

    def _fail(self, failure: P2PFLError) -> None:
        if self._failure is None:
            self._failure = failure
        self._network.forget(self)
        self._changed.set()

    async def close(self) -> None:
        """Tear down; frames already delivered stay readable at the other end."""
        self.abort()

    def abort(self) -> None:
        """Tear down. A cut or held direction tells the other end nothing, as on a real network."""
        self._fail(LinkError("closed by us"))
        self._outbox.clear()
        names = (self._own_name, self._remote_name)
        if self.peer_end is not None and not (self._network.is_cut(*names) or self._network.is_held(*names)):
            self.peer_end._fail(LinkError("closed by the other side"))


class MemoryTransport:
    """One host's access to a MemoryNetwork; listens on ``/memory/NAME``.

    A subclass with another connection type, kind, prefix and cost is another transport in the same network;
    names are shared, so it needs names of its own.
    """

    kind = "memory"
    cost = 0
    connection_type = MemoryConnection

    def __init__(self, network: MemoryNetwork, name: str, certificate: bytes) -> None:
        self._network = network
        self._name = name
        self._certificate = certificate
        self._trusted: frozenset[bytes] = frozenset()
        self._tasks: set[asyncio.Task[None]] = set()
        self._refused: Refused | None = None

    def handles(self, address: str) -> bool:
        """Every /memory/ address."""
        return address.startswith(self.connection_type.prefix)

    def ways(self, member: Member) -> list[str]:
        """The addresses of its record in this network."""
        return [address for address in member.addresses if self.handles(address)]

    def trust(self, roster: Roster) -> None:
        """From now on only these certificates pass."""
        self._trusted = frozenset(der for member in roster.members for der in member.certificates)

    async def listen(self, address: str, accept: Accept, refused: Refused) -> str:
        """Listen under a name; ConfigError when it is taken."""
        name = address.removeprefix(self.connection_type.prefix)
        if name != self._name:
            raise ConfigError(f"cannot listen on {address}: this transport is called {self._name}; use its own name")
        if name in self._network.listeners:
            raise ConfigError(f"cannot listen on {address}: the name is in use; choose another")
        self._network.listeners[name] = (self, accept)
        self._refused = refused
        return address

    async def dial(self, address: str) -> MemoryConnection:
        """Connect to a listening name."""
        name = address.removeprefix(self.connection_type.prefix)
        if name not in self._network.listeners or self._network.is_cut(self._name, name):
            raise LinkError(f"cannot connect to {address}: nobody answers; is that peer up?")
        other, accept = self._network.listeners[name]
        if other._certificate not in self._trusted:
            raise NotAMember(f"{address} shows a certificate that is in no member's record; check the address")
        make, network = self.connection_type, self._network
        ours = make(network, (self._name, name), True, (self._certificate, other._certificate))
        theirs = make(network, (name, self._name), False, (other._certificate, self._certificate))
        ours.peer_end, theirs.peer_end = theirs, ours
        other._admit(theirs, accept)
        return ours

    def _admit(self, connection: MemoryConnection, accept: Accept) -> None:
        if connection.remote_certificate not in self._trusted:
            connection.abort()
            if self._refused is not None:
                who = connection.address
                self._refused(who, NotAMember(f"{who} has no certificate of a current member; refused"))
            return

        async def run() -> None:
            await accept(connection)

        task = asyncio.get_running_loop().create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda done: connection.abort() if done.cancelled() else None)

    async def close(self) -> None:
        """Stop listening."""
        if self._network.listeners.get(self._name, (None,))[0] is self:
            del self._network.listeners[self._name]
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
