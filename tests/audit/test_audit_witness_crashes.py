"""What a witness has answered is in its store: killed between any two statements, disk full, read-only."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from witness_lives import LOG

from p2pfl.audit import HeldHead, WitnessStore
from p2pfl.crypto import Cosignature
from p2pfl.errors import StoreError


def head(size: int) -> HeldHead:
    return HeldHead(0, size, bytes([size % 256]) * 32, b"note" * 400, size)


def test_killed_between_any_two_statements_it_never_takes_back_what_it_answered(tmp_path: Path) -> None:
    script = Path(__file__).with_name("witness_lives.py")
    done = subprocess.run([sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, check=True)
    lives = [json.loads(line) for line in done.stdout.splitlines()]
    assert sum(killed for _, killed, _ in lives) > 40, "each statement of a life, on a new and on an old file"
    for name in {name for name, _, _ in lives}:
        taken: dict[int, str] = {}
        kept = 0
        for size, root in (row for where, _, answers in lives if where == name for row in answers):
            if size > 0:
                assert size not in taken, "two different checkpoints of one size were cosigned"
                taken[size] = root
            else:
                kept = -size
        store = WitnessStore(tmp_path / name)
        assert {size: (store.at(LOG, 0, size) or b"").hex() for size in taken} == taken
        assert not kept or store.cosigned()[0][2] >= kept
        newest = store.newest(LOG)
        assert (newest.size if newest else 0) - max(taken, default=0) in range(len(lives))
        store.close()


def test_a_full_disk_takes_nothing_and_keeps_what_was_there(tmp_path: Path) -> None:
    store = WitnessStore(tmp_path / "witness.db")
    store._connection.execute("PRAGMA max_page_count = 12").fetchall()
    held: HeldHead | None = None
    with pytest.raises(StoreError, match=r"is full.*free or repair the disk"):
        for size in range(1, 100):
            store.accept(LOG, held, head(size))
            held = head(size)
    assert held is not None and store.newest(LOG) == held, "what was not stored is not held"
    with pytest.raises(StoreError, match="is full"):
        for size in range(1, 100):
            store.keep_cosignature("x", 0, size, Cosignature(b"note" * 400, b""), 1)
    store.close()
    again = WitnessStore(tmp_path / "witness.db")
    assert again.newest(LOG) == held
    again.accept(LOG, held, head(held.size + 1))  # there is room again
    again.close()


def test_a_read_only_store_takes_nothing(tmp_path: Path) -> None:
    store = WitnessStore(tmp_path / "witness.db")
    store.accept(LOG, None, head(1))
    store._connection.execute("PRAGMA query_only = ON")
    for _ in range(2):
        with pytest.raises(StoreError, match=r"readonly.*free or repair the disk"):
            store.accept(LOG, head(1), head(2))
    assert store.newest(LOG) == head(1)
    store.close()
