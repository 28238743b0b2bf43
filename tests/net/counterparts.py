"""Programs of tests/counterparts as child processes: JSON lines in, JSON lines out."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent.parent / "counterparts"
BOUND = 20.0
"""Seconds that bound every wait of a test; never reached when it passes."""

NODE = 20  # major version; older ones are not tried
LINE_LIMIT = 1 << 20


def why_not() -> str | None:
    """Why these programs cannot be started here, or None."""
    if shutil.which("node") is None:
        return "needs node: install nodejs and npm (make system)"
    version = subprocess.run(["node", "--version"], capture_output=True, text=True, timeout=BOUND, check=False).stdout
    if int(version.strip().lstrip("v").split(".")[0] or 0) < NODE:
        return f"needs node {NODE} or newer, this is {version.strip()}"
    if not (FOLDER / "node_modules" / ".complete").exists():
        return "needs the npm packages of tests/counterparts: run scripts/counterparts.sh (make system)"
    return None


class Counterpart:
    """One program. Use as an async context manager; it ends with its standard input."""

    def __init__(self, script: str) -> None:
        self._script = script
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Counterpart:
        self._process = await asyncio.create_subprocess_exec(
            "node", str(FOLDER / self._script),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=LINE_LIMIT,
        )  # fmt: skip
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._process is not None and self._process.stdin is not None
        self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), BOUND)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()

    def tell(self, command: str, **options: Any) -> None:
        """Have it carry out one command."""
        assert self._process is not None and self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": command, **options}).encode() + b"\n")

    async def hear(self, kind: str, *values: Any) -> Any:
        """The next report of this kind (and with one of these values); others before it are dropped, faults raised."""
        assert self._process is not None and self._process.stdout is not None
        async with asyncio.timeout(BOUND):
            while line := await self._process.stdout.readline():
                report = json.loads(line)
                if "fault" in report:
                    raise AssertionError(f"{self._script} says: {report['fault']}")
                if kind in report and (not values or report[kind] in values):
                    return report[kind]
        raise AssertionError(f"{self._script} ended before it reported {kind}")
