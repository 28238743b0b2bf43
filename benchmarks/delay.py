"""A path with a fixed delay: two network namespaces, a tun device in each, and a program that carries packets over.

`tc netem` would do the same and is missing in many kernels. The program holds each packet for half the round trip. It
shares the machine with what is measured; ``busy`` says how much of one core it took. Needs root.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import fcntl
import json
import os
import select
import signal
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from types import FrameType
from typing import Any

ADDRESSES = ("10.99.7.1", "10.99.7.2")
MTU = 1500
COMMAND_TIME = 20.0  # seconds one call of ip may take
QUEUE = 20_000  # packets on their way in one direction; 30 MB, above every window here

_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000  # linux/if_tun.h
_CLONE_NEWNET = 0x40000000  # linux/sched.h
_BATCH = 64  # packets read before the other direction gets its turn


def why_not() -> str | None:
    """Why there can be no delayed path here, or None."""
    if os.geteuid() != 0:
        return "needs root for network namespaces"
    try:
        with DelayedPath(0.0):
            return None
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        return f"no namespaces with tun devices here: {error}"


class DelayedPath:
    """Use as a context manager. ``inside(0)`` and ``inside(1)`` are written before commands of the two ends."""

    def __init__(self, round_trip: float) -> None:
        self._round_trip = round_trip
        self._names = [f"p2pfl-delay-{os.getpid():x}-{end}" for end in "ab"]
        self._made: list[str] = []
        self._process: subprocess.Popen[str] | None = None
        self._before: Any = None
        self.busy = 0.0
        """Share of one core that the carrying took; known after the end."""

    @property
    def process_id(self) -> int:
        """Of the program that carries."""
        assert self._process is not None
        return self._process.pid

    def inside(self, end: int) -> tuple[str, ...]:
        """What to write before a command."""
        return ("ip", "netns", "exec", self._names[end])

    def __enter__(self) -> DelayedPath:
        self._before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # or all of it stays
        try:
            for name in self._names:
                _ip("netns", "add", name)
                self._made.append(name)
                _ip("-n", name, "link", "set", "lo", "up")
            command = [sys.executable, __file__, *self._names, "--one-way", str(self._round_trip / 2)]
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            assert self._process.stdout is not None
            if self._process.stdout.readline() != "ready\n":
                raise RuntimeError("the carrying program did not start")
            for name, own, other in zip(self._names, ADDRESSES, ADDRESSES[::-1], strict=True):
                _ip("-n", name, "address", "add", own, "peer", other, "dev", "tun0")
                _ip("-n", name, "link", "set", "tun0", "mtu", str(MTU), "up")
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._remove()

    def _remove(self) -> None:
        if self._process is not None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired, ValueError):
                told, _ = self._process.communicate(timeout=COMMAND_TIME)
                self.busy = float(json.loads(told)["busy"])
            self._process.kill()
            self._process.wait()
        for name in self._made:
            subprocess.run(["ip", "netns", "del", name], timeout=COMMAND_TIME, check=False)
        signal.signal(signal.SIGTERM, self._before)


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, timeout=COMMAND_TIME, check=False)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


# --- the program in between


def _open_tun(namespace: str) -> int:
    """A tun device of that namespace; the descriptor works from everywhere."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open(f"/var/run/netns/{namespace}") as place:
        if libc.setns(place.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"cannot enter {namespace}")
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH", b"tun0", _IFF_TUN | _IFF_NO_PI))
    return device


def _read(device: int) -> Iterator[bytes]:
    with contextlib.suppress(BlockingIOError):
        for _ in range(_BATCH):
            yield os.read(device, MTU + 100)


def carry(namespaces: list[str], one_way: float) -> None:
    """Until a signal: what comes in at one end goes out at the other, later."""
    ends = [_open_tun(name) for name in namespaces]
    ways: list[tuple[int, int, deque[tuple[float, bytes]]]] = [
        (ends[0], ends[1], deque()),
        (ends[1], ends[0], deque()),
    ]
    running = True

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal running
        running = False

    signal.signal(signal.SIGTERM, stop)
    print("ready", flush=True)
    poll = select.poll()
    for end in ends:
        poll.register(end, select.POLLIN)
    started, cpu = time.monotonic(), time.process_time()
    while running:
        now = time.monotonic()
        due = min((queue[0][0] for _, _, queue in ways if queue), default=now + 0.2)
        poll.poll(max(0.0, (due - now) * 1000))
        now = time.monotonic()
        for source, target, queue in ways:
            for packet in _read(source):
                if len(queue) < QUEUE:
                    queue.append((now + one_way, packet))
            while queue and queue[0][0] <= now:
                with contextlib.suppress(OSError):  # a device that is down loses packets, as a real one does
                    os.write(target, queue.popleft()[1])
    busy = (time.process_time() - cpu) / (time.monotonic() - started)
    print(json.dumps({"busy": busy}), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("namespaces", nargs=2)
    parser.add_argument("--one-way", type=float, required=True, help="seconds")
    options = parser.parse_args()
    carry(options.namespaces, options.one_way)
