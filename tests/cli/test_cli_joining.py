"""What a site reads and types that approves while the run is under way."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from cli_worlds import DATA, PLAN_PY, PLAN_TOML, Done, do

from p2pfl.gossip import events
from p2pfl.net import MemoryNetwork
from p2pfl.peer import ControlServer, Peer, found_consortium, open_home

NAMES = ("lille", "rouen", "caen")


@pytest.fixture
async def peers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[list[Peer]]:
    monkeypatch.chdir(tmp_path)
    found_consortium({tmp_path / name: None for name in NAMES}, "north", {"kind": "ring"})
    (tmp_path / "toy.csv").write_text(DATA)
    (tmp_path / "plan").mkdir()
    (tmp_path / "plan" / "plan.py").write_text(PLAN_PY)
    (tmp_path / "plan" / "plan.toml").write_text(
        PLAN_TOML.replace("rounds = 3", "rounds = 9000", 1).replace("= 0.1", "= 0.001")
    )
    network = MemoryNetwork()
    async with AsyncExitStack() as stack:
        running = []
        for name in NAMES:
            open_home(tmp_path / name).registry.add("toy", tmp_path / "toy.csv", now=int(time.time()))
            peer = await stack.enter_async_context(Peer(tmp_path / name, network=network))
            await stack.enter_async_context(ControlServer(peer))
            running.append(peer)
        yield running


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(120.0):
        while not condition():
            await asyncio.sleep(0.02)


async def cli(capsys: pytest.CaptureFixture[str], line: str) -> Done:
    return await asyncio.to_thread(do, capsys, *line.split())


async def test_a_site_approves_late_and_is_told_what_happens(
    peers: list[Peer], capsys: pytest.CaptureFixture[str]
) -> None:
    lille, rouen, caen = peers
    run = json.loads((await cli(capsys, "plan propose lille plan --json")).out)["run"]
    await until(lambda: run in rouen.runs and run in caen.runs)
    assert (await cli(capsys, f"plan approve rouen {run[:8]} --yes --json")).code == 0
    await until(lambda: len(lille.runs[run].status()["approvals"]) == 2)
    runner = lille.runs[run]._runner
    runner.post(events.TimerFired(runner.now(), "approvals"))  # the patience for Caen is over
    await until(lambda: caen.runs[run].state == "absent" and caen.runs[run].status()["joining"]["run_is_in_round"] > 0)

    assert "runs without this site" in (await cli(capsys, "plan list caen")).out
    assert "`p2pfl plan approve` asks for admission" in (await cli(capsys, "status caen")).out
    assert "note: it runs without this site" in (await cli(capsys, f"plan show caen {run[:8]}")).out
    approved = await cli(capsys, f"plan approve caen {run[:8]} --yes")
    assert approved.code == 0, approved
    assert "; this site takes part as soon as lille has admitted it" in approved.out

    await until(lambda: caen.runs[run].status()["joining"]["from_round"] is not None)
    since = caen.runs[run].status()["joining"]["from_round"]
    assert f"this site takes part from round {since}" in (await cli(capsys, "status caen")).out
    assert f"takes part from round {since} (12 samples)" in (await cli(capsys, "status rouen")).out
    assert f"since round {since}" in (await cli(capsys, "plan list caen")).out
    assert "takes part from round" in (await cli(capsys, "audit show rouen")).out

    await until(lambda: caen.runs[run].status()["rounds_done"] > 0)
    assert (await cli(capsys, f"plan stop lille {run[:8]} --yes")).code == 0
    await asyncio.gather(*(peer.runs[run].finished() for peer in peers))
    for name in NAMES:
        result = (await cli(capsys, f"result {name} -o {name}.safetensors")).out
        assert f"with caen from round {since}" in result and f"joined at round {since}" in result


async def test_a_run_that_was_stopped_takes_nobody_in(peers: list[Peer], capsys: pytest.CaptureFixture[str]) -> None:
    lille, rouen, caen = peers
    run = json.loads((await cli(capsys, "plan propose lille plan --json")).out)["run"]
    await until(lambda: run in rouen.runs and run in caen.runs)
    assert (await cli(capsys, f"plan approve rouen {run[:8]} --yes --json")).code == 0
    await until(lambda: len(lille.runs[run].status()["approvals"]) == 2)
    runner = lille.runs[run]._runner
    runner.post(events.TimerFired(runner.now(), "approvals"))
    await until(lambda: rouen.runs[run].status()["round"] > 0)
    rouen.runs[run].pause()  # so that the run is not over before Caen has read anything
    await until(lambda: rouen.runs[run].state == "paused")
    assert (await cli(capsys, f"plan stop lille {run[:8]} --yes")).code == 0
    await until(lambda: caen.runs[run].status()["directive"] is not None)
    said = (await cli(capsys, f"plan approve caen {run[:8]} --yes")).sentence()
    assert "cannot take this site in: its proposer has stopped it" in said
