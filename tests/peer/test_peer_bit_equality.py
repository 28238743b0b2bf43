"""Four processes over tcp and the same run in memory: bit-equal parameters, also with the recorded absences replayed."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest
from bottle import Bottle
from four_processes import (
    PLAN,
    Recorded,
    begin,
    one_thread,  # noqa: F401 a fixture
    processes,
    replay,
    replay_recorded,
    reports,
    until,
    write_data,
    write_plan,
)

from p2pfl.train.session import Session
from p2pfl.types import PeerId

# --- tests


@pytest.mark.timeout(300)
@pytest.mark.parametrize("rule", ["kgt", pytest.param("relaysgd", marks=pytest.mark.slow)])
async def test_processes_and_memory_end_with_the_same_bits(tmp_path: Path, rule: str) -> None:
    plan = write_plan(tmp_path, rule, rounds=8, deadline=60.0)
    async with processes(tmp_path) as sites:
        run = await begin(sites, plan)
        told = {report["peer"]: report for report in await reports(sites)}
    recorded = Recorded.read(sites, run)
    assert all(report["finished"] and report["rounds_done"] == 10 for report in told.values())
    assert not any(report["missing"] or report["unsettled"] for report in told.values())
    world = recorded.bottle()
    world.begin()
    world.run()
    assert world.done()
    for site in world.sites.values():
        assert site.machine is not None
        assert site.machine.context.running.run == run == recorded.start.run
        assert site.machine.context.running.shares == recorded.start.shares
        assert site.session.digest() == told[site.peer_id]["digest"], "not the same bits"
    assert len({report["digest"] for report in told.values()}) == 4, "each site has its own model"
    assert replay_recorded(recorded) == {peer: report["digest"] for peer, report in told.items()}
    keys = dict(recorded.keys)
    first = recorded.roster.peer_ids[0]
    keys[first] = bytes(32)  # and it is the keys that decide: with another one the bits differ
    other = Bottle(
        [recorded.data[peer] for peer in world.order], recorded.plan.source.decode(), recorded.plan.session_settings(),
        identities=[recorded.identities[peer] for peer in world.order], roster=recorded.roster,
        proposal=recorded.proposal, initial=recorded.initial, keys=keys,
    )  # fmt: skip
    other.begin()
    other.run()
    assert other.sites[first].session.digest() != told[first]["digest"]


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("rule", "how"),
    [
        pytest.param("dpsgd", "killed", marks=pytest.mark.slow),
        pytest.param("kgt", "stopped", marks=pytest.mark.slow),
        pytest.param("relaysgd", "killed", marks=pytest.mark.slow),
    ],
)
async def test_recorded_absences_replayed_in_memory_end_with_the_same_bits(tmp_path: Path, rule: str, how: str) -> None:
    plan = write_plan(tmp_path, rule, rounds=60, deadline=1.0)
    async with processes(tmp_path) as sites:
        run = await begin(sites, plan)
        victim, *others = sites[3], *sites[:3]
        await until(lambda: victim.last_round() >= 5, "the first rounds")
        victim.process.send_signal(signal.SIGKILL if how == "killed" else signal.SIGSTOP)
        here = others[0].last_round()
        if how == "stopped":
            await until(lambda: others[0].last_round() >= min(here + 8, 50), "rounds without the stopped one")
            victim.process.send_signal(signal.SIGCONT)
        survivors = others if how == "killed" else sites
        told = {report["peer"]: report for report in await reports(survivors)}
    recorded = Recorded.read(sites, run)
    replayed = replay_recorded(recorded)
    lonely = 0
    for peer, report in told.items():
        assert report["finished"]
        assert replayed[peer] == report["digest"], "the recorded decisions do not lead to the recorded bits"
        mixed = [entry.body for entry in recorded.entries[peer] if entry.kind == "mixed"]
        lonely += sum(len(body["edges"]) < 2 for body in mixed)
    assert lonely >= 8, "somebody must have been missing, or this test shows nothing"


@pytest.mark.parametrize("rule", ["dpsgd", "kgt", "relaysgd"])
def test_lost_messages_and_corrections_replayed_end_with_the_same_bits(tmp_path: Path, rule: str) -> None:
    """In memory and without processes, so that displacements are taken back for sure."""
    rng = np.random.default_rng(3)
    started: list[bool] = []

    def lost(kind: str, source: PeerId, target: PeerId, data: bytes) -> bool:
        return bool(started) and kind != "flood" and rng.random() < 0.15

    settings = {
        "rule": rule, "optimiser": {"name": "sgd"}, "learning_rate": 0.1, "local_steps": 3, "batch_size": 8,
        "dtype": "float32",
    }  # fmt: skip
    files = write_data(tmp_path)
    world = Bottle(
        files, PLAN, settings, rounds=40, closing_rounds=2, deadline=3.0, lost=lost,
        topology={"kind": "chain" if rule == "relaysgd" else "ring"},
    )  # fmt: skip
    world.begin()
    world.run(lambda: all("round_started" in site.kinds() or site.timers for site in world.sites.values()))
    started.append(True)
    world.run()
    assert world.done()
    taken_back = sum(len(body["taken_back"]) for site in world.sites.values() for body in site.entries("mixed"))
    assert taken_back > 5
    sessions = {}
    for peer, file in zip(world.order, files, strict=True):
        sessions[peer] = Session(PLAN.encode(), settings)
        sessions[peer].load_data(str(file))
    replayed = replay(
        world.machine(0).context.running, world.initial, sessions, {peer: site.key for peer, site in world.sites.items()},
        3, {peer: [(kind, body) for kind, body, _ in site.log] for peer, site in world.sites.items()},
    )  # fmt: skip
    assert replayed == {peer: site.session.digest() for peer, site in world.sites.items()}
