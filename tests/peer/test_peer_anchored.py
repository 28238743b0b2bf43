"""Whole peers: what travels is anchored in its sender's log, and each entry can be shown with the charter alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from bottle import Quadratic
from test_peer_local import write_plan

import p2pfl
from p2pfl.audit import prove_entry, read_entries, verify_log
from p2pfl.crypto import log_origin, open_checkpoint, read_log_proof
from p2pfl.gossip.anchors import SENT
from p2pfl.gossip.messages import decode_announcement, open_cover
from p2pfl.net import Host
from p2pfl.peer.runner import ANNOUNCE


async def test_every_announcement_that_travels_proves_its_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[bytes] = []
    notify = Host.notify

    async def noted(self: Host, peer: Any, protocol: str, data: bytes) -> None:
        if protocol == ANNOUNCE:
            sent.append(data)
        await notify(self, peer, protocol, data)

    monkeypatch.setattr(Host, "notify", noted)
    files = Quadratic.make((30, 20)).write(tmp_path)
    plan = write_plan(tmp_path, rule="dpsgd", kind="full", rate=0.1, steps=1, rounds=3)
    async with p2pfl.local(plan, files, peers=2) as peers:
        runs = await peers.run(seed=1)
        assert all(run.report()["rounds_done"] >= 3 for run in runs)
        logs = {peer.peer_id: (peer.home.audit, log_origin(peer.home.charter().name, peer.peer_id)) for peer in peers}
        sizes: dict[str, list[int]] = {owner: [] for owner in logs}
        for data in sent:
            signed, cover = open_cover(decode_announcement(data).cover)
            path, origin = logs[signed.signer]
            entry, checkpoint = read_log_proof(cover.proof).open(origin, signed.signer)
            kept = next(read_entries(path, entry.position, SENT))
            assert (kept.position, kept.body["core"]) == (entry.position, cover.core)
            assert prove_entry(path, entry.position).entry == read_log_proof(cover.proof).entry
            sizes[signed.signer].append(checkpoint.size)
        assert all(len(found) >= 3 and found == sorted(found) for found in sizes.values()), "the newest each time"
        for owner, (path, origin) in logs.items():
            assert verify_log(path, owner, origin).ok
            last = prove_entry(path, 0).checkpoint
            assert open_checkpoint(last, origin, owner).size >= max(sizes[owner])
