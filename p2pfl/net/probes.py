"""What a network lets through: questions to STUN and TURN servers, one TCP connection, multicast to ourselves.

Each is bounded in time, contacts only what its caller names, and answers in words instead of raising.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
import socket
import ssl
import time
from dataclasses import dataclass
from typing import Any

from p2pfl.errors import ConfigError, LinkError
from p2pfl.net.discovery import Discovery
from p2pfl.net.multiaddrs import parse_address

PROBE_SECONDS = 5.0
MULTICAST_SECONDS = 5.0  # a name probe takes 1.2 s, an announcement 0.5 s, looking the name up up to 3 s
RELEASE_SECONDS = 2.0  # giving a relayed address back; the server forgets it by itself after ten minutes

_AGAIN = 0.5  # seconds until an unanswered STUN request is sent again; the first of RFC 8489, 6.2.1
_KNOCK_SECONDS = 1.0  # for a sign that nothing at all listens at a TURN server's UDP port
_PORTS = {"stun": 3478, "turn": 3478, "turns": 5349}
_SERVER = re.compile(
    r"(?P<scheme>stun|turns?):(\[(?P<ip6>[^\]]+)\]|(?P<host>[^:?\[\]]+))(:(?P<port>[0-9]{1,5}))?"
    r"(\?transport=(?P<transport>udp|tcp))?"
)
_REFUSED = "refused: nothing listens at that port, or a firewall says no"
_SILENT = "no answer"


@dataclass(frozen=True, slots=True)
class Probe:
    """What came of it: ``ok``, and the words for people."""

    ok: bool
    text: str


@dataclass(frozen=True, slots=True)
class Server:
    """Where a STUN or TURN server is, as its URI (RFC 7064, RFC 7065) says. ``transport`` is udp or tcp."""

    scheme: str
    host: str
    port: int
    transport: str


def parse_server(uri: str) -> Server:
    """The server a URI names. Raises ConfigError for anything that is no such URI."""
    match = _SERVER.fullmatch(uri)
    if match is None:
        raise ConfigError(f"{uri[:80]!r} is no STUN or TURN server; write it like stun:stun.hospital.example:3478")
    scheme = match["scheme"]
    usual = "tcp" if scheme == "turns" else "udp"
    return Server(
        scheme, match["ip6"] or match["host"], int(match["port"] or _PORTS[scheme]), match["transport"] or usual
    )


async def tcp_reach(address: str, seconds: float = PROBE_SECONDS) -> str:
    """``open``, ``refused`` or ``no answer``: one TCP connection, closed at once. ConfigError for no such address."""
    wanted = parse_address(address)
    try:
        async with asyncio.timeout(seconds):
            _, writer = await asyncio.open_connection(wanted.host, wanted.port)
    except ConnectionRefusedError:
        return "refused"
    except (OSError, UnicodeError):  # TimeoutError is an OSError; UnicodeError: a name that cannot be one
        return "no answer"
    writer.transport.abort()  # nothing was said, nothing is to be waited for
    return "open"


async def stun_probe(uri: str, seconds: float = PROBE_SECONDS) -> Probe:
    """Ask a STUN server for our public address (RFC 8489 binding request), over IPv4 as WebRTC links do."""
    server = parse_server(uri)
    try:
        async with asyncio.timeout(seconds):
            mapped, own, took = await _binding(server)
    except (OSError, UnicodeError) as error:
        return Probe(False, f"{uri}: {_why(error)}; is UDP to it allowed, and the name right?")
    natted = "no NAT in between" if mapped == own else "behind a NAT"
    return Probe(True, f"{uri} answers in {took * 1e3:.0f} ms; our address as seen from there is {mapped}, {natted}")


async def turn_probe(uri: str, username: str | None, password: str | None, seconds: float = PROBE_SECONDS) -> Probe:
    """Ask a TURN server for a relayed address with our credentials, and give it back."""
    from aioice import stun, turn

    server = parse_server(uri)
    try:
        async with asyncio.timeout(seconds):
            if server.transport == "udp":
                await _knock(server)
            transport, protocol = await turn.create_turn_endpoint(
                _Released,
                server_addr=(server.host, server.port),
                username=username,
                password=password,
                ssl=server.scheme == "turns",
                transport=server.transport,
            )
    except stun.TransactionFailed as error:
        return Probe(False, f"{uri} {_turn_refusal(error.response.attributes.get('ERROR-CODE', (0, '')))}")
    except ssl.SSLCertVerificationError as error:
        why = f"its TLS certificate is not one this system trusts ({error.verify_message})"
        return Probe(False, f"{uri}: {why}; add its authority to the system's store")
    except (OSError, UnicodeError, stun.TransactionError) as error:
        return Probe(False, f"{uri}: {_why(error)}; is it allowed through the firewall, and the name right?")
    relayed = str(transport.get_extra_info("sockname")[0])
    transport.close()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(RELEASE_SECONDS):
            await protocol.lost.wait()
    return Probe(True, f"{uri} takes our user name and password, and relays from {relayed}")


async def multicast_probe(interface: str) -> Probe:
    """Whether two zeroconf instances of this machine see each other there: it proves no more than that."""
    heard = asyncio.Event()
    tag = f"doctor-{secrets.token_hex(8)}"  # of this call alone: another doctor in the network is not what we look for
    try:
        announcer = Discovery(tag, interface, 9, lambda address: None)
        browser = Discovery(tag, interface, None, lambda address: heard.set())
    except ConfigError as error:
        return Probe(False, str(error))
    try:
        async with asyncio.timeout(MULTICAST_SECONDS):
            await asyncio.gather(announcer.start(), browser.start())
            await heard.wait()
    except LinkError as error:
        return Probe(False, str(error))
    except TimeoutError:
        return Probe(False, f"on {interface} this machine does not hear its own multicast; a firewall here drops it")
    finally:
        await asyncio.gather(announcer.stop(), browser.stop(), return_exceptions=True)
    why = "the network's switches may still drop it, and it does not cross VLANs"
    return Probe(True, f"on {interface} this machine hears its own multicast; that proves this machine only: {why}")


# --- STUN


class _Answers(asyncio.DatagramProtocol):
    """Datagrams and errors as they come; a bounded number of them waits."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[bytes | Exception] = asyncio.Queue(16)

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self._put(data)

    def error_received(self, exc: Exception) -> None:
        self._put(exc)

    def _put(self, item: bytes | Exception) -> None:
        with contextlib.suppress(asyncio.QueueFull):
            self.queue.put_nowait(item)


async def _binding(server: Server) -> tuple[str, str, float]:
    """Our address as the server sees it, our own one, and the round trip in seconds. Ends by its caller's limit."""
    from aioice import stun

    request = stun.Message(message_method=stun.Method.BINDING, message_class=stun.Class.REQUEST)
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(server.host, server.port, family=socket.AF_INET, type=socket.SOCK_DGRAM)
    place = str(found[0][4][0]), server.port
    transport, answers = await loop.create_datagram_endpoint(_Answers, remote_addr=place)
    try:
        while True:
            transport.sendto(bytes(request))
            sent = time.monotonic()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_AGAIN):
                    mapped = await _mapped(answers.queue, request.transaction_id)
                    return mapped, str(transport.get_extra_info("sockname")[0]), time.monotonic() - sent
    finally:
        transport.close()


async def _mapped(queue: asyncio.Queue[bytes | Exception], transaction: bytes) -> str:
    from aioice import stun

    while True:
        data = await queue.get()
        if isinstance(data, Exception):
            raise data
        try:
            message = stun.parse_message(data)
        except ValueError:
            continue
        if message.transaction_id == transaction and "XOR-MAPPED-ADDRESS" in message.attributes:
            return str(message.attributes["XOR-MAPPED-ADDRESS"][0])


# --- TURN


class _Released(asyncio.DatagramProtocol):
    def __init__(self) -> None:
        self.lost = asyncio.Event()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set()


async def _knock(server: Server) -> None:
    """ConnectionRefusedError where the port is closed, which aioice would wait out; a server may ignore this."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_KNOCK_SECONDS):
            await _binding(server)


def _turn_refusal(code: tuple[int, str]) -> str:
    if code[0] in (401, 441):  # 441: wrong credentials for this allocation
        return "refuses our user name or password; correct turn_username and turn_password_file"
    if code[0] == 486:
        return "gives this user no further relayed address (quota reached); ask who runs it"
    return f"refuses with {code[0]} {str(code[1])[:80]!r}; ask who runs it"


def _why(error: Exception) -> str:
    if isinstance(error, ConnectionRefusedError):
        return _REFUSED
    if isinstance(error, socket.gaierror | UnicodeError):
        return "this name is not known here"
    if isinstance(error, TimeoutError):
        return _SILENT
    return str(getattr(error, "strerror", None) or error or _SILENT)
