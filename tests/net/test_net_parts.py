"""Addresses, wire frames, the memory network's faults, discovery."""

from __future__ import annotations

import asyncio
import secrets

import pytest
from net_peers import BOUND, QUICK, TRANSPORTS, Consortium, MemoryKind

from p2pfl.crypto.identity import Identity
from p2pfl.errors import ConfigError, LinkError, MalformedMessage
from p2pfl.net import Address, Discovery, MemoryNetwork, certificate_binding, parse_address, wire
from p2pfl.net.handlers import Handlers
from p2pfl.net.handshake import Greeting
from p2pfl.net.link import Link
from p2pfl.net.memory import MemoryConnection
from p2pfl.net.table import LinkTable

pytestmark = pytest.mark.timeout(30)
PEER = Identity.from_seed(bytes(32)).peer_id

GOOD = {
    "/ip4/10.1.2.3/tcp/4101": Address("ip4", "10.1.2.3", 4101),
    "/ip6/::1/tcp/1": Address("ip6", "::1", 1),
    "/ip6/fe80:0:0::1/tcp/65535": Address("ip6", "fe80::1", 65535),
    "/dns4/p2pfl.chu-lille.example/tcp/4101": Address("dns4", "p2pfl.chu-lille.example", 4101),
    f"/ip4/10.1.2.3/tcp/0/p2p/{PEER}": Address("ip4", "10.1.2.3", 0, PEER),
}


@pytest.mark.parametrize("text", GOOD)
def test_addresses_are_read_and_written(text: str) -> None:
    assert parse_address(text) == GOOD[text]
    assert parse_address(str(GOOD[text])) == GOOD[text]


BAD = [
    "",
    "10.1.2.3:4101",
    "ip4/10.1.2.3/tcp/4101",
    "/ip4/10.1.2.3/tcp",
    "/ip4/10.1.2.3/tcp/4101/",
    "/ip4/10.1.2/tcp/4101",
    "/ip4/10.1.2.03/tcp/4101",
    "/ip4/::1/tcp/4101",
    "/ip6/10.1.2.3/tcp/4101",
    "/ip4/10.1.2.3/udp/4101",
    "/ip4/10.1.2.3/tcp/65536",
    "/ip4/10.1.2.3/tcp/04101",
    "/ip4/10.1.2.3/tcp/-1",
    "/ip4/10.1.2.3/tcp/٤",
    "/dns4/-bad.example/tcp/1",
    "/dns4/a..b/tcp/1",
    "/dns4/" + "a" * 64 + "/tcp/1",
    "/dns6/example.org/tcp/1",
    f"/ip4/10.1.2.3/tcp/1/p3p/{PEER}",
    "/ip4/10.1.2.3/tcp/1/p2p/12D3Koo",
    "/ip4/10.1.2.3/tcp/1/p2p/" + "1" * 500,
]


@pytest.mark.parametrize("text", BAD)
def test_bad_addresses_are_refused_in_plain_words(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_address(text)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_the_binding_tells_roles_and_certificates_apart() -> None:
    pairs = [(b"a", b"b"), (b"b", b"a"), (b"ab", b""), (b"", b"ab"), (b"a", b"bb")]
    assert len({certificate_binding(*pair) for pair in pairs}) == len(pairs)


READERS = [
    wire.read_request,
    wire.read_reply,
    wire.read_error,
    wire.read_notify,
    wire.read_pull,
    wire.read_chunk,
]


@pytest.mark.parametrize("reader", READERS)
def test_short_and_wrong_frames_are_malformed_and_nothing_else(reader) -> None:
    kinds = b"qaengcm"
    for kind in kinds:
        for size in range(24):
            for filler in (0x00, 0x01, 0x7F, 0xFF):
                frame = bytes([kind]) + bytes([filler]) * size
                try:
                    reader(frame)
                except MalformedMessage:
                    pass


def test_frames_survive_the_wire() -> None:
    assert wire.read_request(wire.request_head(7, "/a/1") + b"payload") == (7, "/a/1", b"payload")
    assert wire.read_reply(wire.reply_head(1 << 31) + b"x") == (1 << 31, b"x")
    assert wire.read_error(wire.error_frame(7, wire.FAILED, "é")) == (7, wire.FAILED, "é".encode())
    assert wire.read_notify(wire.notify_head("/a/1") + b"") == ("/a/1", b"")
    assert wire.read_pull(wire.pull_frame(7, 3, 16, "name")) == (7, 3, 16, "name")
    assert wire.read_chunk(wire.chunk_head(7, 3) + b"data") == (7, 3)
    for count in (0, 17):
        with pytest.raises(MalformedMessage):
            wire.read_pull(wire.pull_frame(7, 3, count, "name"))


@pytest.mark.parametrize("frame", [b"", b"\xff", b"q", b"c\x00", b"g" + bytes(30), b"n\xff", b"a"])
@pytest.mark.parametrize("kind", sorted(TRANSPORTS))
async def test_a_malformed_frame_ends_the_link_and_names_its_sender(frame: bytes, kind: str) -> None:
    consortium = Consortium(TRANSPORTS[kind]())
    one, two = await consortium.pair()
    await one.host._table.get(two.peer_id).connection.send(frame)
    await consortium.until(lambda: not two.host.links and not one.host.links)
    assert len(two.refusals) == 1
    await consortium.stop()


@pytest.fixture
async def memory():
    joined = Consortium(MemoryKind())
    yield joined
    await joined.stop()


@pytest.mark.parametrize("numbers", [(1, 2), (2, 1), (1, 3, 2), (3, 1, 2)])
async def test_the_highest_number_is_the_link_in_whatever_order_they_come(numbers: tuple[int, ...]) -> None:
    network, events = MemoryNetwork(), []
    table = LinkTable(lambda peer, up, text: events.append(up), QUICK)
    ends = []
    for number in numbers:
        ours, theirs = [
            MemoryConnection(network, names, names[0] == "a", (b"x", b"y")) for names in (("a", "b"), ("b", "a"))
        ]
        ours.peer_end, theirs.peer_end = theirs, ours
        ends.append(theirs)
        table.adopt(Link(ours, Greeting(PEER, bytes(16), number, frozenset()), Handlers(), QUICK))
    link = table.get(PEER)
    assert link is not None and link.greeting.number == max(numbers)
    assert events == [True]
    await table.stop("the test is over")
    assert events == [True, False] and table.connections == 0


async def test_a_cut_is_silent_and_a_dial_over_it_fails(memory: Consortium) -> None:
    one, two = await memory.pair()
    network, names = memory.kind.network, (one.site.name, two.site.name)
    got: list[bytes] = []
    two.host.handle_notify("/note/1", lambda peer, payload: got.append(payload))
    network.cut(*names)
    await one.host.notify(two.peer_id, "/note/1", b"lost")
    assert one.host.links and two.host.links
    network.mend(*names)
    await one.host.notify(two.peer_id, "/note/1", b"arrives")
    await memory.until(lambda: got != [])
    assert got == [b"arrives"]
    network.cut(*names)
    with pytest.raises(LinkError, match="nobody answers"):
        await one.host._transports[0].dial(two.address)


async def test_held_frames_come_later_in_order(memory: Consortium) -> None:
    one, two = await memory.pair()
    network, names = memory.kind.network, (one.site.name, two.site.name)
    got: list[bytes] = []
    two.host.handle_notify("/note/1", lambda peer, payload: got.append(payload))
    network.hold(*names)
    for index in range(3):
        await one.host.notify(two.peer_id, "/note/1", bytes([index]))
    await two.host.notify(one.peer_id, "/note/1", b"the other way passes")
    assert got == []
    network.release(*names)
    await memory.until(lambda: len(got) == 3)
    assert got == [b"\x00", b"\x01", b"\x02"]


async def test_frames_can_be_dropped_by_rule(memory: Consortium) -> None:
    one, two = await memory.pair()
    got: list[bytes] = []
    two.host.handle_notify("/note/1", lambda peer, payload: got.append(payload))
    memory.kind.network.drop = lambda sender, receiver, frame: frame.endswith(b"bad")
    for payload in (b"good", b"bad", b"fine"):
        await one.host.notify(two.peer_id, "/note/1", payload)
    await memory.until(lambda: len(got) == 2)
    assert got == [b"good", b"fine"]


async def test_discovery_finds_the_same_network_and_no_other() -> None:
    heard: asyncio.Queue[str] = asyncio.Queue()
    strange: list[str] = []
    ours, theirs = secrets.token_hex(8), secrets.token_hex(8)  # other test runs may use this interface too
    announcing = Discovery(ours, "127.0.0.1", 4101, strange.append)
    other = Discovery(theirs, "127.0.0.1", 4102, strange.append)
    browsing = Discovery(ours, "127.0.0.1", None, heard.put_nowait)
    found = (announcing, other, browsing)
    try:
        await asyncio.gather(*(each.start() for each in found))
        async with asyncio.timeout(BOUND):
            assert await heard.get() == "/ip4/127.0.0.1/tcp/4101"
    finally:
        await asyncio.gather(*(each.stop() for each in found))
    assert strange == []
    await browsing.stop()


async def test_discovery_without_an_interface_says_what_to_do() -> None:
    absent = Discovery("11" * 8, "203.0.113.7", 4101, lambda address: None)
    with pytest.raises(LinkError, match="addresses in the member records"):
        await absent.start()
    for tag, interface in (("", "127.0.0.1"), ("é", "127.0.0.1"), ("x" * 65, "127.0.0.1"), ("x", "eth0")):
        with pytest.raises(ConfigError):
            Discovery(tag, interface, 4101, lambda address: None)
