"""Four homes with a `p2pfl up` each, joined over tcp, and what is needed to play their runs again in memory."""

from __future__ import annotations

import asyncio
import contextlib
import csv
import json
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bottle import Bottle

from p2pfl.audit import AuditLog, Entry, read_entries, verify_log
from p2pfl.crypto import Identity, read_key
from p2pfl.errors import P2PFLError
from p2pfl.gossip import Proposal, open_proposal
from p2pfl.gossip.starting import record_from_payload, schedule_of
from p2pfl.governance import Plan, check_charter, plan_from_bundle
from p2pfl.peer import ask, found_consortium, open_home
from p2pfl.train.session import Session
from p2pfl.types import PeerId, Roster, StartRecord

NAMES = ("lille", "caen", "rouen", "amiens")
SIZES = (50, 40, 30, 20)  # all above the batch size: which examples are drawn matters
FEATURES = 6
WAIT = 100.0  # seconds for each thing that is waited for; four interpreters import torch on two cores

PLAN = '''
"""Two classes from six numbers: a small perceptron."""
import csv
import torch
from torch import nn


def load(path):
    with open(path, newline="") as file:
        rows = [[float(value) for value in row] for row in list(csv.reader(file))[1:]]
    table = torch.tensor(rows)
    return {"train": (table[:, :-1], table[:, -1].long())}


def model():
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 2))


def loss(model, batch):
    x, label = batch
    return nn.functional.cross_entropy(model(x), label, reduction="none")
'''

SETTINGS = """
[plan]
name = "classes"
[data]
tag = "classes"
[training]
rule = "{rule}"
learning_rate = 0.1
local_steps = {steps}
batch_size = 8
rounds = {rounds}
closing_rounds = {closing}
dtype = "float32"
deadline = {deadline}
"""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As in the worker: sums are taken in one order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# --- four processes


def write_plan(
    folder: Path, rule: str, rounds: int, deadline: float, topology: str = "", steps: int = 3, closing: int = 2
) -> Path:
    """``topology``: lines of its table; without, the consortium's own ring, and for relays a chain."""
    if not topology and rule == "relaysgd":
        topology = 'kind = "chain"'
    plan = folder / "plan"
    plan.mkdir(parents=True)
    table = f"[topology]\n{topology}\n" if topology else ""
    (plan / "plan.py").write_text(PLAN)
    numbers = {"steps": steps, "rounds": rounds, "deadline": deadline, "closing": closing}
    (plan / "plan.toml").write_text(SETTINGS.format(rule=rule, **numbers) + table)
    return plan


def write_data(folder: Path) -> list[Path]:
    rng = np.random.default_rng(5)
    files = []
    for number, size in enumerate(SIZES):
        x = rng.normal(loc=0.3 * number, size=(size, FEATURES))
        label = (x[:, 0] + x[:, 1] * x[:, 2] > 0.2).astype(int)
        path = folder / f"data-{number}.csv"
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow([*(f"x{column}" for column in range(FEATURES)), "label"])
            writer.writerows([*(repr(float(value)) for value in row), kind] for row, kind in zip(x, label, strict=True))
        files.append(path)
    return files


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


@dataclass
class Site:
    """One home and its process."""

    home: Path
    process: asyncio.subprocess.Process

    def report(self, run: str = "*") -> dict[str, Any] | None:
        """Of this run, or of the only one."""
        files = list(self.home.glob(f"runs/{run}/report.json"))
        return json.loads(files[0].read_text()) if files else None

    def last_round(self) -> int:
        try:
            return max((entry.body["round"] for entry in self.entries("mixed")), default=-1)
        except P2PFLError:
            return -1  # the log is just being made

    def entries(self, *kinds: str) -> list[Entry]:
        return [entry for entry in read_entries(self.home / "audit.db", 0) if entry.kind in kinds]


async def until(condition: Callable[[], Any], what: str) -> Any:
    """Look again and again, for a bounded time."""
    end = time.monotonic() + WAIT
    while not (value := condition()):
        assert time.monotonic() < end, f"not within {WAIT:.0f} s: {what}"
        await asyncio.sleep(0.05)
    return value


async def answer(home: Path, command: str, good: Callable[[Any], Any], **arguments: Any) -> Any:
    """Ask a peer until its answer is good."""
    end = time.monotonic() + WAIT
    while True:
        value = None
        with contextlib.suppress(P2PFLError, TimeoutError):
            value = await ask(home, command, timeout=10, **arguments)
        if value is not None and good(value):
            return value
        said = (home / "up.log").read_text()[-800:] if (home / "up.log").exists() else ""
        assert time.monotonic() < end, f"{home.name}: {command} gave {value!r}; {said}"
        await asyncio.sleep(0.1)


@contextlib.asynccontextmanager
async def processes(folder: Path) -> AsyncIterator[list[Site]]:
    """Four homes on fixed ports of the loopback interface, their data granted, and a `p2pfl up` each."""
    homes = [folder / name for name in NAMES]
    listen = {home: f"/ip4/127.0.0.1/tcp/{port}" for home, port in zip(homes, free_ports(4), strict=True)}
    found_consortium(dict.fromkeys(homes), "test", {"kind": "ring"}, listen=listen)
    for home, file in zip(homes, write_data(folder), strict=True):
        open_home(home).registry.add("classes", file, now=int(time.time()))
    sites: list[Site] = []
    try:
        for home in homes:
            with (home / "up.log").open("ab") as log:
                process = await asyncio.create_subprocess_exec(
                    sys.executable, "-m", "p2pfl", "up", str(home), "--json",
                    stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                )  # fmt: skip
            sites.append(Site(home, process))
        for home in homes:
            linked = lambda value: sum(member["link"] is not None for member in value["members"]) >= 2  # noqa: E731
            await answer(home, "status", linked)
        yield sites
    finally:
        for site in sites:
            await stop(site)


async def stop(site: Site) -> None:
    if site.process.returncode is None:
        site.process.send_signal(signal.SIGCONT)
        site.process.terminate()
        try:
            await asyncio.wait_for(site.process.wait(), 20)
        except TimeoutError:
            site.process.kill()
            await site.process.wait()


async def begin(sites: Sequence[Site], plan: Path) -> str:
    """Propose at the first, approve at the others; returns the run's id."""
    run = str((await ask(sites[0].home, "propose", timeout=WAIT, plan=str(plan), seed=7))["run"])
    for site in sites[1:]:
        await answer(site.home, "list", lambda rows: any(row["run"] == run for row in rows))
    await asyncio.gather(*(ask(site.home, "approve", timeout=WAIT, run=run) for site in sites[1:]))
    return run


async def reports(sites: Sequence[Site], run: str = "*") -> list[dict[str, Any]]:
    return [await until(lambda site=site: site.report(run), f"{site.home.name}'s report") for site in sites]


# --- the same run in memory


@dataclass
class Recorded:
    """What lies in the homes of a run."""

    roster: Roster
    proposal: Proposal
    plan: Plan
    start: StartRecord
    initial: bytes
    identities: dict[PeerId, Identity]
    data: dict[PeerId, Path]
    entries: dict[PeerId, list[Entry]]

    @property
    def keys(self) -> dict[PeerId, bytes]:
        """The sampling keys as each peer derives its own."""
        run = bytes.fromhex(self.start.run)
        return {peer: identity.derive("p2pfl sampling", run) for peer, identity in self.identities.items()}

    @classmethod
    def read(cls, sites: Sequence[Site], run: str) -> Recorded:
        """After the processes have ended. The logs must hold."""
        first = open_home(sites[0].home)
        roster = check_charter(first.charter(), now=int(time.time()))
        _, proposal = open_proposal((first.run_folder(run) / "proposal").read_bytes())
        identities, data, entries = {}, {}, {}
        for site in sites:
            home = open_home(site.home)
            identity = read_key(site.home / "identity.key", None)
            outcome = verify_log(home.audit, identity.peer_id)
            assert outcome.ok, outcome.problem
            identities[identity.peer_id] = identity
            data[identity.peer_id] = Path(home.registry.resolve("classes").path)
            entries[identity.peer_id] = [entry for entry in read_entries(home.audit, 0) if entry.body.get("run") == run]
        log = AuditLog.open(first.audit, next(iter(identities.values())))
        started = next(entry for entry in log.entries() if entry.kind == "run_started")
        payload = log.document(started.documents[0][1])
        log.close()
        assert payload is not None
        start = record_from_payload(proposal, payload, roster.peer_ids)
        initial = (sites[0].home / "contents" / proposal.initial).read_bytes()
        return cls(roster, proposal, plan_from_bundle(proposal.bundle), start, initial, identities, data, entries)

    def bottle(self) -> Bottle:
        """The same run on machines joined in memory."""
        peers = [peer for peer in self.roster.peer_ids if peer in self.start.shares]
        return Bottle(
            [self.data[peer] for peer in peers], self.plan.source.decode(), self.plan.session_settings(),
            identities=[self.identities[peer] for peer in peers], roster=self.roster, proposal=self.proposal,
            initial=self.initial, keys=self.keys,
        )  # fmt: skip


def replay(
    start: StartRecord,
    initial: bytes,
    sessions: Mapping[PeerId, Session],
    keys: Mapping[PeerId, bytes],
    steps: int,
    entries: Mapping[PeerId, Sequence[tuple[str, Mapping[str, Any]]]],
) -> dict[PeerId, str]:
    """Drive sessions through exactly the decisions in the logs, (kind, body) each; the digests at the end.

    Only what was decided is taken from a log: whether a site sent in a round, which edges it mixed with which
    weights, and which displacements it took back. Every number of every message is computed anew.
    """
    for peer, session in sessions.items():
        session.begin(initial, bytes.fromhex(start.run), keys[peer], start.shares[peer])
    total = schedule_of(start).total
    for round_ in range(total + 1):
        sent: dict[PeerId, list[dict[str, Any]]] = {}
        closing = round_ >= start.rounds
        for peer, session in sessions.items():
            if any(kind == "delta_sent" and body["round"] == round_ for kind, body in entries[peer]):
                if not closing:
                    session.train(round=round_, steps=steps)
                sent[peer] = session.encode(round=round_, step=0, closing=closing)
        for peer, session in sessions.items():
            for kind, body in entries[peer]:
                if kind == "mixed" and body["round"] == round_:
                    edges = []
                    for origin, weight in body["edges"]:
                        named = {}
                        for message in sent[origin]:
                            named[message["channel"]] = key = f"{origin} {round_} {message['channel']}"
                            session.receive(key, message["channel"], message["payload"], message["result"])
                        edges.append([origin, weight, named])
                    session.mix(
                        round=round_, step=0, edges=edges, corrections=body["taken_back"], last=True, closing=closing
                    )
    return {peer: session.digest() for peer, session in sessions.items()}


def replay_recorded(recorded: Recorded) -> dict[PeerId, str]:
    sessions = {}
    for peer in recorded.start.shares:
        sessions[peer] = Session(recorded.plan.source, recorded.plan.session_settings())
        sessions[peer].load_data(str(recorded.data[peer]))
    entries = {peer: [(entry.kind, entry.body) for entry in rows] for peer, rows in recorded.entries.items()}
    steps = recorded.plan.settings.training.local_steps
    return replay(recorded.start, recorded.initial, sessions, recorded.keys, steps, entries)
