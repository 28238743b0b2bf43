"""strace, for tests that look at the system calls of a process or make them fail; skipped where it cannot be used."""

from __future__ import annotations

import functools
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest


@functools.cache
def why_not() -> str:
    """Why system calls cannot be traced here; empty if they can."""
    if shutil.which("strace") is None:
        return "no strace here: make system"
    probe = subprocess.run(
        ["strace", "-f", "--seccomp-bpf", "-o", "/dev/null", "-e", "trace=fsync", "true"],
        capture_output=True,
        text=True,
    )
    return f"strace may not trace here: {probe.stderr.strip()[:200]}" if probe.returncode else ""


needs_strace = pytest.mark.skipif(sys.platform != "linux" or bool(why_not()), reason=why_not() or "no Linux here")


def traced(output: Path, calls: Sequence[str], *options: str) -> list[str]:
    """The beginning of a command line whose rest is run with these calls, in all its threads, written to a file."""
    # quicker, but a signal that is to be injected then never arrives
    filtered = [] if any("signal=" in option for option in options) else ["--seccomp-bpf"]
    return ["strace", "-f", "-y", *filtered, "-o", str(output), "-e", f"trace={','.join(calls)}", *options]
