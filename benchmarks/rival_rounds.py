"""Rivals of the simulator, each in a virtual environment of its own, on the same work (`benchmarks/rivals/`)."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent / "rivals"
LIMIT = 600  # seconds of one measurement
PEERS = 1000
CORES = str(os.cpu_count() or 1)
MARK = "RIVAL_MEASUREMENT"  # a variable that all processes of one measurement inherit
QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0", "HF_HUB_OFFLINE": "1"}  # nothing is reported
THREADS = {"one thread": {"OMP_NUM_THREADS": "1"}, "all threads": {"OMP_NUM_THREADS": CORES}}


@dataclass(frozen=True)
class Rival:
    """A package, what it needs, and the script that drives it."""

    name: str
    packages: tuple[str, ...]  # one `pip install` each
    script: str
    rounds: int
    peers: int = PEERS
    ways: Mapping[str, Mapping[str, str]] = field(default_factory=lambda: THREADS)  # variables; the quickest counts
    note: str = ""

    @property
    def key(self) -> str:
        """The name without the version, as the command line takes it."""
        return self.name.split()[0].lower()


RIVALS = (
    Rival("gossipy-dfl 0.0.1", ("torch==2.13.0", "gossipy-dfl==0.0.1"), "gossipy_rounds.py", 3),
    Rival(
        "Flower 1.41.0",
        ("torch==2.13.0", "flwr[simulation]==1.41.0"),  # 1.42.0 asks for a certifi that could not be installed
        "flower_rounds.py",
        3,
        ways={
            "a worker per core": {"RIVAL_CPUS": "1", "OMP_NUM_THREADS": "1"},
            "two workers per core": {"RIVAL_CPUS": "0.5", "OMP_NUM_THREADS": "1"},
            "one worker": {"RIVAL_CPUS": CORES, "OMP_NUM_THREADS": CORES},
        },
        note="has a server: FedAvg over all clients in each round, no graph of neighbours",
    ),
    Rival(
        "p2pfl 0.4.4",  # another project of our name
        (
            "torch==2.13.0",
            # its torch extra asks for torchvision below 0.18, and that for torch 2.2; datasets 2.15, which it asks for,
            # runs with no newer pyarrow on its NumPy and no newer huggingface_hub, its threads with no newer Lightning
            "p2pfl[dp]==0.4.4 lightning==2.5.6 pytorch-lightning==2.5.6 torchmetrics==1.9.0 ray==2.60.0 "
            "pyarrow==20.0.0 huggingface_hub==0.36.2",
        ),
        "p2pfl_044_rounds.py",
        5,
        peers=16,  # at 32 its rounds stood still, at 64 the peers did not find each other within two minutes
        ways={
            "its settings, threads": {"OMP_NUM_THREADS": "1"},
            "short waits, threads": {"OMP_NUM_THREADS": "1", "RIVAL_PERIOD": "0.05"},
            # on Ray (RIVAL_ACTORS) a sixth of that at 8 peers, and at 16 not three rounds in 150 s
        },
        note="is another project of our name; each of its peers waits for the models of all others",
    ),
)


class Failed(Exception):
    """A rival that could not be installed or measured; the reason in one line."""


def measure(rival: Rival, folder: Path) -> dict[str, Any]:
    """Peer-rounds per second in each way; the best counts. Who cannot be measured has ``failed``, the reason."""
    row: dict[str, Any] = {"name": rival.name, "peers": rival.peers, "note": rival.note, "runs": []}
    try:
        python = environment(rival, folder)
        for way, variables in rival.ways.items():
            try:
                row["runs"].append(timed(rival, python, variables) | {"way": way})
            except Failed as error:
                row["runs"].append({"way": way, "failed": str(error)})
        done = [run for run in row["runs"] if "failed" not in run]
        if not done:
            raise Failed(row["runs"][-1]["failed"])
    except Failed as error:
        return row | {"failed": str(error)}
    best = max(done, key=lambda run: run["peer_rounds_per_second"])
    return row | {"peer_rounds": best["peer_rounds_per_second"], "way": best["way"]}


def timed(rival: Rival, python: Path, variables: Mapping[str, str]) -> dict[str, Any]:
    """What the rival's script prints. It runs in an empty folder, which is its home, too, and leaves no process."""
    mark = secrets.token_hex(16)
    with tempfile.TemporaryDirectory(
        prefix="rival-", dir="/tmp", ignore_cleanup_errors=True
    ) as place:  # short: sockets
        own = {"HOME": place, "RAY_TMPDIR": place, MARK: mark}
        clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        out, err = Path(place) / "out", Path(place) / "err"  # files: who is left cannot hold a pipe open
        with out.open("wb") as output, err.open("wb") as errors:
            process = subprocess.Popen(
                [str(python), str(HERE / rival.script), str(rival.peers), str(rival.rounds)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                cwd=place,
                env={**clean, **QUIET, **own, **variables},
            )
            try:
                status = process.wait(LIMIT)
            except subprocess.TimeoutExpired:
                raise Failed(f"not done after {LIMIT} s") from None
            finally:
                end(process, mark)
        lines = [line for line in out.read_text(errors="replace").splitlines() if line.startswith("{")]
        if status != 0 or not lines:
            raise Failed(reason(err.read_text(errors="replace"), f"ended with status {status} and no result"))
        try:
            return dict(json.loads(lines[-1]))
        except ValueError:
            raise Failed(f"its result cannot be read: {lines[-1][:80]}") from None


def end(process: subprocess.Popen[bytes], mark: str) -> None:
    """Ends the process and what it started, Ray's daemons and workers above all, by their ids."""
    process.kill()
    process.wait()
    for _ in range(100):
        left = list(marked(mark))
        if not left:
            return
        for number in left:
            try:
                os.kill(number, signal.SIGKILL)
            except ProcessLookupError:
                pass
        time.sleep(0.05)


def marked(mark: str) -> Iterator[int]:
    """Ids of the processes that have the mark in their environment. See proc(5), /proc/pid/environ."""
    wanted = f"{MARK}={mark}".encode()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if wanted in (entry / "environ").read_bytes().split(b"\0"):
                yield int(entry.name)
        except OSError:  # it has ended, or is another user's
            continue


def environment(rival: Rival, folder: Path) -> Path:
    """The rival's interpreter; its environment is made where there is none."""
    place = folder.absolute() / rival.name.replace(" ", "-")
    python = place / "bin" / "python"
    if not (place / ".complete").exists():
        commands = [[sys.executable, "-m", "venv", "--clear", str(place)]]
        # torch first and alone: pip then takes the pinned build
        commands += [[str(python), "-m", "pip", "install", "--quiet", *package.split()] for package in rival.packages]
        for command in commands:
            done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            if done.returncode:
                raise Failed("not installed: " + reason(done.stderr, f"pip ended with status {done.returncode}"))
        (place / ".complete").touch()
    return python


def reason(text: str, otherwise: str) -> str:
    """The last line that names an error."""
    named = [line.strip() for line in text.splitlines() if "error" in line.lower() or "exception" in line.lower()]
    return named[-1][:200] if named else otherwise
