"""Owns what `p2pfl up` prints while it runs: a reader that pauses or goes away must not pause the peer."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import queue
import sys
import threading
from typing import Any

from p2pfl.cli.output import note, say, to_json, visible

LINES_WAITING = 10_000  # for a terminal stopped with Ctrl-S or a pager; some 1 MB, an evening of rounds
LAST_WORDS = 2.0  # seconds for the last lines when the peer ends


class Printer:
    """Prints events from a thread of its own. Use as a context manager inside a running event loop."""

    def __init__(self, as_json: bool) -> None:
        self.closed = asyncio.Event()  # the reader of our output has gone
        self._as_json = as_json
        self._lines: queue.Queue[str | None] = queue.Queue(LINES_WAITING)
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._print, name="printer", daemon=True)

    def __enter__(self) -> Printer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(queue.Full):
            self._lines.put_nowait(None)
        self._thread.join(LAST_WORDS)

    def event(self, topic: str, facts: dict[str, Any]) -> None:
        """Print one event; lines that nobody reads in time are dropped, as the log has everything that counts."""
        if self._as_json:
            line = to_json({"topic": topic, **facts}, indent=None)
        else:
            line = visible(f"{topic:<12} " + "  ".join(f"{name} {plain(value)}" for name, value in facts.items()))
        with contextlib.suppress(queue.Full):
            self._lines.put_nowait(line)

    def hint(self, text: str) -> None:
        """Print advice for people; programs get none."""
        if not self._as_json:
            note(text)

    def _print(self) -> None:
        while (line := self._lines.get()) is not None:
            try:
                _write(line)
            except BrokenPipeError:
                with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                    self._loop.call_soon_threadsafe(self.closed.set)
                return
            except (OSError, ValueError):
                continue  # a full disk behind our output: the peer's own files decide whether it can go on


def _write(line: str) -> None:
    """Past Python's buffer, whose lock a write that waits for its reader would hold until the process ends."""
    try:
        descriptor = sys.stdout.fileno()
    except io.UnsupportedOperation:  # a notebook, a test
        say(line)
        return
    data = f"{line}\n".encode(sys.stdout.encoding, "backslashreplace")
    while data:
        data = data[os.write(descriptor, data) :]


def joining(late: dict[str, Any], proposer: str = "its proposer") -> str:
    """How a site stands that was not there when a run began, for people."""
    if late["from_round"] is not None:
        return f"this site takes part from round {late['from_round']}"
    if not late["approved"]:
        if late["problem"] is not None:
            return f"it runs without this site, and cannot take it in: {late['problem']}"
        return "it runs without this site; `p2pfl plan approve` asks for admission"
    where = f"the run is in round {late['run_is_in_round']}; this site takes part as soon as {proposer} has admitted it"
    return (
        where if late["proposer_heard"] else f"{where}, and that peer was not heard here yet: without it, it stays out"
    )


def plain(value: Any) -> str:
    """A fact in few characters."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(plain(item) for item in value) or "none"
    text = str(value)
    return "…" + text[-6:] if text.startswith("12D3Koo") else text


def keeping(kept: dict[str, Any]) -> str:
    """How full the folder of kept deltas is, and what is no longer taken into it."""
    ended = f"; no more is kept of {', '.join(run[:12] for run in kept['ended'])}" if kept["ended"] else ""
    size = f"{kept['bytes'] / 2**20:.1f} of {kept['limit'] / 2**20:.1f} MiB"
    count = len(kept["runs"])
    return f"deltas in clear of {count} run{'s' if count != 1 else ''}, {size}{ended}"
