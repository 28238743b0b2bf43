"""Programs that are not ours at the other end: libdatachannel, js-libp2p, multicast-dns, avahi and openssl."""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import avahi
import namespaces
import pytest
from counterparts import BOUND, Counterpart, why_not
from net_peers import PASSWORD, PATIENT, TRANSPORTS, Consortium, Peer, Site, roster_of, sites
from webrtc_sites import LOOPBACK

from p2pfl.crypto.certificates import certificate_pem
from p2pfl.crypto.identity import Identity, verify_signature
from p2pfl.crypto.peer_ids import parse_peer_id, peer_id_to_cid, public_key_from_peer_id
from p2pfl.errors import LinkError, SignatureRefused
from p2pfl.net import parse_address
from p2pfl.net.discovery import SERVICE, Discovery
from p2pfl.net.limits import FRAME_LIMIT
from p2pfl.net.webrtc import WebRtcConnection
from p2pfl.net.webrtc.channel import OVERHEAD, WINDOW
from p2pfl.net.webrtc.offers import Candidate, Description
from p2pfl.net.webrtc.stack import MESSAGE_LIMIT, Stack
from p2pfl.types import PeerId

NODE_REASON = why_not()

pytestmark = pytest.mark.timeout(60)
needs_node = pytest.mark.skipif(NODE_REASON is not None, reason=NODE_REASON or "")

WE_OFFER, THEY_OFFER = "we offer", "they offer"
WAYS = (WE_OFFER, THEY_OFFER)
ONE_MORE = MESSAGE_LIMIT + OVERHEAD
"""Bytes of credit that one more message may take."""

SIZES = [0, 1, MESSAGE_LIMIT - 1, MESSAGE_LIMIT, 300_000, 1 << 20]


# --- the data channel, against libdatachannel


def told(description: Description) -> dict[str, Any]:
    fields = asdict(description)
    return {**fields, "fingerprint": description.fingerprint.hex(), "message_limit": MESSAGE_LIMIT}


def understood(local: dict[str, Any]) -> Description:
    candidates = tuple(Candidate(**item) for item in local["candidates"])
    return Description(bytes.fromhex(local["fingerprint"]), local["username"], local["password"], candidates)


def altered(description: Description) -> Description:
    """With the fingerprint of another certificate."""
    return replace(description, fingerprint=bytes(byte ^ 1 for byte in description.fingerprint))


async def meet(stack: Stack, other: Counterpart, *, we_offer: bool, wrong_for: str = "") -> None:
    """Exchange the descriptions and connect; ``wrong_for`` "us" or "them" gets a fingerprint that is not true."""
    own = await stack.gather(BOUND)
    for_them = told(altered(own) if wrong_for == "them" else own)
    if we_offer:
        other.tell("answer", remote=for_them)
        remote = understood(await other.hear("local"))
    else:
        other.tell("offer")
        remote = understood(await other.hear("local"))
        other.tell("take_answer", remote=for_them)
    await stack.connect(altered(remote) if wrong_for == "us" else remote, BOUND)


@asynccontextmanager
async def linked(way: str) -> AsyncIterator[tuple[WebRtcConnection, Counterpart]]:
    we_offer = way == WE_OFFER
    async with Counterpart("data_channel.mjs") as other:
        stack = Stack(LOOPBACK, ["127.0.0.1"], controlling=we_offer)
        try:
            await meet(stack, other, we_offer=we_offer)
            connection = WebRtcConnection(
                stack, PeerId("a program"), dialled=we_offer, introducer=None, close_seconds=BOUND
            )
            connection.allow(FRAME_LIMIT)
            assert await other.hear("open") == MESSAGE_LIMIT
            yield connection, other
        finally:
            await stack.close()


async def figures_of(other: Counterpart) -> dict[str, int]:
    other.tell("figures")
    found: dict[str, int] = await other.hear("figures")
    return found


def sent_by(connection: WebRtcConnection) -> list[bytes]:
    """The messages that go out from now on."""
    said: list[bytes] = []
    send = connection._channel.send

    def recorded(message: bytes) -> None:
        said.append(message)
        send(message)

    connection._channel.send = recorded  # type: ignore[method-assign, assignment]
    return said


async def push(connection: WebRtcConnection, *contents: bytes) -> None:
    """Send these, and an empty frame as the end."""
    for content in contents:
        await connection.send(content)
    await connection.send(b"")


@needs_node
@pytest.mark.parametrize("way", WAYS)
async def test_frames_of_every_size_come_back_from_another_stack(way: str) -> None:
    async with linked(way) as (connection, other), asyncio.timeout(BOUND):
        assert connection.path == "direct" and connection.address.startswith("/ip4/127.0.0.1/udp/")
        for size in SIZES:
            frame = os.urandom(size)
            await connection.send(frame)
            assert await connection.receive() == frame
        small = [bytes([number]) * 5000 for number in range(100)]
        await asyncio.gather(*(connection.send(frame) for frame in small))
        assert [await connection.receive() for _ in small] == small
        figures = await figures_of(other)
        assert figures["longest"] == MESSAGE_LIMIT and figures["arrived"] == sum(SIZES) + 500_000


@needs_node
@pytest.mark.parametrize("way", WAYS)
async def test_we_obey_the_credit_of_another_stack(way: str) -> None:
    async with linked(way) as (connection, other), asyncio.timeout(BOUND), asyncio.TaskGroup() as tasks:
        other.tell("mode", mode="hold")
        pushing = tasks.create_task(push(connection, *[bytes(100_000)] * 64))
        while (await figures_of(other))["most_ahead"] <= WINDOW - ONE_MORE:
            pass
        assert not pushing.done()
        other.tell("mode", mode="drop")
        assert await other.hear("dropped") == 6_400_000
        await pushing
        assert (await figures_of(other))["most_ahead"] <= WINDOW


@needs_node
@pytest.mark.parametrize("way", WAYS)
async def test_another_stack_lives_on_our_credit(way: str) -> None:
    async with linked(way) as (connection, other), asyncio.timeout(BOUND):
        other.tell("pour", frames=64, size=100_000)
        spent = await other.hear("stalled")
        assert WINDOW - ONE_MORE <= spent <= WINDOW
        for number in range(64):
            assert await connection.receive() == bytes([number]) * 100_000
        assert await other.hear("poured") == 6_400_000


@needs_node
@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
async def test_much_goes_through_another_stack_both_ways_at_once(way: str) -> None:
    frames = [os.urandom(1 << 20) for _ in range(8)]
    async with linked(way) as (connection, _), asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        tasks.create_task(push(connection, *frames * 12))
        for number in range(12 * 8):
            assert await connection.receive() == frames[number % 8]


@needs_node
@pytest.mark.parametrize("way", WAYS)
async def test_another_stack_answers_our_end(way: str) -> None:
    async with linked(way) as (connection, other), asyncio.timeout(BOUND / 2):  # close would wait BOUND for no answer
        await connection.send(bytes(500_000))
        await connection.close()
        await other.hear("finished", "them")
        await other.hear("closed")


@needs_node
@pytest.mark.parametrize("way", WAYS)
async def test_we_answer_the_end_of_another_stack(way: str) -> None:
    """libdatachannel may drop our FIN_ACK when SCTP's ABORT comes right behind it; the end it hears in any case."""
    async with linked(way) as (connection, other), asyncio.timeout(BOUND):
        other.tell("pour", frames=1, size=500_000)
        await other.hear("poured")
        said = sent_by(connection)
        other.tell("finish")
        await other.hear("closed")
        assert said == [b"\x04"]  # FIN_ACK
        assert await connection.receive() == bytes(500_000)
        with pytest.raises(LinkError, match="closed by the other side"):
            await connection.receive()


@needs_node
@pytest.mark.parametrize("way", WAYS)
async def test_a_wrong_fingerprint_is_refused_by_us(way: str) -> None:
    async with Counterpart("data_channel.mjs") as other:
        stack = Stack(LOOPBACK, ["127.0.0.1"], controlling=way == WE_OFFER)
        with pytest.raises(SignatureRefused, match="somebody sits between"):
            await meet(stack, other, we_offer=way == WE_OFFER, wrong_for="us")
        assert stack.channel.readyState != "open"
        await stack.close()


@needs_node
@pytest.mark.parametrize("way", WAYS)
async def test_a_wrong_fingerprint_is_refused_by_another_stack(way: str) -> None:
    async with Counterpart("data_channel.mjs") as other:
        stack = Stack(LOOPBACK, ["127.0.0.1"], controlling=way == WE_OFFER)
        with pytest.raises(LinkError):
            await meet(stack, other, we_offer=way == WE_OFFER, wrong_for="them")
        await other.hear("state", "failed")
        await stack.close()


# --- peer ids, against js-libp2p


@needs_node
async def test_peer_ids_and_signatures_agree_with_libp2p() -> None:
    seeds = [secrets.token_bytes(32) for _ in range(50)]
    ours = [Identity.from_seed(seed) for seed in seeds]
    texts = [identity.peer_id for identity in ours]
    cids = [peer_id_to_cid(text) for text in texts]
    async with Counterpart("peer_ids.mjs") as other:
        other.tell("make", seeds=[seed.hex() for seed in seeds], message="a message")
        made = await other.hear("made")
        other.tell("read", texts=texts, cids=cids)
        read = await other.hear("read")
    assert [theirs["text"] for theirs in made] == texts and [theirs["cid"] for theirs in made] == cids
    for theirs, text in zip(made, texts, strict=True):
        assert parse_peer_id(theirs["text"]) == parse_peer_id(theirs["cid"]) == text
        assert public_key_from_peer_id(theirs["text"]).hex() == theirs["key"]
        verify_signature(text, b"a message", bytes.fromhex(theirs["signature"]))
    keys = [public_key_from_peer_id(text).hex() for text in texts]
    assert read == [{"type": "Ed25519", "key": key} for key in keys * 2]


# --- what we announce in the local network, against multicast-dns and avahi


def texts_of(records: list[dict[str, Any]]) -> set[str]:
    return {text for record in records if record["type"] == "TXT" for text in record["data"]}


@needs_node
async def test_another_mdns_program_reads_our_announcement() -> None:
    tag, port = secrets.token_hex(8), 4107
    discovery = Discovery(tag, "127.0.0.1", port, lambda address: None)
    async with Counterpart("browser.mjs") as other:
        try:
            await discovery.start()
            other.tell("browse", interface="127.0.0.1", service=SERVICE.rstrip("."))
            async with asyncio.timeout(BOUND):
                records = await other.hear("records")
                while texts_of(records) != {f"network={tag}"}:  # of other test runs on this interface
                    records = await other.hear("records")
        finally:
            await discovery.stop()
    by_type = {record["type"]: record for record in records}
    name = by_type["SRV"]["name"]
    assert by_type["PTR"]["data"] == name == by_type["TXT"]["name"]
    assert re.fullmatch(r"[0-9a-f]{32}\._p2pfl\._tcp\.local", name)
    assert by_type["SRV"]["data"]["port"] == port
    assert by_type["A"]["name"] == by_type["SRV"]["data"]["target"] and by_type["A"]["data"] == "127.0.0.1"


NAMESPACE_REASON = namespaces.why_not() or avahi.why_not()


@pytest.mark.root
@pytest.mark.skipif(NAMESPACE_REASON is not None, reason=NAMESPACE_REASON or "")
async def test_avahi_in_another_namespace_reads_our_announcement() -> None:
    tag = secrets.token_hex(8)
    with namespaces.Network(["site", "browser"]) as network:
        address = network.address("site")
        async with avahi.Avahi(network, "browser") as browser:
            announcing = await asyncio.create_subprocess_exec(
                *network.inside("site"), sys.executable, str(Path(__file__).parent / "announce.py"), tag, address, "4108",
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            )  # fmt: skip
            assert announcing.stdin is not None
            fields = await browser.browse("_p2pfl._tcp", tag)
            announcing.stdin.close()
            assert await asyncio.wait_for(announcing.wait(), BOUND) == 0
    _, _, protocol, name, service, domain, host, found, port, text = fields
    assert (protocol, service, domain, found, port) == ("IPv4", "_p2pfl._tcp", "local", address, "4108")
    assert re.fullmatch(r"[0-9a-f]{32}", name) and host == f"{name}.local"
    assert text == f'"network={tag}"'  # and nothing else is told


# --- the open port, against openssl (without any certificate: test_net_tcp.py)


@pytest.fixture
async def tcp() -> AsyncIterator[Consortium]:
    joined = Consortium(TRANSPORTS["tcp"]())
    yield joined
    await joined.stop()


def options_of(site: Site, folder: Path) -> list[str]:
    """What openssl needs to show this site's certificate; its key stays sealed, as in a home."""
    certificate, key = folder / f"{site.name}.pem", folder / f"{site.name}.key"
    certificate.write_text(certificate_pem(site.certificate.der))
    key.write_bytes(site.certificate.key_pem)
    return ["-cert", str(certificate), "-key", str(key), "-pass", f"pass:{PASSWORD.decode()}"]


async def openssl(peer: Peer, folder: Path, options: list[str]) -> tuple[int | None, bytes]:
    """s_client sends one frame that is no hello; its exit status and what it was sent."""
    (folder / "anchor.pem").write_text(certificate_pem(peer.site.certificate.der))
    address = parse_address(peer.address)
    client = await asyncio.create_subprocess_exec(
        "openssl", "s_client", "-quiet", "-tls1_3", "-connect", f"{address.host}:{address.port}",
        "-CAfile", str(folder / "anchor.pem"), "-verify_return_error", *options,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    async with asyncio.timeout(BOUND):
        output, _ = await client.communicate(b"\x00\x00\x00\x04nope")
    return client.returncode, output


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl program on this machine")
@pytest.mark.parametrize("shows", ["a member's", "a stranger's", "none"])
async def test_openssl_gets_through_tls_with_a_members_certificate_alone(
    tcp: Consortium, tmp_path: Path, shows: str
) -> None:
    own, member = sites("lille", "rouen")
    peer = await tcp.start(own, roster_of(own.member(), member.member()), limits=PATIENT)
    shown = {"a member's": member, "a stranger's": Site("stranger"), "none": None}[shows]
    status, output = await openssl(peer, tmp_path, options_of(shown, tmp_path) if shown else [])
    await tcp.until(lambda: peer.host.refused == 1)
    assert peer.host.links == {}
    if shown is member:  # both ways through TLS: it read our hello, we read its frame, which is none
        assert own.peer_id.encode() in output
        assert "during the hello" in peer.refusals[0][1]
    else:
        assert status != 0 and output == b""
        assert "no certificate of a current member" in peer.refusals[0][1]
