"""A copied home, started as a second process beside the first one; and a restart after a kill, which is none."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hospitals import Hospital, all_up, free_port, until

from p2pfl.peer import found_consortium


def linked(hospital: Hospital, other: Hospital) -> bool:
    return any(row["name"] == other.name and row["link"] for row in (hospital.ask("status"))["members"])


@pytest.mark.slow
def test_a_copied_home_is_refused_and_a_killed_one_is_back_at_once(tmp_path: Path) -> None:
    rouen = Hospital(tmp_path, "rouen", f"/ip4/127.0.0.1/tcp/{free_port()}")
    lille = Hospital(tmp_path, "lille", None)
    found_consortium(
        {rouen.home: None, lille.home: None}, "north", {"kind": "full"}, listen={rouen.home: str(rouen.listen)}
    )
    copy = Hospital(tmp_path, "copy", None)
    shutil.copytree(lille.home, copy.home)
    with all_up([rouen, lille]):
        until(lambda: linked(rouen, lille), 30, rouen.last_words)
        with all_up([copy]):
            news = until(lambda: rouen.said("second instance"), 30, rouen.last_words)
            assert "second process with the key" in news[0]["reason"]
            until(lambda: lille.said("second instance"), 30, lille.last_words)
            assert linked(rouen, lille) and lille.running() and copy.running()
            assert "refused us" in copy.ask("status")["members"][0]["why_not"]
            assert "ALARM        lille" in rouen.p2pfl("status", str(rouen.home))
        refused = len(rouen.entries("refused"))
        assert refused
        lille.kill()
        lille.up()
        until(lambda: len(rouen.entries("link_up")) == 2, 30, rouen.last_words)
        assert len(rouen.entries("refused")) == refused
        assert rouen.entries("link_up", "link_down")[-1].kind == "link_up"
