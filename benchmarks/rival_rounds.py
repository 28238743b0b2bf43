"""Rivals of the simulator, each in a virtual environment of its own, on the same work (`benchmarks/rivals/`)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent / "rivals"
LIMIT = 1800  # seconds of one measurement


@dataclass(frozen=True)
class Rival:
    """A package, what it needs, and the script that drives it."""

    name: str
    packages: tuple[str, ...]
    script: str
    rounds: int


RIVALS = (Rival("gossipy-dfl 0.0.1", ("torch==2.13.0", "gossipy-dfl==0.0.1"), "gossipy_rounds.py", 3),)


def measure(rival: Rival, folder: Path, peers: int) -> dict[str, Any]:
    """Peer-rounds per second with one thread and with all: the better of the two counts."""
    python = environment(rival, folder)
    found = []
    for threads in (1, os.cpu_count() or 1):
        command = [str(python), str(HERE / rival.script), str(peers), str(rival.rounds)]
        variables = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            check=True,
            timeout=LIMIT,
            env=variables,
        )
        found.append(json.loads(done.stdout.splitlines()[-1]) | {"threads": threads})
    best = max(found, key=lambda row: row["peer_rounds_per_second"])
    return {"name": rival.name, "peers": peers, "runs": found, "peer_rounds": best["peer_rounds_per_second"]}


def environment(rival: Rival, folder: Path) -> Path:
    """The rival's interpreter; its environment is made where there is none."""
    place = folder / rival.name.replace(" ", "-")
    python = place / "bin" / "python"
    if not (place / ".complete").exists():
        subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
        for package in rival.packages:  # torch first and alone: pip then takes the pinned build
            subprocess.run([str(python), "-m", "pip", "install", "--quiet", package], check=True)
        (place / ".complete").touch()
    return python
