"""Four hospitals in four network namespaces, by command lines only; two have no port."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hospitals import (
    Hospital,
    all_up,
    approve,
    found,
    propose,
    together,
    until,
    until_round,
    verified,
    write_plan,
)
from namespaces import Network, why_not
from safetensors.numpy import load_file

NAMES = ("lille", "caen", "rouen", "amiens")  # ring order: ports and no ports alternate
REASON = why_not()

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(REASON is not None, reason=REASON or ""),
    pytest.mark.timeout(300),
]


@pytest.fixture
def network() -> Iterator[Network]:
    with Network(NAMES) as network:
        yield network


@pytest.fixture
def hospitals(network: Network, tmp_path: Path) -> list[Hospital]:
    ports = {"lille": 4101, "rouen": 4102}
    made = []
    for name in NAMES:
        listen = f"/ip4/{network.address(name)}/tcp/{ports[name]}" if name in ports else None
        secret = "a passphrase with spaces" if name == "rouen" else None
        made.append(Hospital(tmp_path, name, listen, inside=network.inside(name), passphrase=secret))
    found(tmp_path, made)
    return made


def test_four_homes_run_a_plan_to_the_end(hospitals: list[Hospital], tmp_path: Path) -> None:
    plan = write_plan(tmp_path / "plan", rounds=6)
    lille, caen, rouen, amiens = hospitals
    checked = json.loads(caen.p2pfl("plan", "check", str(plan), "--home", str(caen.home), "--json"))
    assert checked["examples"] == {"train": 4, "test": 0}
    with all_up(hospitals):
        run = propose(caen, plan)  # caen has no port
        together([lille, rouen, amiens], lambda hospital: approve(hospital, run))
        together(hospitals, lambda hospital: until(hospital.report, 60, hospital.last_words))
        for hospital in hospitals:
            state = hospital.status()
            assert state is not None and state["runs"][0]["state"] == "done"
            listed = json.loads(hospital.p2pfl("plan", "list", str(hospital.home), "--json"))
            assert [(row["run"], row["proposer"]) for row in listed] == [(run, "caen")]
            shown = hospital.p2pfl("plan", "show", str(hospital.home), run[:8])
            assert "class Point" in shown and checked["plan"] in shown
    models = {}
    for hospital in hospitals:
        assert hospital.process is not None and hospital.process.returncode == 0
        file = tmp_path / f"{hospital.name}.safetensors"
        report = json.loads(hospital.p2pfl("result", str(hospital.home), "-o", str(file), "--json"))
        assert report["finished"] and report["rounds_done"] == 8 and report["missing"] == []
        assert [site["name"] for site in report["participants"]] == list(NAMES)
        models[hospital.name] = load_file(file)["x"]
        outcome = json.loads(hospital.p2pfl("audit", "verify", str(hospital.home), "--json"))
        assert outcome["ok"] and outcome["entries"] > 20
        assert hospital.entries("refused", "equivocation") == []
    assert all(model.shape == (3,) for model in models.values())
