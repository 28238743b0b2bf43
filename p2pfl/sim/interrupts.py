"""Ctrl-C between rounds: what a round has begun it ends, so that no figure is of a state that never was."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


@contextlib.contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """A block in which SIGTERM is an interrupt, as Ctrl-C is: schedulers of clusters send it when the time is over."""
    before = signal.getsignal(signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread() or before is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Interrupts:
    """Holds SIGINT back inside ``held`` blocks and raises KeyboardInterrupt at their end; a second one is not held.

    Under `ended_by_sigterm` SIGTERM, too. Use as a context manager. Elsewhere than in the main thread, or where
    somebody else handles the signal, it does nothing: only the main thread hears of signals (signal(7)).
    """

    def __init__(self) -> None:
        self._holding = self._asked = False
        self._numbers: list[int] = []  # of the signals that are heard here

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            both = (signal.SIGINT, signal.SIGTERM)
            self._numbers = [number for number in both if signal.getsignal(number) is signal.default_int_handler]
            for number in self._numbers:
                signal.signal(number, self._told)
        return self

    def __exit__(self, *_: object) -> None:
        for number in self._numbers:
            signal.signal(number, signal.default_int_handler)

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
