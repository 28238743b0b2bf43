"""Disks for tests that can be made to fail, and mended: real file systems of this machine, for root alone."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOM = "48m"
FILLER = "filler"


@dataclass(frozen=True)
class Disk:
    """A folder on a disk of its own."""

    folder: Path
    spoil: Callable[[], None]
    mend: Callable[[], None]


def command(*words: str) -> str:
    """Carry out one command that must succeed; skips the test where this machine does not allow it."""
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"{words[0]} is not possible here: {done.stderr.strip()[:200]}")
    return done.stdout.strip()


def fill(folder: Path) -> None:
    """Take all the room that is left."""
    with (folder / FILLER).open("wb", buffering=0) as file, contextlib.suppress(OSError):
        for size in (2**20, 4096, 1):
            with contextlib.suppress(OSError):
                while file.write(bytes(size)):
                    pass


@contextlib.contextmanager
def mounted(folder: Path, *arguments: str) -> Iterator[None]:
    folder.mkdir(exist_ok=True)
    command("mount", *arguments, str(folder))
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], capture_output=True)


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Disk]:
    """It becomes full (ENOSPC)."""
    with mounted(folder, "-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs"):
        yield Disk(folder, lambda: fill(folder), lambda: (folder / FILLER).unlink())


@contextlib.contextmanager
def ext4(folder: Path, image: Path) -> Iterator[str]:
    """A file system of its own in a file; gives the device."""
    with image.open("wb") as file:
        os.truncate(file.fileno(), 256 * 2**20)
    command("mkfs.ext4", "-q", "-E", "lazy_itable_init=1", str(image))
    device = command("losetup", "--find", "--show", str(image))
    try:
        with mounted(folder, device):
            yield device
    finally:
        subprocess.run(["losetup", "--detach", device], capture_output=True)


@contextlib.contextmanager
def failing_disk(folder: Path) -> Iterator[Disk]:
    """Writes are taken, and their sync fails (EIO): the device's own store has no room behind it."""
    below = Path(tempfile.mkdtemp(dir=folder.parent))
    with (
        mounted(below, "-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs"),
        ext4(folder, below / "image") as device,
    ):

        def mend() -> None:
            (below / FILLER).unlink()
            subprocess.run(["umount", str(folder)], check=True)
            assert subprocess.run(["e2fsck", "-p", device], capture_output=True).returncode in (0, 1)
            subprocess.run(["mount", device, str(folder)], check=True)

        yield Disk(folder, lambda: fill(below), mend)


@contextlib.contextmanager
def immutable_log(folder: Path) -> Iterator[Disk]:
    """The log's files can no longer be written, by anybody (EPERM): files in memory would take it, and mind it not."""

    def chattr(change: str) -> None:
        files = [str(file) for file in folder.rglob("audit.db*")]
        if files:
            command("chattr", change, *files)

    with ext4(folder, folder.parent / "image"):
        try:
            yield Disk(folder, lambda: chattr("+i"), lambda: chattr("-i"))
        finally:
            chattr("-i")
