"""Proofs out of the file: each entry and each growth, read by ours and by Go's sumdb, which nobody of us wrote."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from audit_logs import NOW, delta, everything, owner, tamperer, write_small_log

from p2pfl.audit import AuditLog, Head, NewEntry, open_part, prove_entry, verify_log, write_tiles
from p2pfl.crypto import LogProof, log_key, log_origin, read_log_proof
from p2pfl.crypto.proofs import check_consistency
from p2pfl.errors import ConfigError, IllegalStep, RemoteError, StoreError

NOTE = NewEntry("link_up", {"peer": "x"})
CONSORTIUM = "Cœurs de Normandie"
ORIGIN = log_origin(CONSORTIUM, owner().peer_id)
GO_LIBRARIES = Path("/usr/share/gocode")


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Head]]:
    """A log of 70 entries, and its head after each commit."""
    path = tmp_path_factory.mktemp("grown") / "audit.db"
    with AuditLog.create(path, owner(), NOW, CONSORTIUM) as log:
        heads = [log.head]
        for number in range(23):
            heads.append(log.append([delta(number, bytes([number])), NOTE, NOTE], NOW + number))
    return path, heads


def test_every_entry_is_proved_by_the_log_and_by_its_file(grown: tuple[Path, list[Head]]) -> None:
    path, heads = grown
    with AuditLog.open(path, owner()) as log:
        assert log.origin == ORIGIN
        for entry in log.entries():
            proof = log.prove(entry.position)
            assert proof == prove_entry(path, entry.position) == read_log_proof(proof.encode())
            found, checkpoint = proof.open(ORIGIN, owner().peer_id)
            assert (found.position, found.time, found.kind) == (entry.position, entry.time, entry.kind)
            assert (checkpoint.size, checkpoint.root) == (heads[-1].size, heads[-1].root)
            assert hashlib.sha256(b"\0" + proof.entry).digest() == entry.hash
    for position in (-1, 70, 2**63):
        with pytest.raises(ConfigError, match="no entry"):
            prove_entry(path, position)


def test_growth_is_proved_between_all_heads(grown: tuple[Path, list[Head]]) -> None:
    path, heads = grown
    with AuditLog.open(path, owner()) as log:
        for place, old in enumerate(heads):
            assert log.root_at(old.size) == old.root
            for new in heads[place:]:
                check_consistency(old.size, new.size, log.prove_growth(old.size, new.size), old.root, new.root)
        with pytest.raises(IllegalStep):
            log.prove_growth(3, 71)
        with pytest.raises(IllegalStep):
            log.root_at(71)


def test_proving_and_appending_read_few_rows(grown: tuple[Path, list[Head]], tmp_path: Path) -> None:
    path = shutil.copy(grown[0], tmp_path / "audit.db")
    with AuditLog.open(path, owner()) as log:
        statements: list[str] = []
        log._connection.set_trace_callback(statements.append)
        log.prove(0)
        log.append([NOTE], NOW)
        log._connection.set_trace_callback(None)
    assert 0 < sum("FROM entries WHERE position = " in text for text in statements) <= 1 + 2 * (70).bit_length()
    assert not any("FROM entries ORDER BY position" in text and "LIMIT" not in text for text in statements)


def test_a_log_of_another_consortium_is_named(grown: tuple[Path, list[Head]]) -> None:
    path, _ = grown
    assert verify_log(path, owner().peer_id, ORIGIN).ok
    found = verify_log(path, owner().peer_id, log_origin("Others", owner().peer_id))
    assert found.problem is not None and found.problem.startswith(f"meta: the log is {ORIGIN}, not p2pfl/Others/")


@pytest.mark.parametrize("changed", ["hash", "subtrees", "body", "note"])
def test_no_proof_is_handed_out_from_a_damaged_tree(tmp_path: Path, changed: str) -> None:
    path = tmp_path / "audit.db"
    write_small_log(path)
    connection = tamperer(path)
    table, row = ("heads", "size = 6") if changed == "note" else ("entries", "position = 3")
    (value,) = connection.execute(f"SELECT {changed} FROM {table} WHERE {row}").fetchone()
    whole = [prove_entry(path, position) for position in range(6)]
    for damaged in (bytes([value[0] ^ 1]) + value[1:], value[:-1], "text"):
        connection.execute(f"UPDATE {table} SET {changed} = ? WHERE {row}", (damaged,))
        refused = 0
        for position in range(6):
            try:
                assert prove_entry(path, position) == whole[position], "what is not needed may be damaged"
            except StoreError:
                refused += 1
        assert refused >= 1
    connection.close()


def test_a_log_of_the_format_before_is_refused_in_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    write_small_log(path)
    connection = tamperer(path)
    connection.execute("DROP TABLE meta")
    connection.execute("CREATE TABLE meta (one INTEGER PRIMARY KEY, log TEXT, format INTEGER, created INTEGER)")
    connection.execute("INSERT INTO meta VALUES (1, 'x', 1, 5)")
    connection.close()
    with pytest.raises(ConfigError, match="format 1, from before the Merkle tree; keep the file"):
        AuditLog.open(path, owner())
    assert "format 1, from before the Merkle tree" in (verify_log(path).problem or "")


# --- Go


@pytest.fixture(scope="module")
def go(tmp_path_factory: pytest.TempPathFactory) -> Iterator[subprocess.Popen[str]]:
    """The verifier, built and waiting for lines."""
    compiler = shutil.which("go")
    if compiler is None or not (GO_LIBRARIES / "src/golang.org/x/mod/sumdb").is_dir():
        pytest.skip("needs Go and golang.org/x/mod: apt-get install golang-go golang-golang-x-mod-dev (make system)")
    folder = tmp_path_factory.mktemp("go")
    source = Path(__file__).parents[1] / "counterparts" / "tlog" / "main.go"
    setting = {**os.environ, "GO111MODULE": "off", "GOPATH": str(GO_LIBRARIES), "GOCACHE": str(folder / "cache")}
    subprocess.run([compiler, "build", "-o", str(folder / "tlog"), str(source)], check=True, env=setting)
    with subprocess.Popen([folder / "tlog"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
        yield program
        program.stdin.close()  # type: ignore[union-attr]


def ask(program: subprocess.Popen[str], request: dict[str, Any]) -> str:
    assert program.stdin is not None and program.stdout is not None
    program.stdin.write(json.dumps(request) + "\n")
    program.stdin.flush()
    return program.stdout.readline().strip()


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def for_go(proof: LogProof) -> dict[str, Any]:
    return {
        "keys": [log_key(ORIGIN, owner().peer_id).text], "note": proof.checkpoint.decode(), "origin": ORIGIN,
        "index": proof.index, "entry": text(proof.entry), "proof": [text(item) for item in proof.path],
    }  # fmt: skip


def flipped(data: bytes, bit: int) -> bytes:
    return bytes([*data[: bit // 8], data[bit // 8] ^ (1 << bit % 8), *data[bit // 8 + 1 :]])


@pytest.mark.timeout(600)  # the first build compiles Go's own library
def test_go_accepts_our_checkpoints_and_proofs(go: subprocess.Popen[str], grown: tuple[Path, list[Head]]) -> None:
    path, heads = grown
    with AuditLog.open(path, owner()) as log:
        for entry in log.entries():
            assert ask(go, for_go(log.prove(entry.position))) == "ok"
        for place, old in enumerate(heads):
            for new in heads[place + 1 :]:
                growth = [text(item) for item in log.prove_growth(old.size, new.size)]
                key = log_key(ORIGIN, owner().peer_id).text
                request = {"keys": [key], "note": new.note.decode(), "origin": ORIGIN, "proof": growth}
                request |= {"old": old.size, "old_root": text(old.root)}
                assert ask(go, request) == "ok"
                assert ask(go, request | {"old_root": text(flipped(old.root, 9))}) != "ok"
                assert ask(go, request | {"old": old.size + 1}) != "ok"


@pytest.mark.timeout(600)
def test_go_refuses_what_was_altered(go: subprocess.Popen[str], grown: tuple[Path, list[Head]]) -> None:
    proof = prove_entry(grown[0], 41)
    good = for_go(proof)
    assert ask(go, good) == "ok"
    altered = [good | {"entry": text(flipped(proof.entry, bit))} for bit in range(8 * len(proof.entry))]
    for place, item in enumerate(proof.path):
        for bit in range(0, 256, 5):
            path = [*proof.path[:place], flipped(item, bit), *proof.path[place + 1 :]]
            altered.append(good | {"proof": [text(part) for part in path]})
    line = proof.checkpoint.decode()
    altered += [good | {"note": line.replace("\n70\n", "\n71\n")}, good | {"note": line.replace(ORIGIN, ORIGIN + "x")}]
    altered += [good | {"index": 42}, good | {"index": -1}, good | {"origin": "p2pfl/x"}, good | {"keys": []}]
    for request in altered:
        assert ask(go, request) != "ok"


@pytest.mark.timeout(600)
@pytest.mark.parametrize("epoch", [None, 1])
def test_go_reads_our_tiles(go: subprocess.Popen[str], tmp_path: Path, epoch: int | None) -> None:
    """Each entry of a log of two levels of tiles, and no longer once a byte of an entry or of a tile is changed."""
    with AuditLog.create(tmp_path / "audit.db", owner(), NOW, "Hearts of Normandy") as log:
        log.append([NewEntry("round_started", {"round": number}) for number in range(600)], NOW, epoch)
        line = log.head.note.decode().partition("\n")[0]
        assert line == log.origin + ("" if epoch is None else "/1")
        request = {"keys": [log_key(line, owner().peer_id).text], "note": log.head.note.decode()}
        request |= {"origin": line, "tiles": str(tmp_path / "tiles")}
    with open_part(tmp_path / "audit.db") as part:
        write_tiles(part, tmp_path / "tiles")
    assert ask(go, request) == "ok"
    for name in ("entries/000", "entries/002.p/89", "0/001", "1/000.p/2"):
        path = tmp_path / "tiles" / "tile" / name
        good = path.read_bytes()
        path.write_bytes(flipped(good, 77))
        assert ask(go, request) != "ok", name
        path.write_bytes(good)
    assert ask(go, request) == "ok"


@pytest.mark.timeout(600)
def test_go_and_we_agree_on_every_published_note(go: subprocess.Popen[str]) -> None:
    vectors = json.loads((Path(__file__).parents[1] / "vectors" / "signed_note.json").read_text())
    for case in vectors["valid"]:
        keys = case.get("verifier_keys") or [case["verifier_key"]]
        assert ask(go, {"keys": keys, "note": case["note"]}) == "ok"
    key = vectors["must_reject"]["verifier_key"]
    for case in vectors["must_reject"]["cases"]:
        if "note" in case:
            assert ask(go, {"keys": [key], "note": case["note"]}) != "ok"


def test_the_file_of_a_proof_says_nothing_more_than_the_entry(grown: tuple[Path, list[Head]]) -> None:
    """Documents, deltas for instance, never leave with a proof."""
    path, _ = grown
    contents = [row[4] for row in everything(path)["documents"]]
    proof = prove_entry(path, 1)
    assert all(content == b"" or len(content) < 4 or content not in proof.entry for content in contents)
    with pytest.raises(RemoteError):
        read_log_proof(proof.encode()[:-1]).open(ORIGIN, owner().peer_id)
