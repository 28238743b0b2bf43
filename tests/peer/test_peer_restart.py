"""A peer that is restarted between its approval and the start of the run still takes part; later it stays absent."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from bottle import QUADRATIC_PLAN, Quadratic

import p2pfl
from p2pfl.audit import read_entries
from p2pfl.errors import ConfigError
from p2pfl.net import MemoryNetwork
from p2pfl.peer import found_consortium, open_home

PLAN = """
[plan]
name = "points"
[data]
tag = "points"
[training]
rule = "dpsgd"
learning_rate = 0.2
local_steps = 1
batch_size = 1000
rounds = {rounds}
dtype = "float64"
deadline = 20
"""


def three_homes(folder: Path, rounds: int) -> list[Path]:
    homes = [folder / name for name in ("a", "b", "c")]
    found_consortium(dict.fromkeys(homes), "test", {"kind": "full"})
    for home, file in zip(homes, Quadratic.make((10, 10, 10)).write(folder), strict=True):
        open_home(home).registry.add("points", file, now=1)
    (folder / "plan").mkdir()
    (folder / "plan" / "plan.py").write_text(QUADRATIC_PLAN)
    (folder / "plan" / "plan.toml").write_text(PLAN.format(rounds=rounds))
    return homes


async def test_restarted_after_its_approval_it_takes_part(tmp_path: Path) -> None:
    a, b, c = three_homes(tmp_path, rounds=4)
    network = MemoryNetwork()
    async with p2pfl.Peer(a, network=network) as first, p2pfl.Peer(c, network=network) as third:
        async with p2pfl.Peer(b, network=network) as second:
            run = await first.propose(tmp_path / "plan")
            await second.join((await second.next_proposal()).id)
            async for event in run.events():
                if event.topic == "approval" and event.facts["have"] == 2:
                    break
        async with p2pfl.Peer(b, network=network) as second:
            again = second.run(run.id)
            with pytest.raises(ConfigError, match="already approved"):
                await second.join(run.id)
            last = await third.join((await third.next_proposal()).id)
            await asyncio.gather(run.finished(), again.finished(), last.finished())
            assert again.report()["rounds_done"] == run.report()["rounds_done"] == 9
            assert run.report()["missing"] == []
        assert p2pfl.verify_log(b / "audit.db").ok


async def test_restarted_in_the_run_it_stays_absent_and_says_so(tmp_path: Path) -> None:
    a, b, c = three_homes(tmp_path, rounds=60)
    network = MemoryNetwork()
    async with p2pfl.Peer(a, network=network) as first, p2pfl.Peer(c, network=network) as third:
        async with p2pfl.Peer(b, network=network) as second:
            run = await first.propose(tmp_path / "plan")
            joined = await second.join((await second.next_proposal()).id)
            last = await third.join((await third.next_proposal()).id)
            async for event in joined.events():
                if event.topic == "round" and event.facts["round"] == 5:
                    break
        async with p2pfl.Peer(b, network=network) as second:
            again = second.run(run.id)
            await asyncio.gather(run.finished(), last.finished(), again.finished())
            assert "restarted" in again.report()["away"]
            with pytest.raises(ConfigError, match="no model"):
                await again.model_file()
            assert {row["name"] for row in run.report()["missing"]} == {"b"}
            assert run.report()["rounds_done"] == 65
    cores: dict[tuple[int, int, str], set[str]] = {}
    for home in (b,):
        for entry in read_entries(home / "audit.db", kind="delta_sent"):
            place = (entry.body["round"], entry.body["step"], entry.body["channel"])
            cores.setdefault(place, set()).add(entry.body["core"])
    assert cores and all(len(digests) == 1 for digests in cores.values())
    for home in (a, b, c):
        assert p2pfl.verify_log(home / "audit.db").ok
        assert not list(read_entries(home / "audit.db", kind="equivocation"))
