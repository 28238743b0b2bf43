"""Witnesses with real peers: cosignatures, what a restored backup does, and who notices which attack."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hospitals import free_port
from test_peer_restart import three_homes

import p2pfl
from p2pfl.audit import (
    Answer,
    AuditLog,
    Evidence,
    LogMisbehaviour,
    NewEntry,
    WitnessStore,
    check_evidence,
    judge,
    read_entries,
    read_evidence,
)
from p2pfl.crypto import cosign, log_origin, pack, read_log_proof, unpack
from p2pfl.crypto.notes import read_note
from p2pfl.errors import Refusal, RemoteError
from p2pfl.gossip.messages import decode_announcement, open_cover
from p2pfl.governance import parse_charter
from p2pfl.net import Host, MemoryNetwork
from p2pfl.peer import found_consortium, open_home
from p2pfl.peer.evidence_sharing import EVIDENCE
from p2pfl.peer.own_heads import WITNESS
from p2pfl.types import PeerId

NAME = "test"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neighbours are asked without a pause between two questions."""
    monkeypatch.setattr("p2pfl.peer.witnessing.PACE", 0.05)


def found(folder: Path, names: str = "abc", kind: str = "full") -> list[Path]:
    homes = [folder / name for name in names]
    found_consortium(dict.fromkeys(homes), NAME, {"kind": kind})
    return homes


@contextlib.asynccontextmanager
async def up(*homes: Path, network: MemoryNetwork | None) -> AsyncIterator[list[p2pfl.Peer]]:
    async with contextlib.AsyncExitStack() as stack:
        yield [await stack.enter_async_context(p2pfl.Peer(home, network=network)) for home in homes]


async def until(condition: Callable[[], Any], what: str = "") -> Any:
    """Look again at every turn of the loop, for a bounded time."""
    async with asyncio.timeout(30):
        while not (value := condition()):
            await asyncio.sleep(0.01)
    return value


def row(peer: p2pfl.Peer, of: p2pfl.Peer | str) -> dict[str, Any]:
    """What a peer's status says of another one."""
    wanted = of if isinstance(of, str) else of.peer_id
    return next(row for row in peer.witnessing.status() if row["peer"] == wanted)


def peer_id(home: Path) -> str:
    return str(open_home(home).member().peer_id)


async def witnessed(witness: p2pfl.Peer, owner: p2pfl.Peer) -> int:
    """Wait until a witness has cosigned and the owner has the cosignature; the size that is held."""
    await until(lambda: row(owner, witness)["holds"] is not None and row(witness, owner)["held"] is not None)
    return int(row(witness, owner)["held"])


async def grow(peer: p2pfl.Peer, entries: int = 3) -> None:
    for number in range(entries):
        await peer._journal.commit([NewEntry("refused", {"peer": "x", "reason": f"entry {number}"})])


def ask_again(witness: p2pfl.Peer, owner: p2pfl.Peer) -> None:
    """As if a newer checkpoint had been seen in a cover."""
    witness.witnessing._want(owner.peer_id)


def held_in(home: Path, owner: str) -> int:
    """The size that a stopped witness holds of a log."""
    with contextlib.closing(WitnessStore(home / "witness.db")) as store:
        newest = store.newest(owner)
    assert newest is not None
    return newest.size


def evidence_of(home: Path) -> list[Path]:
    return sorted((home / "evidence").glob("*.json"))


def rewrite(home: Path, entries: int) -> None:
    """What the owner of the key can do: a whole new log of so many entries, every hash and signature in order."""
    opened = open_home(home)
    first = next(iter(read_entries(opened.audit)))
    for file in home.glob("audit.db*"):
        file.unlink()
    with AuditLog.create(opened.audit, opened.identity(None), first.time, NAME) as log:
        log.append([NewEntry("refused", {"reason": f"nothing happened {n}"}) for n in range(entries - 1)], first.time)


Say = Callable[[PeerId, bytes, bytes], bytes | None]
"""What a dishonest owner answers a witness: (who asks, held note, to which note) -> envelope; None: it hangs up. May
raise Refusal."""


def lie(peer: p2pfl.Peer, log: AuditLog | None = None) -> Say:
    """Sign that one's log holds whatever is asked for, with the best proof that it can give."""
    chosen = peer._journal.log if log is None else log

    def say(witness: PeerId, held: bytes, to: bytes) -> bytes:
        newest = to or chosen.head.note
        old, new = (int(note.split(b"\n")[1]) for note in (held or newest, newest))
        proof = chosen.prove_growth(old, new) if held and 0 < old < new <= chosen.head.size else ()
        return Answer(held, newest, proof).sign(peer._identity)

    return say


async def hang_up(peer: p2pfl.Peer, on: str) -> bytes:
    """End the link to whoever has just asked, and answer nothing."""
    link = peer._host._table.get(PeerId(on))
    assert link is not None
    await link.connection.close()
    return await asyncio.Event().wait() and b""  # the link's end cancels this


def dishonest(peer: p2pfl.Peer, say: Say) -> None:
    """This peer asks nobody what they hold of its log, and answers for it as ``say`` does."""
    peer._own_heads.cleared.set()

    async def handler(witness: PeerId, data: bytes) -> bytes:
        question = unpack(data, what="question", limit=200_000)
        if question["ask"] == "grow":
            answer = say(witness, question["held"], question["to"])
            return await hang_up(peer, witness) if answer is None else answer
        return pack([]) if question["ask"] == "held" else b""

    peer._host.handle(WITNESS, handler)


@contextlib.asynccontextmanager
async def up_dishonest(home: Path, network: MemoryNetwork | None, say: Callable[[p2pfl.Peer], Say]) -> Any:
    """Dishonest from the first message on."""
    peer = p2pfl.Peer(home, network=network)
    start = Host.start

    async def started(host: Host, listen: Any) -> Any:
        if host is peer._host:
            dishonest(peer, say(peer))
        return await start(host, listen)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Host, "start", started)
        await peer.__aenter__()
    try:
        yield peer
    finally:
        await peer.__aexit__()


def convicts(home: Path, charter: Path, owner: str) -> str:
    """The claim of the one evidence file in a home, found to hold with the charter alone; every altered one is refused."""
    (file,) = evidence_of(home)
    founded = parse_charter(charter.read_text())
    evidence, origin = read_evidence(file.read_bytes()), log_origin(founded.name, owner)
    first, second = check_evidence(evidence, origin, owner)
    assert {first.origin, second.origin} <= {origin, f"{origin}/1"}
    with pytest.raises(RemoteError):
        check_evidence(replace(evidence, notes=(evidence.notes[0], evidence.notes[0])), origin, owner)
    with pytest.raises(RemoteError):
        check_evidence(replace(evidence, answer=b"", claim="growth"), origin, owner)
    (entry,) = read_entries(home / "audit.db", kind="log_misbehaviour")
    assert (entry.body["peer"], entry.body["claim"]) == (owner, evidence.claim)
    return evidence.claim


async def test_neighbours_cosign_and_the_next_cover_carries_it(tmp_path: Path) -> None:
    a, b, c = found(tmp_path)
    async with up(a, b, c, network=MemoryNetwork()) as (first, second, third):
        await asyncio.gather(witnessed(second, first), witnessed(third, first), witnessed(first, second))
        before = row(second, first)["held"]
        await grow(first)
        for witness in (second, third):
            ask_again(witness, first)
            await until(lambda witness=witness: row(witness, first)["held"] > before)
        size = row(second, first)["held"]
        await until(lambda: {row(first, peer)["holds"] for peer in (second, third)} == {size})
        await until(lambda: len(read_note(first._own_heads.witnessed).signatures) == 3)
        lines = read_note(first._own_heads.witnessed).signatures
        origins = [log_origin(NAME, peer.peer_id) for peer in (first, second, third)]
        assert [lines[0].name, *sorted(line.name for line in lines[1:])] == [
            origins[0],
            *sorted(f"{origin}/witness" for origin in origins[1:]),
        ]
        assert not first.log_news and not second.log_news
    assert not evidence_of(b) and not list(read_entries(b / "audit.db", kind="log_misbehaviour"))


@pytest.mark.slow
async def test_covers_of_a_run_bring_checkpoints_and_carry_cosignatures(tmp_path: Path) -> None:
    homes = three_homes(tmp_path, rounds=30)
    covers: list[bytes] = []
    async with up(*homes, network=MemoryNetwork()) as peers:
        first, second, third = peers
        saw = second.witnessing.saw

        def listen(peer: PeerId, announcement: bytes) -> None:
            covers.append(decode_announcement(announcement).cover)
            saw(peer, announcement)

        second.witnessing.saw = listen  # type: ignore[method-assign]
        run = await first.propose(tmp_path / "plan")
        joined = [await peer.join((await peer.next_proposal()).id) for peer in (second, third)]
        await asyncio.gather(*(handle.finished() for handle in (run, *joined)))
        sent = [entry.position for entry in read_entries(homes[0] / "audit.db", kind="delta_sent")]
        for witness in (second, third):
            await until(lambda witness=witness: row(witness, first)["held"] > sent[-2])
            assert row(witness, first)["alarm"] is None
        stapled = [open_cover(cover)[1].witnessed for cover in covers]
        assert max(len(read_note(note).signatures) for note in stapled if note) > 1
    assert not any(list(read_entries(home / "audit.db", kind="head_withheld")) for home in homes)


async def test_what_was_cosigned_is_remembered_over_a_restart(tmp_path: Path) -> None:
    a, b = found(tmp_path, "ab")
    network = MemoryNetwork()
    async with up(a, b, network=network) as (first, second):
        size = await witnessed(second, first)
    async with up(a, b, network=network) as (first, second):
        assert row(first, second)["holds"] >= size and row(second, first)["held"] >= size
        assert first._own_heads.witnessed
        await until(lambda: row(second, first)["held"] > size)
        assert first.status()["epoch"] == 0 and not first.log_news


@pytest.mark.parametrize("broken", ["witness", "owner"])
async def test_a_disk_that_takes_no_more_stops_the_peer_and_nothing_is_cosigned(tmp_path: Path, broken: str) -> None:
    """The witness cannot store a checkpoint, or the owner a cosignature: each says so and ends."""
    homes = found(tmp_path, "ab")
    async with up(*homes, network=MemoryNetwork()) as (owner, witness):
        await witnessed(witness, owner)
        before = row(witness, owner)["held"]
        peer = witness if broken == "witness" else owner
        cosigned = row(owner, witness)["holds"]
        peer.witnessing._store._connection.execute("PRAGMA query_only = ON")
        await grow(owner)
        ask_again(witness, owner)
        failure = await until(lambda: peer.failure)
        assert "witness store" in str(failure) and "free or repair the disk" in str(failure)
        assert row(owner, witness)["holds"] == cosigned, "no cosignature went out, or none was taken"
        held = row(witness, owner)["held"]
        assert held == before if broken == "witness" else held > cosigned


async def test_a_restored_backup_declares_its_loss_and_goes_on_in_a_new_epoch(tmp_path: Path) -> None:
    a, b, c = found(tmp_path)
    network = MemoryNetwork()
    async with up(a, b, c, network=network) as (first, second, third):
        await asyncio.gather(witnessed(second, first), witnessed(third, first))
    shutil.copytree(a, tmp_path / "backup")
    kept = len(list(read_entries(a / "audit.db")))
    async with up(a, b, c, network=network) as (first, second, third):
        await grow(first, 20)
        for witness in (second, third):
            ask_again(witness, first)
            await until(lambda witness=witness: row(witness, first)["held"] > kept + 10)
    lost = max(held_in(home, peer_id(a)) for home in (b, c))  # a last question may have been asked since
    shutil.rmtree(a)
    shutil.copytree(tmp_path / "backup", a)
    async with up(b, c, a, network=network) as (second, third, first):
        await until(lambda: first._own_heads.cleared.is_set() and first.status()["epoch"] == 1)
        for witness in (second, third):
            await until(lambda witness=witness: row(witness, first)["epoch"] == 1)
            assert row(witness, first)["alarm"] is None
            said = ("loss declared", {"peer": first.peer_id, "epoch": 1, "kept": kept})
            await until(lambda said=said, witness=witness: said in witness.log_news)
        assert [topic for topic, _ in first.log_news] == ["epoch opened"]
        proof = await first._journal.prove(1)
        assert read_log_proof(proof.encode()).checkpoint.startswith(f"p2pfl/{NAME}/{first.peer_id}/1\n".encode())
    (declared,) = read_entries(a / "audit.db", kind="epoch_opened")
    assert declared.body["kept"] == kept and declared.body["lost"][0][:2] == [0, lost]
    assert p2pfl.verify_log(a / "audit.db").ok
    async with up(b, a, network=network) as (second, first):  # and it is still in that epoch later
        await until(lambda: first._own_heads.cleared.is_set())
        assert first.status()["epoch"] == 1
        await until(lambda: row(second, first)["holds"] is not None)
        assert row(second, first)["alarm"] is None


async def test_a_backup_that_grew_before_it_met_a_witness_is_no_fork(tmp_path: Path) -> None:
    """Put back and started twice without neighbours: by then it is as long as what was lost, or longer."""
    homes = a, b = found(tmp_path, "ab")
    network = MemoryNetwork()
    async with up(*homes, network=network) as (first, second):
        await witnessed(second, first)
    shutil.copytree(a, tmp_path / "backup")
    size = sum(1 for _ in read_entries(a / "audit.db"))
    await history(homes, network, entries=2)
    held = held_in(b, peer_id(a))
    shutil.rmtree(a)
    shutil.copytree(tmp_path / "backup", a)
    for _ in range(2):
        async with up(a, network=network) as (first,):
            await grow(first, 5)
            assert not first._own_heads.cleared.is_set(), "nothing leaves before somebody was asked"
    async with up(b, a, network=network) as (second, first):
        assert first._own_heads.kept > held
        await until(lambda: row(second, first)["epoch"] == 1)
        assert row(second, first)["alarm"] is None
    (entry,) = read_entries(b / "audit.db", kind="loss_witnessed")
    declared = [row for row in read_entries(a / "audit.db") if row.kind in ("epoch_opened", "loss_declared")]
    assert entry.body["held"] == held
    # below the largest that it held, and below each smaller one that it happened to check on that day
    assert size <= entry.body["kept"] == declared[-1].body["kept"] < held
    assert not evidence_of(b)


async def test_a_witness_that_comes_later_makes_the_loss_longer(tmp_path: Path) -> None:
    """It was away when the backup was put back, and holds more than all others did."""
    homes = a, b, c = found(tmp_path)
    network = MemoryNetwork()
    async with up(*homes, network=network) as (first, second, third):
        await asyncio.gather(witnessed(second, first), witnessed(third, first))
    shutil.copytree(a, tmp_path / "backup")
    less = await history([a, b], network, entries=5)
    more = await history([a, c], network, entries=20)
    assert more > less
    shutil.rmtree(a)
    shutil.copytree(tmp_path / "backup", a)
    async with up(b, a, network=network) as (second, first):
        await until(lambda: row(second, first)["epoch"] == 1)
        async with up(c, network=network) as (third,):
            await until(lambda: row(third, first)["epoch"] == 1)
            assert row(third, first)["alarm"] is None and first.failure is None
    declared = [entry for entry in read_entries(a / "audit.db") if entry.kind in ("epoch_opened", "loss_declared")]
    assert [entry.body["lost"][0][1] for entry in declared] == [less, more]


# --- attacks: who notices


async def history(homes: list[Path], network: MemoryNetwork | None, entries: int = 10) -> int:
    """A first day: the first home's log grows, the next ones witness it; the size they hold."""
    async with up(*homes, network=network) as (first, *others):
        await asyncio.gather(*(witnessed(other, first) for other in others))
        await grow(first, entries)
        size = first._journal.head.size
        for other in others:
            ask_again(other, first)
            await until(lambda other=other: row(other, first)["held"] >= size)
        return int(max(row(other, first)["held"] for other in others))


@pytest.mark.parametrize("kind", ["memory", "tcp"])
async def test_a_rewritten_entry_with_all_hashes_and_signatures_anew(tmp_path: Path, kind: str) -> None:
    """Longer than what was witnessed, every hash in order: both neighbours have the owner's word against itself."""
    homes = [tmp_path / name for name in "abc"]
    listen = {home: f"/ip4/127.0.0.1/tcp/{free_port()}" for home in homes} if kind == "tcp" else None
    found_consortium(dict.fromkeys(homes), NAME, {"kind": "full"}, listen=listen)
    network = None if kind == "tcp" else MemoryNetwork()
    held = await history(homes, network)
    rewrite(homes[0], held + 5)
    async with up(*homes[1:], network=network) as (second, third), up_dishonest(homes[0], network, lie) as evil:
        for witness in (second, third):
            await until(lambda witness=witness: row(witness, evil)["alarm"])
            assert row(witness, evil)["held"] <= held, "what contradicts is not cosigned"
            assert witness.status()["witnesses"]
    for home in homes[1:]:
        assert convicts(home, homes[2] / "charter", peer_id(homes[0])) == "growth"


async def test_truncated_and_yesterdays_backup_put_back_silently(tmp_path: Path) -> None:
    homes = found(tmp_path)
    network = MemoryNetwork()
    async with up(*homes, network=network) as (first, second, third):
        await asyncio.gather(witnessed(second, first), witnessed(third, first))
    shutil.copytree(homes[0], tmp_path / "yesterday")
    await history(homes, network, entries=40)
    shutil.rmtree(homes[0])
    shutil.copytree(tmp_path / "yesterday", homes[0])
    async with up(*homes[1:], network=network) as (second, third), up_dishonest(homes[0], network, lie) as evil:
        for witness in (second, third):
            await until(lambda witness=witness: row(witness, evil)["alarm"])
    for home in homes[1:]:
        assert convicts(home, homes[1] / "charter", peer_id(homes[0])) == "rollback"


@pytest.mark.parametrize(("names", "kind", "apart"), [("abc", "full", 0), ("abc", "full", 7), ("abdc", "ring", 7)])
async def test_two_histories_for_two_neighbours(tmp_path: Path, names: str, kind: str, apart: int) -> None:
    """Of one size, or one longer by some entries: the neighbours are told what the others were shown.

    In the ring they have no link with each other, but a common neighbour, whom the owner never talks to.
    """
    homes = found(tmp_path, names, kind)
    victims = homes[1], homes[-1]
    network = MemoryNetwork()
    identity = open_home(homes[0]).identity(None)
    with (
        AuditLog.create(tmp_path / "one.db", identity, 1, NAME) as one,
        AuditLog.create(tmp_path / "other.db", identity, 2, NAME) as other,
    ):
        one.append([NewEntry("refused", {"reason": "one"})] * 20, 3)
        other.append([NewEntry("refused", {"reason": "other"})] * (20 + apart), 3)

        def two_faced(peer: p2pfl.Peer) -> Say:
            faces = {peer_id(home): lie(peer, log) for home, log in zip(victims, (one, other), strict=True)}
            return lambda witness, held, to: faces[witness](witness, held, to)

        async with up(*homes[1:], network=network) as honest:
            async with up_dishonest(homes[0], network, two_faced) as evil:
                await until(lambda: row(honest[0], evil)["alarm"] and row(honest[-1], evil)["alarm"])
                assert set(honest[0].links()) == ({homes[0].name, "d"} if kind == "ring" else {"a", "c"})
                for told in honest[1:-1]:
                    await until(lambda told=told: row(told, evil)["alarm"])
    for home in homes[1:]:  # in the ring also by the one that was shown nothing
        claim = convicts(home, homes[1] / "charter", peer_id(homes[0]))
        assert claim == ("growth" if apart else "fork")


async def test_a_damaged_tree_ends_the_peer_and_never_becomes_evidence(tmp_path: Path) -> None:
    homes = found(tmp_path, "ab")
    async with up(*homes, network=MemoryNetwork()) as (first, second):
        await witnessed(second, first)
        await grow(first)
        log = first._journal.log
        proven = log.prove_growth
        log.prove_growth = lambda old, new: tuple(bytes(32) for _ in proven(old, new))  # type: ignore[method-assign]
        ask_again(second, first)
        await until(lambda: first.failure)
        assert "audit verify" in str(first.failure)
        assert row(second, first)["alarm"] is None
    assert not evidence_of(homes[1])


async def test_whoever_withholds_its_log_is_named(tmp_path: Path) -> None:
    homes = found(tmp_path, "ab")
    network = MemoryNetwork()
    await history(homes, network)

    def silent(peer: p2pfl.Peer) -> Say:
        def say(witness: PeerId, held: bytes, to: bytes) -> bytes:
            raise Refusal("ask me tomorrow")

        return say

    async with up(homes[1], network=network) as (witness,), up_dishonest(homes[0], network, silent) as evil:
        await until(lambda: row(witness, evil)["withheld"])
        assert row(witness, evil)["alarm"] is None and not evidence_of(homes[1]), "a finding, no proof"
    (entry,) = read_entries(homes[1] / "audit.db", kind="head_withheld")
    assert entry.body["peer"] == peer_id(homes[0]) and "tomorrow" in entry.body["reason"]


async def test_evidence_goes_to_whoever_was_away_and_to_the_owner(tmp_path: Path) -> None:
    """The third member never asks the owner: it is told by the witness, when a link comes up, and checks by itself."""
    a, b, c = found(tmp_path)
    network = MemoryNetwork()
    held = await history([a, b], network)
    rewrite(a, held + 5)
    async with up(b, network=network) as (witness,), up_dishonest(a, network, lie) as evil:
        await until(lambda: row(witness, evil)["alarm"])
        await until(lambda: evil.peer_id in evil.witnessing.accused)
        assert [facts["peer"] for topic, facts in evil.log_news if topic == "alarm"] == [evil.peer_id]
    network.cut("a", "c")
    async with up(b, c, network=network) as (witness, third):
        assert row(witness, peer_id(a))["alarm"], "remembered"
        await until(lambda: row(third, peer_id(a))["alarm"])
        assert third.log_news[0][1]["claim"] == "growth"
    assert convicts(c, c / "charter", peer_id(a)) == "growth"
    (file,) = evidence_of(c)
    assert read_evidence(file.read_bytes()).found["from"] == peer_id(b)


async def test_told_evidence_that_shows_nothing_accuses_nobody(tmp_path: Path) -> None:
    homes = found(tmp_path, "ab")
    async with up(*homes, network=MemoryNetwork()) as (first, second):
        await witnessed(second, first)
        note, origin = first._journal.head.note, log_origin(NAME, first.peer_id)
        same = Evidence("fork", first.peer_id, origin, (note, note), b"", {})
        stranger = replace(same, owner="12D3KooWNobody")
        for data in (same.encode(), stranger.encode(), b"", b"{}", same.encode().replace(b"p2pfl/", b"\\ud800")):
            await second._host.notify(first.peer_id, EVIDENCE, data)
            await first._host.notify(second.peer_id, EVIDENCE, data)
        await grow(first)
        before = row(second, first)["held"]
        ask_again(second, first)  # answered behind all of them
        await until(lambda: row(second, first)["held"] > before)
        for peer, home in zip((first, second), homes, strict=True):
            assert not peer.witnessing.accused and not evidence_of(home) and peer.failure is None


def collude(peer: p2pfl.Peer, owner: p2pfl.Peer) -> None:
    """A witness that vouches for whatever the owner shows, tells it to the others, and knows of no evidence."""
    check = peer.witnessing._check_once

    async def vouch(asked: PeerId) -> None:
        if asked != owner.peer_id:
            await check(asked)
            return
        question = pack({"ask": "grow", "held": b"", "to": b""})  # nothing that the answer would have to follow from
        data = await peer._host.request(owner.peer_id, WITNESS, question, timeout=5)
        note = judge(data, b"", log_origin(NAME, owner.peer_id), owner.peer_id).note
        await owner._own_heads.keep(peer.peer_id, cosign(peer._identity, NAME, note, int(time.time())).encode())
        peer.witnessing._tell(owner.peer_id, owner._own_heads.witnessed)

    async def look_away(shown: LogMisbehaviour, sender: PeerId | None = None) -> None:
        pass

    peer.witnessing._check_once = vouch  # type: ignore[method-assign]
    peer.witnessing._alarms.sound = look_away  # type: ignore[method-assign]


@pytest.mark.parametrize("says", ["a lie", "nothing"])
async def test_one_colluding_neighbour_does_not_help(tmp_path: Path, says: str) -> None:
    """The rewritten log has a real cosignature, by a neighbour that tells it to the other one as its own finding."""
    homes = found(tmp_path)
    network = MemoryNetwork()
    held = await history(homes, network)
    rewrite(homes[0], held + 5)
    async with contextlib.AsyncExitStack() as stack:
        (colluding,) = await stack.enter_async_context(up(homes[1], network=network))
        accomplice = colluding.peer_id

        def to_others(peer: p2pfl.Peer) -> Say:
            collude(colluding, peer)
            lies = lie(peer)

            def say(witness: PeerId, held: bytes, to: bytes) -> bytes | None:
                if witness != accomplice and says == "nothing":
                    raise Refusal("ask my other neighbour")
                return lies(witness, held, to)

            return say

        evil = await stack.enter_async_context(up_dishonest(homes[0], network, to_others))
        await until(lambda: int(evil._own_heads.witnessed.split(b"\n")[1]) > held)
        names = [line.name for line in read_note(evil._own_heads.witnessed).signatures]
        assert f"{log_origin(NAME, accomplice)}/witness" in names, "a cosignature on the rewritten log"
        (honest,) = await stack.enter_async_context(up(homes[2], network=network))
        await until(lambda: row(honest, evil)["alarm" if says == "a lie" else "withheld"])
        told = [item for item in honest.witnessing._sightings._store.seen() if item.log == evil.peer_id]
        while accomplice not in {item.teller for item in told}:
            colluding.witnessing._tell(evil.peer_id, evil._own_heads.witnessed)
            await asyncio.sleep(0.01)
            told = [item for item in honest.witnessing._sightings._store.seen() if item.log == evil.peer_id]
        assert row(honest, evil)["held"] == held, "whatever the other one vouches for"
        assert row(colluding, evil)["alarm"] is None
    if says == "a lie":
        assert convicts(homes[2], homes[2] / "charter", peer_id(homes[0])) == "growth"
    else:
        (entry,) = read_entries(homes[2] / "audit.db", kind="head_withheld")
        assert (entry.body["peer"], entry.body["size"]) == (peer_id(homes[0]), held)
    assert not evidence_of(homes[1])


def twin_of(home: Path) -> Path:
    """A copy of a home that is started beside it, under a network name of its own."""
    twin = home.parent / "twin"
    shutil.copytree(home, twin)
    settings, name = (twin / "home.toml").read_text(), home.name
    (twin / "home.toml").write_text(settings.replace(f"/memory/{name}", "/memory/twin").replace(f'"{name}"', '"twin"'))
    return twin


async def test_of_two_live_instances_that_meet_different_neighbours_somebody_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No neighbour has both: the checkpoints that the neighbours tell each other show it, to them or to the two."""
    monkeypatch.setattr("p2pfl.peer.own_heads.PATIENCE", 0.3)
    homes = a, b, c = found(tmp_path)
    network = MemoryNetwork()
    await history(homes, network)
    twin = twin_of(a)
    network.cut("a", "c")
    network.cut("twin", "b")
    async with up(b, c, a, network=network) as (witness, other, first):
        await witnessed(witness, first)
        async with up(twin, network=network) as (second,):
            await until(lambda: "twin" not in first.links() and first.peer_id in other._host.links)
            for instance, neighbour in ((first, witness), (second, other)):
                await grow(instance)
                ask_again(neighbour, instance)
            alarm = await until(
                lambda: row(witness, first)["alarm"] or row(other, first)["alarm"] or first.failure or second.failure
            )
            assert alarm == "fork" or "another process signs with the key" in str(alarm)


async def test_a_second_live_instance_is_refused_by_name_and_told_to_people(tmp_path: Path) -> None:
    homes = a, b, _ = found(tmp_path)
    network = MemoryNetwork()
    await history(homes, network)
    async with up(b, a, network=network) as (witness, first):
        await witnessed(witness, first)
        async with up(twin_of(a), network=network) as (second,):
            await until(lambda: "second process" in second.why_not(witness.peer_id))
            assert "b" in first.links() and not second.links() and not (first.failure or second.failure)
            said = next(row for row in witness.status()["members"] if row["peer"] == first.peer_id)["second_instance"]
            assert "at /memory/twin is a second process" in said["reason"]
            assert [topic for topic, _ in witness.log_news] == ["second instance"]
            assert "another process with this peer's key" in first.status()["second_instance"]["reason"]
        await grow(first)
        assert row(witness, first)["alarm"] is None
    (entry,) = list(read_entries(b / "audit.db", kind="refused"))[:1]
    assert entry.body["peer"] == peer_id(a) and "second process" in entry.body["reason"]


async def test_a_database_put_back_alone_is_declared_by_the_home_itself(tmp_path: Path) -> None:
    """No witness holds what is lost, but the home's note of its newest checkpoint does."""
    a, b = found(tmp_path, "ab")
    network = MemoryNetwork()
    async with up(a, network=network):
        pass
    older = (a / "audit.db").read_bytes()
    async with up(a, network=network) as (first,):
        await grow(first, 20)
        lost = first._journal.head.size
    (a / "audit.db").write_bytes(older)
    assert "entries were acknowledged" in str(p2pfl.verify_log(a / "audit.db").problem)
    async with up(b, a, network=network) as (second, first):
        await until(lambda: row(second, first)["epoch"] == 1)
        assert row(second, first)["alarm"] is None and first.failure is None
    (declared,) = read_entries(a / "audit.db", kind="epoch_opened")
    assert declared.body["lost"][0][:2] == [0, lost]
    assert p2pfl.verify_log(a / "audit.db").ok and not evidence_of(b)
