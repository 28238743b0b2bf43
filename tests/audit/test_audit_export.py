"""Exports: read and checked without the log's file, any part of it, in each form; no change goes unseen."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from audit_logs import NOW, owner, write_small_log

from p2pfl.audit import (
    AuditLog,
    NewEntry,
    csv_lines,
    json_lines,
    open_part,
    read_entries,
    read_source,
    verify_source,
    write_tiles,
)
from p2pfl.audit.tiles import tile_path
from p2pfl.crypto.merkle import leaf_hash, root_of_hashes
from p2pfl.crypto.range_proofs import outside_hashes, range_root
from p2pfl.errors import ConfigError, IllegalStep, SignatureRefused, StoreError

DAY = 24 * 3600 * 1000


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "audit.db"
    write_small_log(path)
    return path


def long_log(path: Path, entries: int) -> Path:
    with AuditLog.create(path, owner(), NOW) as log:
        rest = [NewEntry("round_started", {"run": "ab" * 32, "round": number}) for number in range(entries - 1)]
        for start in range(0, len(rest), 1000):
            log.append(rest[start : start + 1000], NOW)
    return path


def export(log: Path, to: Path, start: str | None = None, end: str | None = None) -> Path:
    with open_part(log, start, end) as part:
        to.write_text("".join(json_lines(part)))
    return to


def test_any_run_of_leaves_is_proved_and_nothing_else() -> None:
    """Exhaustive for trees of up to 20 leaves."""
    leaves = [leaf_hash(bytes([number])) for number in range(20)]
    for size in range(1, 21):
        root = root_of_hashes(leaves[:size])

        def node(level: int, place: int) -> bytes:
            return root_of_hashes(leaves[place << level : (place + 1) << level])

        for first in range(size):
            for last in range(first + 1, size + 1):
                proof = outside_hashes(first, last, size, node)
                inside = leaves[first:last]
                assert range_root(first, last, size, iter(inside), proof) == root
                for wrong in (proof[1:], (*proof, root)) if proof else ((root,),):
                    with pytest.raises(SignatureRefused):
                        range_root(first, last, size, iter(inside), wrong)
                with pytest.raises(SignatureRefused):
                    range_root(first, last, size, iter(inside[1:]), proof)
                assert range_root(first, last, size, iter([*inside[1:], leaf_hash(b"other")]), proof) != root
        with pytest.raises(IllegalStep):
            outside_hashes(0, size + 1, size, node)


def test_every_part_of_a_log_verifies_alone(log: Path, tmp_path: Path) -> None:
    entries = list(read_entries(log))
    for first in range(len(entries)):
        for last in range(first, len(entries)):
            path = export(log, tmp_path / "part.jsonl", str(first), str(last))
            outcome = verify_source(path, owner().peer_id)
            assert outcome.ok and outcome.entries == last - first + 1, outcome
            assert list(read_source(path)) == entries[first : last + 1]


def test_no_changed_character_goes_unseen(log: Path, tmp_path: Path) -> None:
    """Each character of an export, replaced by another one, and each left out."""
    good = export(log, tmp_path / "good.jsonl", "1", "3").read_text()
    path = tmp_path / "changed.jsonl"
    for place, letter in enumerate(good):
        for instead in (chr((ord(letter) + 1) % 128) if letter.isascii() else "x", ""):
            path.write_text(good[:place] + instead + good[place + 1 :], newline="")
            if place < len('{"p2pfl_audit_export"') and good[:21] != path.read_text()[:21]:
                continue  # no export any more: it is taken for a database, which it is not either
            assert not verify_source(path, owner().peer_id).ok, (place, letter, instead)


def test_lines_cannot_be_moved_dropped_or_added(log: Path, tmp_path: Path) -> None:
    header, *lines = export(log, tmp_path / "good.jsonl").read_text().splitlines(keepends=True)
    path = tmp_path / "changed.jsonl"
    changed = [lines[1:], lines[:-1], [*lines, lines[-1]], [lines[1], lines[0], *lines[2:]], [], [lines[0], *lines]]
    for rows in changed:
        path.write_text(header + "".join(rows))
        assert not verify_source(path).ok
    other = tmp_path / "other.db"
    long_log(other, 6)
    path.write_text(export(other, tmp_path / "other.jsonl").read_text().splitlines(keepends=True)[0] + "".join(lines))
    assert "not those that the checkpoint" in str(verify_source(path).problem)


def test_what_is_readable_must_be_what_was_signed(log: Path, tmp_path: Path) -> None:
    path = export(log, tmp_path / "good.jsonl")
    lines = path.read_text().splitlines(keepends=True)
    shown = json.loads(lines[3])
    shown["kind"] = "delta_received"
    lines[3] = json.dumps(shown) + "\n"
    path.write_text("".join(lines))
    outcome = verify_source(path)
    assert outcome.problem == "line 4: what is readable of entry 2 is not what was signed"


def test_an_export_of_another_log_is_told(log: Path, tmp_path: Path) -> None:
    path = export(log, tmp_path / "good.jsonl")
    assert verify_source(path, owner().peer_id, f"p2pfl/{owner().peer_id}").ok
    assert "not to 12D3KooW" in str(verify_source(path, "12D3KooW").problem)
    assert not verify_source(path, owner().peer_id, "p2pfl/Hearts/" + owner().peer_id).ok
    with pytest.raises(StoreError, match="run p2pfl audit verify"):
        path.write_text(path.read_text()[:-40])
        list(read_source(path))


@pytest.mark.parametrize(
    ("start", "end", "positions"),
    [
        ("2023-11-14", "2023-11-14", [0, 1, 2]), ("2023-11-15", None, [3, 4]), (None, "2023-11-15T22:13", [0, 1, 2, 3]),
        ("2", "2023-11-16", [2, 3, 4]), ("2023-11-16T22:13:20", None, [4]), (None, None, [0, 1, 2, 3, 4]), ("1", "99", [1, 2, 3, 4]),
    ],
)  # fmt: skip
def test_parts_by_position_and_by_date(
    tmp_path: Path, start: str | None, end: str | None, positions: list[int]
) -> None:
    with AuditLog.create(tmp_path / "audit.db", owner(), NOW) as log:
        for time in (NOW, NOW + 1000, NOW + DAY, NOW + 2 * DAY):
            log.append([NewEntry("link_up", {"peer": "x", "kind": "tcp"})], time)
    with open_part(tmp_path / "audit.db", start, end) as part:
        assert list(range(part.first, part.last)) == positions


@pytest.mark.parametrize("text", ["yesterday", "2023-13-01", "-1", "", "1e3", "2023-11-14T25:00"])
def test_places_that_are_none_are_refused(log: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="no position and no date"), open_part(log, text):
        pass


def test_nothing_between_is_refused(log: Path) -> None:
    for start, end in (("4", "3"), ("6", None), ("2030-01-01", None), (None, "2001-01-01")):
        with pytest.raises(ConfigError, match="none of them lies between"), open_part(log, start, end):
            pass


def test_a_table_computes_nothing(tmp_path: Path) -> None:
    """A cell that a spreadsheet would compute is a text."""
    with AuditLog.create(tmp_path / "audit.db", owner(), NOW) as log:
        log.append([NewEntry("refused", {"run": "@run", "peer": '=HYPERLINK("evil")', "reason": "a,b\nc"})], NOW)
    with open_part(tmp_path / "audit.db") as part:
        rows = list(csv.DictReader(io.StringIO("".join(csv_lines(part)))))
    assert [row["kind"] for row in rows] == ["log_created", "refused"]
    assert rows[1]["run"] == "'@run" and rows[1]["peer"] == '\'=HYPERLINK("evil")'
    assert rows[1]["position"] == "1" and "\n" not in rows[1]["text"]


def test_the_progress_is_told(log: Path) -> None:
    told: list[tuple[int, int]] = []
    with open_part(log, "2") as part:
        list(json_lines(part, lambda done, of: told.append((done, of))))
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


# --- tiles


def test_names_of_tiles() -> None:
    """The examples of c2sp.org/tlog-tiles."""
    assert tile_path("0", 1234067, 256) == "tile/0/x001/x234/067"
    assert tile_path("entries", 5, 112) == "tile/entries/005.p/112"


@pytest.mark.parametrize("size", [1, 2, 255, 256, 257, 600])
def test_tiles_hold_the_log(tmp_path: Path, size: int) -> None:
    log = long_log(tmp_path / "audit.db", size)
    with open_part(log) as part:
        write_tiles(part, tmp_path / "tiles")
    outcome = verify_source(tmp_path / "tiles", owner().peer_id)
    assert outcome.ok and outcome.entries == size, outcome
    assert list(read_source(tmp_path / "tiles")) == list(read_entries(log))
    names = {str(path.relative_to(tmp_path / "tiles")) for path in (tmp_path / "tiles").rglob("*") if path.is_file()}
    assert len(names) == 1 + 2 * -(-size // 256) + (1 if size >= 256 else 0)


def test_no_changed_tile_goes_unseen(tmp_path: Path) -> None:
    folder = tmp_path / "tiles"
    with open_part(long_log(tmp_path / "audit.db", 257)) as part:
        write_tiles(part, folder)
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        good = path.read_bytes()
        for place in {0, 1, len(good) // 2, len(good) - 1}:
            path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
            assert not verify_source(folder).ok, (path, place)
        for other in (good[:-1], good + b"\0", b""):
            path.write_bytes(other)
            assert not verify_source(folder).ok, path
        path.write_bytes(good)
        if path.name != "checkpoint":
            path.unlink()
            assert not verify_source(folder).ok, path
            path.write_bytes(good)
    assert verify_source(folder).ok
    assert not verify_source(folder, "12D3KooW").ok


def test_tiles_are_a_whole_log_in_a_new_folder(log: Path, tmp_path: Path) -> None:
    with open_part(log, "1") as part, pytest.raises(ConfigError, match="a whole log"):
        write_tiles(part, tmp_path / "tiles")
    with open_part(log) as part, pytest.raises(ConfigError, match="not empty"):
        write_tiles(part, tmp_path)


def test_numbers_that_json_has_not_are_written(tmp_path: Path) -> None:
    with AuditLog.create(tmp_path / "audit.db", owner(), NOW) as log:
        log.append([NewEntry("mixed", {"edges": [["x", float("inf")]], "bytes": b"\x00\xff"})], NOW)
    path = export(tmp_path / "audit.db", tmp_path / "export.jsonl")
    assert verify_source(path).ok
    body: dict[str, Any] = json.loads(path.read_text().splitlines()[-1])["body"]
    assert body == {"edges": [["x", "inf"]], "bytes": "00ff"}
