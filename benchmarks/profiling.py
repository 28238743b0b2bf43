"""CPU time per function in every thread of a process: cProfile on the thread's own clock, its own cost taken out.

Waiting costs nothing on that clock. The profiler's cost per call would make Python code look dearer than it is:
it is measured once per process on an empty function and taken out of callee and caller.
"""

from __future__ import annotations

import asyncio
import cProfile
import pstats
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

OTHER = "other Python"  # what no group below names; no cost of its own kind
CALLS = 20_000  # empty calls for the measurement of the profiler itself

KINDS = {
    "encrypt, decrypt (XChaCha20-Poly1305)": ("xchacha20poly1305", "nacl/", "bindings/", "_sodium"),
    "TLS records (encrypt, decrypt)": ("_ssl._SSLSocket", "_ssl.MemoryBIO"),
    "asyncio's own TLS layer": ("asyncio/sslproto", "python3.11/ssl.py"),
    "SHA-256 (digests, Merkle leaves)": ("sha256", "_hashlib", "merkle"),
    "socket": ("_socket.socket", "posix.sendmsg"),
    "ciphertext file (write, sync, read)": ("posix.", "_io.", "io.open"),
    "copies (join)": ("'join'",),
    "thread hops": ("_thread.", "concurrent/", "futures/", "_queue", "threading", "asyncio/threads"),
    "event loop": ("asyncio/", "select.epoll", "_asyncio", "selectors", "_contextvars"),
    "framing and pulls": ("net/",),
}


class Profile:
    """The profilers of all threads of this process."""

    def __init__(self) -> None:
        self._profiles: list[cProfile.Profile] = []

    def start(self) -> None:
        """Profile the running loop's thread and the threads of its executor, from now on."""
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(initializer=self._enable))
        self._enable()

    def _enable(self) -> None:
        profile = cProfile.Profile(time.thread_time)
        self._profiles.append(profile)
        profile.enable()

    def stop(self) -> None:
        """End the calling thread's profile; to be called before anything that does not count."""
        self._profiles[0].disable()

    def costs(self) -> dict[str, float]:
        """Kind of work -> its own CPU seconds, the profiler's cost taken out."""
        callee, caller = _own_cost()
        found: dict[str, float] = {}
        for profile in self._profiles:
            profile.disable()
            for function, (_, calls, own, _, callers) in pstats.Stats(profile).stats.items():
                _add(found, function, own - calls * callee)
                for parent, (parent_calls, *_) in callers.items():
                    _add(found, parent, -parent_calls * caller)
        return {kind: seconds for kind, seconds in found.items() if seconds > 0}


def _add(found: dict[str, float], function: tuple[str, int, str], seconds: float) -> None:
    file, _, name = function
    text = name if file == "~" else f"{Path(file).parent.name}/{Path(file).name}: {name}"
    kind = next((kind for kind, marks in KINDS.items() if any(mark in text for mark in marks)), OTHER)
    found[kind] = found.get(kind, 0.0) + seconds


def _own_cost() -> tuple[float, float]:
    """Seconds that the profiler adds to a call at the callee and at the caller."""

    def empty() -> None:
        pass

    def many() -> None:
        for _ in range(CALLS):
            empty()

    started = time.thread_time()
    many()
    plain = time.thread_time() - started
    profile = cProfile.Profile(time.thread_time)
    profile.runcall(many)
    own = {key[2]: value[2] for key, value in pstats.Stats(profile).stats.items()}
    return own["empty"] / CALLS, max(own["many"] - plain, 0.0) / CALLS
