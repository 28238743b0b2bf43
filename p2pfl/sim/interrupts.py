"""Ctrl-C between rounds: what a round has begun it ends, so that no figure is of a state that never was."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any


class Interrupts:
    """Holds SIGINT back inside ``held`` blocks and raises KeyboardInterrupt at their end; a second one is not held.

    Use as a context manager. Elsewhere than in the main thread, or where somebody else handles the signal, it does
    nothing: only the main thread hears of signals (signal(7)).
    """

    def __init__(self) -> None:
        self._holding = self._asked = False
        self._before: Any = None

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.getsignal(signal.SIGINT)
            if self._before is signal.default_int_handler:
                signal.signal(signal.SIGINT, self._told)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._before)

    def _told(self, number: int, frame: FrameType | None) -> None:
        if not self._holding or self._asked:
            raise KeyboardInterrupt
        self._asked = True

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """A block that is ended first."""
        self._holding = True
        try:
            yield
        finally:
            self._holding = False
        if self._asked:
            self._asked = False
            raise KeyboardInterrupt
