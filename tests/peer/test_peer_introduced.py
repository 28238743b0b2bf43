"""Peers over real tcp and WebRTC: who keeps links to whom so that somebody can introduce, and what is shown."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

import p2pfl
from p2pfl.audit import read_entries
from p2pfl.peer import WebRtcSettings, found_consortium, open_home

BOUND = 40.0  # seconds for each thing that is waited for
LOOPBACK = WebRtcSettings(interfaces=["127.0.0.1"])

pytestmark = pytest.mark.timeout(120)


def found(folder: Path, edges: list[list[int]], listen: Mapping[str, str], names: tuple[str, ...]) -> None:
    homes = {folder / name: None for name in names}
    told = {folder / name: address for name, address in listen.items()}
    topology = {"kind": "edges", "edges": edges}
    found_consortium(homes, "north", topology, listen=told, names=names, webrtc=LOOPBACK)


async def until(condition: Callable[[], Any], peers: Mapping[str, p2pfl.Peer]) -> None:
    try:
        async with asyncio.timeout(BOUND):
            while not condition():
                await asyncio.sleep(0.01)
    except TimeoutError:
        states = {name: (peer.links(), peer.status()["members"]) for name, peer in peers.items()}
        raise AssertionError(f"not within {BOUND:.0f} s: {states}") from None


async def all_up(stack: AsyncExitStack, folder: Path, names: tuple[str, ...]) -> dict[str, p2pfl.Peer]:
    return {name: await stack.enter_async_context(p2pfl.Peer(folder / name)) for name in names}


def member(peer: p2pfl.Peer, name: str) -> dict[str, Any]:
    return next(row for row in peer.status()["members"] if row["name"] == name)


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def test_two_portless_neighbours_find_an_introducer_that_is_no_neighbour(tmp_path: Path) -> None:
    """The charter joins caen and amiens only; both keep a link to lille as well, because it listens."""
    names = ("lille", "caen", "amiens")
    found(tmp_path, [[1, 2], [0, 1]], {"lille": f"/ip4/127.0.0.1/tcp/{free_port()}"}, names)
    async with AsyncExitStack() as stack:
        peers = await all_up(stack, tmp_path, names)
        await until(lambda: peers["caen"].links().get("amiens") == "webrtc", peers)
        await until(lambda: peers["amiens"].links().get("caen") == "webrtc", peers)
        for name, other in (("caen", "amiens"), ("amiens", "caen")):
            row = member(peers[name], other)
            assert (row["link"], row["path"], row["introducer"]) == ("webrtc", "direct", "lille")
            assert member(peers[name], "lille")["link"] == "tcp"
            assert member(peers[name], "lille")["introducer"] is None
    for name in ("caen", "amiens"):
        kinds = {entry.body["kind"] for entry in read_entries(tmp_path / name / "audit.db") if entry.kind == "link_up"}
        assert kinds == {"tcp", "webrtc"}
    ways = json.loads((tmp_path / "caen" / "ways.json").read_text()) | json.loads(
        (tmp_path / "amiens" / "ways.json").read_text()
    )
    assert any(way.startswith("/webrtc/p2p/") for way in ways.values())


async def test_a_port_that_is_not_open_after_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Caen says it listens, but its port is closed in between; amiens has none. Somebody introduces them in the end."""
    monkeypatch.setattr("p2pfl.peer.peer.LONELY", 0.3)
    names = ("lille", "caen", "amiens")
    listen = {"lille": f"/ip4/127.0.0.1/tcp/{free_port()}", "caen": f"/ip4/127.0.0.1/tcp/{free_port()}"}
    found(tmp_path, [[0, 1], [1, 2]], listen, names)
    settings = tmp_path / "caen" / "home.toml"
    # behind the firewall it listens elsewhere than it tells, as a wrong port forwarding would have it
    text = settings.read_text().replace(listen["caen"], f"/ip4/127.0.0.1/tcp/{free_port()}")
    settings.write_text(text.replace("\n[webrtc]", f'tell = ["{listen["caen"]}"]\n\n[webrtc]'))
    assert open_home(tmp_path / "caen").settings.tell == [listen["caen"]]
    async with AsyncExitStack() as stack:
        peers = await all_up(stack, tmp_path, names)
        await until(lambda: peers["amiens"].links().get("caen") == "webrtc", peers)
        assert member(peers["amiens"], "caen")["introducer"] == "lille"
        await until(lambda: peers["caen"].links() == {"lille": "tcp", "amiens": "webrtc"}, peers)


async def test_an_unreachable_member_is_explained_way_by_way(tmp_path: Path) -> None:
    names = ("lille", "caen", "amiens")
    listen = {"lille": f"/ip4/127.0.0.1/tcp/{free_port()}", "caen": f"/ip4/127.0.0.1/tcp/{free_port()}"}
    found(tmp_path, [[0, 1], [1, 2]], listen, names)
    async with AsyncExitStack() as stack:
        peers = await all_up(stack, tmp_path, ("lille", "amiens"))  # caen is down
        await until(lambda: "tried webrtc" in (member(peers["amiens"], "caen")["why_not"] or ""), peers)
        words = member(peers["amiens"], "caen")["why_not"]
        assert words.startswith(f"tried tcp: cannot connect to {listen['caen']}: ")
        assert "; tried webrtc" in words


async def test_without_webrtc_nothing_of_it_is_there(tmp_path: Path) -> None:
    names = ("lille", "caen")
    found(tmp_path, [[0, 1]], {"lille": f"/ip4/127.0.0.1/tcp/{free_port()}"}, names)
    settings = tmp_path / "caen" / "home.toml"
    settings.write_text(settings.read_text() + "enabled = false\n")
    async with AsyncExitStack() as stack:
        peers = await all_up(stack, tmp_path, names)
        await until(lambda: peers["caen"].links() == {"lille": "tcp"}, peers)
        assert peers["caen"].webrtc is None and peers["caen"].addresses == []
        assert peers["lille"].addresses[1].startswith("/webrtc/p2p/")
