"""Real peers run an asynchronous plan: memory links, homes, logs, worker processes, no virtual clock."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from bottle import QUADRATIC_PLAN, Quadratic
from test_peer_local import SETTINGS

import p2pfl
from p2pfl.errors import ConfigError


def write_plan(folder: Path, rounds: int) -> Path:
    plan = folder / "plan"
    plan.mkdir()
    (plan / "plan.py").write_text(QUADRATIC_PLAN)
    settings = SETTINGS.format(rule="dpsgd", kind="ring", rate=0.05, steps=1, rounds=rounds)
    settings = settings.replace("closing_rounds = 2", "closing_rounds = 25")
    (plan / "plan.toml").write_text(settings + 'policy = "asynchronous"\nstaleness = 2\n')
    return plan


async def test_four_peers_learn_asynchronously(tmp_path: Path) -> None:
    quadratic = Quadratic.make((40, 30, 20, 10))
    files = quadratic.write(tmp_path)
    async with p2pfl.local(write_plan(tmp_path, rounds=80), files, peers=4) as peers:
        runs = await peers.run(seed=3)
        records = []
        for peer, run in zip(peers, runs, strict=True):
            report = run.report()
            assert report["finished"] and report["unsettled"] == 0
            assert p2pfl.verify_log(peer.home.audit, peer.peer_id).ok
            model = await run.result()
            # no closer: whoever the machine's scheduler favours trains more rounds, and counts for more
            np.testing.assert_allclose(model.x.detach().numpy(), quadratic.optimum, atol=0.4)
            records.append(report["participants"])
        assert all(record == records[0] for record in records)


async def test_a_topology_that_does_not_go_with_the_policy_is_refused_at_once(tmp_path: Path) -> None:
    files = Quadratic.make((40, 30, 20, 10)).write(tmp_path)
    async with p2pfl.local(write_plan(tmp_path, rounds=5), files, peers=4) as peers:
        with pytest.raises(ConfigError, match="mixes twice"):
            await peers[0].propose(peers.plan, topology={"kind": "hierarchical", "clusters": 2})
