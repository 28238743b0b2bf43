"""Sweeps: every cell once, stored as it ends, resumed, interrupted, joined in tables."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from sim_worlds import write_scenario

from p2pfl.errors import ConfigError
from p2pfl.sim import Cell, Inputs, SimResult, backend_named, cells_of, load_groups, read_scenario, sweep, varied
from p2pfl.sim.backends import Here
from p2pfl.sim.results import read_parquet


class Counted:
    """The backend here, that counts what it runs, and is interrupted after so many."""

    def __init__(self, inputs: Inputs, stop_after: int = 99) -> None:
        self._here, self.ran, self._stop = Here(inputs), list[str](), stop_after

    def run(self, cells: Sequence[Cell], watch: object) -> Iterator[tuple[Cell, SimResult]]:
        for cell, result in self._here.run(cells, None):
            self.ran.append(cell.key)
            result.interrupted = len(self.ran) > self._stop
            yield cell, result
            if result.interrupted:
                return


@pytest.fixture
def cells(tmp_path: Path) -> tuple[list[Cell], Inputs]:
    scenario = read_scenario(write_scenario(tmp_path))
    inputs = Inputs()
    return cells_of(scenario, {"topology": ["ring", "full"]}, [0, 1], inputs.digest), inputs


def test_a_sweep_and_its_tables(cells: tuple[list[Cell], Inputs], tmp_path: Path) -> None:
    out = tmp_path / "out"
    groups = sweep(cells[0], out, Counted(cells[1]), resume=False, title="Ring or full", command="p2pfl sim sweep")
    assert {name: len(results) for name, results in groups.items()} == {"topology=ring": 2, "topology=full": 2}
    table = read_parquet(out / "rounds.parquet")
    assert set(table["topology"]) == {"ring", "full"} and set(table["seed"]) == {0, 1}
    assert len(table["round"]) == 4 * 8
    assert len(read_parquet(out / "sites.parquet")["site"]) == 4 * 6
    state = json.loads((out / "sweep.json").read_text())
    assert [row["state"] for row in state["cells"]] == ["done"] * 4
    page = (out / "report.html").read_text()
    assert "Ring or full" in page and "topology=full" in page and "p2pfl sim sweep" in page
    loaded = load_groups(out)
    for name, results in groups.items():
        for one, other in zip(results, loaded[name], strict=True):
            np.testing.assert_array_equal(one.rounds["train_loss"], other.rounds["train_loss"])
    assert load_groups(out / "cells" / cells[0][0].key)["topology=ring"][0].facts["seed"] == 0


def test_full_mixes_better_than_a_ring(cells: tuple[list[Cell], Inputs], tmp_path: Path) -> None:
    groups = sweep(cells[0], tmp_path / "out", Counted(cells[1]), resume=False)
    for ring, full in zip(groups["topology=ring"], groups["topology=full"], strict=True):
        assert full.rounds["distance"][-1] < 0.1 * ring.rounds["distance"][-1]


def test_resumed_after_an_interrupt_nothing_is_made_twice(cells: tuple[list[Cell], Inputs], tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = Counted(cells[1], stop_after=2)
    groups = sweep(cells[0], out, first, resume=False)
    assert len(first.ran) == 3 and sum(map(len, groups.values())) == 3
    state = [row["state"] for row in json.loads((out / "sweep.json").read_text())["cells"]]
    assert state == ["done", "done", "interrupted", "waiting"]
    assert "Interrupted before the last round" in (out / "report.html").read_text()
    second = Counted(cells[1])
    groups = sweep(cells[0], out, second, resume=True)
    assert second.ran == [cell.key for cell in cells[0][2:]]
    assert sum(map(len, groups.values())) == 4
    third = Counted(cells[1])
    sweep(cells[0], out, third, resume=True)
    assert third.ran == []


def test_folders_that_are_not_used(cells: tuple[list[Cell], Inputs], tmp_path: Path) -> None:
    out = tmp_path / "out"
    sweep(cells[0][:1], out, Counted(cells[1]), resume=False)
    with pytest.raises(ConfigError, match="--resume"):
        sweep(cells[0], out, Counted(cells[1]), resume=False)
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="something else"):
        sweep(cells[0], other, Counted(cells[1]), resume=False)
    with pytest.raises(ConfigError, match="is a file"):
        sweep(cells[0], other / "thesis.txt", Counted(cells[1]), resume=False)
    with pytest.raises(ConfigError, match="no results"):
        load_groups(other)
    assert (other / "thesis.txt").read_text() == "mine"


def test_unknown_backends(cells: tuple[list[Cell], Inputs]) -> None:
    with pytest.raises(ConfigError, match="here or ray"):
        backend_named("spark", cells[1], address=None, workers=2)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore")  # Ray's own processes and sockets
def test_ray_gives_the_same_numbers(cells: tuple[list[Cell], Inputs], tmp_path: Path) -> None:
    pytest.importorskip("ray")
    fixed = varied(cells[0][0].scenario, {"execution": "eager"})  # "auto" measures, and the ways differ in rounding
    many = cells_of(fixed, {"topology": ["ring", "full"]}, [0, 1], cells[1].digest)
    here = sweep(many, tmp_path / "here", Here(cells[1]), resume=False)
    ray = backend_named("ray", cells[1], address=None, workers=2)
    there = sweep(many, tmp_path / "ray", ray, resume=False)
    assert list(here) == list(there)
    for name in here:
        for one, other in zip(here[name], there[name], strict=True):
            for column, values in one.rounds.items():
                np.testing.assert_array_equal(values, other.rounds[column], err_msg=column)
    again = Counted(cells[1])
    sweep(many, tmp_path / "ray", again, resume=True)
    assert again.ran == [], "what the cluster made is known again"
