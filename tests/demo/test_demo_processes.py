"""`p2pfl demo` as people run it: four processes, one JSON object, figures that hold."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

DATA = Path(os.environ.get("P2PFL_DATA", Path(__file__).parents[3] / "shared" / "data")) / "heart"
NAMES = ("Lille", "Caen", "Rouen", "Amiens")  # the charter's order
TIME_LIMIT = 280  # seconds for one run; alone on two cores it takes 15 to 40

pytestmark = pytest.mark.timeout(300)


@cache
def demo(*arguments: str) -> tuple[dict[str, Any], str]:
    """The one JSON object of a demo, and what it said on standard error. Each command line is run once."""
    done = subprocess.run(
        [sys.executable, "-m", "p2pfl", "demo", "--json", *arguments],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIME_LIMIT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    value = json.loads(done.stdout, parse_constant=refuse)  # all of it: nothing stands before or after
    return value, done.stderr


def is_auc(value: Any) -> bool:
    return type(value) is float and 0.0 <= value <= 1.0


def check_row(row: dict[str, Any], *, killed: bool) -> None:
    """Exactly the fields of issue 2, with the types it lists; null where a killed hospital could not report."""
    reported = {"auc_together": is_auc, "auc_together_home": is_auc, "rounds_done": is_count, "bytes_sent": is_count}
    always = {
        "name": lambda value: isinstance(value, str) and value,
        "peer_id": lambda value: re.fullmatch(r"12D3Koo[1-9A-HJ-NP-Za-km-z]{45}", value),
        "patients": is_count,
        "links": lambda value: isinstance(value, dict) and set(value.values()) <= {"tcp", "webrtc"},
        "auc_alone": is_auc,
        "auc_alone_home": is_auc,
        "log_entries": is_count,
        "log_verified": lambda value: value is True,
    }
    assert set(row) == {*reported, *always}
    for field, holds in always.items():
        assert holds(row[field]), (field, row)
    for field, holds in reported.items():
        assert row[field] is None if killed else holds(row[field]), (field, row)


def is_count(value: Any) -> bool:
    return type(value) is int and value > 0


def check(value: dict[str, Any], names: tuple[str, ...], killed: str | None = None) -> None:
    assert set(value) == {"hospitals", "auc_pooled", "missing", "seconds"}
    assert [row["name"] for row in value["hospitals"]] == list(names)
    for row in value["hospitals"]:
        check_row(row, killed=row["name"] == killed)
    assert len({row["peer_id"] for row in value["hospitals"]}) == len(names)
    assert is_auc(value["auc_pooled"])
    assert type(value["seconds"]) is float and value["seconds"] > 0


def check_kinds(value: dict[str, Any]) -> None:
    """WebRTC between the two without a port, introduced over their tcp links; tcp everywhere else."""
    portless = {"Rouen", "Amiens"}
    for row in value["hospitals"]:
        for name, kind in row["links"].items():
            assert kind == ("webrtc" if {row["name"], name} == portless else "tcp"), row["links"]


def links(value: dict[str, Any]) -> dict[str, set[str]]:
    return {row["name"]: set(row["links"]) for row in value["hospitals"]}


def test_one_json_object_with_the_fields_of_the_issue() -> None:
    value, said = demo("--rounds", "4")
    check(value, NAMES)
    assert value["missing"] == []
    assert [row["patients"] for row in value["hospitals"]] == [228, 114, 170, 57]
    assert len({row["rounds_done"] for row in value["hospitals"]}) == 1
    ring = {
        "Lille": {"Caen", "Amiens"},
        "Caen": {"Lille", "Rouen"},
        "Rouen": {"Caen", "Amiens"},
        "Amiens": {"Rouen", "Lille"},
    }
    for name, neighbours in links(value).items():  # the two without a port keep links to both who may introduce them
        assert ring[name] <= neighbours <= set(NAMES) - {name}
    check_kinds(value)
    assert said.count("\n") <= 2, said


@pytest.mark.slow
def test_a_killed_hospital() -> None:
    """`--kill amiens@2 --rounds 6`: the others finish, and say who was missing and since when."""
    value, said = demo("--kill", "amiens@2", "--rounds", "6")
    check(value, NAMES, killed="Amiens")
    (gone,) = value["missing"]
    assert set(gone) == {"name", "from_round", "reason"}
    # 1: it begins round 2 with its own mixing, and may be gone before all have fetched what it sent in round 1
    assert gone["name"] == "Amiens" and gone["from_round"] in (1, 2, 3) and gone["reason"]
    assert "Amiens's process" in said and "was killed in round 2" in said
    done = {row["rounds_done"] for row in value["hospitals"] if row["name"] != "Amiens"}
    assert len(done) == 1


@pytest.mark.slow
def test_the_proposer_may_be_the_one_that_dies() -> None:
    value, _ = demo("--kill", "LILLE@3", "--rounds", "6")
    check(value, NAMES, killed="Lille")
    assert [row["name"] for row in value["missing"]] == ["Lille"]


@pytest.mark.slow
def test_the_full_graph_joins_the_portless_two_as_well() -> None:
    value, _ = demo("--topology", "full", "--rounds", "3")
    check(value, NAMES)
    check_kinds(value)
    assert links(value) == {name: set(NAMES) - {name} for name in NAMES}


@pytest.mark.slow
def test_the_homes_stay_where_they_were_asked_for(tmp_path: Path) -> None:
    home = tmp_path / "homes"
    value, _ = demo("--rounds", "2", "--home", str(home))
    check(value, NAMES)
    for row in value["hospitals"]:
        folder = home / row["name"].lower()
        assert (folder / "audit.db").stat().st_size > 0
        assert not (folder / "control.sock").exists()
        assert {path for path in folder.rglob("*") if path.stat().st_mode & 0o077} <= {folder / "up.log"}
    assert home.stat().st_mode & 0o077 == 0


@pytest.mark.slow
def test_a_hierarchy() -> None:
    value, _ = demo("--topology", "hierarchical", "--rounds", "3")
    check(value, NAMES)
    assert all(row["links"] for row in value["hospitals"])


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_together_is_as_good_as_pooled(seed: int) -> None:
    value, _ = demo("--seed", str(seed))
    check(value, NAMES)
    together = [row["auc_together"] for row in value["hospitals"]]
    assert abs(math.fsum(together) / len(together) - value["auc_pooled"]) <= 0.01
    assert min(together) >= max(row["auc_alone"] for row in value["hospitals"]) - 0.01


@pytest.mark.slow
def test_a_killed_hospital_in_a_full_run() -> None:
    value, _ = demo("--kill", "amiens@5")
    check(value, NAMES, killed="Amiens")
    together = [row["auc_together"] for row in value["hospitals"] if row["auc_together"] is not None]
    assert len(together) == 3 and abs(math.fsum(together) / 3 - value["auc_pooled"]) <= 0.02


@pytest.mark.skipif(
    not DATA.is_dir(), reason=f"no UCI heart disease data in {DATA}; set P2PFL_DATA to the folder above it"
)
@pytest.mark.slow
def test_the_real_heart_hospitals() -> None:
    value, _ = demo("--data", str(DATA))
    check(value, ("Cleveland", "Switzerland", "Hungary", "VA"))
    assert sum(row["patients"] for row in value["hospitals"]) == 920
    together = [row["auc_together"] for row in value["hospitals"]]
    assert abs(math.fsum(together) / len(together) - value["auc_pooled"]) <= 0.01
    assert all(row["auc_together"] > row["auc_alone"] - 0.01 for row in value["hospitals"])
