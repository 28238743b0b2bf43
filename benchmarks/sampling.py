"""Where the main thread's CPU time goes, by looking at its stack each millisecond of it (Unix only).

Unlike a profiler that hooks every call, this does not make small functions look dear. C code counts for the Python
line that called it; a part is named by the innermost function that it knows.
"""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import FrameType

INTERVAL = 0.001  # CPU seconds; kernels round it up to their tick
OTHER = "other"


class Sampler:
    """``parts``: part -> marks, found in ``folder/file.py:function``. The first part that matches counts."""

    def __init__(self, parts: Mapping[str, tuple[str, ...]]) -> None:
        self._parts = parts
        self._places: Counter[str] = Counter()
        self._known: dict[tuple[str, str], str] = {}

    def start(self) -> None:
        """From now on; to be called in the main thread."""
        signal.signal(signal.SIGPROF, self._look)
        signal.siginterrupt(signal.SIGPROF, False)
        signal.setitimer(signal.ITIMER_PROF, INTERVAL, INTERVAL)

    def shares(self) -> dict[str, float]:
        """Ends it. Part -> share of all samples."""
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        return {part: count / self._places.total() for part, count in self._places.most_common()}

    def _look(self, number: int, frame: FrameType | None) -> None:
        part = OTHER
        while frame is not None and part == OTHER:
            part = self._part(frame.f_code.co_filename, frame.f_code.co_name)
            frame = frame.f_back
        self._places[part] += 1

    def _part(self, file: str, function: str) -> str:
        found = self._known.get((file, function))
        if found is None:
            text = f"{Path(file).parent.name}/{Path(file).name}:{function}"
            matching = (part for part, marks in self._parts.items() if any(mark in text for mark in marks))
            found = self._known[file, function] = next(matching, OTHER)
        return found
