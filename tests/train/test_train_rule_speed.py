"""benchmarks/rule_speed.py measures a rule against D-PSGD on the same work."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from p2pfl.train.rules import RULES

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "rule_speed.py"


MEASURED = ("kgt", "exact_diffusion", "relaysgd")


def test_a_rule_has_its_row() -> None:
    command = [sys.executable, str(PROGRAM), "--sites", "10", "--rounds", "2", "--way", "eager", "--json"]
    chosen = [word for name in MEASURED for word in ("--rule", name)]
    done = subprocess.run([*command, *chosen], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [row["rule"] for row in found["rules"]] == list(MEASURED)
    for row in found["rules"]:
        needs, channels = RULES[row["rule"]].needs, RULES[row["rule"]].channels
        assert row["channels"] == len(channels) and row["graph"] == ("tree" if needs.mixing == "tree" else "regular")
        assert row["steps"] == (needs.most_steps or 5)
        assert len(row["seconds"]) == 2 and row["ms"] == pytest.approx(statistics.median(row["seconds"]) * 1000)
        assert row["per channel"] == pytest.approx(row["ms"] / row["D-PSGD ms"] / len(channels))
        assert row["mixing ratio"] > 0
