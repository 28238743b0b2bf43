"""The matrix' worst runs of those that real processes on this machine can repeat.

`python tests/sim/worst.py [--seeds 100-103] [--json]` plays them all and prints the ten worst; the table is kept as
`worst.txt`, which `tests/peer/test_peer_worst_seeds.py` plays with real processes.

Only faults that come from outside a process: it is killed, stopped, its disk is full, lost, or an older copy. Not the
state "absent" (only the simulator can make one local training fail), nor a power cut (the kernel of a killed process
closes its connections). Only consortia of at most ``SITES`` members: each is two processes.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from matrix import LIMIT, ROUNDS, TOPOLOGIES, Case, under_way, world_of

from p2pfl.gossip import State
from p2pfl.gossip.contributions import count
from p2pfl.gossip.events import Resume
from p2pfl.sim import VirtualConsortium
from p2pfl.types import PeerId

TABLE = Path(__file__).parent / "worst.txt"
FAULTS = ("crash", "crash-for-good", "crash-disk-lost", "crash-backup", "pause", "full-disk")
STATES = tuple(state for state in State if state is not State.ABSENT)
SITES = 5
TEN = 10
AT_MOST = {"fault": 2, "topology": 4, "state": 2}  # of the ten: they shall show different things
SMALL = 0.1  # of a run: what an unsettled edge, and what a restart, count for


@dataclass(frozen=True)
class Bad:
    """How bad one run was. ``stretch``: how many undisturbed runs longer it took until all live sites agreed;
    ``missed``: training rounds without some participant; ``unsettled``: edge rounds that stayed one-sided."""

    fault: str
    state: str
    topology: str
    seed: int
    sites: int
    stretch: float
    missed: int
    unsettled: int
    restarts: int

    @property
    def score(self) -> float:
        """In runs: time lost, one member's rounds lost, and a tenth for each unsettled edge round and restart."""
        return self.stretch + self.missed / ROUNDS + SMALL * (self.unsettled + self.restarts)

    @property
    def command(self) -> str:
        """What plays it again."""
        return f"python tests/sim/matrix.py {self.fault} {self.state} {self.topology} {self.seed}"


def candidates(seeds: Iterable[int]) -> list[Case]:
    """The cells that real processes can repeat."""
    every = [
        Case(fault, state, topology, seed)
        for seed in seeds
        for fault in FAULTS
        for state in STATES
        for topology in TOPOLOGIES
    ]
    return [case for case in every if len(world_of(case)[0].sites) <= SITES]


def measure(case: Case) -> Bad | None:
    """Play one case; None if the fault never struck, or the run never began."""
    calm, _, _ = world_of(case)
    calm.begin()
    usual = _time_to_record(calm)
    world, _ = under_way(case)
    time = _time_to_record(world)
    if world.triggers.waiting:
        return None
    records = _records(world)
    if not records:
        return None
    missed = sum(ROUNDS - count(tuple(part) for part in row["contributed"]) for row in records[0].values())
    unsettled = sum(len(world.entries(number, "edge_unsettled")) for number in range(len(world.sites)))
    restarts = sum((site.life - 1) // 2 for site in world.sites)
    state = str(case.state).replace(" ", "-")
    stretch = round(time / usual - 1, 2)
    return Bad(case.fault, state, case.topology, case.seed, len(world.sites), stretch, missed, unsettled, restarts)


def _time_to_record(world: VirtualConsortium) -> float:
    """Virtual seconds until every live site that has the run is through with it, and all hold the same record.

    The same, with the statement of each. An emptied site that has not heard of the start record has no run: only the simulator gives it the proposal. A user
    whose pause is not over, because the peer was down when it was to end, ends it as soon as all others are done.
    """

    def known() -> bool:
        if any(site.coming_back and not site.alive for site in world.sites):
            return False
        begun = [site for site in world.sites if site.alive and site.machine and site.machine.context.start]
        at_work = [site for site in begun if not site.finished]
        for site in at_work if all(site.state is State.PAUSED for site in at_work) else ():
            site.command(Resume(site.now))
        records = _records(world)
        if not begun or at_work or not records or any(record != records[0] for record in records):
            return False
        expected = [site.peer_id for site in begun if site.peer_id in records[0]]
        return all(records[0][peer]["finished"] is not None for peer in expected)

    world.run(known, limit_seconds=LIMIT)
    return world.now


def _records(world: VirtualConsortium) -> list[dict[PeerId, dict[str, Any]]]:
    """The completion record as each live site that took part knows it; a new process has none of a run that is over."""
    machines = [site.machine for site in world.sites if site.alive and site.machine is not None]
    return [machine.closing.record() for machine in machines if machine.context.start and machine.closing.stated]


def ten_worst(measured: Iterable[Bad]) -> list[Bad]:
    """The worst first, with at most so many of one fault, state or graph."""
    chosen: list[Bad] = []
    seen: Counter[tuple[str, str]] = Counter()
    for bad in sorted(measured, key=lambda bad: (-bad.score, bad.command)):
        kinds = [(kind, getattr(bad, kind)) for kind in AT_MOST]
        if len(chosen) < TEN and all(seen[kind] < AT_MOST[kind[0]] for kind in kinds):
            chosen.append(bad)
            seen.update(kinds)
    return chosen


def table(chosen: Iterable[Bad], command: str) -> str:
    """The file's text: how it was made, then a row per run."""
    lines = [f"# {command}", "# score: stretch + missed / rounds + 0.1 (unsettled + restarts); see tests/sim/worst.py"]
    lines += [
        f"{bad.score:6.2f} stretch {bad.stretch:6.2f} missed {bad.missed:2d} unsettled {bad.unsettled:2d} "
        f"restarts {bad.restarts} sites {bad.sites}  {bad.command}"
        for bad in chosen
    ]
    return "\n".join(lines) + "\n"


def rows(file: Path = TABLE) -> list[Case]:
    """The cases of a table."""
    found = []
    for line in file.read_text().splitlines():
        if not line.startswith("#"):
            fault, state, topology, seed = line.split("matrix.py ")[1].split()
            found.append(Case(fault, State(state.replace("-", " ")), topology, int(seed)))
    return found


def _one_thread() -> None:
    torch.set_num_threads(1)


def main() -> None:
    """Rank and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", default="100-103", help="first and last seed of the matrix")
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    chosen = parser.parse_args()
    first, last = (int(part) for part in chosen.seeds.split("-"))
    cells = candidates(range(first, last + 1))
    with ProcessPoolExecutor(min(2, os.cpu_count() or 1), initializer=_one_thread) as pool:
        measured = [bad for bad in pool.map(measure, cells, chunksize=8) if bad is not None]
    print(f"{len(cells)} runs, the fault struck in {len(measured)}", file=sys.stderr)
    worst = ten_worst(measured)
    if chosen.json:
        print("\n".join(json.dumps(asdict(bad) | {"score": round(bad.score, 2)}) for bad in worst))
    else:
        print(table(worst, f"python tests/sim/worst.py --seeds {chosen.seeds}"), end="")


if __name__ == "__main__":
    main()
