"""The shelf of kept deltas: bounded, the oldest run goes first, and the log knows of every gap before it is there."""

from __future__ import annotations

import asyncio
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from p2pfl.audit import AuditLog, read_entries
from p2pfl.cli.app import run
from p2pfl.crypto import Identity, sha256
from p2pfl.errors import StoreError
from p2pfl.net import MemoryNetwork
from p2pfl.peer import ControlServer, HomeSettings, Peer, found_consortium, open_home
from p2pfl.peer.journal import Journal
from p2pfl.peer.keeping import Shelf, framed, unframed
from p2pfl.peer.log_findings import keeping_findings
from p2pfl.types import Digest

RUNS = tuple(sha256(b"run %d" % number) for number in range(3))


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    owner = Identity.from_seed(bytes(range(32)))
    made = Journal(AuditLog.create(tmp_path / "audit.db", owner, 1, "North"), lambda error: None)
    yield made
    made.close()


def entries(journal: Journal) -> list[tuple[str, Any]]:
    found = read_entries(journal.log.path)
    return [(entry.kind, entry.body) for entry in found if entry.kind.startswith("keeping")]


async def base() -> dict[str, Any]:
    return {"vector": bytes(100), "names": []}


async def vector() -> bytes:
    return bytes(100)


def core(number: int) -> Digest:
    return sha256(b"core %d" % number)


async def test_a_run_is_kept_from_its_first_delta_on(tmp_path: Path, journal: Journal) -> None:
    shelf = Shelf(tmp_path / "kept", 1000, journal.commit)
    kept = shelf.open(RUNS[0], b"proposal")
    kept.hear(core(1), b"signed", b"payload")
    kept.hear(core(2), b"signed", b"never mixed")
    assert not (tmp_path / "kept").exists(), "nothing is written before it is mixed"
    await kept.mixed(core(9), vector)
    assert not (tmp_path / "kept").exists(), "a mixing without deltas needs none"
    await kept.mixes([core(1), core(7)], base)
    kept.forget([core(1), core(2)])
    await kept.mixes([core(2)], base)
    await kept.sent(core(3), b"own", b"delta", base)
    await kept.mixed(core(9), vector)
    folder = tmp_path / "kept" / RUNS[0]
    deltas = {f"{core(1)}.delta", f"{core(3)}.delta"}
    assert {path.name for path in folder.iterdir()} == {"base", "names", "proposal", f"{core(9)}.mixed", *deltas}
    assert unframed((folder / f"{core(1)}.delta").read_bytes()) == (b"signed", b"payload")
    assert entries(journal) == [("keeping_begun", {"run": RUNS[0], "limit": 1000})]
    size = sum(path.stat().st_size for path in folder.iterdir())
    assert shelf.status() == {"bytes": size, "limit": 1000, "runs": [RUNS[0]], "ended": []}
    again = Shelf(tmp_path / "kept", 1000, journal.commit)  # after a restart it goes on without a word
    await again.open(RUNS[0], b"proposal").sent(core(4), b"own", b"delta", base)
    assert len(entries(journal)) == 1 and again.status()["bytes"] == size + len(framed(b"own", b"delta"))


async def test_the_oldest_run_that_is_over_makes_room(tmp_path: Path, journal: Journal) -> None:
    shelf = Shelf(tmp_path / "kept", 500, journal.commit)
    for number in range(2):
        kept = shelf.open(RUNS[number], b"proposal")
        await kept.sent(core(number), b"s" * 50, b"p" * 40, base)
        shelf.close(RUNS[number])
    used = shelf.status()["bytes"] // 2
    await shelf.open(RUNS[2], b"proposal").sent(core(2), b"s" * 50, b"p" * 40, base)
    assert shelf.status()["runs"] == sorted(RUNS[1:]) and not (tmp_path / "kept" / RUNS[0]).exists()
    ended = {"run": RUNS[0], "deleted": True, "bytes": used, "why": "to make room"}
    assert entries(journal)[-2:] == [("keeping_begun", {"run": RUNS[2], "limit": 500}), ("keeping_ended", ended)]


async def test_a_run_that_fills_the_shelf_alone_is_kept_no_further(tmp_path: Path, journal: Journal) -> None:
    shelf = Shelf(tmp_path / "kept", 300, journal.commit)
    runs = [shelf.open(name, b"proposal") for name in RUNS[:2]]
    await runs[0].sent(core(0), b"s", b"p" * 80, base)
    await runs[0].sent(core(1), b"s", b"p" * 200, base)
    await runs[0].sent(core(2), b"s", b"p", base)
    kept = {path.name for path in (tmp_path / "kept" / RUNS[0]).iterdir()}
    assert kept == {"base", "names", "proposal", "ended", f"{core(0)}.delta"}, "no hole: nothing after the first gap"
    assert entries(journal)[-1][1]["why"] == "the limit is reached" and shelf.status()["ended"] == [RUNS[0]]
    await runs[1].sent(core(3), b"s", b"p", base)
    assert entries(journal)[-1] == (
        "keeping_ended", {"run": RUNS[1], "deleted": False, "bytes": 9, "why": "the limit is reached"}
    ), "a run under way is not deleted for another"  # fmt: skip
    again = Shelf(tmp_path / "kept", 10**6, journal.commit)  # with more room after a restart there is still the gap
    before = len(entries(journal))
    await again.open(RUNS[0], b"proposal").sent(core(5), b"s", b"p", base)
    assert len(entries(journal)) == before and not (tmp_path / "kept" / RUNS[0] / f"{core(5)}.delta").exists()


async def test_switched_off_is_said_too(tmp_path: Path, journal: Journal) -> None:
    shelf = Shelf(tmp_path / "kept", 10**6, journal.commit)
    for name in RUNS[:2]:
        await shelf.open(name, b"proposal").sent(core(0), b"s", b"p", base)
    await shelf.end_open_runs(lambda name: name == RUNS[0])
    await shelf.end_open_runs(lambda name: name == RUNS[0])
    assert [(kind, body["run"]) for kind, body in entries(journal)][2:] == [("keeping_ended", RUNS[1])]


async def test_a_disk_that_takes_nothing_is_a_fault_and_no_gap(tmp_path: Path, journal: Journal) -> None:
    (tmp_path / "kept").write_bytes(b"a file where the folder should be")
    shelf = Shelf(tmp_path / "kept", 10**6, journal.commit)
    with pytest.raises(StoreError, match="couldn't make"):
        await shelf.open(RUNS[0], b"proposal").sent(core(0), b"s", b"p", base)
    assert not entries(journal)


# --- what its owner is told


def test_the_owner_says_so_and_is_told_what_it_means(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--no-listen", "--bare"]
    assert run(["init", str(tmp_path / "caen"), "--name", "caen", *words]) == 0
    assert "in clear" not in capsys.readouterr().err and not open_home(tmp_path / "caen").settings.keep.deltas
    assert run(["init", str(tmp_path / "lille"), "--name", "lille", *words, "--keep-deltas"]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "parameters of this site and its partners will be kept in clear" in said and "tell your partners" in said
    lille, caen = open_home(tmp_path / "lille"), open_home(tmp_path / "caen")
    assert lille.settings.keep.deltas
    assert HomeSettings.model_validate(tomllib.loads(lille.settings.to_toml())) == lille.settings
    found = keeping_findings(lille)
    assert [row.verdict for row in found] == ["look"] and "parameters of this site's partners" in found[0].text
    assert keeping_findings(caen) == []
    (caen.kept / RUNS[0]).mkdir(parents=True)
    assert "delete what is not needed" in keeping_findings(caen)[0].text


async def test_status_shows_how_full_the_shelf_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    homes = {tmp_path / name: None for name in ("lille", "caen")}
    found_consortium(homes, "kept", {"kind": "ring"}, keep_deltas=True)
    home = tmp_path / "lille"
    (home / "kept" / RUNS[0]).mkdir(parents=True)
    (home / "kept" / RUNS[0] / "base").write_bytes(bytes(3 * 2**20))
    (home / "kept" / RUNS[0] / "ended").touch()
    async with Peer(home, network=MemoryNetwork()) as peer, ControlServer(peer):
        assert await asyncio.to_thread(run, ["status", str(home)]) == 0
    line = f"keeps        deltas in clear of 1 run, 3.0 of 10240.0 MiB; no more is kept of {RUNS[0][:12]}"
    assert line in " ".join(capsys.readouterr().out.splitlines())
