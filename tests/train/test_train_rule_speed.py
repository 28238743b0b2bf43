"""benchmarks/rule_speed.py measures a rule against D-PSGD on the same work."""

from __future__ import annotations

import importlib
import statistics
import sys
from pathlib import Path

import pytest

from p2pfl.train.rules import RULES

FOLDER = str(Path(__file__).parents[2] / "benchmarks")
sys.path.insert(0, FOLDER)
try:
    speed = importlib.import_module("rule_speed")
finally:
    sys.path.remove(FOLDER)


@pytest.mark.parametrize(("name", "steps", "graph"), [
    ("kgt", 5, "regular"), ("exact_diffusion", 1, "regular"), ("relaysgd", 5, "tree"), ("cyclic", 5, "cyclic"),
])  # fmt: skip
def test_a_rule_has_its_row(name: str, steps: int, graph: str) -> None:
    row, channels = speed.measure(name, 10, 2, "eager"), len(RULES[name].channels)
    assert (row["steps"], row["graph"], row["channels"]) == (steps, graph, channels)
    assert len(row["seconds"]) == 2 and row["ms"] == pytest.approx(statistics.median(row["seconds"]) * 1000)
    assert row["per channel"] == pytest.approx(row["ms"] / row["D-PSGD ms"] / channels)
    assert 0 < row["mixing ms"] < row["ms"] and set(speed.HEADS) < set(row)


def test_rule_and_yardstick_have_the_same_work() -> None:
    own, yardstick = (speed.engine(rule, 10, 2, 1, "tree", "eager") for rule in ("relaysgd", "dpsgd"))
    assert own.schedule.graph.edges == yardstick.schedule.graph.edges
    assert own.settings.local_steps == yardstick.settings.local_steps == 1
    assert (own.data[0] == yardstick.data[0]).all() and (own.x == yardstick.x).all()
