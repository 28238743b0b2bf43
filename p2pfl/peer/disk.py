"""Whether a home can be written now: for `p2pfl doctor`, and for whoever asks a peer that has stopped."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

from p2pfl.errors import StoreError
from p2pfl.peer.findings import BROKEN, LOOK, OK, Finding
from p2pfl.peer.home import Home

PROBE_BYTES = 256 * 1024
"""What is written for a trial: more than a commit of the log and its delta's file need in a small run."""

LOW_BYTES = 256 * 1024 * 1024
"""Free space below which somebody should look: a long run writes some hundred megabytes."""


_OF_A_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS}
_OF_A_FILE = {errno.EPERM, errno.EACCES}  # a packet filter answers so, too: only where a file is named


def as_store_error(error: BaseException) -> BaseException:
    """A disk's refusal that came from anywhere in the peer, said as such; every other error as it is."""
    if not isinstance(error, OSError):
        return error
    if error.errno in _OF_A_DISK or (error.errno in _OF_A_FILE and error.filename is not None):
        what = error.filename or "a file of this home"
        return StoreError(f"{what} could not be written: {error.strerror}; see `p2pfl doctor`")
    return error


def disk_problem(home: Home) -> str | None:
    """Why the peer of this home could not write its log, or None. Writes and syncs a small file, and deletes it.

    The log itself is never opened: closing it here would take the locks of a peer in the same process away.
    """
    for path in (home.path, home.audit, home.audit.with_name(home.audit.name + "-wal")):
        if path.exists() and not os.access(path, os.W_OK):
            return f"{path} cannot be written: rights, an immutable file, or a file system that is read-only"
    try:
        _try(home.path / f"disk-probe.{os.getpid()}")
    except OSError as error:
        return f"{home.path} cannot be written: {error.strerror}"
    return None


def _try(path: Path) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(bytes(PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
    finally:
        with contextlib.suppress(OSError):
            path.unlink()


def disk_finding(home: Home) -> Finding:
    """One line about the disk under the home."""
    problem = disk_problem(home)
    if problem is not None:
        return Finding("disk", BROKEN, f"{problem}; a peer that cannot write its log sends nothing and stops")
    space = os.statvfs(home.path)
    free = space.f_bavail * space.f_frsize
    text = f"a file was written and synced; {free // 2**20} MiB are free"
    return Finding("disk", LOOK if free < LOW_BYTES else OK, text)
