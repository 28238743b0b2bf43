"""A process that brings writers of a log to life, one after the other, and ends each of them with SIGKILL.

One JSON object on standard input is one life: ``path`` of the log, ``seed`` of what is written, and when it ends: ``at``
the n-th SQL statement (as the statement is about to begin, inside triggers, too), or ``after`` so many acknowledged
commits and ``microseconds`` more. The answer, one line: what was acknowledged as [size, root], what it had begun to
write when it ended, and whether it was killed. A life that comes to its end unkilled has closed its log.

With the object as an argument, the process itself is that one life, and says the same line by line: for tests that put
it under strace.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import signal
import sqlite3
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from audit_logs import NOW, delta, owner

import p2pfl.audit.log
from p2pfl.audit import AuditLog, NewEntry, erase_texts, store
from p2pfl.errors import StoreError

CHECKPOINT_BYTES = 48 * 1024  # so that a life sees checkpoints, too
APPENDS = 40  # of a life that is not ended before


def main() -> None:
    if len(sys.argv) > 1:
        live(json.loads(sys.argv[1]), sys.stdout.fileno())
        return
    for line in sys.stdin:
        order = json.loads(line)
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.close(reading)
                live(order, writing)
            except BaseException as error:
                os.write(writing, f"failed {error!r}\n".encode())
            os._exit(0)
        os.close(writing)
        print(json.dumps(attend(child, reading, order)), flush=True)


def attend(child: int, reading: int, order: dict[str, Any]) -> dict[str, Any]:
    """Hear what the writer acknowledges, and end it when its time has come."""
    heard = b""
    ends: float | None = None
    while True:
        if ends is None and heard.count(b"acknowledged") >= order.get("after", sys.maxsize):
            ends = time.perf_counter() + order["microseconds"] / 1e6
        left = None if ends is None else max(0.0, ends - time.perf_counter())
        if not select.select([reading], [], [], left)[0]:
            os.kill(child, signal.SIGKILL)
            ends = None
            order = {}
            continue
        data = os.read(reading, 65536)
        if not data:
            break
        heard += data
    os.close(reading)
    _, status = os.waitpid(child, 0)
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    return {**understood(heard.decode()), "killed": killed}


def understood(text: str) -> dict[str, list[Any]]:
    """What a life said, by the first word of each line."""
    said: dict[str, list[Any]] = {"acknowledged": [], "begins": [], "refused": [], "failed": []}
    for line in text.splitlines():
        word, rest = line.split(" ", 1)
        said[word].append(rest if word == "failed" else json.loads(rest))
    return said


def live(order: dict[str, Any], writing: int) -> None:
    """Write, and once the log refuses an entry try another one, which it must not take."""

    def report(word: str, value: Any) -> None:
        os.write(writing, f"{word} {json.dumps(value)}\n".encode())

    p2pfl.audit.log.CHECKPOINT_BYTES = CHECKPOINT_BYTES
    if "at" in order:
        count_statements(order["at"])
    path = Path(order["path"])
    try:
        log = AuditLog.open(path, owner()) if path.exists() else AuditLog.create(path, owner(), NOW)
    except StoreError as error:
        report("refused", str(error))
        return
    try:
        write(log, order, report)
    except StoreError as error:
        report("refused", str(error))
        with contextlib.suppress(StoreError):
            log.append([NewEntry("link_up", {"peer": "x"})], NOW)
            report("failed", "an entry was taken after a failure")
    log.close()


def write(log: AuditLog, order: dict[str, Any], report: Callable[[str, Any], None]) -> None:
    """Append, erase and checkpoint as the seed says; report each commit once it has returned, never before."""
    draw = random.Random(order["seed"])
    report("acknowledged", [log.head.size, log.head.root.hex()])
    for number in range(order.get("appends", APPENDS)):
        entries = [NewEntry("refused", {"peer": "x", "reason": f"reason {number}"})] * draw.choice((0, 0, 1, 3))
        entries.append(delta(number, *[draw.randbytes(draw.choice((10, 3000, 9000)))] * draw.choice((0, 1, 1, 2))))
        report("begins", [log.head.size, len(entries)])
        head = log.append(entries, NOW + number)
        report("acknowledged", [head.size, head.root.hex()])
        if draw.random() < 0.1 and log.texts():
            report("begins", [log.head.size, 1])
            erase_texts(log, range(log.head.size), NOW + number)
            report("acknowledged", [log.head.size, log.head.root.hex()])


def count_statements(last: int) -> None:
    """SIGKILL as the n-th statement of this process begins."""
    begun = 0
    connect = store.connect

    def counted(path: Path, mode: str) -> sqlite3.Connection:
        connection = connect(path, mode)

        def begins(statement: str) -> None:
            nonlocal begun
            begun += 1
            if begun == last:
                os.kill(os.getpid(), signal.SIGKILL)

        connection.set_trace_callback(begins)
        return connection

    store.connect = counted


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        main()
