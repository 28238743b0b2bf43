"""Real peers: the proposer's word by the public API and by command lines, within the plan's ranges."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from points import points_homes

import p2pfl
from p2pfl.audit import read_entries
from p2pfl.errors import ConfigError, IllegalStep, PolicyRefusal
from p2pfl.net import MemoryNetwork

PLAN = """
[plan]
name = "points"
[data]
tag = "points"
[training]
rule = "kgt"
learning_rate = 0.2
local_steps = 1
batch_size = 1000
rounds = 5000
closing_rounds = 20
dtype = "float64"
[arguments]
learning_rate = [0.01, 0.3]
local_steps = [1, 4]
"""


def three_homes(folder: Path) -> list[Path]:
    return points_homes(folder, (10, 20, 30), PLAN)


async def heard(run: p2pfl.Run, topic: str) -> dict[str, object]:
    async for event in run.events():
        if event.topic == topic:
            return dict(event.facts)
    raise AssertionError(f"the run ended without {topic}")


async def test_a_run_is_changed_paused_resumed_and_stopped(tmp_path: Path) -> None:
    homes = three_homes(tmp_path)
    network = MemoryNetwork()
    async with (
        p2pfl.Peer(homes[0], network=network) as first,
        p2pfl.Peer(homes[1], network=network) as second,
        p2pfl.Peer(homes[2], network=network) as third,
    ):
        run = await first.propose(tmp_path / "plan")
        with pytest.raises(IllegalStep, match="is proposing"):
            run.direct("pause")
        others = [await peer.join((await peer.next_proposal()).id) for peer in (second, third)]
        handles = [run, *others]
        await asyncio.gather(*(heard(handle, "mixed") for handle in handles))
        with pytest.raises(PolicyRefusal, match="only the run's proposer"):
            others[0].direct("stop")
        for arguments, why in (
            ({"learning_rate": 0.5}, "outside the approved range of 0.01 to 0.3"),
            ({"batch_size": 10}, "does not let batch_size change; it allows: learning_rate, local_steps"),
            ({"local_steps": 1.5}, "whole number"),
            ({}, "no argument is given"),
        ):
            with pytest.raises(ConfigError, match=why):
                run.direct("change", arguments)
        done = run.direct("change", {"learning_rate": 0.1, "local_steps": 2})
        assert done["version"] == 1
        await asyncio.gather(*(heard(handle, "directive") for handle in handles))
        paused = run.direct("pause")
        await asyncio.gather(*(heard(handle, "paused") for handle in handles))
        assert {handle.status()["round"] for handle in handles} == {paused["paused_from"]}
        assert all("the proposer paused" in handle.status()["paused_because"] for handle in handles)
        others[1].resume()  # only the proposer ends it
        await asyncio.sleep(0)
        assert others[1].state == "paused"
        run.direct("resume")
        while run.state == "paused":
            await asyncio.sleep(0.01)
        stop = run.direct("stop")["stop_at"]
        await asyncio.gather(*(handle.finished() for handle in handles))
        reports = [handle.report() for handle in handles]
    assert stop < 5000
    for report in reports:
        assert report["outcome"].startswith(f"stopped by the proposer after {stop} of 5000 rounds; finished"), report
        assert report["missing"] == [] and report["consensus_distance"] < 1e-6
    since = done["changes"][0][0]
    for home in homes:
        assert p2pfl.verify_log(home / "audit.db").ok
        rounds = {
            entry.body["round"]: entry.body["arguments"]
            for entry in read_entries(home / "audit.db", kind="round_started")
        }
        assert max(rounds) == stop + 19
        assert all(version == (round_ >= since) + (round_ >= stop) for round_, version in rounds.items())
        kept = [entry.body["version"] for entry in read_entries(home / "audit.db", kind="directive_heard")]
        assert kept == [1, 2, 3, 4]
        statements = list((home / "runs" / run.id / "statements").iterdir())
        assert len([file for file in statements if b"directive" in file.read_bytes()]) == 1, "the newest one says all"
    assert json.dumps(done)


@pytest.mark.slow
async def test_a_peer_that_was_down_hears_the_word_before_it_trains_again(tmp_path: Path) -> None:
    a, b, c = homes = three_homes(tmp_path)
    network = MemoryNetwork()
    async with p2pfl.Peer(a, network=network) as first, p2pfl.Peer(c, network=network) as third:
        async with p2pfl.Peer(b, network=network) as second:
            run = await first.propose(tmp_path / "plan")
            joined = await second.join((await second.next_proposal()).id)
            last = await third.join((await third.next_proposal()).id)
            await heard(joined, "mixed")
        run.direct("change", {"learning_rate": 0.05})
        await heard(last, "directive")
        async with p2pfl.Peer(b, network=network) as second:
            again = second.run(run.id)
            await heard(again, "mixed")
            run.direct("stop")
            await asyncio.gather(run.finished(), last.finished(), again.finished())
    entries = list(read_entries(b / "audit.db"))
    word = next(number for number, entry in enumerate(entries) if entry.kind == "directive_heard")
    started = [entry.body["arguments"] for entry in entries[word:] if entry.kind == "round_started"]
    assert started and started[0] >= 1, "every round that began after the word was heard is under it"
    back = max(number for number, entry in enumerate(entries) if entry.kind == "peer_started")
    assert not [entry for entry in entries[back:word] if entry.kind == "delta_sent"]
    for home in homes:
        assert p2pfl.verify_log(home / "audit.db").ok
