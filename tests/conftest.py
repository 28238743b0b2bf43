"""Where the tests keep their files: in memory where there is room, so that a slow disk does not decide what passes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

SHARED_MEMORY = Path("/dev/shm")
ROOM = 6 * 2**30  # bytes; the long sets hold less than a tenth of it at once


def pytest_configure(config: pytest.Config) -> None:
    """Peers sync their logs to the disk hundreds of times per test; some disks take half a second for each sync."""
    if SHARED_MEMORY.is_dir() and os.access(SHARED_MEMORY, os.W_OK) and shutil.disk_usage(SHARED_MEMORY).free >= ROOM:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(SHARED_MEMORY))
