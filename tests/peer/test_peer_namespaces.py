"""Four hospitals in four network namespaces, by command lines only; two have no port."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hospitals import (
    Hospital,
    all_up,
    approve,
    found,
    found_quickly,
    propose,
    together,
    until,
    until_round,
    verified,
    write_plan,
)
from namespaces import Network, why_not
from safetensors.numpy import load_file

from p2pfl.audit import Entry

NAMES = ("lille", "caen", "rouen", "amiens")  # ring order: ports and no ports alternate
REASON = why_not()
SCHEDULING = 3.0  # seconds a loaded machine may add to the promised 15

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(REASON is not None, reason=REASON or ""),
    pytest.mark.timeout(300),
]


@pytest.fixture
def network() -> Iterator[Network]:
    with Network(NAMES) as network:
        yield network


def made(network: Network, folder: Path) -> list[Hospital]:
    ports = {"lille": 4101, "rouen": 4102}
    found = []
    for name in NAMES:
        listen = f"/ip4/{network.address(name)}/tcp/{ports[name]}" if name in ports else None
        secret = "a passphrase with spaces" if name == "rouen" else None
        found.append(Hospital(folder, name, listen, inside=network.inside(name), passphrase=secret))
    return found


@pytest.mark.slow
def test_four_homes_run_a_plan_to_the_end(network: Network, tmp_path: Path) -> None:
    hospitals = made(network, tmp_path)
    found(tmp_path, hospitals)
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


def begin(hospitals: list[Hospital], plan: Path) -> str:
    """Caen proposes, all approve."""
    lille, caen, rouen, amiens = hospitals
    run = str(caen.ask("propose", plan=str(plan), seed=1)["run"])
    for hospital in (lille, rouen, amiens):
        until(lambda hospital=hospital: any(row["run"] == run for row in hospital.ask("list")), 30, hospital.last_words)
    together([lille, rouen, amiens], lambda hospital: hospital.ask("approve", run=run))
    return run


def absences(hospital: Hospital, gone: Hospital) -> list[str]:
    """Why the hospital's log says that the other one is absent."""
    return [entry.body["reason"] for entry in hospital.entries("absent") if entry.body.get("peer") == gone.peer_id]


def links_lost(hospital: Hospital, gone: Hospital) -> list[Entry]:
    """What the hospital's log says of links to the other one that ended."""
    return [entry for entry in hospital.entries("link_down") if entry.body.get("peer") == gone.peer_id]


def all_verify(hospitals: list[Hospital]) -> None:
    for hospital in hospitals:
        verified(hospital)
        assert hospital.entries("equivocation") == []
        assert "Traceback" not in hospital.log_file.read_text()


def mixed_rounds(hospital: Hospital) -> int:
    return len(hospital.entries("mixed"))


def stop_amiens(hospitals: list[Hospital]) -> float:
    """SIGSTOP in the middle of the run; returns when the others go on without it, with the moment of the signal."""
    lille, caen, rouen, amiens = hospitals
    until_round(amiens, 5)
    amiens.send(signal.SIGSTOP)
    stopped = time.monotonic()
    stands_at = mixed_rounds(amiens)
    for hospital in (lille, rouen):
        until(lambda hospital=hospital: absences(hospital, amiens), 30, hospital.last_words)
    for hospital in (lille, caen, rouen):
        until(lambda hospital=hospital: mixed_rounds(hospital) > stands_at + 5, 30, hospital.last_words)
    assert mixed_rounds(amiens) == stands_at
    return stopped


@pytest.mark.slow
def test_one_peer_is_stopped_for_30_seconds_and_the_others_finish(network: Network, tmp_path: Path) -> None:
    hospitals = made(network, tmp_path)
    found_quickly(tmp_path, hospitals)
    plan = write_plan(tmp_path / "plan", rounds=40, deadline=4.0, local_steps=50)
    lille, caen, rouen, amiens = hospitals
    with all_up(hospitals):
        begin(hospitals, plan)
        stopped = stop_amiens(hospitals)
        for hospital in (lille, caen, rouen):
            report = until(hospital.report, 60, hospital.last_words)
            assert report["finished"] and report["rounds_done"] == 42
            assert {gone["name"] for gone in report["missing"]} <= {"amiens"}
            if hospital is not caen:  # caen has no edge to amiens, and may close before anybody told it
                assert [gone["name"] for gone in report["missing"]] == ["amiens"]
        until(lambda: time.monotonic() > stopped + 30, 40, "30 seconds of SIGSTOP")
        amiens.send(signal.SIGCONT)
        report = until(amiens.report, 60, amiens.last_words)
        assert report["finished"] and report["rounds_done"] < 42  # it skipped to the end, and says so
        skipped = [entry.body for entry in amiens.entries("absent") if "peer" not in entry.body]
        assert [body["until"] for body in skipped] == [42]
        for hospital in hospitals:
            until(lambda hospital=hospital: list(hospital.home.glob("runs/*/over")), 30, hospital.last_words)
    all_verify(hospitals)


@pytest.mark.slow
def test_one_peer_is_stopped_for_30_seconds_and_catches_up(network: Network, tmp_path: Path) -> None:
    hospitals = made(network, tmp_path)
    found_quickly(tmp_path, hospitals)
    plan = write_plan(tmp_path / "plan", rounds=20_000, deadline=4.0, local_steps=50)  # nobody reaches the end
    lille, _, rouen, amiens = hospitals
    with all_up(hospitals):
        begin(hospitals, plan)
        stopped = stop_amiens(hospitals)
        until(lambda: time.monotonic() > stopped + 30, 40, "30 seconds of SIGSTOP")
        amiens.send(signal.SIGCONT)
        back_at = mixed_rounds(amiens)
        start = amiens.entries()[-1].position

        def in_step() -> bool:
            """It mixed with both neighbours again, and they with it."""
            new = [entry.body for entry in amiens.entries("mixed", start=start)]
            # the round it was stopped in may be mixed with what had arrived before
            return any(len(body["edges"]) == 2 and body["round"] > back_at + 1 for body in new)

        until(in_step, 60, amiens.last_words)
        alone = [e for e in amiens.entries("mixed", start=start) if not e.body["edges"]]
        assert len(alone) <= 3, f"it trained on alone for {len(alone)} rounds instead of catching up"
        assert back_at < amiens.entries("mixed")[-1].body["round"]
        for hospital in (lille, rouen):
            status = hospital.ask("status")["runs"][0]
            assert status["missing"] == [] and status["state"] != "done"
    for hospital in hospitals:
        assert hospital.process is not None and hospital.process.returncode == 0
    all_verify(hospitals)


@pytest.mark.slow
def test_one_peer_is_cut_off_by_a_packet_filter(network: Network, tmp_path: Path) -> None:
    hospitals = made(network, tmp_path)
    found_quickly(tmp_path, hospitals)
    # a deadline that nobody could wait for: the neighbours' pace and the keep-alive let the others go on
    plan = write_plan(tmp_path / "plan", rounds=60, deadline=600.0, local_steps=50)
    lille, caen, rouen, amiens = hospitals
    with all_up(hospitals):
        begin(hospitals, plan)
        until_round(amiens, 5)
        network.cut("amiens")
        cut_at = time.time()
        for hospital in (lille, rouen):
            # its pace tells first: rounds of half a second let nobody wait for the plan's ten minutes
            until(lambda hospital=hospital: absences(hospital, amiens), 30, hospital.last_words)
            down = until(lambda hospital=hospital: links_lost(hospital, amiens), 30, hospital.last_words)[-1]
            assert "silent for" in down.body["reason"]
            noticed = down.time / 1000 - cut_at
            assert noticed < 15 + SCHEDULING, f"{hospital.name} noticed after {noticed:.1f} s"
        reports = {hospital.name: until(hospital.report, 60, hospital.last_words) for hospital in hospitals}
        for hospital in (lille, caen, rouen):
            assert reports[hospital.name]["finished"]
        for name in ("lille", "rouen"):
            assert [gone["name"] for gone in reports[name]["missing"]] == ["amiens"]
        # alone behind its filter it comes to an end, too, and says what it lacks
        assert {gone["name"] for gone in reports["amiens"]["missing"]} == {"lille", "rouen"}
        all_verify(hospitals)
        network.heal("amiens")
        for hospital in hospitals:  # all closing statements meet when it is back
            until(lambda hospital=hospital: list(hospital.home.glob("runs/*/over")), 60, hospital.last_words)
    all_verify(hospitals)
