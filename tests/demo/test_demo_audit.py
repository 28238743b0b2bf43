"""The worked example of docs/audit.md runs as it stands there, on four real peers; and what their logs do not hold."""

from __future__ import annotations

import json
import re
import shlex
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from p2pfl.audit import NOTES, AuditLog, Kind, NewEntry, gather_source, gather_sources, lineage, read_entries, reconcile
from p2pfl.crypto import sha256
from p2pfl.peer import open_home

ROOT = Path(__file__).parents[2]
NAMES = ("lille", "rouen", "caen", "amiens")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def p2pfl(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "p2pfl", *words], capture_output=True, text=True, cwd=folder, timeout=200
    )


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """The folder after all commands of the page but the erasure, and what each printed."""
    folder = tmp_path_factory.mktemp("walk")
    printed = {}
    for line in commands():
        if not line.startswith("p2pfl audit erase"):
            done = p2pfl(folder, *shlex.split(line)[1:])
            assert done.returncode == 0, (line, done.stdout, done.stderr)
            printed[line] = done.stdout
    return folder, printed


def commands() -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / "audit.md").read_text(), re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def said(walked: tuple[Path, dict[str, str]], start: str) -> str:
    return next(text for line, text in walked[1].items() if line.startswith(start))


def test_the_page_says_what_happens(walked: tuple[Path, dict[str, str]]) -> None:
    assert len(walked[1]) == len(commands()) - 1 >= 11
    verified = said(walked, "p2pfl audit verify lille.jsonl")
    assert verified.startswith("verified") and "member       Lille" in verified
    agreed = said(walked, "p2pfl audit reconcile")
    assert agreed.splitlines()[-1] == "clean" and "deltas received as sent" in agreed and "not judged" not in agreed
    came = said(walked, "p2pfl audit lineage")
    assert all(f"contributed  {name.capitalize()}: rounds 0-2, mean weight 0." in came for name in NAMES)
    assert "charter" in came and ", version 1" in came and "made by Caen" in came
    assert said(walked, "p2pfl audit check-proof").startswith("holds")
    again = said(walked, "p2pfl audit lineage model.safetensors homes/lille")
    assert "replay " not in came and "model        reproduced" in again
    assert all(f"replayed     {name.capitalize()}: round 0 to 8 reproduced" in again for name in NAMES)


def test_homes_and_exports_say_the_same(walked: tuple[Path, dict[str, str]]) -> None:
    folder = walked[0]
    homes = p2pfl(folder, "audit", "reconcile", *(f"homes/{name}" for name in NAMES), "--json")
    exports = p2pfl(folder, "audit", "reconcile", *(f"{name}.jsonl" for name in NAMES), "--json")
    assert homes.returncode == exports.returncode == 0, homes.stderr
    assert json.loads(homes.stdout) == json.loads(exports.stdout)
    listed, replayed = (said(walked, f"p2pfl audit lineage model.safetensors {place}") for place in ("lille", "homes"))
    assert replayed.startswith(f"{listed}replay ")


def test_weights_of_a_model_sum_to_one_in_every_round(walked: tuple[Path, dict[str, str]]) -> None:
    folder = walked[0]
    logs = [gather_source(folder / f"{name}.jsonl") for name in NAMES]
    found = lineage(logs, sha256((folder / "model.safetensors").read_bytes()))
    assert found.digest == lineage(logs, found.digest).digest and found.linear and not found.not_here
    for round_ in range(3):
        assert sum(row.weights[round_] for row in found.contributors) == pytest.approx(1.0, abs=1e-12)
    samples = sum(row.samples or 0 for row in found.contributors)
    for row in found.contributors:  # ten closing rounds on a ring of four come close to the shares
        assert row.weights[0] == pytest.approx((row.samples or 0) / samples, abs=0.02)


def test_a_model_nobody_knows_is_refused(walked: tuple[Path, dict[str, str]]) -> None:
    done = p2pfl(walked[0], "audit", "lineage", "ab" * 32, "lille.jsonl")
    assert done.returncode == 1 and "none of these logs knows" in done.stderr
    done = p2pfl(walked[0], "audit", "lineage", "nothing", "lille.jsonl")
    assert done.returncode == 1 and "no file and no digest" in done.stderr


def test_one_log_alone_says_whose_are_wanting(walked: tuple[Path, dict[str, str]]) -> None:
    found = lineage([gather_source(walked[0] / "caen.jsonl")], sha256((walked[0] / "model.safetensors").read_bytes()))
    assert len(found.not_here) == 3
    assert {edge for step in found.steps for edge, _ in step.edges} <= set(found.not_here)


def test_a_tampered_log_is_named(walked: tuple[Path, dict[str, str]]) -> None:
    """Whoever has no key cannot even change an export; `tests/sim/test_sim_reconcile.py` has those who have one."""
    folder = walked[0]
    text = (folder / "rouen.jsonl").read_text()
    (folder / "changed.jsonl").write_text(text.replace('"kind": "delta_received"', '"kind": "delta_ignored"', 1))
    done = p2pfl(folder, "audit", "reconcile", "lille.jsonl", "changed.jsonl")
    assert done.returncode == 1 and "does not hold (line " in done.stderr


def forged(folder: Path, name: str, path: Path) -> None:
    """A hospital's log with the weight of one mixing changed, signed anew with its own key."""
    home = open_home(folder / "homes" / name)
    old = list(read_entries(home.audit))
    with AuditLog.create(path, home.identity(None), old[0].time, home.charter().name) as log:
        for entry in old[1:]:
            body = {field: value for field, value in entry.body.items() if field != "documents"}
            if entry.kind == "mixed" and body["round"] == 1:
                body["edges"] = [[edge[0], 0.9999, *edge[2:]] for edge in body["edges"]]
            log.append([NewEntry(entry.kind, body)], entry.time)


def test_a_list_from_a_forged_log_is_not_certain(walked: tuple[Path, dict[str, str]]) -> None:
    """Its owner's key signs whatever it likes; the partners' logs say what it had signed before."""
    folder = walked[0]
    forged(folder, "lille", folder / "forged.db")
    assert p2pfl(folder, "audit", "verify", "forged.db", "--charter", "homes/lille/charter").returncode == 0
    others = [f"{name}.jsonl" for name in NAMES[1:]]
    done = p2pfl(folder, "audit", "lineage", "model.safetensors", "forged.db", *others)
    assert done.returncode == 1 and "NOT CERTAIN" in done.stdout and "does not fit the" in done.stdout
    value = json.loads(p2pfl(folder, "audit", "lineage", "model.safetensors", "forged.db", *others, "--json").stdout)
    assert value["findings"] > 0 and value["verdict"].startswith("FINDINGS")
    whole = p2pfl(folder, "audit", "lineage", "model.safetensors", "lille.jsonl", *others)
    assert whole.returncode == 0 and "logs         clean" in whole.stdout.splitlines()


def test_one_entry_excuses_nobody(walked: tuple[Path, dict[str, str]]) -> None:
    folder = walked[0]
    assert p2pfl(folder, "audit", "export", "homes/lille", "--from", "5", "--to", "5", "-o", "e5").returncode == 0
    others = [f"{name}.jsonl" for name in NAMES[1:]]
    done = p2pfl(folder, "audit", "reconcile", "e5", *others, "--charter", "homes/rouen/charter")
    assert done.returncode == 3, done.stderr
    assert "NOT JUDGED   Lille gave entries 5 to 5 of " in done.stdout
    assert done.stdout.splitlines()[-1].startswith("NOT JUDGED") and done.stdout.startswith("charter      ")
    done = p2pfl(folder, "audit", "lineage", "model.safetensors", "e5", *others)
    assert done.returncode == 3 and "NOT CERTAIN" in done.stdout


def values(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        for name, item in value.items():
            yield name
            yield from values(item)
    elif isinstance(value, list):
        for item in value:
            yield from values(item)
    else:
        yield value


@pytest.mark.parametrize("name", NAMES)
def test_entries_hold_no_secrets_and_no_data(walked: tuple[Path, dict[str, str]], name: str) -> None:
    """Every entry of a real run: fields of the vocabulary alone; no path, no key, no line of the data."""
    folder, home = walked[0], walked[0] / "homes" / name
    rows = (folder / "homes" / "data" / f"{name}.csv").read_bytes().splitlines()[1:]
    assert len(rows) > 40
    kinds = set()
    for entry in read_entries(home / "audit.db"):
        kinds.add(entry.kind)
        assert set(entry.body) <= {*NOTES[Kind(entry.kind)].fields}, entry
        for value in values(entry.body):
            assert not isinstance(value, bytes) and len(str(value)) <= 400
            assert str(folder) not in str(value) and not str(value).startswith("/")
    assert len(kinds) > 12
    with sqlite3.connect(home / "audit.db") as connection:
        columns = ("SELECT body FROM entries", "SELECT content FROM documents", "SELECT text FROM texts")
        stored = [bytes(row[0]) if isinstance(row[0], bytes) else row[0].encode() for query in columns
                  for row in connection.execute(query)]  # fmt: skip
    connection.close()
    whole = b"\n".join(stored)
    secrets = [(home / file).read_bytes() for file in ("identity.key", "tls.key")]
    assert not any(row in whole for row in rows)
    for secret in secrets:
        pieces = [secret] + [line for line in secret.splitlines() if len(line) >= 16]
        assert not any(piece in whole for piece in pieces)


def test_the_erasure_of_the_page(walked: tuple[Path, dict[str, str]]) -> None:
    """Last: it changes a home. The exports made before still agree with it."""
    folder = walked[0]
    line = next(item for item in commands() if item.startswith("p2pfl audit erase"))
    done = p2pfl(folder, *shlex.split(line)[1:])
    assert done.returncode == 0 and "erased       reason of entry" in done.stdout, done.stderr
    assert p2pfl(folder, "audit", "verify", "homes/lille").returncode == 0
    shown = p2pfl(folder, "audit", "show", "homes/lille").stdout
    assert "link down" in shown and "(erased)" in shown and "free text of" in shown
    places = [folder / "homes" / "lille" / "audit.db", *(folder / f"{name}.jsonl" for name in NAMES[1:])]
    assert reconcile(gather_sources((place, None, None) for place in places)).clean
    again = p2pfl(folder, *shlex.split(line)[1:])
    assert again.returncode == 1 and "none of these entries" in again.stderr
