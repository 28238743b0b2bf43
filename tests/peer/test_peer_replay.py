"""Kept deltas replayed: real peers, real logs, and what is said of rounds that were changed, lost or never kept."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from bottle import QUADRATIC_PLAN, Quadratic

from p2pfl.audit import LogFacts, gather_source
from p2pfl.governance import read_plan
from p2pfl.net import MemoryNetwork
from p2pfl.peer import Peer, found_consortium, kept_folders, open_home, replay_run
from p2pfl.peer.local import LocalPeers

NAMES = ("lille", "caen", "rouen")

SETTINGS = """
[plan]
name = "points"
[data]
tag = "points"
[training]
rule = "{rule}"
learning_rate = 0.1
local_steps = 2
batch_size = 1000
rounds = {rounds}
closing_rounds = 2
dtype = "float64"
deadline = 20
"""


@contextlib.asynccontextmanager
async def trained(
    folder: Path, *, rule: str = "dpsgd", rounds: int = 4, keeps: Sequence[str] = NAMES, limit: int = 2**30
) -> AsyncIterator[tuple[str, dict[str, Path]]]:
    """A run that is over, at three peers whose homes keep deltas; and the homes."""
    plan = folder / "plan"
    plan.mkdir()
    (plan / "plan.py").write_text(QUADRATIC_PLAN)
    (plan / "plan.toml").write_text(SETTINGS.format(rule=rule, rounds=rounds))
    homes = {name: folder / name for name in NAMES}
    found_consortium(dict.fromkeys(homes.values()), "replay", {"kind": "full"})
    for name in keeps:
        with (homes[name] / "home.toml").open("a") as file:
            file.write(f"\n[keep]\ndeltas = true\nlimit = {limit}\n")
    for home, data in zip(homes.values(), Quadratic.make((40, 30, 20)).write(folder), strict=True):
        open_home(home).registry.add("points", data, now=0)
    network = MemoryNetwork()
    async with contextlib.AsyncExitStack() as stack:
        peers = [await stack.enter_async_context(Peer(home, network=network)) for home in homes.values()]
        runs = await LocalPeers(peers, read_plan(plan)).run(seed=3)
    yield runs[0].id, homes


def facts_of(homes: dict[str, Path]) -> list[LogFacts]:
    return [gather_source(home / "audit.db") for home in homes.values()]


async def test_every_mixing_is_reproduced(tmp_path: Path) -> None:
    async with trained(tmp_path, rule="kgt") as (run, homes):
        logs = facts_of(homes)
        owner = logs[0]
        closed = owner.runs[run].closed
        assert closed is not None
        found = replay_run(logs, run, kept_folders(homes.values(), run), owner.peer, closed["digest"])
        assert found.problem is None
        assert [row.verdict for row in found.rows] == ["reproduced"] * 18, found.rows
        assert found.model == "reproduced" and not found.departs
