"""What only the tcp transport promises: TLS 1.3 with certificates on both sides, and its limits."""

from __future__ import annotations

import asyncio
import shutil
import ssl
from dataclasses import replace

import pytest
from net_peers import BOUND, PASSWORD, PATIENT, TRANSPORTS, Consortium, Peer, Site, roster_of, sites

from p2pfl.errors import ConfigError, LimitExceeded, LinkError, LocalError
from p2pfl.net import TcpTransport, parse_address
from p2pfl.net.framing import FrameProtocol
from p2pfl.net.limits import FRAME_LIMIT

pytestmark = pytest.mark.timeout(30)


@pytest.fixture
async def tcp():
    joined = Consortium(TRANSPORTS["tcp"]())
    yield joined
    await joined.stop()


def port_of(peer: Peer) -> int:
    return parse_address(peer.address).port


async def victim_of(tcp: Consortium, **limits: float) -> tuple[Peer, Site]:
    one, two = sites("lille", "rouen")
    roster = roster_of(one.member(), two.member())
    return await tcp.start(one, roster, limits=replace(PATIENT, **limits)), two


async def closed(reader: asyncio.StreamReader) -> bool:
    async with asyncio.timeout(BOUND):
        try:
            while await reader.read(4096):
                pass
        except OSError:
            pass
    return True


GARBAGE = {
    "text": b"GET / HTTP/1.1\r\nHost: hospital\r\n\r\n",
    "zeros": bytes(4096),
    "a TLS record of nonsense": b"\x16\x03\x01\x00\x40" + bytes(64),
    "ours without TLS": b"\x00\x00\x00\x01H",
}


@pytest.mark.parametrize("name", GARBAGE)
async def test_garbage_is_refused_and_harms_nothing(tcp: Consortium, name: str) -> None:
    victim, member = await victim_of(tcp)
    reader, writer = await asyncio.open_connection("127.0.0.1", port_of(victim))
    writer.write(GARBAGE[name])
    assert await closed(reader)
    writer.close()
    await tcp.until(lambda: victim.host.refused == 1)
    assert "failed the TLS handshake" in victim.refusals[0][1]
    roster = roster_of(victim.site.member((victim.address,)), member.member())
    honest = await tcp.start(member, roster, listen=False)
    await honest.host.dial(victim.peer_id)
    assert list(honest.host.links) == [victim.peer_id]


async def test_half_open_connections_are_capped_and_time_out(tcp: Consortium) -> None:
    victim, member = await victim_of(tcp, half_open=3, handshake=0.2)
    transport = victim.host._transports[0]
    mute = [await asyncio.open_connection("127.0.0.1", port_of(victim)) for _ in range(3)]
    await tcp.until(lambda: len(transport._half_open) == 3)
    reader, writer = await asyncio.open_connection("127.0.0.1", port_of(victim))
    assert await closed(reader)
    writer.close()
    assert transport.dropped == 1 and len(transport._half_open) <= 3
    await tcp.until(lambda: not transport._half_open)  # slow ones are let go
    for reader, writer in mute:
        assert await closed(reader)
        writer.close()
    roster = roster_of(victim.site.member((victim.address,)), member.member())
    honest = await tcp.start(member, roster, listen=False)
    await honest.host.dial(victim.peer_id)


async def test_openssl_without_a_certificate_is_refused(tcp: Consortium) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl program on this machine")
    victim, _ = await victim_of(tcp)
    client = await asyncio.create_subprocess_exec(
        "openssl",
        "s_client",
        "-connect",
        f"127.0.0.1:{port_of(victim)}",
        "-tls1_3",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(BOUND):
        assert client.stdin is not None and client.stdout is not None
        output = await client.stdout.read()  # ends when our side has closed
        await client.wait()
    assert b"error" in output and client.returncode != 0
    assert victim.events == [] and victim.host.links == {}
    assert victim.host.refused == 1 and "no certificate of a current member" in victim.refusals[0][1]


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2])
async def test_older_tls_is_refused(tcp: Consortium, version: ssl.TLSVersion) -> None:
    victim, member = await victim_of(tcp)
    transport = TcpTransport(member.certificate, PASSWORD)
    transport.trust(roster_of(victim.site.member(), member.member()))
    context = transport._client_context
    assert context is not None and context.minimum_version == ssl.TLSVersion.TLSv1_3
    context.minimum_version = context.maximum_version = version
    with pytest.raises(LinkError, match=r"closed during the TLS handshake|does not speak our TLS"):
        await transport.dial(victim.address)
    await tcp.until(lambda: victim.host.refused == 1)


async def test_a_refused_dialler_learns_in_plain_words(tcp: Consortium) -> None:
    victim, _ = await victim_of(tcp)
    stranger = Site("stranger")
    outsider = TcpTransport(stranger.certificate, PASSWORD)
    outsider.trust(roster_of(victim.site.member(), stranger.member()))
    connection = await outsider.dial(victim.address)  # in TLS 1.3 it believes to be connected
    with pytest.raises(LinkError, match="probably it refused our certificate"):
        await connection.receive()


async def test_new_rosters_replace_all_anchors(tcp: Consortium) -> None:
    victim, member = await victim_of(tcp)
    dialler = TcpTransport(member.certificate, PASSWORD)
    dialler.trust(roster_of(victim.site.member(), member.member()))
    victim.host.update_roster(roster_of(victim.site.member()))
    connection = await dialler.dial(victim.address)
    with pytest.raises(LinkError):
        await connection.receive()
    victim.host.update_roster(roster_of(victim.site.member(), member.member()))
    connection = await dialler.dial(victim.address)
    assert (await connection.receive())[:1] == b"H"
    connection.abort()


BAD_ADDRESSES = {
    "/ip4/203.0.113.7/tcp/4101": "no such address",
    "/dns4/localhost/tcp/4101": "write the address as /ip4/",
    "/ip4/127.0.0.1/udp/4101": "not of the form",
}


@pytest.mark.parametrize("address", BAD_ADDRESSES)
async def test_impossible_addresses_end_in_one_clear_sentence(tcp: Consortium, address: str) -> None:
    tcp.kind.listen_address = lambda site: address
    with pytest.raises(ConfigError, match=BAD_ADDRESSES[address]) as caught:
        await victim_of(tcp)
    assert address in str(caught.value)


async def test_dialling_nobody_says_so(tcp: Consortium) -> None:
    site = Site("lille")
    transport = TcpTransport(site.certificate, PASSWORD, PATIENT)
    with pytest.raises(LocalError, match="trust first"):
        await transport.dial("/ip4/127.0.0.1/tcp/1")
    transport.trust(roster_of(site.member()))
    with pytest.raises(LinkError, match=r"cannot connect to /ip4/127.0.0.1/tcp/1: .*is that peer up"):
        await transport.dial("/ip4/127.0.0.1/tcp/1")


async def test_a_wrong_password_is_a_setting_of_ours() -> None:
    site = Site("lille")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        TcpTransport(site.certificate, b"wrong").trust(roster_of(site.member()))


class Stream(asyncio.Transport):
    """A byte stream below a FrameProtocol that records what happens to it."""

    def __init__(self) -> None:
        super().__init__()
        self.paused = False
        self.aborted = False

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def abort(self) -> None:
        self.aborted = True


def feed(protocol: FrameProtocol, data: bytes, step: int) -> None:
    for start in range(0, len(data), step):
        rest = data[start : start + step]
        while rest:
            view = protocol.get_buffer(-1)
            size = min(len(view), len(rest))
            view[:size] = rest[:size]
            rest = rest[size:]
            protocol.buffer_updated(size)


@pytest.mark.parametrize("step", [1, 3, 1000, 65536, 1 << 22])
async def test_frames_are_split_however_the_bytes_arrive(step: int) -> None:
    protocol, stream = FrameProtocol(), Stream()
    protocol.connection_made(stream)
    protocol.allow(FRAME_LIMIT)
    sizes = [0, 1, 2, 100, 5000] if step == 1 else [0, 1, FRAME_LIMIT, 70000, 0, 262144, 3]
    frames = [bytes([size % 251]) * size for size in sizes]
    feed(protocol, b"".join(len(frame).to_bytes(4, "big") + frame for frame in frames), step)
    assert [await protocol.receive() for _ in frames] == frames
    assert protocol.bytes_in == sum(sizes) + 4 * len(sizes)


async def test_a_full_inbox_pauses_reading_until_it_has_room() -> None:
    protocol, stream = FrameProtocol(), Stream()
    protocol.connection_made(stream)
    protocol.allow(FRAME_LIMIT)
    frame = bytes(65536)
    for _ in range(17):
        feed(protocol, len(frame).to_bytes(4, "big") + frame, 1 << 20)
    assert stream.paused
    for _ in range(9):  # INBOX_BYTES / 2 holds 7 of these 17 frames with their prefixes
        await protocol.receive()
    assert stream.paused
    await protocol.receive()
    assert not stream.paused


async def test_an_announced_giant_is_refused_before_it_is_stored() -> None:
    protocol, stream = FrameProtocol(), Stream()
    protocol.connection_made(stream)
    feed(protocol, (1 << 30).to_bytes(4, "big") + b"x", 100)
    assert stream.aborted and len(protocol._buffer) < FRAME_LIMIT

    with pytest.raises(LimitExceeded):
        await protocol.receive()
