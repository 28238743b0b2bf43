"""aioice with what it lacks: a choice of interfaces, bounds, and checks that answer checks (RFC 8445)."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import socket
from collections.abc import Sequence
from typing import Any

import aioice.ice
from aiortc import RTCIceGatherer, RTCIceServer
from aiortc.rtcconfiguration import RTCIceTransportPolicy

from p2pfl.net.webrtc.settings import IceSettings

DATAGRAMS_WAITING = 8192  # 9 MB of full packets: several credit windows
EARLY_DATAGRAMS = 64  # before a pair is chosen: the other end may be ahead by its first handshake message
DATAGRAM_LIMIT = 2048  # bytes; DTLS keeps to the path's 1,500
CHECKS = 256  # pairs of addresses tried for one connection; 24 candidates on eight interfaces make 192
RECEIVE_BUFFER = 2 << 20
"""Bytes of each socket's receive buffer, as far as the kernel allows. aioice's 256 KiB overflow before aiortc's sender
slows down, and a lost tail costs a second (RFC 9260's RTO.Min)."""
BURST = 32  # datagrams read in one turn of the loop: a millisecond's work
CHECK_AGAIN = 5.0  # seconds; NATs forget a UDP flow that was never answered after 30 s (RFC 4787 allows 120)

_addresses: contextvars.ContextVar[tuple[str, ...] | None] = contextvars.ContextVar("addresses", default=None)
_all_addresses = aioice.ice.get_host_addresses
_State = aioice.ice.CandidatePair.State


def _host_addresses(use_ipv4: bool, use_ipv6: bool) -> list[str]:
    """aioice takes every interface but loopback, VPNs and container bridges included, and has no setting for it.

    Where no choice was made in this context (other users of aioice in this process), nothing changes.
    """
    chosen = _addresses.get()
    if chosen is None:
        return _all_addresses(use_ipv4, use_ipv6)
    return [address for address in chosen if (use_ipv6 if ":" in address else use_ipv4)]


aioice.ice.get_host_addresses = _host_addresses


def make_gatherer(settings: IceSettings, *, controlling: bool) -> RTCIceGatherer:
    """A gatherer for one connection; the dialler is the controlling end, and so the DTLS server."""
    policy = RTCIceTransportPolicy.RELAY if settings.relay_only else RTCIceTransportPolicy.ALL
    gatherer = RTCIceGatherer(iceServers=_servers(settings), iceTransportPolicy=policy)
    connection: Any = gatherer._connection
    connection.ice_controlling = controlling  # aiortc starts both ends controlled, which costs a round trip
    _bound_datagrams(connection)
    _repeat_checks(connection)
    return gatherer


async def gather_from(gatherer: RTCIceGatherer, addresses: Sequence[str]) -> None:
    """Gather on these local addresses alone."""
    token = _addresses.set(tuple(addresses))
    try:
        await gatherer.gather()
    finally:
        _addresses.reset(token)
    for protocol in gatherer._connection._protocols:
        stream = protocol.transport.get_extra_info("socket")
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
            if isinstance(asyncio.get_running_loop(), asyncio.SelectorEventLoop):
                _read_bursts(protocol, stream.dup())


async def check_again(connection: Any) -> None:
    """Make failed checks again, until cancelled."""
    while True:
        await asyncio.sleep(CHECK_AGAIN)
        for pair in list(connection._check_list):
            if pair.state == _State.FAILED:
                _restart(connection, pair)


def _servers(settings: IceSettings) -> list[RTCIceServer]:
    servers = []  # never None: aiortc would then ask Google's STUN server
    if settings.stun is not None and not settings.relay_only:
        servers.append(RTCIceServer(settings.stun))
    if settings.turn is not None:
        servers.append(RTCIceServer(settings.turn, settings.turn_username, settings.turn_password))
    return servers


def _bound_datagrams(connection: Any) -> None:
    """Whatever comes to the port, from whomever, is queued until DTLS reads it: no more than so much."""
    taken = connection.data_received

    def data_received(data: bytes, component: int) -> None:
        room = DATAGRAMS_WAITING if connection._nominated else EARLY_DATAGRAMS
        if len(data) <= DATAGRAM_LIMIT and connection._queue.qsize() < room:
            taken(data, component)

    connection.data_received = data_received


def _read_bursts(protocol: Any, stream: socket.socket) -> None:
    """Read what waits in the socket when one datagram was read, as uvloop does; ``stream`` is a duplicate, closed here.

    asyncio reads one datagram in each turn of its loop, so that a packet costs two turns, and each one an
    acknowledgement of its own (``association.py``).
    """
    taken, lost = protocol.datagram_received, protocol.connection_lost

    def datagram_received(data: bytes, address: Any) -> None:
        taken(data, address)
        with contextlib.suppress(OSError):  # BlockingIOError: nothing more waits
            for _ in range(BURST):
                taken(*stream.recvfrom(DATAGRAM_LIMIT + 1))

    def connection_lost(error: Exception | None) -> None:
        stream.close()
        lost(error)

    protocol.datagram_received = datagram_received
    protocol.connection_lost = connection_lost


def _repeat_checks(connection: Any) -> None:
    """An incoming check repeats our own check of that pair at once (RFC 8445 section 7.3.1.4), once per pair.

    aioice leaves a check under way to its timer. Between two NATs that filter by port the first check is always
    lost, and in the half second until the timer the relayed pair would win.
    """
    plain = connection.check_incoming
    repeated: set[int] = set()

    def check_incoming(message: Any, address: tuple[str, int], protocol: Any) -> None:
        known = any(pair.protocol is protocol and pair.remote_addr == address for pair in connection._check_list)
        if not known and (len(connection._check_list) >= CHECKS or connection._nominated):
            return  # a member that checks from one new port after the other would fill our memory
        under_way = {id(pair.task) for pair in connection._check_list if pair.state == _State.IN_PROGRESS}
        plain(message, address, protocol)
        for pair in connection._check_list:
            asked = pair.protocol is protocol and pair.remote_addr == address and pair.state == _State.IN_PROGRESS
            if asked and pair.task is not None and id(pair.task) in under_way and id(pair) not in repeated:
                repeated.add(id(pair))
                pair.task.cancel()
                pair.task = None
                _restart(connection, pair)

    connection.check_incoming = check_incoming


def _restart(connection: Any, pair: Any) -> None:
    connection.check_state(pair, _State.WAITING)
    connection.check_start_task(pair)
