"""The tcp transport: TLS 1.3 with certificates on both sides, Python's ``ssl`` under asyncio.

The members' certificates (self-signed, from identity-signed records) are the only trust anchors, so a
stranger fails in the handshake. Anchors cannot be removed from an SSLContext, therefore every roster gets
new ones. In TLS 1.3 a refused client believes for a moment that it is connected: the hello settles that.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
import tempfile
from collections.abc import Coroutine
from functools import partial
from typing import Any

from p2pfl.crypto.certificates import Certificate, certificate_pem
from p2pfl.errors import ConfigError, IllegalStep, LinkError, MalformedMessage, NotAMember, RemoteError
from p2pfl.net.connection import Accept, Refused, certificate_binding
from p2pfl.net.framing import FrameProtocol
from p2pfl.net.limits import DEFAULT, WRITE_BUFFER, Limits
from p2pfl.net.multiaddrs import Address, parse_address
from p2pfl.types import Member, PeerId, Roster

_BACKLOG = 128  # the usual SOMAXCONN of older kernels
_ACCEPT_PAUSE = 0.2  # seconds to let descriptors come free after accept failed (EMFILE)
_LISTEN_HINTS = {
    errno.EADDRINUSE: "the port is in use; stop the program that holds it, or choose another port",
    errno.EADDRNOTAVAIL: "this machine has no such address; use one of its own, or 0.0.0.0 for all",
    errno.EACCES: "this user may not open that port; choose one above 1023",
}
_NO_CERTIFICATE = ("CERTIFICATE_VERIFY_FAILED", "PEER_DID_NOT_RETURN_A_CERTIFICATE")


class TcpConnection:
    """One TLS connection as a Connection."""

    kind = "tcp"
    pinned: PeerId | None = None  # the member's record names its certificates
    path = "direct"
    introducer: PeerId | None = None

    def __init__(self, protocol: FrameProtocol, address: str, dialled: bool, own: bytes, limits: Limits) -> None:
        remote = protocol.transport.get_extra_info("ssl_object").getpeercert(True)
        if not remote:
            raise NotAMember(f"{address} showed no certificate; it is no peer of this consortium")
        self._protocol = protocol
        self._close_seconds = limits.close
        self.address = address
        self.dialled = dialled
        self.remote_certificate: bytes = remote
        self.binding = certificate_binding(own, remote) if dialled else certificate_binding(remote, own)
        self.send = protocol.send
        self.receive = protocol.receive
        self.allow = protocol.allow
        self.abort = protocol.abort

    @property
    def bytes_in(self) -> int:
        """Bytes received."""
        return self._protocol.bytes_in

    @property
    def bytes_out(self) -> int:
        """Bytes sent."""
        return self._protocol.bytes_out

    async def close(self) -> None:
        """Flush and tear down."""
        await self._protocol.close(self._close_seconds)


class TcpTransport:
    """Listens and dials. ``password`` opens the certificate's encrypted key; it is needed for every new
    roster.
    """

    kind = "tcp"
    cost = 0

    def __init__(self, certificate: Certificate, password: bytes, limits: Limits = DEFAULT) -> None:
        self._certificate = certificate
        self._password = password
        self._limits = limits
        self._server_context: ssl.SSLContext | None = None
        self._client_context: ssl.SSLContext | None = None
        self._tasks: set[asyncio.Task[None]] = set()  # accept loops
        self._half_open: set[asyncio.Task[None]] = set()
        self._sockets: list[socket.socket] = []
        self.dropped = 0
        """Connections closed unheard because too many others were half-open."""

    def handles(self, address: str) -> bool:
        """Every /ip4, /ip6 and /dns4 address."""
        return address.startswith(("/ip4/", "/ip6/", "/dns4/"))

    def ways(self, member: Member) -> list[str]:
        """The addresses of its record that tcp can use."""
        return [address for address in member.addresses if self.handles(address)]

    def trust(self, roster: Roster) -> None:
        """New contexts whose anchors are exactly this roster's certificates."""
        anchors = b"".join({der: None for member in roster.members for der in member.certificates})
        self._server_context = self._context(ssl.PROTOCOL_TLS_SERVER, anchors)
        self._server_context.num_tickets = 0  # a resumed session would skip the certificates
        self._client_context = self._context(ssl.PROTOCOL_TLS_CLIENT, anchors)

    def _context(self, role: int, anchors: bytes) -> ssl.SSLContext:
        context = ssl.SSLContext(role)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False  # identity comes from the certificate itself, not from a name
        context.verify_mode = ssl.CERT_REQUIRED
        if anchors:
            context.load_verify_locations(cadata=anchors)
        self._load_own(context)
        return context

    def _load_own(self, context: ssl.SSLContext) -> None:
        """OpenSSL reads the key from a file only: a 0600 one, encrypted, gone again at once."""
        with tempfile.NamedTemporaryFile(suffix=".pem") as file:
            file.write(certificate_pem(self._certificate.der).encode() + self._certificate.key_pem)
            file.flush()
            try:
                context.load_cert_chain(file.name, password=self._password)
            except ssl.SSLError as error:
                raise ConfigError(
                    f"our own TLS certificate or its key cannot be loaded ({error.reason}); make a new member record"
                ) from None

    async def listen(self, address: str, accept: Accept, refused: Refused) -> str:
        """Listen on ``address``; port 0 takes a free one. ConfigError names the address and the remedy."""
        wanted = parse_address(address)
        if wanted.kind == "dns4":
            raise ConfigError(f"cannot listen on the name {address}; write the address as /ip4/ or /ip6/")
        listener = socket.socket(socket.AF_INET6 if wanted.kind == "ip6" else socket.AF_INET)
        try:
            if os.name == "posix":  # elsewhere the option would let two programs share the port
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((wanted.host, wanted.port))
            listener.listen(_BACKLOG)
        except OSError as error:
            listener.close()
            hint = _LISTEN_HINTS.get(error.errno or 0, f"{error.strerror}; choose another address")
            raise ConfigError(f"cannot listen on {address}: {hint}") from None
        listener.setblocking(False)
        self._sockets.append(listener)
        self._spawn(self._tasks, self._accept_loop(listener, accept, refused))
        return str(Address(wanted.kind, wanted.host, listener.getsockname()[1]))

    def _spawn(self, tasks: set[asyncio.Task[None]], coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(coroutine)
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        return task

    async def _accept_loop(self, listener: socket.socket, accept: Accept, refused: Refused) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                stream, remote = await loop.sock_accept(listener)
            except OSError:
                await asyncio.sleep(_ACCEPT_PAUSE)
                continue
            if len(self._half_open) >= self._limits.half_open:
                self.dropped += 1
                stream.close()
                continue
            admission = self._spawn(self._half_open, self._admit(stream, _text(remote), accept, refused))
            # a task cancelled before its first step would leave the socket to the garbage collector
            admission.add_done_callback(partial(_close_if_cancelled, stream))

    async def _admit(self, stream: socket.socket, address: str, accept: Accept, refused: Refused) -> None:
        loop = asyncio.get_running_loop()
        protocol = FrameProtocol()  # made here: uvloop returns its own TLS layer in the protocol's place
        try:
            transport, _ = await loop.connect_accepted_socket(
                lambda: protocol,
                stream,
                ssl=self._server_context,
                ssl_handshake_timeout=self._limits.handshake,
                ssl_shutdown_timeout=self._limits.close,
            )
        except ssl.SSLError as error:
            refused(address, _listener_fault(address, error))
            return
        except (OSError, TimeoutError):
            return  # gone or too slow before it said anything: the world, nobody's fault
        _tune(transport)
        try:
            connection = TcpConnection(protocol, address, False, self._certificate.der, self._limits)
        except NotAMember as error:
            protocol.abort()
            refused(address, error)
            return
        await accept(connection)

    async def dial(self, address: str) -> TcpConnection:
        """Connect to ``address``; any member's certificate passes here, the hello says whose it must be."""
        wanted = parse_address(address)
        if self._client_context is None:
            raise IllegalStep("the tcp transport was told no roster before dialling; call trust first")
        loop = asyncio.get_running_loop()
        protocol = FrameProtocol()
        try:
            async with asyncio.timeout(self._limits.connect + self._limits.handshake):
                transport, _ = await loop.create_connection(
                    lambda: protocol,
                    wanted.host,
                    wanted.port,
                    ssl=self._client_context,
                    server_hostname="",
                    ssl_handshake_timeout=self._limits.handshake,
                    ssl_shutdown_timeout=self._limits.close,
                )
        except (OSError, TimeoutError) as error:  # SSLError is an OSError
            raise _dial_fault(address, error) from None
        _tune(transport)
        try:
            return TcpConnection(protocol, address, True, self._certificate.der, self._limits)
        except NotAMember:
            protocol.abort()
            raise

    async def close(self) -> None:
        """Stop listening and end half-open connections."""
        tasks = [*self._tasks, *self._half_open]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for listener in self._sockets:
            listener.close()
        self._sockets.clear()


def _close_if_cancelled(stream: socket.socket, admission: asyncio.Task[None]) -> None:
    if admission.cancelled():
        stream.close()


def _text(remote: Any) -> str:
    kind = "ip6" if ":" in remote[0] else "ip4"
    return str(Address(kind, remote[0].split("%")[0], remote[1]))


def _listener_fault(address: str, error: ssl.SSLError) -> RemoteError:
    if error.reason in _NO_CERTIFICATE:
        return NotAMember(f"{address} has no certificate of a current member; refused in the TLS handshake")
    return MalformedMessage(f"{address} failed the TLS handshake ({error.reason}); refused")


def _dial_fault(address: str, error: OSError | TimeoutError) -> LinkError | NotAMember:
    if isinstance(error, ssl.SSLCertVerificationError):
        return NotAMember(
            f"{address} shows a certificate that is in no member's record; another program, another "
            "consortium or an outdated record answers there: check the address"
        )
    if isinstance(error, ssl.SSLError):
        return LinkError(f"{address} does not speak our TLS ({error.reason}); check address and port")
    if isinstance(error, (TimeoutError, ConnectionAbortedError)):  # the second is asyncio's word for slow TLS
        return LinkError(f"{address} does not answer; is the machine on, and the port open in its firewall?")
    words = error.strerror or str(error) or "closed during the TLS handshake"
    return LinkError(f"cannot connect to {address}: {words}; is that peer up?")


def _tune(transport: asyncio.Transport) -> None:
    """Small frames at once; at most two bulk frames unsent in the kernel, so that control does not queue
    behind bulk.
    """
    stream = transport.get_extra_info("socket")
    try:
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, WRITE_BUFFER)
    except OSError:
        pass  # the connection has just gone, or the kernel lacks the option: both do no harm here
