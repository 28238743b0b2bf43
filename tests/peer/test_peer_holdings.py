"""Sealed states on disk for others: whole after a restart or gone, and served to whom they were offered."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2pfl.crypto import CHUNK, Identity, Prekey, Sealed, seal, sha256, sign_envelope, wrap_key
from p2pfl.gossip import effects
from p2pfl.gossip.messages import Announcement, Core, Cover, decode_announcement
from p2pfl.gossip.offers import decode_offer
from p2pfl.peer.contents import AT_ONCE, Contents
from p2pfl.peer.holdings import Holdings
from p2pfl.types import Digest, PeerId, RunId

RUN = RunId(sha256(b"run"))
ORIGIN = Identity.from_seed(b"o" * 32)
ANNA, BERT = (Identity.from_seed(bytes([number]) * 32).peer_id for number in (1, 2))
SIZES = [0, 1, 30_000, CHUNK, CHUNK + 1, AT_ONCE * CHUNK, AT_ONCE * CHUNK + 1, 3 * AT_ONCE * CHUNK + 5]


def state(size: int) -> tuple[Digest, bytes, Sealed]:
    """A core's digest, its announcement without inline content, and the sealed payload."""
    sealed = seal(bytes(size), b"context")
    core = Core(RUN, 1, 1, 0, "model", "all", sha256(b"base"), sha256(b"result"), "raw", sealed.manifest, 0, {})
    signed = sign_envelope(ORIGIN, "core", core.encode())
    keys = {ANNA: wrap_key(sealed.key, Prekey.from_secret(bytes(range(32))).public, b"context")}
    cover = sign_envelope(ORIGIN, "cover", Cover(signed.digest, keys, b"proof").encode())
    return signed.digest, Announcement(RUN, signed.encode(), cover.encode(), b"").encode(), sealed


async def held(folder: Path, size: int) -> tuple[Holdings, Contents, Digest, Sealed, bytes]:
    contents = Contents(folder)
    holdings = Holdings(folder / "holdings", contents)
    core, announcement, sealed = state(size)
    spool = holdings.spool(core)
    for chunk in sealed.chunks:
        await spool.add(chunk)
    await spool.close()
    await holdings.perform(effects.Hold(core, announcement, frozenset([ANNA])), RUN)
    return holdings, contents, core, sealed, announcement


async def served(contents: Contents, peer: PeerId, core: Digest, chunks: int) -> list[bytes | None]:
    return [await contents.chunk(peer, core, index) for index in range(chunks)]


@pytest.mark.parametrize("size", SIZES)
async def test_a_held_content_is_served_as_it_came_once_it_was_offered(tmp_path: Path, size: int) -> None:
    holdings, contents, core, sealed, announcement = await held(tmp_path, size)
    chunks = len(sealed.chunks)
    assert await served(contents, ANNA, core, chunks) == [None] * chunks, "not offered yet"
    offer = decode_offer(await holdings.perform(effects.SendOffer(ANNA, ORIGIN.peer_id, core), RUN))
    assert (offer.run, offer.origin) == (RUN, ORIGIN.peer_id)
    whole = decode_announcement(offer.announcement)
    plain = decode_announcement(announcement)
    assert (whole.core, whole.cover) == (plain.core, plain.cover)
    assert whole.inline == (sealed.chunks[0] if size <= 30_000 else b"")
    assert await served(contents, ANNA, core, chunks) == sealed.chunks
    assert await contents.chunk(ANNA, core, chunks) is None
    refused = decode_offer(await holdings.perform(effects.SendOffer(BERT, ORIGIN.peer_id, core), RUN))
    assert refused.announcement == b"", "the shell looks again whom the origin named"
    assert await served(contents, BERT, core, chunks) == [None] * chunks
    assert not list((tmp_path / "holdings").glob("*.new"))


async def test_what_is_let_go_is_neither_served_nor_on_disk(tmp_path: Path) -> None:
    holdings, contents, core, _, _ = await held(tmp_path, CHUNK)
    await holdings.perform(effects.SendOffer(ANNA, ORIGIN.peer_id, core), RUN)
    await holdings.perform(effects.LetGo(core), RUN)
    assert await contents.chunk(ANNA, core, 0) is None
    assert list((tmp_path / "holdings").iterdir()) == []
    offer = decode_offer(await holdings.perform(effects.SendOffer(ANNA, ORIGIN.peer_id, core), RUN))
    assert offer.announcement == b""


@pytest.mark.parametrize(
    "damage", ["none", "content", "shorter", "longer", "no content", "announcement", "no announcement"]
)
async def test_after_a_restart_only_what_is_whole_is_there(tmp_path: Path, damage: str) -> None:
    _, _, core, _, announcement = await held(tmp_path, 3 * CHUNK)
    content, beside = tmp_path / "holdings" / core, tmp_path / "holdings" / f"{core}.announcement"
    data = content.read_bytes()
    match damage:
        case "content":
            content.write_bytes(data[:CHUNK] + bytes([data[CHUNK] ^ 1]) + data[CHUNK + 1 :])
        case "shorter":
            content.write_bytes(data[:-1])
        case "longer":
            content.write_bytes(data + b"\x00")
        case "no content":
            content.unlink()
        case "announcement":
            beside.write_bytes(announcement[:-200] + bytes(200))
        case "no announcement":
            beside.unlink()
    again = Holdings(tmp_path / "holdings", Contents(tmp_path))
    whole = damage == "none"
    assert again.load() == ((announcement,) if whole else ())
    names = {path.name for path in (tmp_path / "holdings").iterdir()}
    assert names == ({core, f"{core}.announcement"} if whole else set())


async def test_a_content_that_is_abandoned_or_finds_no_disk_leaves_nothing(tmp_path: Path) -> None:
    contents = Contents(tmp_path)
    core, announcement, sealed = state(3 * AT_ONCE * CHUNK)
    holdings = Holdings(tmp_path / "holdings", contents)
    spool = holdings.spool(core)
    for chunk in sealed.chunks:
        await spool.add(chunk)
    await spool.abandon()
    assert list((tmp_path / "holdings").iterdir()) == []
    (tmp_path / "no folder").write_bytes(b"")  # where the folder should be: every write fails
    holdings = Holdings(tmp_path / "no folder", contents)
    spool = holdings.spool(core)
    for chunk in sealed.chunks:
        await spool.add(chunk)
    await spool.close()
    await holdings.perform(effects.Hold(core, announcement, frozenset([ANNA])), RUN)
    offer = decode_offer(await holdings.perform(effects.SendOffer(ANNA, ORIGIN.peer_id, core), RUN))
    assert offer.announcement == b"" and await contents.chunk(ANNA, core, 0) is None
    await holdings.perform(effects.LetGo(core), RUN)


async def test_a_run_that_is_over_leaves_nothing(tmp_path: Path) -> None:
    holdings, contents, core, _, announcement = await held(tmp_path, CHUNK)
    await holdings.perform(effects.SendOffer(ANNA, ORIGIN.peer_id, core), RUN)
    holdings.retire()
    assert await contents.chunk(ANNA, core, 0) is not None, "for a day"
    holdings.clear()
    holdings.stop()
    assert await contents.chunk(ANNA, core, 0) is None and not (tmp_path / "holdings").exists()
    await holdings.perform(effects.Hold(core, announcement, frozenset([ANNA])), RUN)
    assert not (tmp_path / "holdings").exists()
