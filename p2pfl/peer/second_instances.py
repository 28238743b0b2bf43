"""What is known here of second processes with one key: whose it is, why one was refused, and when that was last."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from p2pfl.types import PeerId


class SecondInstances:
    """``told`` hears (topic, facts), once for each key and start."""

    def __init__(self, told: Callable[[str, dict[str, Any]], None]) -> None:
        self._told = told
        self._met: dict[PeerId, dict[str, Any]] = {}

    def met(self, whose: PeerId, why: str) -> None:
        """A second process with this member's key was refused here, or with our own somewhere else."""
        news = whose not in self._met
        self._met[whose] = {"reason": why, "at": int(time.time())}
        if news:
            self._told("second instance", {"peer": whose, "reason": why})

    def of(self, peer: PeerId) -> dict[str, Any] | None:
        """``reason`` and ``at`` (Unix seconds) of the last one with this member's key since the start, or None."""
        return self._met.get(peer)
