"""Many short lives of one witness store, each killed at another SQL statement; prints what each had answered.

Each life is a process of its own (a fork) that checks off two more checkpoints, with roots that no other life would
give them: a store that forgets lets two of them be cosigned for one size.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sqlite3
import sys
from pathlib import Path
from typing import Any

from p2pfl.audit import HeldHead, WitnessStore
from p2pfl.audit import store as opening
from p2pfl.crypto import Cosignature

LOG = "12D3KooWOwner"
HEADS = 2


def live(path: Path, kill_at: int, life: int, answer: int) -> None:
    """Accept, then answer, twice; die before the statement with this number."""
    seen, connect = 0, opening.connect

    def traced(*arguments: Any) -> sqlite3.Connection:
        def count(statement: str) -> None:
            nonlocal seen
            seen += 1
            if seen == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

        connection = connect(*arguments)
        connection.set_trace_callback(count)
        return connection

    opening.connect = traced  # type: ignore[assignment]
    store = WitnessStore(path)
    for _ in range(HEADS):
        held = store.newest(LOG)
        size = 1 if held is None else held.size + 1
        root = hashlib.sha256(b"%d %d" % (life, size)).digest()
        store.accept(LOG, held, HeldHead(0, size, root, root, size))
        os.write(answer, json.dumps([size, root.hex()]).encode() + b"\n")
        store.keep_cosignature("a witness", 0, size, Cosignature(root, root), size)
        os.write(answer, json.dumps([-size, root.hex()]).encode() + b"\n")
    store.close()


def born(path: Path, kill_at: int, life: int) -> tuple[bool, list[Any]]:
    """One life: whether it was killed, and what it had answered."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        try:
            live(path, kill_at, life, writing)
        finally:
            os._exit(0)
    os.close(writing)
    _, status = os.waitpid(child, 0)
    with os.fdopen(reading) as lines:
        return os.WIFSIGNALED(status), [json.loads(line) for line in lines]


def main() -> None:
    folder, life, killed = Path(sys.argv[1]), 0, True
    while killed:
        life += 1
        for name in ("kept", f"fresh {life}"):
            killed, answers = born(folder / name, life, life)
            print(json.dumps([name, killed, answers]), flush=True)


if __name__ == "__main__":
    main()
