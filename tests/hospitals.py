"""Hospitals as real processes: every step a `p2pfl` command line, `p2pfl up` in the background."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bottle import QUADRATIC_PLAN, Quadratic

from p2pfl.audit import Entry, read_entries, verify_log
from p2pfl.errors import P2PFLError
from p2pfl.peer import ask, found_consortium, open_home

COMMAND_TIME = 90.0  # seconds one command line may take; the worker's first import of torch is in it
STOP_TIME = 15.0
POLL = 0.05
TAG = "points"

SETTINGS = """[plan]
name = "points"

[data]
tag = "points"

[training]
rule = "dpsgd"
learning_rate = 0.1
local_steps = {local_steps}
batch_size = 4
rounds = {rounds}
closing_rounds = {closing_rounds}
dtype = "float64"
deadline = {deadline}
"""


def until(condition: Callable[[], Any], seconds: float, what: str | Callable[[], str]) -> Any:
    """Look again and again, for a bounded time; the condition's first true value."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > end:
            said = what if isinstance(what, str) else what()
            raise AssertionError(f"not within {seconds:.0f} s: {said}")
        time.sleep(POLL)
    return value


def write_plan(
    folder: Path, *, rounds: int, deadline: float = 5.0, closing_rounds: int = 2, local_steps: int = 1
) -> Path:
    """A plan that trains three numbers."""
    folder.mkdir()
    (folder / "plan.py").write_text(QUADRATIC_PLAN)
    settings = SETTINGS.format(rounds=rounds, deadline=deadline, closing_rounds=closing_rounds, local_steps=local_steps)
    (folder / "plan.toml").write_text(settings)
    return folder


def free_port() -> int:
    """A port on the loopback interface that nobody holds now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Hospital:
    """One home and its process."""

    def __init__(
        self, folder: Path, name: str, listen: str | None, *, inside: Sequence[str] = (), passphrase: str | None = None
    ) -> None:
        self.name = name
        self.folder = folder
        self.home = folder / name
        self.listen = listen
        self.process: subprocess.Popen[bytes] | None = None
        self._inside = tuple(inside)
        self.passphrase = passphrase
        self._secret: Path | None = None
        if passphrase is not None:
            self._secret = folder / f"{name}.passphrase"
            self._secret.write_text(passphrase + "\n")

    # --- command lines

    @property
    def key(self) -> list[str]:
        """The option for verbs that open the key."""
        return [] if self._secret is None else ["--passphrase-file", str(self._secret)]

    def command(self, *arguments: str) -> list[str]:
        """One command line inside this hospital's network."""
        return [*self._inside, sys.executable, "-m", "p2pfl", *arguments]

    def attempt(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Carry out one verb, whatever comes of it."""
        return subprocess.run(
            self.command(*arguments), capture_output=True, text=True, timeout=COMMAND_TIME, stdin=subprocess.DEVNULL
        )

    def p2pfl(self, *arguments: str) -> str:
        """Carry out one verb that must succeed; its standard output."""
        done = self.attempt(*arguments)
        assert done.returncode == 0, f"{self.name}: p2pfl {' '.join(arguments)}: {done.stdout}{done.stderr}"
        return done.stdout

    def init(self) -> None:
        """`p2pfl init`; the member record goes into a file, as a person would send it."""
        where = ["--no-listen"] if self.listen is None else ["--listen", self.listen]
        secret = self.key or ["--bare"]
        record = self.p2pfl("init", str(self.home), "--name", self.name, *where, *secret)
        (self.folder / f"{self.name}.record").write_text(record)

    def ask(self, verb: str, **arguments: Any) -> Any:
        """Ask the running peer as the verbs do. Raises what it answers."""
        return asyncio.run(ask(self.home, verb, timeout=COMMAND_TIME, **arguments))

    def status(self) -> dict[str, Any] | None:
        """What a running peer says of itself; None while it does not answer."""
        done = self.attempt("status", str(self.home), "--json")
        return json.loads(done.stdout) if done.returncode == 0 else None

    # --- the process

    def up(self) -> None:
        """Start `p2pfl up` in the background; its output goes to up.log beside the home."""
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                self.command("up", str(self.home), "--json", *self.key),
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    @property
    def log_file(self) -> Path:
        """Where `up` prints."""
        return self.folder / f"{self.name}.log"

    def said(self, topic: str) -> list[dict[str, Any]]:
        """The events of one topic that `up --json` printed so far, over all its lives."""
        found = []
        for line in self.log_file.read_text().splitlines() if self.log_file.exists() else []:
            with contextlib.suppress(ValueError):
                value = json.loads(line)
                if value.get("topic") == topic:
                    found.append(value)
        return found

    def send(self, number: signal.Signals) -> None:
        """A signal to the peer's own process, not to its worker."""
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, and wait until the process is gone."""
        self.send(signal.SIGKILL)
        assert self.process is not None
        self.process.wait(STOP_TIME)

    def stop(self) -> int | None:
        """End the process as a person would, harder if it does not listen; its exit code."""
        if self.process is None:
            return None
        if self.process.poll() is None:
            self.send(signal.SIGCONT)
            self.process.terminate()
            try:
                self.process.wait(STOP_TIME)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(STOP_TIME)
        return self.process.returncode

    def running(self) -> bool:
        """Whether the process lives."""
        return self.process is not None and self.process.poll() is None

    # --- what it wrote down

    def entries(self, *kinds: str, start: int = 0) -> list[Entry]:
        """Log entries so far, of these kinds (all, if none is named), also while the peer runs."""
        try:
            return [entry for entry in read_entries(self.home / "audit.db", start) if not kinds or entry.kind in kinds]
        except P2PFLError:
            return []  # not made yet, or the writer is just making it

    def report(self) -> dict[str, Any] | None:
        """The report of the only run, once its part is over here."""
        files = list(self.home.glob("runs/*/report.json"))
        assert len(files) < 2
        return json.loads(files[0].read_text()) if files else None

    @property
    def peer_id(self) -> str:
        """The peer id, from the log."""
        return str(self.entries("peer_started")[0].body["peer"])

    def last_words(self) -> str:
        """The end of what `up` printed, for a failing test's message."""
        text = self.log_file.read_text() if self.log_file.exists() else ""
        kinds = [entry.kind for entry in self.entries()][-8:]
        return f"\n--- {self.name}, log ends in {kinds}\n" + "\n".join(text.splitlines()[-12:])


def together(hospitals: Sequence[Hospital], work: Callable[[Hospital], Any]) -> list[Any]:
    """The same work at all hospitals, two at a time."""
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(work, hospitals))


def found(folder: Path, hospitals: Sequence[Hospital]) -> None:
    """From nothing to four homes with one charter and granted data, by command lines only."""
    together(hospitals, Hospital.init)
    charter, first = folder / "charter", hospitals[0]
    records = [str(folder / f"{hospital.name}.record") for hospital in hospitals]
    said = first.p2pfl("charter", "new", *records, "--name", "north", "-o", str(charter))
    fingerprint = said.split("fingerprint", 1)[1].strip()

    def sign(hospital: Hospital) -> None:
        own = folder / f"charter.{hospital.name}"
        hospital.p2pfl("charter", "sign", str(hospital.home), str(charter), "-o", str(own), *hospital.key)

    together(hospitals, sign)
    signed = [str(folder / f"charter.{hospital.name}") for hospital in hospitals]
    first.p2pfl("charter", "merge", *signed, "-o", str(charter))
    tables = Quadratic.make([8, 4, 6, 5]).write(folder)

    def accept(hospital: Hospital) -> None:
        hospital.p2pfl("charter", "accept", str(hospital.home), str(charter), "--fingerprint", fingerprint)
        file = tables[list(hospitals).index(hospital)]
        hospital.p2pfl("data", "add", str(hospital.home), "--tag", TAG, str(file))

    together(hospitals, accept)


def found_quickly(folder: Path, hospitals: Sequence[Hospital]) -> None:
    """The same homes and charter as `found` makes, by the calls that the verbs make, in this process."""
    listen = {hospital.home: hospital.listen for hospital in hospitals if hospital.listen is not None}
    secrets = {hospital.home: hospital.passphrase for hospital in hospitals}
    names = [hospital.name for hospital in hospitals]
    found_consortium(secrets, "north", {"kind": "ring"}, listen=listen, names=names)
    tables = Quadratic.make([8, 4, 6, 5][: len(hospitals)]).write(folder)
    for hospital, file in zip(hospitals, tables, strict=True):
        open_home(hospital.home).registry.add(TAG, file, now=int(time.time()))


@contextlib.contextmanager
def all_up(hospitals: Sequence[Hospital]) -> Iterator[None]:
    """`p2pfl up` everywhere, ended at last; waits until every process has told that it is up."""
    try:
        for hospital in hospitals:
            hospital.up()
        for hospital in hospitals:
            until(lambda hospital=hospital: hospital.said("up") or not hospital.running(), 60, hospital.last_words)
            assert hospital.running(), hospital.last_words()
        yield
    finally:
        for hospital in hospitals:
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                hospital.stop()


def propose(proposer: Hospital, plan: Path, *options: str) -> str:
    """Propose the plan; returns the run's id."""
    said = proposer.p2pfl("plan", "propose", str(proposer.home), str(plan), "--seed", "1", "--json", *options)
    return str(json.loads(said)["run"])


def approve(hospital: Hospital, run: str) -> None:
    """Wait until the proposal is known here, and approve it."""
    until(lambda: any(run.startswith(row["run"]) for row in hospital.said("proposal")), 30, hospital.last_words)
    hospital.p2pfl("plan", "approve", str(hospital.home), run, "--yes", "--json")


def until_round(hospital: Hospital, number: int, seconds: float = 60) -> None:
    """Wait until the hospital's log has mixed this round."""

    def there() -> bool:
        return any(entry.body["round"] >= number for entry in hospital.entries("mixed"))

    until(there, seconds, hospital.last_words)


def verified(hospital: Hospital) -> bool:
    """Whether the log holds, judged by the public check."""
    outcome = verify_log(hospital.home / "audit.db", hospital.peer_id)
    assert outcome.ok, f"{hospital.name}: {outcome.problem}"
    return True


def orphans() -> list[int]:
    """Worker processes that outlived their peer: children of process 1 that run our worker module."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            line = (folder / "cmdline").read_bytes()
            parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
            if b"p2pfl.train.worker" in line and parent == 1:
                found.append(int(folder.name))
    return found
