"""What many wait for costs one sync: counted by strace, not by the program."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

from tracing import needs_strace, traced

import p2pfl
from p2pfl.audit import verify_log

WRITERS, TURNS = 64, 5

SCRIPT = f"""
import asyncio, json, sys
from pathlib import Path
from p2pfl.audit import AuditLog, NewEntry
from p2pfl.crypto import Identity
from p2pfl.peer.journal import Journal

async def writer(journal, number):
    for turn in range({TURNS}):
        await journal.commit([NewEntry("link_up", {{"peer": f"{{number}} {{turn}}"}})])

async def main():
    identity = Identity.from_seed(bytes(32))
    journal = Journal(AuditLog.create(Path(sys.argv[1]), identity, 1), print)
    await asyncio.gather(*(writer(journal, number) for number in range({WRITERS})))
    print(json.dumps({{"commits": journal.commits, "size": journal.head.size}}))
    journal.close()

asyncio.run(main())
"""


@needs_strace
def test_sixty_four_writers_share_their_syncs(tmp_path: Path) -> None:
    calls, log = tmp_path / "calls", tmp_path / "audit.db"
    line = [*traced(calls, ("fdatasync", "fsync")), sys.executable, "-c", SCRIPT, str(log)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60, check=True)
    said = json.loads(done.stdout)
    assert said["size"] == 1 + WRITERS * TURNS
    synced = [text for text in calls.read_text().splitlines() if "sync(" in text and f"{log}-wal>" in text]
    once = 4  # new write-ahead log: its header; closing: before pages are moved
    assert said["commits"] <= len(synced) <= said["commits"] + once
    assert said["commits"] <= 3 * TURNS, "each turn of all writers is one transaction, or two at its edges"
    assert verify_log(log).heads == said["commits"] + 1


def test_in_a_peer_the_journal_alone_appends() -> None:
    """Whoever wrote past it would cost a sync of its own."""
    peer = Path(p2pfl.__file__).parent / "peer"
    appending = set()
    for file in peer.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if (
                isinstance(node, ast.Attribute)
                and node.attr == "append"
                and "log" in ast.unparse(node.value).split(".")
            ):
                appending.add(file.name)
    assert appending == {"journal.py"}
