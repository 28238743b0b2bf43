"""Four real peers in one process: memory links, real homes, logs and worker processes."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest
from bottle import QUADRATIC_PLAN, Quadratic

import p2pfl
from p2pfl.audit import gather_source, lineage
from p2pfl.errors import ConfigError, DataError
from p2pfl.train.rules import RelaySGD

SETTINGS = """
[plan]
name = "points"
[data]
tag = "points"
[topology]
kind = "{kind}"
[training]
rule = "{rule}"
learning_rate = {rate}
local_steps = {steps}
batch_size = 1000
rounds = {rounds}
closing_rounds = 2
dtype = "float64"
deadline = 20
"""


def write_plan(
    folder: Path, *, rule: str = "dpsgd", kind: str = "ring", rate: float = 0.2, steps: int = 1, rounds: int = 6
) -> Path:
    plan = folder / "plan"
    plan.mkdir()
    (plan / "plan.py").write_text(QUADRATIC_PLAN)
    (plan / "plan.toml").write_text(SETTINGS.format(rule=rule, kind=kind, rate=rate, steps=steps, rounds=rounds))
    return plan


async def test_a_run_in_an_existing_loop(tmp_path: Path) -> None:
    quadratic = Quadratic.make((40, 30, 20, 10))
    files = quadratic.write(tmp_path)
    plan = write_plan(tmp_path, rule="kgt", kind="full", rate=0.25, steps=4, rounds=25)
    async with p2pfl.local(plan, files, peers=4) as peers:
        runs = await peers.run(seed=3)
        for peer, run in zip(peers, runs, strict=True):
            report = run.report()
            assert report["finished"] and report["missing"] == [] and report["unsettled"] == 0
            assert report["rounds_done"] == 27
            assert [site["samples"] for site in report["participants"]] == [40, 30, 20, 10]
            model = await run.result()
            np.testing.assert_allclose(model.x.detach().numpy(), quadratic.optimum, atol=1e-8)
            assert p2pfl.verify_log(peer.home.audit, peer.peer_id).ok
        topics = [event.topic async for event in runs[0].events()]
        assert topics.count("mixed") == 27 and "started" in topics and "closed" in topics
        folders = [peer.home.path for peer in peers]
        for folder in folders:
            assert not list((folder / "outbox").iterdir()), "everything acknowledged is deleted"
            assert not (folder / "runs" / runs[0].id / "prekey").exists()
    assert not folders[0].exists(), "the homes are temporary"


@pytest.mark.slow
async def test_relaysgd_on_a_chain_and_what_its_lineage_says(tmp_path: Path) -> None:
    quadratic = Quadratic.make((40, 30, 20, 10))
    files = quadratic.write(tmp_path)
    plan = write_plan(tmp_path, rule="relaysgd", kind="chain", rate=0.3, rounds=120)
    async with p2pfl.local(plan, files, peers=4) as peers:
        with pytest.raises(ConfigError, match="relaysgd needs a tree, and 4 edges between 4 sites make cycles"):
            await peers[0].propose(peers.plan, topology={"kind": "ring"})
        with pytest.raises(ConfigError, match="one and the same mixing in every round"):
            await peers[0].propose(peers.plan, topology={"kind": "hierarchical", "clusters": 2})
        runs = await peers.run(seed=3)
        for run in runs:
            assert run.report()["finished"] and run.report()["missing"] == [] and run.report()["unsettled"] == 0
            model = await run.result()
            np.testing.assert_allclose(model.x.detach().numpy(), quadratic.optimum, atol=1e-8)
        logs = [gather_source(peer.home.audit) for peer in peers]
        found = lineage(logs, runs[0].report()["digest"])
        assert not found.linear, "what a relay adds is not its edge's weight"
        assert all(row.rounds for row in found.contributors) and not any(row.weights for row in found.contributors)
        assert {channel for _, _, channel in logs[0].runs[runs[0].id].sent_at} == {c.name for c in RelaySGD.channels}


@pytest.mark.slow
async def test_a_site_counts_by_the_topology_s_weights_and_not_by_its_patients(tmp_path: Path) -> None:
    quadratic = Quadratic.make((40, 30, 20, 10))
    files = quadratic.write(tmp_path)
    plan = write_plan(tmp_path, rule="kgt", kind="star", rate=0.1, steps=2, rounds=120)
    toml = plan / "plan.toml"
    toml.write_text(toml.read_text().replace('kind = "star"', 'kind = "star"\nweights = "uniform"'))
    rows = [table.mean(axis=0) for table in quadratic.tables]
    optimum = sum(c * r[:3] * r[3:] for c, r in zip((4, 2, 2, 2), rows, strict=True)) / sum(
        c * r[:3] for c, r in zip((4, 2, 2, 2), rows, strict=True)
    )
    assert np.abs(optimum - quadratic.optimum).max() > 0.1
    async with p2pfl.local(plan, files, peers=4) as peers:
        with pytest.raises(ConfigError, match="the weights leave out the edge"):
            await peers[0].propose(peers.plan, topology={"kind": "star", "weights": [[0, 1, 0.5, 0.5]]})
        runs = await peers.run(seed=3)
        for run in runs:
            report = run.report()
            assert report["finished"] and report["missing"] == [] and report["unsettled"] == 0
            assert [site["share"] for site in report["participants"]] == [0.4, 0.3, 0.2, 0.1]
            assert [site["counts"] for site in report["participants"]] == pytest.approx([0.4, 0.2, 0.2, 0.2], abs=1e-15)
            model = await run.result()
            np.testing.assert_allclose(model.x.detach().numpy(), optimum, atol=1e-7)


async def test_pause_resume_and_leave(tmp_path: Path) -> None:
    files = Quadratic.make((40, 30, 20, 10)).write(tmp_path)
    async with p2pfl.local(write_plan(tmp_path, rounds=60), files, peers=4) as peers:
        first = await peers[0].propose(peers.plan)
        joined = [await peer.join((await peer.next_proposal()).id) for peer in peers[1:]]
        async for event in joined[1].events():
            if event.topic == "round" and event.facts["round"] == 2:
                joined[1].pause()
            if event.topic == "paused":
                break
        async for event in joined[0].events():
            if event.topic == "round" and event.facts["round"] == 6:
                joined[2].leave("the night shift needs the machine")
                break
        joined[1].resume()
        await asyncio.gather(first.finished(), *(run.finished() for run in joined))
        assert joined[2].report()["away"] == "the night shift needs the machine"
        with pytest.raises(ConfigError, match="no model of run"):
            await joined[2].result()
        assert "peer-3" in {row["name"] for row in first.report()["missing"]}
        assert joined[1].report()["finished"]
        for peer in peers:
            assert p2pfl.verify_log(peer.home.audit).ok


async def test_the_log_tells_the_whole_story(tmp_path: Path) -> None:
    files = Quadratic.make((12, 12)).write(tmp_path)
    async with p2pfl.local(write_plan(tmp_path, rounds=3), files, peers=2) as peers:
        runs = await peers.run()
        from p2pfl.audit import read_entries

        logs = [list(read_entries(peer.home.audit)) for peer in peers]
        for log in logs:
            kinds = [entry.kind for entry in log]
            for kind in (
                "peer_started", "charter_accepted", "link_up", "data_registered", "plan_approved", "start_signed",
                "run_started", "round_started", "delta_sent", "delta_received", "mixed", "acknowledged", "run_closed",
            ):  # fmt: skip
                assert kind in kinds, kind
        sent = {entry.body["core"] for entry in logs[0] if entry.kind == "delta_sent"}
        received = {entry.body["core"] for entry in logs[1] if entry.kind == "delta_received"}
        assert sent == received and len(sent) == 5
        assert runs[0].report()["digest"] == next(e for e in logs[0] if e.kind == "run_closed").body["digest"]


async def test_data_for_the_wrong_number_of_peers(tmp_path: Path) -> None:
    files = Quadratic.make((8, 8)).write(tmp_path)
    plan = write_plan(tmp_path)
    with pytest.raises(ConfigError, match="2 data files for 3 peers"):
        async with p2pfl.local(plan, files, peers=3):
            pass
    with pytest.raises(DataError, match="couldn't read"):
        async with p2pfl.local(plan, tmp_path / "nowhere.csv", peers=2):
            pass
    with pytest.raises(ConfigError, match="between 2 and"):
        async with p2pfl.local(plan, files[0], peers=1):
            pass


async def test_status_is_plain_data(tmp_path: Path) -> None:
    files = Quadratic.make((12, 12)).write(tmp_path)
    async with p2pfl.local(write_plan(tmp_path, rounds=2), files, peers=2) as peers:
        await peers.run()
        status = json.loads(json.dumps(peers[0].status()))
        assert status["runs"][0]["state"] == "done"
        assert status["members"][0]["link"] == "memory"
        assert status["bytes_sent"] > 0


async def test_a_plan_hash_that_is_no_longer_approved_does_not_start(tmp_path: Path) -> None:
    """The approval book is the gate at every start: without its entry the site leaves, and nothing was trained."""
    files = Quadratic.make((12, 12, 12)).write(tmp_path)
    async with p2pfl.local(write_plan(tmp_path, rounds=3), files, peers=3) as peers:
        first = await peers[0].propose(peers.plan)
        others = [await peer.join((await peer.next_proposal()).id) for peer in peers[1:2]]
        (peers[1].home.path / "approvals.json").unlink()
        others.append(await peers[2].join((await peers[2].next_proposal()).id))
        await asyncio.gather(first.finished(), *(run.finished() for run in others))
        report = others[0].report()
        assert "not approved at this site" in report["away"] and report["rounds_done"] == 0
        assert [row["name"] for row in first.report()["missing"]] == ["peer-1"]
