"""avahi in a network namespace, with a message bus of its own: nothing of the machine's own services is used."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
from pathlib import Path

from namespaces import Network

BOUND = 20.0
PROGRAMS = {"dbus-daemon": "dbus", "avahi-daemon": "avahi-daemon", "avahi-browse": "avahi-utils", "unshare": "mount"}
"""Program -> Debian package."""

_BUS = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <listen>unix:path={folder}/bus</listen>
  <auth>EXTERNAL</auth>
  <policy context="default"><allow send_destination="*"/><allow receive_sender="*"/><allow own="*"/></policy>
</busconfig>
"""
_DAEMON = """[server]
use-ipv6=no
allow-interfaces=eth0
[publish]
disable-publishing=yes
"""
_START = 'mount -t tmpfs none /run && exec avahi-daemon --no-drop-root --no-chroot --no-rlimits -f "$0"'


def why_not() -> str | None:
    """Which program is missing, or None."""
    missing = [package for program, package in PROGRAMS.items() if shutil.which(program) is None]
    return f"needs the Debian packages {' '.join(missing)} (make system)" if missing else None


class Avahi:
    """A daemon in one namespace of ``network``. Use as an async context manager; all it started is ended."""

    def __init__(self, network: Network, name: str) -> None:
        self._inside = network.inside(name)
        self._folder = Path(tempfile.mkdtemp(prefix="p2pfl-"))  # a socket's path has 107 bytes at most
        self._environment = {**os.environ, "DBUS_SYSTEM_BUS_ADDRESS": f"unix:path={self._folder}/bus"}
        self._children: list[asyncio.subprocess.Process] = []

    async def __aenter__(self) -> Avahi:
        (self._folder / "bus.conf").write_text(_BUS.format(folder=self._folder))
        (self._folder / "avahi.conf").write_text(_DAEMON)
        try:
            await self._start("unix:", "dbus-daemon", f"--config-file={self._folder}/bus.conf", "--nofork",
                              "--nopidfile", "--print-address=1")  # fmt: skip
            configuration = str(self._folder / "avahi.conf")
            await self._start("Server startup complete", *self._inside, "unshare", "--mount", "sh", "-c", _START,
                              configuration)  # fmt: skip
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._end()

    async def _end(self) -> None:
        for child in reversed(self._children):
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await child.communicate()
        shutil.rmtree(self._folder)

    async def _start(self, sign: str, *arguments: str) -> str:
        """Start a child and wait for a line with this sign; the line."""
        child = await asyncio.create_subprocess_exec(
            *arguments, env=self._environment, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        self._children.append(child)
        assert child.stdout is not None
        said = []
        async with asyncio.timeout(BOUND):
            while line := (await child.stdout.readline()).decode():
                said.append(line)
                if sign in line:
                    return line
        raise AssertionError(f"{arguments} ended: {''.join(said)}")

    async def browse(self, service: str, sign: str) -> list[str]:
        """The fields of the first resolved service with this sign, as ``avahi-browse --parsable`` gives them."""
        line = await self._start(
            sign, *self._inside, "avahi-browse", "--parsable", "--resolve", "--no-db-lookup", service
        )
        return line.strip().split(";")
