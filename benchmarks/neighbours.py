"""How much of the machine other work takes while a benchmark runs, and trying again when it is much. Linux only."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

QUIET = 0.25  # of one core; more disturbs two processes on two cores
WAIT = 8.0  # seconds for others to end
TRIES = 2
_LOOK = 0.5  # seconds of one look


class Others:
    """CPU that neither this process, nor its ended children, nor the process ``besides`` took."""

    def __init__(self, besides: int | None) -> None:
        self._besides = besides

    def quietest(self, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What ``work`` gave in the first try with quiet neighbours, or the quietest, and ``others``: their cores."""
        found: list[dict[str, Any]] = []
        for _ in range(TRIES):
            self._wait()
            before, started = self._taken(), time.monotonic()
            result = work()
            result["others"] = round((self._taken() - before) / (time.monotonic() - started), 3)
            found.append(result)
            if result["others"] <= QUIET:
                break
        return min(found, key=lambda result: float(result["others"]))

    def _wait(self) -> None:
        until = time.monotonic() + WAIT
        while time.monotonic() < until:
            before = self._taken()
            time.sleep(_LOOK)
            if (self._taken() - before) / _LOOK <= QUIET:
                return

    def _taken(self) -> float:
        own = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return _machine() - sum(usage.ru_utime + usage.ru_stime for usage in own) - self._carrying()

    def _carrying(self) -> float:
        if self._besides is None:
            return 0.0
        fields = Path(f"/proc/{self._besides}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _machine() -> float:
    """CPU seconds of all processes since the start, and those that other virtual machines took away."""
    user, nice, system, _, _, _, _, stolen = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + stolen) / os.sysconf("SC_CLK_TCK")
