"""Real peers: one is switched off for a while and takes its neighbours' signed parameters when it is back."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from bottle import Quadratic
from points import points_homes

import p2pfl
from p2pfl.audit import read_entries
from p2pfl.net import MemoryNetwork

PLAN = """
[plan]
name = "points"
[data]
tag = "points"
[training]
rule = "dpsgd"
learning_rate = 0.5
local_steps = 1
batch_size = 1000
rounds = 150
closing_rounds = 5
catch_up_rounds = 4
dtype = "float64"
deadline = 20
"""
AWAY = 8  # rounds at least


def three_homes(folder: Path) -> list[Path]:
    return points_homes(folder, (10, 20, 30), PLAN)


async def reached(run: p2pfl.Run, topic: str, round_: int = 0) -> None:
    async for event in run.events():
        if event.topic == topic and event.facts.get("round", 0) >= round_:
            return


@pytest.mark.slow
async def test_switched_off_for_a_while_it_takes_its_neighbours_states(tmp_path: Path) -> None:
    a, b, c = three_homes(tmp_path)
    network = MemoryNetwork()
    async with p2pfl.Peer(a, network=network) as first, p2pfl.Peer(c, network=network) as third:
        async with p2pfl.Peer(b, network=network) as second:
            run = await first.propose(tmp_path / "plan")
            joined = await second.join((await second.next_proposal()).id)
            last = await third.join((await third.next_proposal()).id)
            await reached(joined, "round", 5)
        await reached(run, "round", 5 + AWAY)
        for others in (run, last):
            others.pause()  # else they would be through before the third has started again
        async with p2pfl.Peer(b, network=network) as second:
            again = second.run(run.id)
            await reached(again, "caught up")
            for others in (run, last):
                others.resume()
            await asyncio.gather(run.finished(), last.finished(), again.finished())
            reports = [handle.report() for handle in (run, again, last)]
            participants = {row["peer"]: row for row in reports[1]["participants"]}
            model = await again.result()
    (entry,) = read_entries(b / "audit.db", kind="caught_up")
    body = entry.body
    assert body["away"] >= AWAY - 2 and body["own"] == pytest.approx(4 / body["away"])
    neighbours = sorted((first.peer_id, third.peer_id))
    assert [row[0] for row in body["states"]] == neighbours
    shares = {peer: participants[peer]["samples"] for peer in neighbours}
    assert [row[1] for row in body["states"]] == pytest.approx([shares[p] / sum(shares.values()) for p in neighbours])
    for (peer, home), row in zip(sorted(((first.peer_id, a), (third.peer_id, c))), body["states"], strict=True):
        sent = {entry.body["core"]: entry.body for entry in read_entries(home / "audit.db", kind="delta_sent")}
        assert row[0] == peer and sent[row[3]]["round"] == row[2], "its origin's log has signed it"
    assert body["distance"] > 0 and body["moved"] == pytest.approx(body["distance"] / 3)
    assert [report["finished"] for report in reports] == [True] * 3
    done = [report["rounds_done"] for report in reports]
    assert min(done[0], done[1] + body["away"], done[2]) > 100
    assert model.x.detach().numpy() == pytest.approx(Quadratic.make((10, 20, 30)).optimum, abs=1e-6)
    for home in (a, b, c):
        assert p2pfl.verify_log(home / "audit.db").ok
        assert not list(read_entries(home / "audit.db", kind="equivocation"))
