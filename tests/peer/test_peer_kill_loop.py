"""kill -9 in a loop, one hospital every two seconds, for two minutes: the run completes and nobody contradicts itself."""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hospitals import Hospital, all_up, found_quickly, free_port, until, verified, write_plan
from test_peer_kills import NAMES, all_is_well, begin, is_over, one_core_for_each_place

EVERY = 2.0  # seconds
LONG = 120.0  # seconds of killing


def kill_in_turns(hospitals: list[Hospital], seconds: float, seed: int) -> int:
    """Kill one that runs, start those that were killed two turns ago; how many kills."""
    draw = random.Random(seed)
    kills, down = 0, []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        turn = time.monotonic() + EVERY
        running = [hospital for hospital in hospitals if hospital not in down]
        victim = draw.choice(running)
        victim.kill()
        kills += 1
        down.append(victim)
        while len(down) > 1:
            down.pop(0).up()  # not awaited: it may be killed while it still starts
        time.sleep(max(0.0, turn - time.monotonic()))
    for hospital in down:
        hospital.up()
    return kills


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_one_is_killed_every_two_seconds_for_two_minutes(tmp_path: Path) -> None:
    hospitals = [
        Hospital(tmp_path, name, f"/ip4/127.0.0.1/tcp/{free_port()}" if number % 2 == 0 else None)
        for number, name in enumerate(NAMES)
    ]
    found_quickly(tmp_path, hospitals)
    with all_up(hospitals):
        plan = write_plan(tmp_path / "plan", rounds=200, deadline=20.0, local_steps=2000)
        with ThreadPoolExecutor(4) as pool:
            run = begin(hospitals, plan, pool)
        until(lambda: all(hospital.entries("mixed") for hospital in hospitals), 60, hospitals[0].last_words)
        kills = kill_in_turns(hospitals, LONG, seed=4)
        assert kills >= 50
        assert not all(is_over(hospital) for hospital in hospitals), "the run must last longer than the killing"
        for hospital in hospitals:
            report = until(hospital.report, 240, hospital.last_words)
            assert report["run"] == run
            assert report["finished"], report["away"]
            until(lambda hospital=hospital: is_over(hospital), 60, hospital.last_words)
        for hospital in hospitals:
            verified(hospital)
            one_core_for_each_place(hospital, [other for other in hospitals if other is not hospital])
        all_is_well(hospitals)
