"""Real peers over tcp: a neighbour is gone for good when a site comes back, and another one holds its state."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path

import pytest
from bottle import QUADRATIC_PLAN
from points import points_homes
from test_peer_states import reached

import p2pfl
from p2pfl.audit import read_entries
from p2pfl.crypto import CHUNK, expected_chunks
from p2pfl.errors import LinkError
from p2pfl.peer.contents import SEALED_CHUNK
from p2pfl.types import Digest

SIZE = 25_000  # parameters of 8 bytes: four chunks, so none of it rides inside an announcement
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
rounds = 400
closing_rounds = 2
catch_up_rounds = 4
dtype = "float64"
deadline = 20
"""
AWAY = 8  # rounds at least


def four_homes(folder: Path) -> list[Path]:
    """A ring of four: each has a link to its two neighbours, and to nobody else unless it wants one."""
    homes = [folder / name for name in ("a", "b", "c", "d")]
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in homes]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        ports = [probe.getsockname()[1] for probe in probes]
    listen = {home: f"/ip4/127.0.0.1/tcp/{port}" for home, port in zip(homes, ports, strict=True)}
    code = QUADRATIC_PLAN.replace("torch.zeros(3)", f"torch.zeros({SIZE})").replace("model() - b", "model()[:3] - b")
    return points_homes(folder, (10, 20, 30, 40), PLAN, topology="ring", listen=listen, code=code)


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_the_state_of_a_peer_that_is_gone_comes_from_its_other_neighbour(tmp_path: Path) -> None:
    a, b, c, d = four_homes(tmp_path)
    async with p2pfl.Peer(c) as third, p2pfl.Peer(d) as fourth:
        async with p2pfl.Peer(b) as second:
            async with p2pfl.Peer(a) as first:
                run = await third.propose(tmp_path / "plan")
                others = [await peer.join((await peer.next_proposal()).id) for peer in (first, second, fourth)]
                away, _, last = others
                await reached(away, "round", 5)
            await reached(run, "round", 5 + AWAY)
            gone_id = second.peer_id
            for other in (run, last):
                other.pause()  # else the dead one's last round is over for too long
            for other in (run, last):
                await reached(other, "paused")
        here = run.status()["round"]
        async with p2pfl.Peer(a) as first:
            again = first.run(run.id)
            assert third.peer_id not in first.links()
            await reached(again, "round", 1)  # with the commit of what it has taken
            (entry,) = read_entries(a / "audit.db", kind="caught_up")
            rows = {row[0]: row for row in entry.body["states"]}
            assert set(rows) == {gone_id, fourth.peer_id}
            assert rows[gone_id][4] == third.peer_id
            core = rows[gone_id][3]
            sent = {row.body["core"]: row.body for row in read_entries(b / "audit.db", kind="delta_sent")}
            assert first.peer_id in sent[core]["to"] and rows[gone_id][2] == sent[core]["round"] <= here + 1
            offers = [row.body for row in read_entries(c / "audit.db", kind="state_offered")]
            (offer,) = [body for body in offers if body["origin"] == gone_id]
            assert (offer["peer"], offer["core"]) == (first.peer_id, core)
            chunks = expected_chunks(sent[core]["bytes"])
            assert chunks == -(-SIZE * 8 // CHUNK) > 1
            assert await pulled(first, third, core, chunks) == sent[core]["bytes"] + 16 * chunks
            with pytest.raises(LinkError):
                await pulled(fourth, third, core, chunks)  # a neighbour of the holder, and no recipient
            held = {path.name for path in (c / "runs" / run.id / "holdings").glob("*") if path.suffix != ".new"}
            assert {core, f"{core}.announcement"} <= held and len(held) <= 2 * 2, "the newest of each neighbour"
            for other in (run, last):
                other.resume()
            await reached(again, "mixed")
    for home in (a, b, c, d):
        assert p2pfl.verify_log(home / "audit.db").ok
        assert not list(read_entries(home / "audit.db", kind="equivocation"))
        assert not list(read_entries(home / "audit.db", kind="refused"))


async def pulled(asking: p2pfl.Peer, serving: p2pfl.Peer, core: str, chunks: int) -> int:
    """Bytes of a content, pulled over the link that there is."""
    while serving.peer_id not in asking._host.links:
        await asking.changed()
    parts = [part async for part in asking._host.fetch(serving.peer_id, Digest(core), chunks, SEALED_CHUNK)]
    return sum(map(len, parts))
