"""Real peers: a hospital that approves while the run is under way takes part from a later round, and in the result."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hospitals import free_port
from points import points_homes

import p2pfl
from p2pfl.audit import read_entries
from p2pfl.errors import ConfigError
from p2pfl.gossip import events
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
"""
SAMPLES = (10, 20, 30, 40)


def homes_of(folder: Path, *, topology: str = "full", tcp: bool = False) -> list[Path]:
    listen = {folder / name: f"/ip4/127.0.0.1/tcp/{free_port()}" for name in "abcd"} if tcp else None
    return points_homes(folder, SAMPLES, PLAN, topology=topology, listen=listen)


async def heard(run: p2pfl.Run, topic: str, times: int = 1) -> dict[str, object]:
    async for event in run.events():
        if event.topic == topic:
            times -= 1
            if not times:
                return dict(event.facts)
    raise AssertionError(f"the run ended without {topic}")


async def begin_with(run: p2pfl.Run, approvals: int) -> None:
    """The proposer's patience is over as soon as so many have approved."""
    while len(run.status()["approvals"]) < approvals:
        await asyncio.sleep(0.01)
    runner = run._runner
    runner.post(events.TimerFired(runner.now(), "approvals"))


async def first_known(peer: p2pfl.Peer) -> p2pfl.Run:
    while not peer.runs:
        await peer.changed()
    return next(iter(peer.runs.values()))


@pytest.mark.parametrize(("topology", "tcp"), [("full", True), pytest.param("ring", False, marks=pytest.mark.slow)])
async def test_a_fourth_hospital_joins_and_its_data_are_in_the_result(tmp_path: Path, topology: str, tcp: bool) -> None:
    homes = homes_of(tmp_path, topology=topology, tcp=tcp)
    network = None if tcp else MemoryNetwork()
    async with (
        p2pfl.Peer(homes[0], network=network) as first,
        p2pfl.Peer(homes[1], network=network) as second,
        p2pfl.Peer(homes[2], network=network) as third,
    ):
        run = await first.propose(tmp_path / "plan", patience=600.0)
        handles = [run, *[await peer.join((await peer.next_proposal()).id) for peer in (second, third)]]
        await begin_with(run, 3)
        await asyncio.gather(*(heard(handle, "mixed", 3) for handle in handles))
        # the fourth was off since before the proposal: it hears all of the run only now
        async with p2pfl.Peer(homes[3], network=network) as fourth:
            late = await first_known(fourth)
            while late.state == "proposing":
                await asyncio.sleep(0.01)
            before = late.status()["joining"]
            assert before["from_round"] is None and not before["approved"] and before["problem"] is None
            joined = await fourth.join(late.id)
            await heard(joined, "mixed", 3)
            since = joined.status()["joining"]["from_round"]
            with pytest.raises(ConfigError, match="only an open proposal"):
                await fourth.join(late.id)
            run.direct("stop")
            await asyncio.gather(*(handle.finished() for handle in (*handles, joined)))
            reports = [handle.report() for handle in (*handles, joined)]
            models = [await handle.model_file() for handle in (*handles, joined)]
    assert since > 0
    assert len({report["digest"] for report in reports}) == 1 or topology == "ring"
    assert len(models) == 4
    for report in reports:
        assert f"finished with d from round {since}" in report["outcome"]
        assert report["missing"] == [] and report["consensus_distance"] < 1e-6
        shares = {row["name"]: (row["share"], row["joined"]) for row in report["participants"]}
        assert shares == {
            name: (samples / 100, since if name == "d" else None) for name, samples in zip("abcd", SAMPLES, strict=True)
        }
    for home in homes:
        assert p2pfl.verify_log(home / "audit.db").ok
        assert not list(read_entries(home / "audit.db", kind="refused"))
        (word,) = [entry.body["joined"] for entry in read_entries(home / "audit.db", kind="directive_heard")][:1]
        assert word == [[since, word[0][1], 40]]


STEPS = ("taking states", "caught up", "mixed")


@pytest.mark.slow
@pytest.mark.parametrize("topics", [STEPS[:1], STEPS], ids=len)
async def test_a_newcomer_killed_at_its_steps_goes_on_where_it_was(tmp_path: Path, topics: tuple[str, ...]) -> None:
    """It is stopped as soon as its approval is known, and at these steps, and comes back each time."""
    homes = homes_of(tmp_path)
    network = MemoryNetwork()
    async with (
        p2pfl.Peer(homes[0], network=network) as first,
        p2pfl.Peer(homes[1], network=network) as second,
        p2pfl.Peer(homes[2], network=network) as third,
    ):
        run = await first.propose(tmp_path / "plan", patience=600.0)
        handles = [run, *[await peer.join((await peer.next_proposal()).id) for peer in (second, third)]]
        await begin_with(run, 3)
        await asyncio.gather(*(heard(handle, "mixed") for handle in handles))
        async with p2pfl.Peer(homes[3], network=network) as fourth:
            late = await first_known(fourth)
            while late.state == "proposing":
                await asyncio.sleep(0.01)
            await fourth.join(late.id)
            await heard(run, "late approval")
        await heard(run, "admitted")
        for topic in topics:
            async with p2pfl.Peer(homes[3], network=network) as fourth:
                await heard(fourth.run(run.id), topic)
        async with p2pfl.Peer(homes[3], network=network) as fourth:
            again = fourth.run(run.id)
            await heard(again, "mixed")
            run.direct("stop")
            await asyncio.gather(*(handle.finished() for handle in (*handles, again)))
            digests = {handle.report()["digest"] for handle in (*handles, again)}
    assert len(digests) == 1
    for home in homes:
        assert p2pfl.verify_log(home / "audit.db").ok
        assert not list(read_entries(home / "audit.db", kind="refused"))
        assert not list(read_entries(home / "audit.db", kind="equivocation"))
