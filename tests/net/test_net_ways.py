"""Several ways to one member: which is tried when, who wins, what is remembered, and the way up to a cheaper one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from dataclasses import replace

import pytest
from net_peers import BOUND, PATIENT, QUICK, Site, roster_of, sites
from two_kinds import SlowTransport, TwoKinds, Watched, both, cheap, dear

from p2pfl.errors import LinkError
from p2pfl.net import Limits, MemoryNetwork, MemoryTransport
from p2pfl.net.handlers import Handlers
from p2pfl.net.handshake import Greeting
from p2pfl.net.link import Link
from p2pfl.net.memory import MemoryConnection
from p2pfl.net.outcomes import AlreadyLinkedError
from p2pfl.net.racing import FAULTS_LIMIT, Race
from p2pfl.net.table import LinkTable
from p2pfl.net.ways import Way
from p2pfl.types import PeerId

pytestmark = pytest.mark.timeout(30)

PEER = PeerId("12D3KooWrouen")
NEVER = 1000.0  # seconds; a wait that no test outlives
AT_ONCE = replace(PATIENT, dearer_after=0.001, upgrade_first=0.01, upgrade_longest=0.02)
LATE = replace(PATIENT, dearer_after=NEVER, upgrade_first=NEVER)


@pytest.fixture
async def sites_of_two_kinds() -> AsyncIterator[TwoKinds]:
    joined = TwoKinds()
    yield joined
    await joined.stop()


# --- one race


class Track:
    """Attempts that end when the test says so."""

    def __init__(self, ways: Iterable[str], limits: Limits, *, head_start: float = 0.0) -> None:
        self.started: list[str] = []
        self.cancelled: list[str] = []
        self.ends: dict[str, asyncio.Future[None]] = {}
        self.won = False
        listed = [Way(f"/{name}", "cheap" if name.islower() else "dear", int(name.isupper())) for name in ways]
        self.race = Race(PEER, listed, self._attempt, lambda: self.won, limits, head_start=head_start)
        self.task = asyncio.create_task(self.race.run())

    async def _attempt(self, way: Way) -> None:
        name = way.address[1:]
        self.started.append(name)
        self.ends[name] = asyncio.get_running_loop().create_future()
        try:
            await self.ends[name]
        except asyncio.CancelledError:
            self.cancelled.append(name)
            raise
        self.won = True

    async def fail(self, name: str) -> None:
        self.ends[name].set_exception(LinkError(f"{name} does not answer"))
        await turns()

    async def until_started(self, names: str) -> None:
        async with asyncio.timeout(BOUND):
            while self.started != list(names):
                await asyncio.sleep(0.001)


async def turns() -> None:
    """Let everything that needs no time happen."""
    for _ in range(20):
        await asyncio.sleep(0)


def limits(stagger: float, dearer_after: float) -> Limits:
    return replace(PATIENT, stagger=stagger, dearer_after=dearer_after)


@pytest.mark.parametrize(
    ("ways", "stagger", "dearer_after", "steps"),
    [
        # each step: what fails then, and what has been started after it. Small letters are cheap ways.
        ("ab", NEVER, NEVER, [("", "a"), ("a", "ab")]),
        ("abc", 0.001, NEVER, [("", "abc")]),
        ("aB", NEVER, NEVER, [("", "a"), ("a", "aB")]),
        ("aB", NEVER, 0.001, [("", "aB")]),
        ("abC", 0.001, NEVER, [("", "ab"), ("b", "ab"), ("a", "abC")]),
        ("abC", NEVER, 0.001, [("", "a"), ("a", "abC")]),
        ("AB", NEVER, 0.001, [("", "A"), ("A", "AB")]),
        ("aBC", 0.001, NEVER, [("", "a"), ("a", "aBC")]),
    ],
)
async def test_a_way_starts_when_the_former_failed_or_is_late(
    ways: str, stagger: float, dearer_after: float, steps: list[tuple[str, str]]
) -> None:
    track = Track(ways, limits(stagger, dearer_after))
    for failing, started in steps:
        if failing:
            await track.fail(failing)
        await track.until_started(started)
        await turns()
        assert track.started == list(started)
    track.task.cancel()


@pytest.mark.parametrize("winner", "abC")
async def test_the_first_wins_and_the_others_are_cancelled(winner: str) -> None:
    before = asyncio.all_tasks()
    track = Track("abC", limits(0.001, 0.001))
    await track.until_started("abC")
    track.ends[winner].set_result(None)
    async with asyncio.timeout(BOUND):
        assert await track.task is True
    assert track.cancelled == [name for name in "abC" if name != winner]
    assert asyncio.all_tasks() == before


async def test_a_link_from_elsewhere_or_a_cancelling_ends_every_attempt() -> None:
    before = asyncio.all_tasks()
    for cancelling in (False, True):
        track = Track("abC", limits(0.001, NEVER))
        await track.until_started("ab")
        if cancelling:
            track.task.cancel()
        else:
            track.won = True
            track.race.wake()
        async with asyncio.timeout(BOUND):
            (outcome,) = await asyncio.gather(track.task, return_exceptions=True)
        assert isinstance(outcome, asyncio.CancelledError) if cancelling else outcome is True
        assert track.cancelled == ["a", "b"] and asyncio.all_tasks() == before


@pytest.mark.parametrize(("ways", "at_first"), [("A", ""), ("aB", "a")])
async def test_a_head_start_holds_dearer_ways_back(ways: str, at_first: str) -> None:
    track = Track(ways, limits(NEVER, 0.001), head_start=NEVER)
    await track.until_started(at_first)
    if at_first:
        await track.fail(at_first)
    await turns()
    assert track.started == list(at_first)  # although nothing else is left to wait for
    track.won = True
    track.race.wake()
    async with asyncio.timeout(BOUND):
        assert await track.task is True
    track = Track("A", limits(NEVER, NEVER), head_start=0.001)
    await track.until_started("A")
    track.task.cancel()


async def test_all_faults_are_named_in_order_and_in_bounds() -> None:
    track = Track("abC", limits(0.001, 0.001))
    await track.until_started("abC")
    for name in "Cba":
        await track.fail(name)
    async with asyncio.timeout(BOUND):
        assert await track.task is False
    assert track.race.faults == [
        "tried cheap /a: a does not answer",
        "tried cheap /b: b does not answer",
        "tried dear /C: C does not answer",
    ]

    async def endless(way: Way) -> None:
        raise LinkError("no " * 10_000)

    many = [Way(f"/{number}", "cheap", 0) for number in range(40)]
    race = Race(PEER, many, endless, lambda: False, PATIENT)
    assert await race.run() is False
    assert len(race.faults) == 40 and all(
        fault.startswith(f"tried cheap /{n}: no") for n, fault in enumerate(race.faults)
    )
    assert sum(map(len, race.faults)) <= FAULTS_LIMIT


@pytest.mark.parametrize(
    ("way", "error", "text"),
    [
        (Way("/ip4/10.1.2.3/tcp/4101", "tcp", 0), "/ip4/10.1.2.3/tcp/4101 does not answer; is the machine on?",
         "tried tcp /ip4/10.1.2.3/tcp/4101: does not answer; is the machine on?"),
        (Way("/ip4/10.1.2.3/tcp/4101", "tcp", 0), "cannot connect to /ip4/10.1.2.3/tcp/4101: refused",
         "tried tcp: cannot connect to /ip4/10.1.2.3/tcp/4101: refused"),
        (Way("/ip4/10.1.2.3/tcp/4101", "tcp", 0), "no route to host", "tried tcp /ip4/10.1.2.3/tcp/4101: no route to host"),
        (Way("/webrtc/p2p/12D3", "webrtc", 1), "nobody can introduce us", "tried webrtc: nobody can introduce us"),
        (Way("/webrtc/p2p/12D3", "webrtc", 1), "through Rouen: no link", "tried webrtc through Rouen: no link"),
    ],
)  # fmt: skip
def test_what_was_tried_reads_like_a_sentence(way: Way, error: str, text: str) -> None:
    assert way.tried(LinkError(error), 200) == text


async def test_a_fault_of_ours_in_one_way_leaves_the_others(caplog: pytest.LogCaptureFixture) -> None:
    won = False

    async def attempt(way: Way) -> None:
        nonlocal won
        if way.address == "/a":
            raise ZeroDivisionError("a bug")
        won = True

    race = Race(PEER, [Way("/a", "cheap", 0), Way("/b", "cheap", 0)], attempt, lambda: won, limits(NEVER, NEVER))
    assert await race.run() is True
    assert "dialling over cheap /a failed" in caplog.text


# --- which link stands


def link_of(kind: str, number: int, process: bytes = bytes(16)) -> Link:
    connection = MemoryConnection(MemoryNetwork(), ("a", "b"), True, (b"x", b"y"))
    connection.kind = kind
    return Link(connection, Greeting(PEER, process, number, frozenset()), Handlers(), PATIENT)


@pytest.mark.parametrize("age", [0.0, PATIENT.fresh + 1])
@pytest.mark.parametrize(
    ("stands", "comes", "same_process", "needless", "needless_if_old"),
    [
        ("memory", "memory", True, True, False),  # the other half of a simultaneous dial; later: it lost the link
        ("slow", "slow", True, True, False),
        ("slow", "memory", True, False, False),
        ("memory", "slow", True, True, True),
        ("memory", "slow", False, False, False),  # it has restarted and knows nothing of our link
        ("slow", "memory", False, False, False),
    ],
)
async def test_a_connection_is_needless_beside_a_cheaper_or_a_fresh_equal_link(
    stands: str, comes: str, same_process: bool, needless: bool, needless_if_old: bool, age: float
) -> None:
    table = LinkTable(lambda *event: None, PATIENT, costs={"memory": 0, "slow": 1})
    link = link_of(stands, 1)
    table.adopt(link)
    link.since -= age
    process = bytes(16) if same_process else b"x" * 16
    assert table.needless(PEER, process, comes) is (needless_if_old if age else needless)
    heard = stands == comes or comes == "slow"  # an address of unknown owner helps only where it is cheaper
    assert table.needless(PEER, b"", comes) is heard
    await table.stop("the test is over")


@pytest.mark.parametrize(
    ("order", "kind", "replaced"),
    [
        ((("slow", 1), ("memory", 2)), "memory", [(PEER, "slow", "memory")]),
        ((("memory", 2), ("slow", 1)), "memory", []),
        ((("slow", 2), ("memory", 1)), "memory", [(PEER, "slow", "memory")]),
        ((("memory", 1), ("slow", 2)), "memory", []),
        ((("slow", 1), ("slow", 2)), "slow", []),
    ],
)
async def test_both_ends_keep_the_cheapest_and_then_the_highest_number(
    order: tuple[tuple[str, int], ...], kind: str, replaced: list[tuple[PeerId, str, str]]
) -> None:
    events, changes = [], []
    table = LinkTable(
        lambda peer, up, text: events.append(up),
        QUICK,
        costs={"memory": 0, "slow": 1},
        on_replaced=lambda *change: changes.append(change),
    )
    for kind_of_one, number in order:
        table.adopt(link_of(kind_of_one, number))
    link = table.get(PEER)
    assert link is not None and link.connection.kind == kind
    assert link.greeting.number == max(number for each, number in order if each == kind)
    assert changes == replaced and events == [True]
    await table.stop("the test is over")


# --- hosts with two transports


def only_up(*peers: Watched) -> bool:
    return all(peer.ups == [True] for peer in peers)


async def until_kind(consortium: TwoKinds, one: Watched, two: Watched, kind: str) -> None:
    await consortium.until(lambda: one.kind(two) == two.kind(one) == kind)


async def test_the_dearer_way_is_not_touched_while_a_cheaper_one_works(sites_of_two_kinds: TwoKinds) -> None:
    one, two = await sites_of_two_kinds.two(limits=LATE)
    await one.host.dial(two.peer_id)
    await until_kind(sites_of_two_kinds, one, two, "memory")
    assert one.dialled == [cheap(two.site)]
    info = one.host.links[two.peer_id]
    assert (info.path, info.introducer) == ("direct", None)


async def test_the_dearer_way_follows_at_once_where_the_cheaper_one_fails(sites_of_two_kinds: TwoKinds) -> None:
    one, two = await sites_of_two_kinds.two(limits=LATE)
    sites_of_two_kinds.cut_cheap(one, two)
    await one.host.dial(two.peer_id)
    await until_kind(sites_of_two_kinds, one, two, "slow")
    assert one.dialled == [cheap(two.site), dear(two.site)] and one.worked == [(two.peer_id, dear(two.site))]


async def test_every_way_is_named_when_all_fail(sites_of_two_kinds: TwoKinds) -> None:
    one, two = await sites_of_two_kinds.two(limits=LATE)
    assert one.host.why_not(two.peer_id) == f"not tried yet: memory {cheap(two.site)}, slow {dear(two.site)}"
    await two.host.stop()
    with pytest.raises(LinkError) as failed:
        await one.host.dial(two.peer_id)
    for text in (str(failed.value), one.host.why_not(two.peer_id)):
        for kind, address in (("memory", cheap(two.site)), ("slow", dear(two.site))):
            assert f"tried {kind}" in text and f"cannot connect to {address}: nobody answers" in text
    assert text.index("tried memory") < text.index("tried slow")


async def test_a_cheaper_hello_under_way_outlives_the_dearer_winner(sites_of_two_kinds: TwoKinds) -> None:
    one, two = await sites_of_two_kinds.two(limits=replace(AT_ONCE, upgrade_first=NEVER))
    sites_of_two_kinds.hold(two, one)
    await one.host.dial(two.peer_id)
    await until_kind(sites_of_two_kinds, one, two, "slow")
    sites_of_two_kinds.release(two, one)
    await until_kind(sites_of_two_kinds, one, two, "memory")
    assert one.dialled == [cheap(two.site), dear(two.site)] and only_up(one, two)


async def test_a_dearer_hello_under_way_ends_with_the_cheaper_winner(sites_of_two_kinds: TwoKinds) -> None:
    one, two = await sites_of_two_kinds.two(limits=replace(AT_ONCE, hello=NEVER))
    before = asyncio.all_tasks()
    for suffix in ("", "-slow"):
        sites_of_two_kinds.hold(two, one, suffix=suffix)
    dialling = asyncio.create_task(one.host.dial(two.peer_id))
    await sites_of_two_kinds.until(lambda: len(one.host._connecting) == 2)
    connections = set(one.host._connecting)
    sites_of_two_kinds.release(two, one)
    await dialling
    assert one.kind(two) == "memory"
    await sites_of_two_kinds.until(lambda: not (one.host._connecting or one.host._hellos))
    (loser,) = [connection for connection in connections if connection.kind == "slow"]
    with pytest.raises(LinkError, match="closed by us"):
        await loser.receive()
    sites_of_two_kinds.release(two, one, suffix="-slow")
    await until_kind(sites_of_two_kinds, one, two, "memory")
    assert only_up(one, two) and one.replaced == two.replaced == []
    for peer, other in ((one, two), (two, one)):
        peer.host._table.close(other.peer_id, "the test is over")
    await sites_of_two_kinds.until(lambda: asyncio.all_tasks() <= before)


# --- a member without a port


async def test_a_portless_member_may_dial_us_before_we_take_the_dearer_way(sites_of_two_kinds: TwoKinds) -> None:
    one, two = sites("lille", "rouen")
    roster = roster_of(one.member((cheap(one),)), two.member((dear(two),), listens=False))
    here = await sites_of_two_kinds.open(one, roster, listen=(cheap(one),), limits=LATE)
    there = await sites_of_two_kinds.open(two, roster, listen=(dear(two),), limits=LATE)
    here.host.want([two.peer_id])
    await sites_of_two_kinds.until(lambda: here.host.why_not(two.peer_id).startswith("trying slow"))
    there.host.want([one.peer_id])
    await until_kind(sites_of_two_kinds, here, there, "memory")
    await sites_of_two_kinds.until(lambda: not here.host._dialler._races)
    assert here.dialled == []


@pytest.mark.parametrize("patience", [NEVER, 0.001])
async def test_who_cannot_be_dialled_takes_the_dearer_way_at_once(
    sites_of_two_kinds: TwoKinds, patience: float
) -> None:
    one, two = sites("lille", "rouen")
    waits = patience < NEVER  # it listens, waits in vain, and then goes on
    own = one.member((cheap(one),)) if waits else one.member(listens=False)
    roster = roster_of(own, two.member((dear(two),), listens=False))
    limits = replace(LATE, dearer_after=patience)
    here = await sites_of_two_kinds.open(one, roster, listen=(cheap(one),) if waits else (), limits=limits)
    there = await sites_of_two_kinds.open(two, roster, listen=(dear(two),), limits=limits)
    await here.host.dial(two.peer_id)
    await until_kind(sites_of_two_kinds, here, there, "slow")
    await there.host.stop()
    await sites_of_two_kinds.until(lambda: not here.host.links)
    with pytest.raises(LinkError, match=r"no listening port: .*; tried slow: cannot connect"):
        await here.host.dial(two.peer_id)


# --- remembering


@pytest.mark.parametrize(
    ("last", "order"),
    [
        (None, ["/memory/a", "/memory/b", "/memory/heard", "/slow/a"]),
        ("/memory/b", ["/memory/b", "/memory/a", "/memory/heard", "/slow/a"]),
        ("/memory/heard", ["/memory/heard", "/memory/a", "/memory/b", "/slow/a"]),
        ("/slow/a", ["/memory/a", "/memory/b", "/memory/heard", "/slow/a"]),  # never before a cheaper one
        ("/memory/gone", ["/memory/a", "/memory/b", "/memory/heard", "/slow/a"]),
    ],
)
async def test_the_way_that_worked_last_comes_first_among_equals(
    sites_of_two_kinds: TwoKinds, last: str | None, order: list[str]
) -> None:
    one, two = sites("lille", "rouen")
    roster = roster_of(one.member(), two.member(("/slow/a", "/memory/a", "/memory/b", "/other/kind")))
    worked = {two.peer_id: last, PeerId("12D3KooWgone"): "/memory/x"} if last else {}
    peer = await sites_of_two_kinds.open(one, roster, worked=worked)
    peer.host.candidate("/memory/heard")
    peer.host._known.candidates["/memory/heard"].owner = two.peer_id
    assert [way.address for way in peer.host._known.to(two.peer_id)] == order
    assert peer.host.worked == ({two.peer_id: last} if last else {})


async def test_what_worked_is_told_once_and_forgotten_with_the_member(sites_of_two_kinds: TwoKinds) -> None:
    one, two = await sites_of_two_kinds.two(limits=AT_ONCE)
    one.host.want([two.peer_id])
    await until_kind(sites_of_two_kinds, one, two, "memory")
    one.host._table.close(two.peer_id, "pulled the plug")
    await sites_of_two_kinds.until(lambda: one.ups == [True, False, True])
    assert one.worked == [(two.peer_id, cheap(two.site))] and one.host.worked == {two.peer_id: cheap(two.site)}
    assert two.worked == []  # it was dialled, and has learnt no way
    one.host.update_roster(roster_of(one.site.member()))
    assert one.host.worked == {}


# --- the way up


async def test_a_dearer_link_goes_over_to_a_cheaper_one_without_a_down(sites_of_two_kinds: TwoKinds) -> None:
    one, two = await sites_of_two_kinds.two(limits=AT_ONCE)
    sites_of_two_kinds.cut_cheap(one, two)
    one.host.want([two.peer_id])
    two.host.want([one.peer_id])
    await until_kind(sites_of_two_kinds, one, two, "slow")
    tries = one.dialled.count(cheap(two.site))
    await sites_of_two_kinds.until(lambda: one.dialled.count(cheap(two.site)) > tries + 2)
    assert one.kind(two) == "slow" and one.dialled.count(dear(two.site)) == 1
    sites_of_two_kinds.network.mend(one.site.name, two.site.name)
    await until_kind(sites_of_two_kinds, one, two, "memory")
    await sites_of_two_kinds.until(lambda: one.host._table.connections == two.host._table.connections == 1)
    assert one.replaced == [(two.peer_id, "slow", "memory")] and two.replaced == [(one.peer_id, "slow", "memory")]
    assert only_up(one, two) and one.worked[-1] == (two.peer_id, cheap(two.site))


@pytest.mark.parametrize("news", ["record", "candidate"])
async def test_a_new_cheaper_way_is_tried_at_once(sites_of_two_kinds: TwoKinds, news: str) -> None:
    one, two = await sites_of_two_kinds.two(limits=LATE, way=dear)
    one.host.want([two.peer_id])
    await until_kind(sites_of_two_kinds, one, two, "slow")
    if news == "record":
        one.host.update_roster(roster_of(one.site.member(listens=False), two.site.member(both(two.site))))
    else:
        one.host.candidate(cheap(two.site))
    await until_kind(sites_of_two_kinds, one, two, "memory")
    assert only_up(one, two) and one.worked[-1] == (two.peer_id, cheap(two.site))


async def test_a_live_link_never_goes_over_to_a_dearer_one(sites_of_two_kinds: TwoKinds) -> None:
    one, two = await sites_of_two_kinds.two(limits=AT_ONCE)
    for peer, other in ((one, two), (two, one)):
        peer.host.want([other.peer_id])
    await until_kind(sites_of_two_kinds, one, two, "memory")
    for peer, other in ((one, two), (two, one)):  # as if both had lived for long
        peer.host._table.get(other.peer_id).since -= PATIENT.fresh + 1
    with pytest.raises(AlreadyLinkedError):
        await one.host._connect(dear(two.site), two.peer_id)
    assert one.kind(two) == two.kind(one) == "memory" and only_up(one, two)
    assert one.replaced == two.replaced == []


async def test_a_lost_cheaper_link_gives_way_once_both_ends_know(sites_of_two_kinds: TwoKinds) -> None:
    limits = replace(QUICK, dearer_after=0.01, upgrade_first=NEVER)
    one, two = await sites_of_two_kinds.two(limits=limits)
    one.host.want([two.peer_id])
    await until_kind(sites_of_two_kinds, one, two, "memory")
    sites_of_two_kinds.cut_cheap(one, two)
    one.host._table.close(two.peer_id, "only we know")  # the other end hears nothing of it
    await until_kind(sites_of_two_kinds, one, two, "slow")
    assert two.ups == [True, False, True] and "silent" in two.events[1][2]
    assert two.replaced == []


async def test_a_restarted_neighbour_may_come_by_a_dearer_way(sites_of_two_kinds: TwoKinds) -> None:
    one, two = await sites_of_two_kinds.two(limits=replace(LATE, alive=0.1))
    await one.host.dial(two.peer_id)
    await until_kind(sites_of_two_kinds, one, two, "memory")
    one.host._table.get(two.peer_id).connection.abort = lambda: None
    sites_of_two_kinds.cut_cheap(one, two)
    again = await sites_of_two_kinds.open(one.site, one.host.roster, listen=(), limits=LATE)
    await again.host.dial(two.peer_id)
    await until_kind(sites_of_two_kinds, again, two, "slow")
    assert two.ups == [True, False, True] and two.replaced == []


async def test_requests_and_fetches_survive_the_way_up(sites_of_two_kinds: TwoKinds) -> None:
    one, two = await sites_of_two_kinds.two(limits=AT_ONCE)
    sites_of_two_kinds.cut_cheap(one, two)
    go = asyncio.Event()

    async def wait(peer: PeerId, payload: bytes) -> bytes:
        await go.wait()
        return b"answered"

    async def provider(peer: PeerId, content: str, index: int) -> bytes | None:
        if index >= 3:
            await go.wait()
        return bytes([index])

    two.host.handle("/wait/1", wait)
    two.host.serve(provider)
    one.host.want([two.peer_id])
    await until_kind(sites_of_two_kinds, one, two, "slow")
    call = asyncio.create_task(one.host.request(two.peer_id, "/wait/1", b"", BOUND))
    pulled: list[bytes] = []

    async def fetch() -> None:
        async for chunk in one.host.fetch(two.peer_id, "delta", 200, 100, BOUND):
            pulled.append(chunk)

    fetching = asyncio.create_task(fetch())
    await sites_of_two_kinds.until(lambda: len(pulled) == 3)
    sites_of_two_kinds.network.mend(one.site.name, two.site.name)
    await until_kind(sites_of_two_kinds, one, two, "memory")
    go.set()
    async with asyncio.timeout(BOUND):
        assert await call == b"answered"
        await fetching
    assert pulled == [bytes([index]) for index in range(200)]
    assert only_up(one, two)


async def test_a_way_up_is_no_break_of_a_fetch(sites_of_two_kinds: TwoKinds) -> None:
    one, two = await sites_of_two_kinds.two(limits=AT_ONCE)
    sites_of_two_kinds.cut_cheap(one, two)

    async def provider(peer: PeerId, content: str, index: int) -> bytes | None:
        return bytes([index])

    two.host.serve(provider)
    one.host.want([two.peer_id])
    await until_kind(sites_of_two_kinds, one, two, "slow")
    pulled = []
    async with asyncio.timeout(BOUND):
        async for chunk in one.host.fetch(two.peer_id, "delta", 250, 100, BOUND):
            pulled.append(chunk)
            if len(pulled) == 2:  # the old link ends for good, and its successor breaks once
                sites_of_two_kinds.network.mend(one.site.name, two.site.name)
                old = one.host._table.get(two.peer_id)
                await until_kind(sites_of_two_kinds, one, two, "memory")
                await old.say_goodbye("replaced")
            elif len(pulled) == 150:
                one.host._table.get(two.peer_id).close("pulled the plug")
    assert pulled == [bytes([index]) for index in range(250)]


# --- pinned connections


class Everything:
    def __contains__(self, item: object) -> bool:
        return True


class PinnedConnection(MemoryConnection):
    """Whoever is at the other end, the signalling says it is ``pinned`` (set by the test)."""

    kind = "pinned"
    prefix = "/pinned/"


class PinnedTransport(SlowTransport):
    """Signalling of its own: no certificate of a record is asked."""

    kind = "pinned"
    connection_type = PinnedConnection

    def trust(self, roster: object) -> None:
        self._trusted = Everything()  # type: ignore[assignment]


async def pinned_pair(consortium: TwoKinds, signer: PeerId | None) -> tuple[Watched, Watched, Site]:
    """A listener whose connections are pinned to ``signer`` (None: to who really dials), and a dialler."""
    one, two, other = sites("lille", "rouen", "caen")
    fresh = Site("ephemeral")  # certificates of no record
    roster = roster_of(one.member(listens=False), two.member((f"/pinned/{two.name}",)), other.member(listens=False))
    pins = {one.name: two.peer_id, two.name: signer or one.peer_id}

    def transport(site: Site) -> MemoryTransport:
        kind = type("Pinned", (PinnedConnection,), {"pinned": pins[site.name]})

        class Own(PinnedTransport):
            connection_type = kind

            async def dial(self, address: str) -> MemoryConnection:
                ours = await super().dial(address)
                assert ours.peer_end is not None
                ours.peer_end.pinned = pins[two.name]
                return ours

        return Own(consortium.network, site.name, fresh.certificate.der)

    first = await consortium.open(one, roster, listen=(), transports=(transport(one),))
    second = await consortium.open(two, roster, listen=(f"/pinned/{two.name}",), transports=(transport(two),))
    return first, second, other


async def test_a_pinned_connection_needs_no_certificate_of_a_record(sites_of_two_kinds: TwoKinds) -> None:
    one, two, other = await pinned_pair(sites_of_two_kinds, None)
    await one.host.dial(two.peer_id)
    await until_kind(sites_of_two_kinds, one, two, "pinned")
    one.site.renew()
    records = (one.site.member(listens=False), two.site.member(), other.member())
    two.host.update_roster(roster_of(*records))
    assert two.kind(one) == "pinned"
    two.host.update_roster(roster_of(*records[1:]))
    assert two.host.links == {} and "no longer a member" in two.events[-1][2]


async def test_another_than_the_pinned_member_is_refused_by_name(sites_of_two_kinds: TwoKinds) -> None:
    signer = Site("caen")
    one, two, _ = await pinned_pair(sites_of_two_kinds, signer.peer_id)
    with pytest.raises(LinkError, match="signed for"):
        await one.host.dial(two.peer_id)
    await sites_of_two_kinds.until(lambda: len(two.refusals) == 1)
    who, why = two.refusals[0]
    assert who == signer.peer_id
    assert f"{one.site.name} ({one.peer_id}) says hello over a connection that {signer.peer_id} has signed for" in why
    assert one.events == two.events == [] and one.host.links == two.host.links == {}
