"""The audit log: durable appends beside the disk's raw sync rate, verification, proofs and opening of a long log.

.venv/bin/python benchmarks/audit.py [--json] [--folder DIR] [--entries N] [--seconds S]

``--entries`` is the length of the long log (1,000,000 by default, about 700 MB while it runs).
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from figures import machine, show, sync_rate, table

from p2pfl.audit import MAX_ENTRIES, AuditLog, NewEntry, verify_log
from p2pfl.crypto import Identity
from p2pfl.crypto.proofs import check_consistency
from p2pfl.peer.journal import Journal

WRITERS = 64
TURNS = 5
PROOFS = 2000
GROWTHS = 200
OPENINGS = 5
OWNER = Identity.from_seed(bytes(range(32)))
NOW = 1_700_000_000_000


def entry(number: int) -> NewEntry:
    """What a peer writes most: the cores that a neighbour has taken."""
    return NewEntry("acknowledged", {"run": "ab" * 32, "peer": "12D3KooW" + "x" * 44, "cores": [f"{number:064x}"]})


async def append_together(journal: Journal, seconds: float) -> dict[str, float]:
    """Writers that each wait for their entry before the next; entries and transactions per second."""
    ends, before = time.perf_counter() + seconds, journal.commits

    async def writer() -> int:
        written = 0
        while time.perf_counter() < ends:
            await journal.commit([entry(written)])
            written += 1
        return written

    started = time.perf_counter()
    written = sum(await asyncio.gather(*(writer() for _ in range(WRITERS))))
    spent = time.perf_counter() - started
    return {"entries": written / spent, "transactions": (journal.commits - before) / spent}


def beside_the_disk(folder: Path, seconds: float) -> list[dict[str, float]]:
    """Turns of raw syncs and of appends, one after the other: the disk of a shared machine has moods."""
    journal = Journal(AuditLog.create(folder / "together.db", OWNER, NOW), lambda error: None)
    turns = []
    for _ in range(TURNS):
        before = sync_rate(folder)
        turn = asyncio.run(append_together(journal, seconds / TURNS))
        turns.append(turn | {"syncs": (before + sync_rate(folder)) / 2})
    journal.close()
    return turns


def build(path: Path, entries: int) -> float:
    """A long log in full transactions; entries per second."""
    started = time.perf_counter()
    with AuditLog.create(path, OWNER, NOW) as log:
        while log.head.size < entries:
            many = min(MAX_ENTRIES, entries - log.head.size)
            log.append([entry(log.head.size + number) for number in range(many)], NOW)
    return entries / (time.perf_counter() - started)


def open_and_prove(path: Path) -> dict[str, Any]:
    """Milliseconds of opening, of proofs at places all over the log, and of proofs of growth."""
    openings, proofs, growths = [], [], []
    for _ in range(OPENINGS):
        started = time.perf_counter()
        log = AuditLog.open(path, OWNER)
        openings.append(1000 * (time.perf_counter() - started))
        log.close()
    with AuditLog.open(path, OWNER) as log:
        size = log.head.size
        for number in range(PROOFS):
            position = number * 7919 * 101 % size
            started = time.perf_counter()
            proof = log.prove(position)
            proofs.append(1000 * (time.perf_counter() - started))
        proof.open(log.origin, OWNER.peer_id)
        for number in range(1, GROWTHS + 1):
            started = time.perf_counter()
            growth = log.prove_growth(number * size // (GROWTHS + 1) or 1, size)
            growths.append(1000 * (time.perf_counter() - started))
        half = max(1, size // 2)
        growth = log.prove_growth(half, size)
        check_consistency(half, size, growth, log.root_at(half), log.head.root)
    return {"opening": openings, "proof": proofs, "growth": growths}


def verify(path: Path) -> dict[str, float]:
    """Entries per second on the clock and of processor time: verification is one thread of pure work."""
    started, worked = time.perf_counter(), time.process_time()
    checked = verify_log(path, OWNER.peer_id)
    assert checked.ok, checked.problem
    return {
        "clock": checked.entries / (time.perf_counter() - started),
        "processor": checked.entries / (time.process_time() - worked),
    }


def measure(folder: Path, entries: int, seconds: float) -> dict[str, Any]:
    """All figures."""
    turns = beside_the_disk(folder, seconds)
    verified = {"together": verify(folder / "together.db")}
    built = build(folder / "long.db", entries)
    times = open_and_prove(folder / "long.db")
    verified["long"] = verify(folder / "long.db")
    return {
        "machine": machine(), "turns": turns, "long": entries, "built": built,
        "verified": verified, "milliseconds": times,
        "bytes": (folder / "long.db").stat().st_size / entries,
    }  # fmt: skip


def tables(result: dict[str, Any]) -> str:
    """For people."""
    times = result["milliseconds"]
    turns = [
        [number, turn["syncs"], turn["transactions"], turn["entries"], turn["entries"] / turn["syncs"]]
        for number, turn in enumerate(result["turns"])
    ]
    rates = [[f"{name} log", rate["clock"], rate["processor"]] for name, rate in result["verified"].items()]
    waits = [
        [name, statistics.median(times[key]), max(times[key])]
        for name, key in (("opening", "opening"), ("inclusion proof", "proof"), ("consistency proof", "growth"))
    ]
    return "\n\n".join(
        [
            table(
                f"durable appends, {WRITERS} writers, beside raw syncs of a page; per second",
                ["turn", "syncs", "transactions", "entries", "entries / syncs"],
                turns,
            ),
            table("entries verified per second", ["what", "on the clock", "of processor time"], rates),
            table(f"a log of {result['long']} entries", ["what", "median ms", "worst ms"], waits),
            f"{result['bytes']:.0f} bytes of file per entry; built at {result['built']:.0f} entries/s",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=5.0)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
        result = measure(Path(folder), chosen.entries, chosen.seconds)
    show(result, tables(result), chosen.json)


if __name__ == "__main__":
    main()
