"""Rounds per second of four real peers: `p2pfl up` processes with real homes, driven over their control sockets.

The work is small on purpose (an MLP 64-64-10, 100 samples each, 5 steps of batch 20), so that what remains is the
protocol: signing, sealing, the log's syncs, the wire, the hops between a peer and its worker.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from figures import machine, show, sync_rate, table

from p2pfl.errors import P2PFLError
from p2pfl.governance import read_plan
from p2pfl.peer import ask, follow, found_consortium, open_home

PEERS = 4
SAMPLES = 100
INPUTS, CLASSES = 64, 10
TARGET = 5.0  # rounds per second
OLD_SECONDS = (1.9, 7.1)  # per round: p2pfl 0.4.4, the same model, samples, steps and number of nodes
START_LIMIT = 60.0  # seconds until four processes answer and are linked
RUN_LIMIT = 300.0
PAUSE = 0.05  # seconds between two looks at a starting peer
WARM_UP = 3  # first rounds that do not count: links, first imports and caches

PLAN = f'''"""A benchmark: a small network on random digits."""

import csv

import torch
from torch import nn


def load(path):
    with path.open(newline="", encoding="utf-8") as file:
        rows = [[float(value) for value in row] for row in list(csv.reader(file))[1:]]
    values = torch.tensor(rows)
    return {{"train": (values[:, :{INPUTS}], values[:, {INPUTS}].long())}}


def model():
    return nn.Sequential(nn.Linear({INPUTS}, WIDTH), nn.ReLU(), nn.Linear(WIDTH, {CLASSES}))


def loss(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")
'''

SETTINGS = """[plan]
name = "rounds-benchmark"

[data]
tag = "digits"

[topology]
kind = "full"

[training]
rule = "dpsgd"
learning_rate = 0.05
local_steps = 5
batch_size = 20
rounds = {rounds}
closing_rounds = 0
deadline = 30.0
"""


def parameters(width: int) -> int:
    """Parameters of the network with this many hidden units."""
    return (INPUTS + 1) * width + (width + 1) * CLASSES


def prepare(folder: Path, rounds: int, width: int) -> tuple[list[Path], Path]:
    """Four founded homes with granted data, and the plan's folder."""
    names = [f"site-{number}" for number in range(PEERS)]
    homes = [folder / name for name in names]
    listen = {home: f"/ip4/127.0.0.1/tcp/{free_port()}" for home in homes}
    found_consortium(dict.fromkeys(homes), "benchmark", {"kind": "full"}, listen=listen, names=names)
    draw = random.Random(1)
    for home in homes:
        file = folder / f"{home.name}.csv"
        lines = [",".join([*(f"x{column}" for column in range(INPUTS)), "label"])]
        for _ in range(SAMPLES):
            values = [f"{draw.gauss(0, 1):.4f}" for _ in range(INPUTS)]
            lines.append(",".join([*values, str(draw.randrange(CLASSES))]))
        file.write_text("\n".join(lines) + "\n")
        open_home(home).registry.add("digits", file, now=int(time.time()))
    plan = folder / "plan"
    plan.mkdir()
    (plan / "plan.py").write_text(PLAN.replace("WIDTH", str(width)))
    (plan / "plan.toml").write_text(SETTINGS.format(rounds=rounds))
    read_plan(plan)
    return homes, plan


def free_port() -> int:
    """A port nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.asynccontextmanager
async def processes(homes: list[Path]) -> AsyncIterator[None]:
    """`p2pfl up` on every home, linked to all others; ended at last."""
    running = []
    try:
        for home in homes:
            with (home / "up.log").open("ab") as log:
                running.append(
                    await asyncio.create_subprocess_exec(
                        sys.executable, "-m", "p2pfl", "up", str(home), "--json",
                        stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log,
                    )
                )  # fmt: skip
        async with asyncio.timeout(START_LIMIT):
            while not all([await linked(home) for home in homes]):
                await asyncio.sleep(PAUSE)
        yield
    finally:
        for process in running:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        await asyncio.gather(*(process.wait() for process in running))


async def linked(home: Path) -> bool:
    """Whether the peer on this home answers and has a link to everybody."""
    try:
        status = await ask(home, "status", timeout=5)
    except (P2PFLError, OSError, TimeoutError):
        return False
    return all(member["link"] for member in status["members"])


async def approve(home: Path, run: str) -> None:
    """Approve the proposal once it was heard."""
    async with asyncio.timeout(START_LIMIT):
        while run not in {row["run"] for row in await ask(home, "list", timeout=5)}:
            await asyncio.sleep(PAUSE)
    await ask(home, "approve", run=run)


async def watch(home: Path, run: str) -> list[float]:
    """The times at which this peer finished each of its rounds, as told over the control socket."""
    times = []
    async for topic, _ in follow(home, run):
        if topic == "mixed":
            times.append(time.perf_counter())
    return times


async def measure(folder: Path, rounds: int, width: int) -> dict[str, Any]:
    """One run through four processes; its figures."""
    homes, plan = prepare(folder, rounds, width)
    async with processes(homes):
        before = {home: await ask(home, "status") for home in homes}
        run = (await ask(homes[0], "propose", plan=str(plan), seed=1))["run"]
        watcher = asyncio.create_task(watch(homes[0], run))
        async with asyncio.timeout(RUN_LIMIT):
            await asyncio.gather(*(approve(home, run) for home in homes[1:]))
            times = await watcher
            while not all(report_file(home, run).exists() for home in homes):
                await asyncio.sleep(PAUSE)
        after = {home: await ask(home, "status") for home in homes}
    reports = [json.loads(report_file(home, run).read_text()) for home in homes]
    if any(report["rounds_done"] != rounds or report["missing"] for report in reports):
        raise SystemExit(f"not all peers took part in all {rounds} rounds; see the homes' up.log")
    seconds = (times[-1] - times[WARM_UP - 1]) / (rounds - WARM_UP)
    commits = sum(after[home]["log"]["commits"] - before[home]["log"]["commits"] for home in homes)
    return {
        "rounds": rounds,
        "parameters": parameters(width),
        "held_bytes_per_peer": sum(held_bytes(home, run) for home in homes) / PEERS,
        "rounds_per_second": 1 / seconds,
        "milliseconds_per_round": seconds * 1e3,
        "parts": parts(reports, rounds, seconds),
        "commits_per_round_and_peer": commits / PEERS / rounds,
        "bytes_per_round_and_peer": sum(report["bytes_sent"] for report in reports) / PEERS / rounds,
    }


def held_bytes(home: Path, run: str) -> int:
    """What a peer holds on disk for others."""
    return sum(file.stat().st_size for file in (home / "runs" / run / "holdings").glob("*"))


def report_file(home: Path, run: str) -> Path:
    """The report a peer writes when its part is over."""
    return home / "runs" / run / "report.json"


def parts(reports: list[dict[str, Any]], rounds: int, seconds: float) -> list[dict[str, Any]]:
    """Mean milliseconds per round of each part, and its share of a round's time; parallel parts overlap."""
    mean = {
        name: sum(report["timings"][name] for report in reports) / PEERS / rounds
        for name in reports[0]["timings"]
        if name != "sent_bytes"
    }
    mean["log"] -= mean["signing"]  # measured inside it
    mean["the rest"] = seconds - sum(value for name, value in mean.items() if name not in BESIDE)
    return [{"part": name, "milliseconds": mean[name] * 1e3, "share": mean[name] / seconds} for name in MEANINGS]


BESIDE = ("log_after", "wire", "fetching")  # run beside the others; their time is no part of the sum


MEANINGS = {
    "training": "5 local steps in the worker process",
    "encoding": "the worker hands over the message and its digest",
    "sealing": "encrypt and hash the message",
    "signing": "sign core and cover, wrap the key for 3 partners",
    "log": "ciphertext file and commit, both synced, before anything leaves",
    "waiting": "own message announced, until every neighbour's is here and opened",
    "mixing": "the worker mixes",
    "the rest": "the event loop's own steps between these",
    "wire": "beside: announcements written to the 3 links (sum)",
    "fetching": "beside: open what came in, hand it to the worker (sum of 3)",
    "log_after": "beside: the commit of the mixing",
}


def tables(result: dict[str, Any]) -> str:
    """The figures as text."""
    rows = [
        ["rounds per second", result["rounds_per_second"]],
        ["milliseconds per round", result["milliseconds_per_round"]],
        ["target, rounds per second", TARGET],
        ["p2pfl 0.4.4, rounds per second", f"{1 / OLD_SECONDS[1]:.2f} to {1 / OLD_SECONDS[0]:.2f}"],
        ["disk: synced 4 KiB appends per second", result["syncs_per_second"]],
        ["commits per round and peer", result["commits_per_round_and_peer"]],
        ["bytes sent per round and peer", result["bytes_per_round_and_peer"]],
        ["bytes held for others per peer", result["held_bytes_per_peer"]],
        ["cores", result["machine"]["cores"]],
        ["interpreter", result["machine"]["interpreter"]],
    ]
    title = (
        f"{PEERS} processes, MLP ({result['parameters']:,} parameters), full graph over tcp, {result['rounds']} rounds"
    )
    whole = table(title, ["figure", "value"], rows)
    shares = [
        [row["part"], row["milliseconds"], f"{row['share']:.0%}", MEANINGS.get(row["part"], "")]
        for row in result["parts"]
    ]
    inside = table("one round at one peer (mean)", ["part", "ms", "share", "what"], shares)
    return f"{whole}\n\n{inside}"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--width", type=int, default=64, help="hidden units; 146666 give a model of 44 MB")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--folder", type=Path, default=None, help="where the homes go; the disk measured")
    arguments = parser.parse_args()
    if arguments.rounds <= WARM_UP:
        parser.error(f"--rounds must be above {WARM_UP}, the rounds that do not count")
    with tempfile.TemporaryDirectory(prefix="p2pfl-rounds-", dir=arguments.folder) as name:
        folder = Path(name)
        syncs = sync_rate(folder)
        result = asyncio.run(measure(folder, arguments.rounds, arguments.width))
        result = {"machine": machine(), "target": TARGET, "syncs_per_second": syncs, **result}
    show(result, tables(result), arguments.json)


if __name__ == "__main__":
    main()
