"""The two contracts between a host and a way to carry bytes: Transport and Connection.

A transport may be written against any medium (TCP, memory, data channels). It carries frames and shows
the certificate the other end has proven to hold; it decides nothing about membership beyond what its own
handshake can. Trust: whoever holds the private key of a member's certificate gets a connection. Only the
hello (:mod:`p2pfl.net.handshake`) proves the identity, and only then does a link count as up.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from typing import Protocol

from p2pfl.errors import RemoteError
from p2pfl.types import Member, PeerId, Roster

_BINDING_DOMAIN = b"p2pfl/1 certificate binding"


class Connection(Protocol):
    """One ordered, reliable, encrypted stream of frames to one other end.

    Frames are bytes; they arrive whole, in order, each once, or the connection fails. One task receives,
    any number send.
    """

    @property
    def kind(self) -> str:
        """The transport's name: ``tcp``, ``webrtc`` or ``memory``."""

    @property
    def address(self) -> str:
        """The other end's address as far as it is known, for people."""

    @property
    def dialled(self) -> bool:
        """Whether this end dialled."""

    @property
    def remote_certificate(self) -> bytes:
        """DER of the certificate whose private key the other end has proven to hold."""

    @property
    def pinned(self) -> PeerId | None:
        """The member whose identity signed for this very certificate in the transport's own signalling.

        Then no other member may say hello over this connection, and the certificate needs no member record.
        None: the certificate must stand in the record of whoever says hello.
        """

    @property
    def path(self) -> str:
        """``direct``, or ``relayed`` where a relay server forwards every byte."""

    @property
    def introducer(self) -> PeerId | None:
        """The member that brought this connection about; None where nobody had to."""

    @property
    def binding(self) -> bytes:
        """32 bytes that both ends of this connection agree on and no other pair of certificates has."""

    @property
    def bytes_in(self) -> int:
        """Bytes received so far, unfinished frames included: any growth is a sign of life."""

    @property
    def bytes_out(self) -> int:
        """Bytes handed over for sending so far."""

    async def send(self, *parts: bytes) -> None:
        """Send one frame made of ``parts``.

        The frame is handed over whole before the first wait, or not at all; then the call waits until the
        medium has room again (back-pressure). Cancelling that wait leaves the connection usable. Bounding
        it in time is the caller's task. Raises LinkError when the connection is gone.
        """

    async def receive(self) -> bytes:
        """The next frame. Frames that arrived before a failure are still delivered.

        At most INBOX_BYTES and one frame wait here; beyond that the sender is slowed. Cancelling loses
        nothing. Raises LinkError when the connection is gone, LimitExceeded after a frame above the
        allowed size.
        """

    def allow(self, limit: int) -> None:
        """Accept frames of up to ``limit`` bytes from now on. Starts at HELLO_LIMIT."""

    async def close(self) -> None:
        """Flush what was sent, then tear down. Bounded in time, never raises, may be called again."""

    def abort(self) -> None:
        """Tear down at once, unsent frames are lost. May be called again."""


Accept = Callable[[Connection], Awaitable[None]]
"""Takes an incoming connection; returns once it is proven or refused. Until then it counts as half-open."""

Refused = Callable[[str, RemoteError], None]
"""Told who (an address) was refused by the transport's own handshake, and why."""


class Transport(Protocol):
    """One way to reach others. Not started before the first ``trust``."""

    @property
    def kind(self) -> str:
        """``tcp``, ``webrtc`` or ``memory``; what ``links`` shows."""

    @property
    def cost(self) -> int:
        """0 for a plain connection, more for one that needs the help of others. Peers agree on it: it is the same
        wherever this kind is implemented. A dearer kind is used only while no cheaper one works.
        """

    def handles(self, address: str) -> bool:
        """Whether this transport understands such an address."""

    def ways(self, member: Member) -> list[str]:
        """The addresses by which this transport could reach that member, the best first; empty for none."""

    def trust(self, roster: Roster) -> None:
        """From now on only certificates in this roster's records pass, in both directions. Live
        connections stay.
        """

    async def listen(self, address: str, accept: Accept, refused: Refused) -> str:
        """Listen and return the real address. ConfigError where that is impossible (port in use, no such
        interface).
        """

    async def dial(self, address: str) -> Connection:
        """Connect, bounded in time. LinkError when nobody answers, NotAMember when the other's
        certificate is a stranger's.
        """

    async def close(self) -> None:
        """Stop listening and end half-open connections. Live connections belong to the host."""


def certificate_binding(dialler: bytes, listener: bytes) -> bytes:
    """SHA-256 over both certificates by role, each after its length.

    TLS 1.3 channel bindings (RFC 9266 exporter) are not offered by Python's ssl. Two certificates name
    the two TLS keys; with the fresh nonces of the hello a proof for one connection is worthless in
    another unless both keys are stolen.
    """
    state = hashlib.sha256(_BINDING_DOMAIN)
    for certificate in (dialler, listener):
        state.update(len(certificate).to_bytes(4, "big"))
        state.update(certificate)
    return state.digest()
