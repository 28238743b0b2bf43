"""A peer that is restarted goes on where it was: before the run begins, and in the middle of it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from points import points_homes

import p2pfl
from p2pfl.audit import read_entries
from p2pfl.errors import ConfigError
from p2pfl.net import MemoryNetwork

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


ROUNDS = 300  # enough to meet again: a round takes a few milliseconds when nobody waits


def three_homes(folder: Path, rounds: int) -> list[Path]:
    return points_homes(folder, (10, 10, 10), PLAN.format(rounds=rounds))


@pytest.mark.slow
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


async def restarted_in_round_five(tmp_path: Path, lose: str | None = None) -> tuple[list[Path], list[dict], list[dict]]:
    """One of three peers stops in the middle of a run and comes back; homes, reports and its second life's events."""
    homes = a, b, c = three_homes(tmp_path, rounds=60 if lose else ROUNDS)
    network = MemoryNetwork()
    async with p2pfl.Peer(a, network=network) as first, p2pfl.Peer(c, network=network) as third:
        async with p2pfl.Peer(b, network=network) as second:
            run = await first.propose(tmp_path / "plan")
            joined = await second.join((await second.next_proposal()).id)
            last = await third.join((await third.next_proposal()).id)
            async for event in joined.events():
                if event.topic == "round" and event.facts["round"] == 5:
                    break
            for others in (run, last):
                others.pause()  # else they would be through before the third has started again
        if lose is not None:
            for file in (b / "runs" / run.id / "state").glob(lose):
                file.write_bytes(file.read_bytes()[:-1])
        async with p2pfl.Peer(b, network=network) as second:
            again = second.run(run.id)
            async for event in again.events():
                if event.topic == "resumed":
                    break
            for others in (run, last):
                others.resume()
            await asyncio.gather(run.finished(), last.finished(), again.finished())
            events = [event async for event in again.events()]
            reports = [handle.report() for handle in (run, again, last)]
            if reports[1]["finished"]:
                assert await again.model_file()
            else:
                with pytest.raises(ConfigError, match="no model"):
                    await again.model_file()
    cores: dict[tuple[int, int, str], set[str]] = {}
    for entry in read_entries(b / "audit.db", kind="delta_sent"):
        place = (entry.body["round"], entry.body["step"], entry.body["channel"])
        cores.setdefault(place, set()).add(entry.body["core"])
    assert cores and all(len(digests) == 1 for digests in cores.values())
    for home in homes:
        assert p2pfl.verify_log(home / "audit.db").ok
        assert not list(read_entries(home / "audit.db", kind="equivocation"))
    return homes, reports, [{"topic": event.topic, **event.facts} for event in events]


@pytest.mark.slow
async def test_restarted_in_the_run_it_goes_on(tmp_path: Path) -> None:
    homes, (first, again, third), events = await restarted_in_round_five(tmp_path)
    resumed = next(event for event in events if event["topic"] == "resumed")
    assert resumed["round"] in (4, 5), "at most one local round is done again"
    assert again["finished"] and again["rounds_done"] > 6
    assert again["missing"] == first["missing"] == third["missing"] == []
    assert not list((homes[1] / "runs").glob("*/state/*")), "nothing is left of what a restart would need"


@pytest.mark.slow
@pytest.mark.parametrize("lost", ["*.state", "*.safetensors"])
async def test_restarted_with_a_damaged_state_it_stays_absent_and_says_so(tmp_path: Path, lost: str) -> None:
    _, (first, again, _), _ = await restarted_in_round_five(tmp_path, lost)
    assert "restarted" in again["away"] or "cannot be resumed" in again["away"]
    assert {row["name"] for row in first["missing"]} == {"b"}
    assert first["rounds_done"] == 65
