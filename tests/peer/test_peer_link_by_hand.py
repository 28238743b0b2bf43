"""Two hospitals, no port anywhere and nobody to introduce them: `p2pfl link` by command lines, and a run over it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from bottle import Quadratic
from hospitals import TAG, Hospital, all_up, until, write_plan

from p2pfl.peer import WebRtcSettings, found_consortium, open_home

WAIT = 60.0

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Hospital, Hospital]]:
    """Lille and Caen are up, and cannot reach each other."""
    lille, caen = Hospital(tmp_path, "lille", None), Hospital(tmp_path, "caen", None)
    homes = {hospital.home: None for hospital in (lille, caen)}
    webrtc = WebRtcSettings(interfaces=["127.0.0.1"])
    found_consortium(homes, "north", {"kind": "ring"}, listen={}, names=["lille", "caen"], webrtc=webrtc)
    for hospital, file in zip((lille, caen), Quadratic.make([8, 4]).write(tmp_path), strict=True):
        open_home(hospital.home).registry.add(TAG, file, now=1)
    with all_up([lille, caen]):
        yield lille, caen


def link_of(hospital: Hospital) -> dict[str, object]:
    status = hospital.status()
    assert status is not None
    (member,) = status["members"]
    return {key: member[key] for key in ("link", "path", "introducer")}


@pytest.mark.slow
def test_a_link_carried_by_hand_and_a_run_over_it(tmp_path: Path, pair: tuple[Hospital, Hospital]) -> None:
    lille, caen = pair
    offer, answer = tmp_path / "offer.txt", tmp_path / "answer.txt"
    assert link_of(lille) == {"link": None, "path": None, "introducer": None}
    said = lille.attempt("link", "offer", str(lille.home), "caen", "--out", str(offer))
    assert said.returncode == 0 and said.stdout == "" and "carry this to caen" in said.stderr
    text = offer.read_text()
    assert text.startswith("p2pfl link offer v1\n") and "127.0.0.1" not in text
    answer.write_text(caen.p2pfl("link", "accept", str(caen.home), str(offer)))
    value = json.loads(lille.p2pfl("link", "accept", str(lille.home), str(answer), "--json"))
    assert value["link"] == "webrtc" and value["member"] == "caen"
    for hospital in pair:
        until(lambda hospital=hospital: link_of(hospital)["link"] == "webrtc", WAIT, "the link is not shown")
        assert link_of(hospital) == {"link": "webrtc", "path": "direct", "introducer": None}
        assert "webrtc, direct, linked by hand" in hospital.p2pfl("status", str(hospital.home))
    run = json.loads(
        lille.p2pfl("plan", "propose", str(lille.home), str(write_plan(tmp_path / "plan", rounds=5)), "--json")
    )["run"]
    until(lambda: any(row["run"] == run for row in caen.ask("list")), WAIT, "caen did not hear the proposal")
    caen.p2pfl("plan", "approve", str(caen.home), run, "--yes")
    for hospital in pair:
        report = until(hospital.report, WAIT, lambda: lille.last_words() + caen.last_words())
        assert report["finished"] and report["missing"] == []
        assert {entry.body["kind"] for entry in hospital.entries("link_up")} == {"webrtc"}


@pytest.mark.slow
def test_what_people_get_wrong(tmp_path: Path, pair: tuple[Hospital, Hospital]) -> None:
    lille, caen = pair
    offer = tmp_path / "offer.txt"
    lille.p2pfl("link", "offer", str(lille.home), "caen", "--out", str(offer))
    lines = offer.read_text().splitlines()
    altered, other, empty = tmp_path / "altered", tmp_path / "other", tmp_path / "empty"
    place = next(number for number, line in enumerate(lines) if " " not in line) + 3
    altered.write_text("\n".join([*lines[:place], lines[place][::-1], *lines[place + 1 :]]) + "\n")
    other.write_text("p2pfl member record v1\nabcd\n")
    empty.write_text("")
    cases = [
        (lille, ("offer", str(lille.home), "rouen"), "names no other member; choose one of: caen"),
        (lille, ("offer", str(lille.home), "lille"), "names no other member"),
        (lille, ("accept", str(lille.home), str(offer)), "does not open with our key"),  # at the wrong site
        (caen, ("accept", str(caen.home), str(altered)), "does not open with our key"),
        (caen, ("accept", str(caen.home), str(other)), "it should begin with 'p2pfl link offer v1'"),
        (caen, ("accept", str(caen.home), str(empty)), "it should begin with"),
        (caen, ("accept", str(caen.home), str(tmp_path / "missing")), "couldn't read"),
        (caen, ("accept", str(tmp_path), str(offer)), "is no p2pfl home"),
    ]
    for hospital, arguments, words in cases:
        done = hospital.attempt("link", *arguments)
        assert done.returncode == 1 and done.stdout == "" and done.stderr.count("\n") == 1, done
        assert words in done.stderr and "internal" not in done.stderr, done.stderr
    first = caen.attempt("link", "accept", str(caen.home), str(offer))
    assert first.returncode == 0
    again = caen.attempt("link", "accept", str(caen.home), str(offer))
    assert again.returncode == 1 and "replayed" in again.stderr
    answer = tmp_path / "answer.txt"
    answer.write_text(first.stdout)
    wrong = caen.attempt("link", "accept", str(caen.home), str(answer))
    assert wrong.returncode == 1 and "answers no offer that waits here" in wrong.stderr
    assert json.loads(lille.p2pfl("link", "accept", str(lille.home), str(answer), "--json"))["link"] == "webrtc"
    refused = [entry.body["reason"] for entry in caen.entries("refused")]
    assert any("replayed" in reason for reason in refused) and any("does not open" in reason for reason in refused)
