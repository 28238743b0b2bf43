"""Probes of the network: against responders of our own, coturn, dead ports and silent ones."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import shutil
import socket
import ssl
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import cast

import pytest
from aioice import stun

from p2pfl.crypto import create_certificate
from p2pfl.crypto.certificates import certificate_pem
from p2pfl.errors import ConfigError
from p2pfl.net.probes import Server, multicast_probe, parse_server, stun_probe, tcp_reach, turn_probe

pytestmark = pytest.mark.timeout(60)

LOOPBACK = "127.0.0.1"
SHORT = 0.3  # seconds, where nothing will come
USER, PASSWORD = "hospital", "correct horse"


@pytest.fixture
def dead_port() -> int:
    """A port that was free a moment ago, for UDP and TCP."""
    return free_port()


def free_port() -> int:
    with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
        tcp.bind((LOOPBACK, 0))
        udp.bind(tcp.getsockname())
        return int(tcp.getsockname()[1])


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A UDP port that takes everything and says nothing."""
    with socket.socket(type=socket.SOCK_DGRAM) as hole:
        hole.bind((LOOPBACK, 0))
        yield int(hole.getsockname()[1])


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("stun:s.example", Server("stun", "s.example", 3478, "udp")),
        ("stun:s.example:19302", Server("stun", "s.example", 19302, "udp")),
        ("turn:t.example?transport=tcp", Server("turn", "t.example", 3478, "tcp")),
        ("turns:t.example", Server("turns", "t.example", 5349, "tcp")),
        ("turns:[fd00::2]:443?transport=tcp", Server("turns", "fd00::2", 443, "tcp")),
        ("http://t.example", None),
        ("stun:a:b:c", None),
        ("stun:", None),
    ],
)
def test_where_a_server_is(uri: str, expected: Server | None) -> None:
    if expected is not None:
        assert parse_server(uri) == expected
        return
    with pytest.raises(ConfigError, match="no STUN or TURN server"):
        parse_server(uri)


# --- STUN


class Responder(asyncio.DatagramProtocol):
    """Answers binding requests: first rubbish and somebody else's answer; the first ``lost`` requests not at all."""

    def __init__(self, mapped: str, lost: int = 0) -> None:
        self.mapped = mapped
        self.lost = lost
        self.requests = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        request = stun.parse_message(data)
        self.requests += 1
        if self.requests <= self.lost:
            return
        for transaction, address in ((secrets.token_bytes(12), "198.51.100.66"), (request.transaction_id, self.mapped)):
            answer = stun.Message(stun.Method.BINDING, stun.Class.RESPONSE, transaction)
            answer.attributes["XOR-MAPPED-ADDRESS"] = (address, 4000)
            self.transport.sendto(b"no message", addr)
            self.transport.sendto(bytes(answer), addr)


@contextlib.asynccontextmanager
async def responding(responder: Responder) -> AsyncIterator[str]:
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(lambda: responder, local_addr=(LOOPBACK, 0))
    try:
        yield f"stun:{LOOPBACK}:{transport.get_extra_info('sockname')[1]}"
    finally:
        transport.close()


@pytest.mark.parametrize(("mapped", "words"), [("203.0.113.7", "behind a NAT"), (LOOPBACK, "no NAT in between")])
async def test_a_stun_server_tells_our_address(mapped: str, words: str) -> None:
    async with responding(Responder(mapped)) as uri:
        probe = await stun_probe(uri)
    assert probe.ok and " ms; " in probe.text
    assert probe.text.endswith(f"our address as seen from there is {mapped}, {words}")


async def test_a_lost_stun_request_is_sent_again() -> None:
    responder = Responder("203.0.113.7", lost=1)
    async with responding(responder) as uri:
        assert (await stun_probe(uri)).ok
    assert responder.requests == 2


async def test_no_stun_server(dead_port: int, silent_port: int) -> None:
    refused = await stun_probe(f"stun:{LOOPBACK}:{dead_port}")
    assert not refused.ok and "refused: nothing listens" in refused.text
    silent = await stun_probe(f"stun:{LOOPBACK}:{silent_port}", SHORT)
    assert not silent.ok and "no answer" in silent.text
    for name in ("no-such-host.invalid", "a" * 80):  # the second is no name at all
        unknown = await stun_probe(f"stun:{name}", SHORT)
        assert not unknown.ok and unknown.text.startswith(f"stun:{name}: ")


# --- TURN


@pytest.fixture
async def coturn(tmp_path: Path) -> AsyncIterator[int]:
    """coturn on loopback with one user, who may hold a single relayed address at one time."""
    if shutil.which("turnserver") is None:
        pytest.skip("coturn (the program turnserver) is not installed")
    port = free_port()
    settings = [
        f"listening-ip={LOOPBACK}", f"relay-ip={LOOPBACK}", f"listening-port={port}", "lt-cred-mech",
        "realm=lab.example", f"user={USER}:{PASSWORD}", "user-quota=1", "relay-threads=1", "no-cli", "no-tls", "no-dtls",
        f"userdb={tmp_path / 'users.db'}", f"pidfile={tmp_path / 'pid'}", f"log-file={tmp_path / 'log'}",
        "simple-log", "no-stdout-log",
    ]  # fmt: skip
    (tmp_path / "turnserver.conf").write_text("\n".join(settings) + "\n")
    process = await asyncio.create_subprocess_exec(
        "turnserver", "-c", str(tmp_path / "turnserver.conf"), cwd=tmp_path,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        end = time.monotonic() + 15
        while await tcp_reach(f"/ip4/{LOOPBACK}/tcp/{port}") != "open":
            assert process.returncode is None and time.monotonic() < end, (tmp_path / "log").read_text()
            await asyncio.sleep(0.02)
        yield port
    finally:
        if process.returncode is None:
            process.terminate()
            try:
                await asyncio.wait_for(process.wait(), 5)
            except TimeoutError:
                process.kill()
                await process.wait()


@pytest.mark.parametrize("transport", ["udp", "tcp"])
async def test_a_turn_server_with_right_and_wrong_passwords(coturn: int, transport: str) -> None:
    uri = f"turn:{LOOPBACK}:{coturn}?transport={transport}"
    probe = await turn_probe(uri, USER, PASSWORD)
    assert probe.ok and probe.text.endswith(f"relays from {LOOPBACK}") and PASSWORD not in probe.text
    async with asyncio.timeout(20):  # kept, the address would use up the quota for ten minutes; coturn takes a second
        while not (again := await turn_probe(uri, USER, PASSWORD)).ok:
            assert "quota reached" in again.text
            await asyncio.sleep(0.05)
    for user, password in ((USER, "wrong"), ("nobody", PASSWORD)):
        probe = await turn_probe(uri, user, password)
        assert not probe.ok and "refuses our user name or password" in probe.text
        assert password not in probe.text


async def test_a_turn_server_that_answers_stun_as_well(coturn: int) -> None:
    probe = await stun_probe(f"stun:{LOOPBACK}:{coturn}")
    assert probe.ok and f"is {LOOPBACK}, no NAT" in probe.text


@pytest.mark.parametrize("transport", ["udp", "tcp"])
async def test_no_turn_server_at_that_port(dead_port: int, transport: str) -> None:
    probe = await turn_probe(f"turn:{LOOPBACK}:{dead_port}?transport={transport}", USER, PASSWORD)
    assert not probe.ok and "refused: nothing listens" in probe.text


async def test_a_turn_server_that_says_nothing(silent_port: int) -> None:
    probe = await turn_probe(f"turn:{LOOPBACK}:{silent_port}", USER, PASSWORD, SHORT)
    assert not probe.ok and "no answer" in probe.text and PASSWORD not in probe.text


async def test_a_turn_server_whose_certificate_nobody_vouches_for(tmp_path: Path) -> None:
    now = int(time.time())
    certificate = create_certificate("turn", not_before=now - 60, not_after=now + 3600, password=b"key")
    (tmp_path / "pem").write_bytes(certificate_pem(certificate.der).encode() + certificate.key_pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "pem", password=b"key")
    server = await asyncio.start_server(lambda reader, writer: writer.close(), LOOPBACK, 0, ssl=context)
    async with server:
        port = server.sockets[0].getsockname()[1]
        probe = await turn_probe(f"turns:{LOOPBACK}:{port}", USER, PASSWORD)
    assert not probe.ok and "is not one this system trusts" in probe.text


# --- TCP and multicast


async def test_one_tcp_connection(dead_port: int) -> None:
    came = asyncio.Event()

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.read() == b""  # nothing is said
        writer.close()
        came.set()

    server = await asyncio.start_server(take, LOOPBACK, 0)
    async with server, asyncio.timeout(5):
        assert await tcp_reach(f"/ip4/{LOOPBACK}/tcp/{server.sockets[0].getsockname()[1]}") == "open"
        await came.wait()
    assert await tcp_reach(f"/ip4/{LOOPBACK}/tcp/{dead_port}") == "refused"
    assert await tcp_reach("/dns4/no-such-host.invalid/tcp/1", SHORT) == "no answer"
    with pytest.raises(ConfigError, match="is not of the form"):
        await tcp_reach("/webrtc")


async def test_a_full_port_gives_no_answer() -> None:
    """What a firewall that drops does: the connection is never answered. Here the queue of a listener is full."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind((LOOPBACK, 0))
        listener.listen(0)
        for _ in range(2):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        assert await tcp_reach(f"/ip4/{LOOPBACK}/tcp/{listener.getsockname()[1]}", SHORT) == "no answer"


async def test_multicast_to_ourselves() -> None:
    probe = await multicast_probe(LOOPBACK)
    assert probe.text.startswith(f"on {LOOPBACK} this machine ")
    assert probe.ok == ("proves this machine only" in probe.text)
    nowhere = await multicast_probe("192.0.2.77")
    assert not nowhere.ok and "no discovery on interface 192.0.2.77" in nowhere.text
    assert not (await multicast_probe("eth0")).ok
