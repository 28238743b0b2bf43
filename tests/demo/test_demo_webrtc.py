"""The demo's consortium twice, with the same keys, charter and run: over WebRTC and tcp, and over tcp alone.

How bytes travel must not change a bit of what is learnt.
"""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import p2pfl
from p2pfl.audit import read_entries
from p2pfl.demo.consortium import Consortium, Options, copy_plan
from p2pfl.demo.hospitals import builtin_hospitals
from p2pfl.peer import change_address, open_home

PLAN = Path(p2pfl.__file__).parent / "demo" / "plans" / "breast_cancer"
PORTLESS = ("rouen", "amiens")  # neighbours on the ring
NAMES = ("lille", "caen", *PORTLESS)
RING = {
    "lille": {"Caen", "Amiens"},
    "caen": {"Lille", "Rouen"},
    "rouen": {"Caen", "Amiens"},
    "amiens": {"Lille", "Rouen"},
}
ROUNDS = 6
TIME_LIMIT = 120.0  # seconds; four workers import torch on two cores

pytestmark = pytest.mark.timeout(300)


async def found(folder: Path) -> None:
    """The demo's homes, as `p2pfl demo` makes them."""
    consortium = Consortium(folder, copy_plan(PLAN, folder), builtin_hospitals(0), Options(), lambda text: None)
    await consortium.found()


def open_ports(folder: Path) -> None:
    """The two without a port get one (by a new member record, the charter stays) and do without WebRTC."""
    for name in PORTLESS:
        home = open_home(folder / name)
        change_address(home.path, "/ip4/127.0.0.1/tcp/0", home.identity(None))
        settings = home.path / "home.toml"
        settings.write_text(settings.read_text() + "enabled = false\n")
        assert open_home(home.path).settings.webrtc.enabled is False


async def until(condition: Any) -> None:
    while not condition():
        await asyncio.sleep(0.05)


async def train(folder: Path) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """One run; each hospital's parameter digest and its links at the end."""
    peers = {name: p2pfl.Peer(folder / name) for name in NAMES}
    async with peers["lille"], peers["caen"], peers["rouen"], peers["amiens"]:
        async with asyncio.timeout(TIME_LIMIT):
            await until(lambda: all(RING[name] <= set(peers[name].links()) for name in NAMES))
            first = await peers["lille"].propose(folder / "plan", seed=3, topology={"kind": "ring"}, rounds=ROUNDS)
            others = [await peers[name].next_proposal() for name in NAMES[1:]]
            joined = await asyncio.gather(
                *(peers[name].join(run.id) for name, run in zip(NAMES[1:], others, strict=True))
            )
            runs = dict(zip(NAMES, [first, *joined], strict=True))
            await asyncio.gather(*(run.finished() for run in runs.values()))
        links = {name: peers[name].links() for name in NAMES}
        reports = {name: run.report() for name, run in runs.items()}
    assert all(report["missing"] == [] and report["rounds_done"] >= ROUNDS for report in reports.values())
    return {name: report["digest"] for name, report in reports.items()}, links


@pytest.mark.slow
async def test_the_same_parameters_over_webrtc_and_over_tcp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # the proposer's nonce is the one thing of a run that is drawn anew
    monkeypatch.setattr("p2pfl.peer.runs.secrets", SimpleNamespace(token_bytes=bytes))
    await found(tmp_path / "webrtc")
    shutil.copytree(tmp_path / "webrtc", tmp_path / "tcp")
    open_ports(tmp_path / "tcp")
    over_webrtc, links = await train(tmp_path / "webrtc")
    assert links["rouen"]["Amiens"] == links["amiens"]["Rouen"] == "webrtc"
    assert links["lille"]["Caen"] == links["lille"]["Amiens"] == links["rouen"]["Caen"] == "tcp"
    entries = [entry for entry in read_entries(tmp_path / "webrtc" / "rouen" / "audit.db") if entry.kind == "link_up"]
    assert "webrtc" in {entry.body["kind"] for entry in entries}
    over_tcp, links = await train(tmp_path / "tcp")
    assert {kind for found in links.values() for kind in found.values()} == {"tcp"}
    assert over_tcp == over_webrtc
    assert len(set(over_tcp.values())) == len(NAMES)  # gossip ends near each other, not at one point
