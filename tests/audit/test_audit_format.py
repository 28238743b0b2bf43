"""The bytes are what docs/audit-log.md says, read by a second implementation; and what people see."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import msgpack
import pytest
from audit_logs import NOW, everything, owner, write_small_log
from nacl.signing import VerifyKey

from p2pfl.audit import NOTES, Entry, Kind, as_dict, describe, read_entries
from p2pfl.crypto.merkle import root_of_hashes
from p2pfl.types import Digest


def test_hashes_signatures_and_documents_follow_the_page(tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    write_small_log(path)
    tables = everything(path)
    previous = bytes(32)
    leaves: list[bytes] = []
    for position, time, first, kind, body, before, digest, subtrees in tables["entries"]:
        assert before == previous
        name = kind.encode("ascii")
        plain = b"\x00" + position.to_bytes(8, "big") + time.to_bytes(8, "big")
        plain += first.to_bytes(8, "big")
        plain += len(name).to_bytes(2, "big") + name + len(body).to_bytes(4, "big") + body + previous
        previous = hashlib.sha256(plain).digest()
        assert digest == previous
        leaves.append(digest)
        # the subtrees that end with this entry: as many levels as its position has ones at the end
        levels = [level for level in range(1, 8) if (position + 1) % (1 << level) == 0]
        assert subtrees == b"".join(root_of_hashes(leaves[-(1 << level) :]) for level in levels)
        named = msgpack.unpackb(body).get("documents", [])
        rows = [(row[2], row[3]) for row in tables["documents"] if row[0] == position]
        assert [tuple(item) for item in named] == rows
    origin = f"p2pfl/{owner().peer_id}"
    for size, note in tables["heads"]:
        text = f"{origin}\n{size}\n{base64.b64encode(root_of_hashes(leaves[:size])).decode()}\n".encode()
        key_id = hashlib.sha256(origin.encode() + b"\n\x01" + owner().public_key).digest()[:4]
        start = text + f"\n— {origin} ".encode()
        assert note.startswith(start) and note.endswith(b"\n")
        line = base64.b64decode(note[len(start) : -1], validate=True)
        assert line[:4] == key_id
        VerifyKey(owner().public_key).verify(text, line[4:])
    assert [row[2] for row in tables["entries"]] == [0, 1, 1, 3, 4, 4], "each entry names the first of its commit"
    assert tables["meta"] == [(1, owner().peer_id, origin, 2, NOW)]


def _entry(kind: str, body: dict[str, Any]) -> Entry:
    return Entry(7, NOW, kind, body, bytes(32), (("outbox", Digest("ab" * 32)),))


LINES = {
    "mixed": (
        {"run": "ab" * 32, "round": 3, "step": 1, "edges": [["12D3KooWlille", 0.5], ["12D3KooWcaen", 0.2]]},
        "run abababababab: mixed round 3, step 1 with Lille, …12D3KooWcaen",
    ),
    "delta_sent": (
        {
            "round": 0,
            "step": 0,
            "channel": "x",
            "core": "cd" * 32,
            "to": ["12D3KooWlille"],
            "bytes": 12,
        },
        "delta allowed out: round 0, channel x, 12 bytes to Lille, core cdcdcdcdcdcd",
    ),
    "absent": (
        {"round": 2, "reason": "paused by the user"},
        "this site absent from round 2: paused by the user",
    ),
    "refused": ({"peer": "12D3KooWlille", "reason": "wrong shape"}, "refused from Lille: wrong shape"),
    "link_down": ({"peer": "12D3KooWlille"}, "link down with Lille"),
    "run_closed": (
        {
            "finished": True,
            "rounds_done": 9,
            "digest": "ef" * 32,
            "missing": [["12D3KooWlille", 4, "silent"]],
        },
        "run closed, finished, 9 rounds, model efefefefefef, missing: Lille",
    ),
    "of_the_future": ({"a": 1, "b": b"\x01\x02", "c": [1, 2]}, "of_the_future: a=1, b=0102, c=[2 items]"),
}


@pytest.mark.parametrize("kind", list(LINES))
def test_lines_are_plain_words(kind: str) -> None:
    body, line = LINES[kind]
    assert describe(_entry(kind, body), {"12D3KooWlille": "Lille"}) == f"     7  2023-11-14 22:13:20.000Z  {line}"


@pytest.mark.parametrize("kind", list(Kind))
def test_no_body_however_odd_breaks_a_line(kind: Kind) -> None:
    """Fields missing, of another type, or full of control and direction characters."""
    evil = "\x1b[2J\r\n\u202eevil\x00" + "x" * 5000
    for value in (None, 5, evil, b"\xff", [], [evil] * 50, [[evil, 1]] * 50, [5], {}, {"a": evil}, True):
        body = {} if value is None else dict.fromkeys((*NOTES[kind].fields, "run"), value)
        line = describe(_entry(kind, body), {"x": evil})
        assert line.isprintable()
        assert len(line) < 6000
        json.dumps(as_dict(_entry(kind, body)))


def test_every_kind_is_explained_and_has_its_own_line() -> None:
    assert set(NOTES) == set(Kind)
    for kind in Kind:
        assert NOTES[kind].meaning
        assert NOTES[kind].fields
        assert f"{kind}:" not in describe(_entry(kind, {})), "the general line is for unknown kinds only"


def test_times_beyond_the_calendar_are_shown_as_numbers() -> None:
    entry = Entry(0, 2**63 - 1, "mixed", {}, bytes(32))
    assert "9223372036854775807 ms" in describe(entry)


def test_json_leaves_nothing_out(tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    write_small_log(path)
    shown = [as_dict(entry) for entry in read_entries(path)]
    assert json.loads(json.dumps(shown)) == shown
    assert set(shown[1]) == {"position", "time", "kind", "body", "hash", "documents"}
    assert shown[1]["documents"] == [{"role": "outbox", "digest": hashlib.sha256(b"first delta").hexdigest()}]
    assert shown[2]["body"] == {"round": 0, "edges": [["x", 0.5]]}
