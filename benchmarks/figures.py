"""What both benchmarks share: the machine in plain words, the disk's sync rate, tables of text."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

SYNC_BLOCK = 4096  # bytes per write: one page, as SQLite appends to its write-ahead log
SYNC_SECONDS = 1.0
BEST_OF = 5


def machine() -> dict[str, Any]:
    """Cores, interpreter and versions; no names of machines or users."""
    import msgpack
    import nacl

    try:
        import uvloop

        loop = uvloop.__version__
    except ImportError:
        loop = None
    return {
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "interpreter": f"{platform.python_implementation()} {platform.python_version()}",
        "system": platform.system(),
        "uvloop": loop,
        "pynacl": nacl.__version__,
        "msgpack": ".".join(map(str, msgpack.version)),
        "load": os.getloadavg()[0],
    }


def sync_rate(folder: Path) -> float:
    """Appends of one page with fsync per second, in ``folder``."""
    path = folder / "sync-probe"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        count, started = 0, time.perf_counter()
        while (spent := time.perf_counter() - started) < SYNC_SECONDS:
            os.write(descriptor, bytes(SYNC_BLOCK))
            os.fsync(descriptor)
            count += 1
        return count / spent
    finally:
        os.close(descriptor)
        path.unlink()


def best(work: Callable[[], Any], times: int = BEST_OF) -> float:
    """Seconds of the quickest of ``times`` calls: the cost of the work itself, without the neighbours' noise."""
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Columns of text: the first to the left, the others to the right."""
    cells = [[_text(cell) for cell in row] for row in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [title, ""]
    for number, row in enumerate(cells):
        first, *others = zip(row, widths, strict=True)
        lines.append("  ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]))
        if number == 0:
            lines.append("  ".join("-" * width for width in widths))
    return "\n".join(lines)


def _text(cell: Any) -> str:
    if isinstance(cell, float):
        return f"{cell:.0f}" if abs(cell) >= 100 else f"{cell:.1f}" if abs(cell) >= 10 else f"{cell:.3f}"
    return str(cell)


def show(result: Mapping[str, Any], text: str, as_json: bool) -> None:
    """One JSON object, or the tables."""
    print(json.dumps(result, indent=1) if as_json else text)
