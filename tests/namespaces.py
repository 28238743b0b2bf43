"""Network namespaces for tests: one per hospital, joined by a bridge in a namespace of its own.

The machine's own network is never touched. A namespace is cut off by a packet filter on its interface that drops
everything in both directions without a word (classic BPF through ``tc``, which needs no package beside iproute2).
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence

SUBNET = "10.173.5"
COMMAND_TIME = 20.0  # seconds one call of ip or tc may take
DROP_ALL = "1,6 0 0 2"  # one BPF instruction: return TC_ACT_SHOT
_counter = itertools.count()


def run(*arguments: str, check: bool = True) -> str:
    """Carry out one command; its standard output."""
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=COMMAND_TIME, check=False)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def why_not() -> str | None:
    """Why there can be no namespaces here, or None."""
    if os.geteuid() != 0:
        return "needs root to make network namespaces"
    missing = [name for name in ("ip", "tc") if shutil.which(name) is None]
    if missing:
        return f"needs {' and '.join(missing)}: install iproute2 (make system)"
    try:
        with Network(["probe"]) as network:
            network.cut("probe")
    except (RuntimeError, OSError, subprocess.TimeoutExpired) as error:
        return f"this kernel or container has no network namespaces with a packet filter: {error}"
    return None


class Network:
    """One namespace per name, all in one subnet. Use as a context manager; nothing stays behind."""

    def __init__(self, names: Sequence[str]) -> None:
        self._prefix = f"p2pfl-{os.getpid():x}-{next(_counter)}"
        self._names = list(names)
        self._made: list[str] = []

    def space(self, name: str) -> str:
        """The namespace's name."""
        return f"{self._prefix}-{name}"

    def address(self, name: str) -> str:
        """The IPv4 address inside the namespace."""
        return f"{SUBNET}.{self._names.index(name) + 1}"

    def inside(self, name: str) -> tuple[str, ...]:
        """What to write before a command that shall run in the namespace. The process id stays the command's."""
        return ("ip", "netns", "exec", self.space(name))

    def cut(self, name: str) -> None:
        """From now on nothing comes in and nothing gets out."""
        tc = ("tc", "-n", self.space(name))
        run(*tc, "qdisc", "add", "dev", "eth0", "clsact")
        for way in ("ingress", "egress"):
            run(*tc, "filter", "add", "dev", "eth0", way, "bpf", "bytecode", DROP_ALL, "direct-action")

    def heal(self, name: str) -> None:
        """Take the packet filter away."""
        run("tc", "-n", self.space(name), "qdisc", "del", "dev", "eth0", "clsact")

    def __enter__(self) -> Network:
        try:
            hub = self._add("hub")
            run("ip", "-n", hub, "link", "add", "bridge", "type", "bridge")
            run("ip", "-n", hub, "link", "set", "bridge", "up")
            for number, name in enumerate(self._names):
                self._join(hub, name, f"port{number}")
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._remove()

    def _add(self, name: str) -> str:
        space = self.space(name)
        run("ip", "netns", "add", space)
        self._made.append(space)
        return space

    def _join(self, hub: str, name: str, port: str) -> None:
        space = self._add(name)
        run("ip", "-n", hub, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", space)
        run("ip", "-n", hub, "link", "set", port, "master", "bridge", "up")
        run("ip", "-n", space, "address", "add", f"{self.address(name)}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            run("ip", "-n", space, "link", "set", device, "up")

    def _remove(self) -> None:
        for space in reversed(self._made):
            for pid in _processes(space):  # only what a test started is ever in there
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                run("ip", "netns", "del", space, check=False)
        self._made.clear()


def _processes(space: str) -> Iterator[int]:
    with contextlib.suppress(subprocess.TimeoutExpired):
        yield from map(int, run("ip", "netns", "pids", space, check=False).split())
