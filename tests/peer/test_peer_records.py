"""Member records between real peers: a changed address is found again, and only its owner's signature counts."""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
import ssl
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from hospitals import free_port

from p2pfl.audit import read_entries, verify_log
from p2pfl.crypto import Certificate, Identity, certificate_expiry, certificate_pem, pack, read_key
from p2pfl.errors import ConfigError
from p2pfl.gossip.context import REFUSALS_LOGGED
from p2pfl.governance import make_record, open_record
from p2pfl.net import Host, MemoryNetwork
from p2pfl.peer import Peer, change_address, found_consortium, home, open_home, own_record, take_record
from p2pfl.peer.own_record import DAY, RENEW_BEFORE
from p2pfl.peer.own_record import own_record as made
from p2pfl.peer.records import LATER_COPIES_PER_HOUR, RECORD, SUMMARIES_PER_HOUR, SUMMARY, SUMMARY_LIMIT
from p2pfl.types import Member

BOUND = 30.0  # seconds that bound every wait; never reached when a test passes
NAMES = ("amiens", "brest", "caen")


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(BOUND):
        while not condition():
            await asyncio.sleep(0.01)


class World:
    """Amiens (no port), Brest and Caen on tcp, or all three in memory."""

    def __init__(self, folder: Path, *, tcp: bool) -> None:
        self.homes = {name: folder / name for name in NAMES}
        self.network = None if tcp else MemoryNetwork()
        listen: dict[Path, str] | None = None
        if tcp:
            listen = {self.homes[name]: loopback() for name in NAMES[1:]}
        found_consortium(dict.fromkeys(self.homes.values()), "north", {"kind": "full"}, listen=listen)

    def peer(self, name: str) -> Peer:
        return Peer(self.homes[name], network=self.network)

    def identity(self, name: str) -> Identity:
        return read_key(self.homes[name] / "identity.key", None)

    def id(self, name: str) -> str:
        return self.identity(name).peer_id

    def entries(self, name: str, kind: str) -> list[dict[str, Any]]:
        log = read_entries(open_home(self.homes[name]).audit, 0)
        return [dict(entry.body) for entry in log if entry.kind == kind]

    def learnt(self, name: str) -> list[tuple[str, int, str]]:
        """(whose, number, told by) of each record in a peer's log."""
        return [(row["peer"], row["sequence"], row["from"]) for row in self.entries(name, "member_record")]

    def refused(self, name: str) -> list[tuple[str, str]]:
        return [(row["peer"], row["reason"]) for row in self.entries(name, "refused")]

    def record(self, name: str, signer: Identity | None = None, **changes: Any) -> bytes:
        """A further record of this member, or one that somebody else signed."""
        own = open_home(self.homes[name]).member()
        fields = {"name": own.name, "addresses": own.addresses, "listens": own.listens, "expires": own.expires}
        fields |= {"certificates": own.certificates, "sequence": own.sequence + 1, **changes}
        return make_record(signer or self.identity(name), **fields)

    @contextlib.asynccontextmanager
    async def linked(self, name: str, victim: Peer) -> AsyncIterator[Callable[[str, bytes], Awaitable[None]]]:
        """This member's keys in the hands of a bare host, linked to ``victim`` (memory only)."""
        assert self.network is not None
        own = open_home(self.homes[name]).member()
        self.heard: list[tuple[str, bytes]] = []
        transport = self.network.transport("attacker", own.certificates[0])
        host = Host(self.identity(name), victim.roster, [transport], on_link=lambda *_: None)
        for protocol in (SUMMARY, RECORD):
            host.handle_notify(protocol, lambda peer, data, protocol=protocol: self.heard.append((protocol, data)))
        await host.start([])
        try:
            await host.dial(victim.peer_id)
            await until(lambda: name in victim.links())
            yield lambda protocol, data: host.notify(victim.peer_id, protocol, data)
        finally:
            await host.stop()


def loopback() -> str:
    return f"/ip4/127.0.0.1/tcp/{free_port()}"


def known(peer: Peer, name: str) -> Member:
    return next(member for member in peer.roster.members if member.name == name)


# --- a changed address


async def test_a_peer_that_changed_its_address_is_found_again(tmp_path: Path) -> None:
    """Amiens cannot be dialled and knows Caen's old port only; Brest is the one who tells it."""
    world = World(tmp_path, tcp=True)
    new = loopback()
    async with world.peer("amiens") as amiens, world.peer("brest") as brest:
        async with world.peer("caen"):
            await until(lambda: "caen" in amiens.links() and "caen" in brest.links())
        await until(lambda: "caen" not in amiens.links() and "caen" not in brest.links())
        change_address(world.homes["caen"], new, world.identity("caen"))
        async with world.peer("caen") as caen:
            assert caen.addresses[0] == new
            await until(lambda: caen.links().keys() == {"amiens", "brest"})
            await until(lambda: "caen" in amiens.links())
            assert amiens.links()["caen"] == "tcp"
            for peer in (amiens, brest, caen):
                assert known(peer, "caen").addresses == (new,)
                assert peer.roster.charter == amiens.roster.charter
                assert [member.name for member in peer.roster.members] == list(NAMES)
        await until(lambda: world.learnt("amiens"))
    number = open_home(world.homes["caen"]).member().sequence
    assert world.learnt("amiens") == [(world.id("caen"), number, world.id("brest"))]
    assert world.learnt("brest") == [(world.id("caen"), number, world.id("caen"))]
    assert world.learnt("caen") == [(world.id("caen"), number, world.id("caen"))]
    assert not any(world.refused(name) for name in NAMES)

    # the book survives: with Brest gone, and after a restart, Amiens still goes to the new address
    async with world.peer("caen"), world.peer("amiens") as amiens:
        await until(lambda: "caen" in amiens.links())
    assert len(world.learnt("amiens")) == 1 and len(world.learnt("caen")) == 1
    for name in NAMES:
        assert verify_log(open_home(world.homes[name]).audit).ok


async def test_a_changed_setting_is_enough(tmp_path: Path) -> None:
    """Whoever edits home.toml by hand gets the new record at the next start; without a change there is none."""
    world = World(tmp_path, tcp=True)
    settings = world.homes["caen"] / "home.toml"
    before = open_home(world.homes["caen"]).member()
    async with world.peer("caen"):
        pass
    assert open_home(world.homes["caen"]).member() == before and not world.learnt("caen")
    settings.write_text('name = "caen"\n')
    async with world.peer("caen"), world.peer("brest") as brest:
        await until(lambda: "caen" in brest.links())
        await until(lambda: not known(brest, "caen").listens)
    after = open_home(world.homes["caen"]).member()
    assert (after.addresses, after.listens, after.certificates) == ((), False, before.certificates)
    assert after.sequence > before.sequence


# --- what neighbours may say


async def test_only_the_owners_signature_counts(tmp_path: Path) -> None:
    """Caen's keys tell Amiens about Brest: what Brest signed is taken, everything else refused by name."""
    world = World(tmp_path, tcp=False)
    stranger = Identity.from_seed(b"s" * 32)
    amiens_id, brest, caen = (world.id(name) for name in NAMES)
    number = open_home(world.homes["brest"]).member().sequence
    good = world.record("brest", sequence=number + 5, addresses=["/memory/brest", "/ip4/10.0.0.9/tcp/7"])
    altered = bytearray(good)
    altered[-70] ^= 1
    past = int(time.time()) - 10
    refused = {
        "a stranger's": (world.record("brest", stranger), caen, f"{stranger.peer_id}, whom the charter does not name"),
        "in another's name": (world.record("brest", world.identity("caen")), caen, "of caen .*gives the name 'brest'"),
        "altered": (bytes(altered), caen, "signature|decoded|re-encoded|field|envelope"),
        "stale": (world.record("brest", sequence=number + 4), caen, rf"of brest .*stale.*number {number + 5}"),
        "a twin": (world.record("brest", sequence=number + 5), brest, "of brest .*signed twice"),
        "expired": (world.record("brest", sequence=number + 6, expires=past), caen, "of brest .*expired"),
        "no summary": (pack([1, 2]), caen, "not a map"),
        "a long summary": (bytes(SUMMARY_LIMIT + 1), caen, "more than"),
        "a wrong summary": (pack({brest: "1"}), caen, "not a map"),
    }
    async with world.peer("amiens") as amiens, world.linked("caen", amiens) as send:
        await send(RECORD, good)
        await until(lambda: len(known(amiens, "brest").addresses) == 2)
        for count, (what, (data, _, _)) in enumerate(refused.items()):
            await send(SUMMARY if "summary" in what else RECORD, data)
            await until(lambda count=count: len(world.refused("amiens")) > count)
        assert len(known(amiens, "brest").addresses) == 2 and list(amiens.links()) == ["caen"]
        await until(lambda: (RECORD, good) in world.heard)  # the answer to the stale one: here is the newer
    for (who, why), (what, (_, blamed, words)) in zip(world.refused("amiens"), refused.items(), strict=True):
        assert who == blamed, what
        assert re.search(words, why), (what, why)
        assert "summary" in what or f"told by caen ({caen})" in why, (what, why)
    assert world.learnt("amiens") == [(brest, number + 5, caen)]
    assert [path.name for path in (world.homes["amiens"] / "records").iterdir()] == [f"{brest}.record"]
    assert amiens_id not in {who for who, _ in world.refused("amiens")}


async def test_a_member_can_fill_neither_log_nor_disk(tmp_path: Path) -> None:
    world = World(tmp_path, tcp=False)
    caen = open_home(world.homes["caen"]).member()
    async with world.peer("amiens") as amiens, world.linked("caen", amiens) as send:
        for step in range(100):
            await send(RECORD, world.record("caen", sequence=caen.sequence + 1 + step))
        for _ in range(3 * SUMMARIES_PER_HOUR):
            await send(SUMMARY, pack({}))
        for _ in range(300):
            await send(RECORD, b"rubbish")
        await until(lambda: amiens._refusals[caen.peer_id] >= 300)
        await until(lambda: len(world.refused("amiens")) == REFUSALS_LOGGED)
        assert amiens.failure is None and list(amiens.links()) == ["caen"]
    assert len(world.learnt("amiens")) == 12
    assert "too many" in world.refused("amiens")[0][1] and len(world.refused("amiens")) == REFUSALS_LOGGED
    assert len(list((world.homes["amiens"] / "records").iterdir())) == 1
    told = [open_record(data) for protocol, data in world.heard if protocol == RECORD]
    assert len(told) <= 3 * SUMMARIES_PER_HOUR
    assert verify_log(open_home(world.homes["amiens"]).audit).ok


async def test_a_home_restored_from_a_backup_outbids_its_later_record(tmp_path: Path) -> None:
    world = World(tmp_path, tcp=True)
    home_of, backup = world.homes["caen"], tmp_path / "backup"
    shutil.copytree(home_of, backup)
    old = open_home(home_of).member()
    change_address(home_of, loopback(), world.identity("caen"))
    async with world.peer("brest") as brest:
        async with world.peer("caen"):
            await until(lambda: known(brest, "caen").sequence > old.sequence)
        later = known(brest, "caen")
        shutil.rmtree(home_of)
        shutil.copytree(backup, home_of)
        async with world.peer("caen") as caen:
            await until(lambda: known(brest, "caen").sequence > later.sequence)
            assert known(brest, "caen").addresses == old.addresses == tuple(caen.addresses[:1])
        assert known(brest, "caen") == open_home(home_of).member()
    assert any("does a copy of this home run elsewhere" in why for _, why in world.refused("caen"))


async def test_a_copy_of_the_key_elsewhere_is_not_outbid_for_ever(tmp_path: Path) -> None:
    world = World(tmp_path, tcp=False)
    async with world.peer("amiens") as amiens, world.linked("caen", amiens) as send:
        number = open_home(world.homes["amiens"]).member().sequence
        for step in range(3 * LATER_COPIES_PER_HOUR):
            await send(RECORD, world.record("amiens", sequence=number + 1000 * (step + 1)))
        await send(RECORD, world.record("amiens", sequence=2**63 - 1))  # no number is above this one
        await until(lambda: len(world.refused("amiens")) >= 3 * LATER_COPIES_PER_HOUR)
        assert amiens.failure is None and list(amiens.links()) == ["caen"]
    assert len(world.learnt("amiens")) == LATER_COPIES_PER_HOUR


# --- renewal


@pytest.fixture
def short_lived(monkeypatch: pytest.MonkeyPatch) -> None:
    """Homes made now have records and certificates that end in 20 days."""
    monkeypatch.setattr(home, "RECORD_LIFETIME", 20 * DAY)


@pytest.mark.usefixtures("short_lived")
async def test_certificates_are_renewed_with_overlap_over_real_tls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, tcp=True)
    first = {name: open_home(path).member().certificates for name, path in world.homes.items()}
    async with world.peer("amiens") as amiens, world.peer("brest") as brest, world.peer("caen") as caen:
        everyone = (amiens, brest, caen)
        await until(lambda: all(len(peer.links()) == 2 for peer in everyone))
        await until(lambda: all(len(member.certificates) == 2 for peer in everyone for member in peer.roster.members))
        for member in amiens.roster.members:
            assert member.certificates[:1] == first[member.name], "the old one first: it is still the one shown"
            assert member.expires > time.time() + RENEW_BEFORE
    for name in NAMES:
        assert len(world.learnt(name)) == 3 and not world.refused(name)
    monkeypatch.setattr(own_record, "SWITCH_BEFORE", 25 * DAY)  # as if the old one ended soon
    async with world.peer("amiens") as amiens, world.peer("caen") as caen:
        await until(lambda: "caen" in amiens.links() and "amiens" in caen.links())
        for peer in (amiens, caen):
            now = open_home(world.homes[peer.name]).member().certificates
            assert peer._records.own.certificate.der == now[0] != first[peer.name][0]
            assert now[1:] == first[peer.name], "kept until it ends"


def steps(folder: Path, *days: int) -> list[tuple[int, int, bool]]:
    """After so many days each, with a start in between: certificates listed, index of the shown one, new record."""
    opened = open_home(folder)
    identity = opened.identity(None)
    start, ages, found = int(time.time()), list(opened.member().certificates), []
    for day in days:
        own = made(opened, identity, start + day * DAY)
        own.store()
        ages += [certificate for certificate in own.member.certificates if certificate not in ages]
        assert own.member.certificates[0] == own.certificate.der
        assert all(certificate_expiry(one) > start + day * DAY for one in own.member.certificates)
        _loads(own.certificate, identity)
        found.append((len(own.member.certificates), ages.index(own.certificate.der), own.new))
    return found


def _loads(certificate: Certificate, identity: Identity) -> None:
    """TLS takes certificate and key as a pair."""
    with tempfile.NamedTemporaryFile(suffix=".pem") as file:
        file.write(certificate_pem(certificate.der).encode() + certificate.key_pem)
        file.flush()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file.name, password=home.tls_password(identity))


@pytest.mark.parametrize(
    ("days", "expected"),
    [
        pytest.param((0, 100, 335), [(1, 0, False)] * 3, id="nothing is due"),
        pytest.param((337, 350, 358), [(2, 0, True), (2, 0, False), (2, 0, False)], id="told before it is shown"),
        pytest.param((337, 360, 361), [(2, 0, True), (2, 1, True), (2, 1, False)], id="shown for the last week"),
        pytest.param((337, 360, 367), [(2, 0, True), (2, 1, True), (1, 1, True)], id="the old one ends"),
        pytest.param((337, 367, 680), [(2, 0, True), (1, 1, True), (2, 1, True)], id="two years, three certificates"),
        pytest.param((337, 367, 680, 700, 710), [(2, 0, True), (1, 1, True), (2, 1, True), (2, 2, True), (1, 2, True)],
                     id="and both key files used in turn"),
        pytest.param((363, 364), [(2, 0, True), (2, 1, True)], id="late: one start for the others to hear of it"),
        pytest.param((400, 401), [(1, 1, True), (1, 1, False)], id="too late for an overlap"),
    ],
)  # fmt: skip
def test_a_record_renews_itself(tmp_path: Path, days: tuple[int, ...], expected: list[tuple[int, int, bool]]) -> None:
    found_consortium({tmp_path / name: None for name in NAMES}, "north", {"kind": "full"})
    assert steps(tmp_path / "amiens", *days) == expected


def test_a_record_of_another_key_is_refused(tmp_path: Path) -> None:
    found_consortium({tmp_path / name: None for name in NAMES}, "north", {"kind": "full"})
    shutil.copyfile(tmp_path / "brest" / "member.record", tmp_path / "amiens" / "member.record")
    opened = open_home(tmp_path / "amiens")
    with pytest.raises(ConfigError, match="record of another key"):
        made(opened, opened.identity(None), int(time.time()))


def test_a_record_that_came_by_hand(tmp_path: Path) -> None:
    found_consortium({tmp_path / name: None for name in NAMES}, "north", {"kind": "full"})
    identity = open_home(tmp_path / "brest").identity(None)
    facts = change_address(tmp_path / "brest", None, identity)
    assert facts["new_record"] and facts["addresses"] == []
    assert take_record(tmp_path / "amiens", facts["record"]).new
    assert not take_record(tmp_path / "amiens", facts["record"]).new


async def test_a_running_peer_does_not_undo_what_its_owner_changed(tmp_path: Path) -> None:
    """`p2pfl address` while the peer runs: the daily renewal leaves the new record alone."""
    found_consortium({tmp_path / "a": None, tmp_path / "b": None}, "north", {"kind": "ring"})
    async with Peer(tmp_path / "a", network=MemoryNetwork()) as peer:
        home = open_home(tmp_path / "a")
        change_address(home.path, None, home.identity(None))
        changed = home.record()
        peer._records.renew()
        peer._records.renew(above=home.member().sequence)
        assert home.record() == changed
