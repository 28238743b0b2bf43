"""Real peers run an asynchronous plan: memory links, homes, logs, worker processes, no virtual clock."""

from __future__ import annotations

import tomllib
from pathlib import Path

import numpy as np
import pytest
from bottle import QUADRATIC_PLAN, Quadratic
from test_peer_local import SETTINGS

import p2pfl
from p2pfl.errors import ConfigError, PolicyRefusal
from p2pfl.governance import read_plan
from p2pfl.peer.home import init_home, open_home
from p2pfl.peer.home_settings import HomeSettings
from p2pfl.peer.plan_checks import local_steps_of


def write_plan(folder: Path, rounds: int) -> Path:
    plan = folder / "plan"
    plan.mkdir()
    (plan / "plan.py").write_text(QUADRATIC_PLAN)
    settings = SETTINGS.format(rule="dpsgd", kind="ring", rate=0.07, steps=1, rounds=rounds)
    settings = settings.replace("closing_rounds = 2", "closing_rounds = 15")
    (plan / "plan.toml").write_text(settings + 'policy = "asynchronous"\nstaleness = 2\n')
    return plan


async def test_four_peers_learn_asynchronously(tmp_path: Path) -> None:
    quadratic = Quadratic.make((40, 30, 20, 10))
    files = quadratic.write(tmp_path)
    async with p2pfl.local(write_plan(tmp_path, rounds=60), files, peers=4) as peers:
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


def test_a_home_may_take_other_local_steps_where_the_plan_allows_it(tmp_path: Path) -> None:
    plan = write_plan(tmp_path, rounds=5)
    init_home(tmp_path / "home", name="lille", listen=None, passphrase=None)
    settings = plan / "plan.toml"
    alone = settings.read_text()
    ranged = alone + "steps_range = [1, 8]\n"
    for own, text, expected in (("", alone, 1), ("", ranged, 1), ("local_steps = 8\n", ranged, 8)):
        settings.write_text(text)
        (tmp_path / "home" / "home.toml").write_text('name = "lille"\n' + own)
        home = open_home(tmp_path / "home")
        assert HomeSettings(**tomllib.loads(home.settings.to_toml())) == home.settings
        assert local_steps_of(read_plan(plan), home) == expected
    for text, words in ((alone, "exactly 1"), (ranged.replace("8", "7"), "1 to 7")):
        settings.write_text(text)
        with pytest.raises(PolicyRefusal, match=words):
            local_steps_of(read_plan(plan), open_home(tmp_path / "home"))


async def test_a_topology_that_does_not_go_with_the_policy_is_refused_at_once(tmp_path: Path) -> None:
    files = Quadratic.make((40, 30, 20, 10)).write(tmp_path)
    async with p2pfl.local(write_plan(tmp_path, rounds=5), files, peers=4) as peers:
        with pytest.raises(ConfigError, match="asynchronous runs mix once per round"):
            await peers[0].propose(peers.plan, topology={"kind": "hierarchical", "clusters": 2})
