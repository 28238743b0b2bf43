"""Sweeps: every cell once, stored as it ends, resumed, interrupted, joined in tables."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from sim_worlds import write_scenario

from p2pfl.errors import ConfigError, StoreError
from p2pfl.sim import Cell, Inputs, SimResult, backend_named, cells_of, load_groups, read_scenario, sweep, varied
from p2pfl.sim.backends import Here
from p2pfl.sim.pace import pace_of
from p2pfl.sim.results import read_parquet
from p2pfl.sim.sweep_folder import locked


class Counted:
    """The backend here, that counts what it runs, and is interrupted after so many."""

    goes_on = True

    def __init__(self, inputs: Inputs, stop_after: int = 99) -> None:
        self._here, self.ran, self._stop = Here(inputs), list[str](), stop_after

    def run(self, cells: Sequence[Cell], watch: object, checkpoints: object = None) -> Iterator[tuple[Cell, SimResult]]:
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
    made = sweep(cells[0], out, Counted(cells[1]), resume=False, title="Ring or full", command="p2pfl sim sweep")
    groups = made.groups
    assert (made.failed, made.waiting) == ({}, 0)
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
    groups = sweep(cells[0], tmp_path / "out", Counted(cells[1]), resume=False).groups
    for ring, full in zip(groups["topology=ring"], groups["topology=full"], strict=True):
        assert full.rounds["distance"][-1] < 0.1 * ring.rounds["distance"][-1]


def test_resumed_after_an_interrupt_nothing_is_made_twice(cells: tuple[list[Cell], Inputs], tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = Counted(cells[1], stop_after=2)
    made = sweep(cells[0], out, first, resume=False)
    assert len(first.ran) == 3 and sum(map(len, made.groups.values())) == 3 and made.waiting == 1
    assert [result.interrupted for results in load_groups(out).values() for result in results] == [False, False, True]
    state = [row["state"] for row in json.loads((out / "sweep.json").read_text())["cells"]]
    assert state == ["done", "done", "interrupted", "waiting"]
    assert "Interrupted before the last round" in (out / "report.html").read_text()
    second = Counted(cells[1])
    groups = sweep(cells[0], out, second, resume=True).groups
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


def test_two_sweeps_at_once_are_refused(cells: tuple[list[Cell], Inputs], tmp_path: Path) -> None:
    out = tmp_path / "out"

    class Beside(Counted):
        """While it runs, somebody else begins in the same folder."""

        def run(
            self, cells: Sequence[Cell], watch: object, checkpoints: object = None
        ) -> Iterator[tuple[Cell, SimResult]]:
            for pair in super().run(cells, watch):
                with pytest.raises(ConfigError, match="another p2pfl sim is at work in"):
                    sweep(cells, out, other, resume=True)
                yield pair

    first, other = Beside(cells[1]), Counted(cells[1])
    sweep(cells[0][:2], out, first, resume=False)
    assert len(first.ran) == 2 and other.ran == []
    sweep(cells[0], out, other, resume=True)
    assert other.ran == [cell.key for cell in cells[0][2:]], "the lock ends with the sweep"


def test_a_refused_sweep_leaves_a_folder_that_can_be_used(cells: tuple[list[Cell], Inputs], tmp_path: Path) -> None:
    """The lock file alone is not somebody's data."""
    (tmp_path / "out").mkdir()
    with locked(tmp_path / "out"):
        pass
    assert sweep(cells[0][:1], tmp_path / "out", Counted(cells[1]), resume=False).waiting == 0


def test_a_longer_part_is_kept_until_more_is_there(cells: tuple[list[Cell], Inputs], tmp_path: Path) -> None:
    """Begun anew and interrupted sooner: what the first attempt left is not replaced by less."""
    out = tmp_path / "out"

    class Cut(Counted):
        def __init__(self, rounds: int) -> None:
            super().__init__(cells[1], stop_after=0)
            self._rounds = rounds

        def run(
            self, cells: Sequence[Cell], watch: object, checkpoints: object = None
        ) -> Iterator[tuple[Cell, SimResult]]:
            for cell, result in super().run(cells, watch):
                result.rounds = {name: column[: self._rounds] for name, column in result.rounds.items()}
                yield cell, result

    lengths = []
    for rounds in (4, 2, 6):
        (result,) = sweep(cells[0][:1], out, Cut(rounds), resume=True).groups["topology=ring"]
        (stored,) = load_groups(out)["topology=ring"]
        assert len(stored.rounds["round"]) == len(result.rounds["round"]) and stored.interrupted
        lengths.append(len(stored.rounds["round"]))
    assert lengths == [4, 4, 6]


def test_an_interrupted_run_is_said_to_begin_again(cells: tuple[list[Cell], Inputs], tmp_path: Path) -> None:
    said: list[str] = []
    sweep(cells[0], tmp_path / "out", Counted(cells[1], stop_after=2), resume=False, tell=said.append)
    assert said == []
    sweep(cells[0], tmp_path / "out", Counted(cells[1]), resume=True, tell=said.append)
    assert said == ["topology=full, seed 0, was cut off: it begins again from round 0"]


def test_another_sweep_in_the_folder_is_not_replaced(cells: tuple[list[Cell], Inputs], tmp_path: Path) -> None:
    out = tmp_path / "out"
    sweep(cells[0][:2], out, Counted(cells[1]), resume=False)
    with pytest.raises(ConfigError, match="results of other runs"):
        sweep(cells[0][1:], out, Counted(cells[1]), resume=True)
    more = Counted(cells[1])
    sweep(cells[0], out, more, resume=True)
    assert more.ran == [cell.key for cell in cells[0][2:]], "more seeds or settings are the same sweep, grown"


def test_a_damaged_result_is_made_again(cells: tuple[list[Cell], Inputs], tmp_path: Path) -> None:
    out = tmp_path / "out"
    sweep(cells[0], out, Counted(cells[1]), resume=False)
    (out / "cells" / cells[0][1].key / "rounds.parquet").write_bytes(b"PAR1")
    again = Counted(cells[1])
    sweep(cells[0], out, again, resume=True)
    assert again.ran == [cells[0][1].key]


def test_a_run_that_diverges_does_not_end_the_sweep(tmp_path: Path) -> None:
    inputs, out = Inputs(), tmp_path / "out"
    scenario = read_scenario(write_scenario(tmp_path))
    cells = cells_of(scenario, {"learning_rate": [0.1, 1e38, 0.2]}, [0], inputs.digest)
    made = sweep(cells, out, Here(inputs), resume=False)
    assert list(made.groups) == ["learning_rate=0.1", "learning_rate=0.2"] and made.waiting == 0
    assert "diverged" in made.failed["learning_rate=1e+38, seed 0"]
    assert [row["state"] for row in json.loads((out / "sweep.json").read_text())["cells"]] == ["done", "failed", "done"]
    again = sweep(cells, out, Here(inputs), resume=True)
    assert list(again.groups) == list(made.groups) and again.failed == made.failed


def test_an_interrupt_before_the_first_round_leaves_the_others(
    cells: tuple[list[Cell], Inputs], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def interrupted(simulation: object) -> object:
        calls.append(simulation)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return pace_of(simulation)  # type: ignore[arg-type]

    monkeypatch.setattr("p2pfl.sim.conduct.pace_of", interrupted)
    made = sweep(cells[0], tmp_path / "out", Here(cells[1]), resume=False)
    assert made.waiting == 2 and sum(map(len, made.groups.values())) == 2
    assert (tmp_path / "out" / "report.html").is_file() and len(load_groups(tmp_path / "out")) == 1


def test_where_nothing_can_be_written_nothing_is_trained(cells: tuple[list[Cell], Inputs], tmp_path: Path) -> None:
    counted = Counted(cells[1])
    with pytest.raises(StoreError):
        sweep(cells[0], Path("/proc/p2pfl/out"), counted, resume=False)
    assert counted.ran == []


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
    here = sweep(many, tmp_path / "here", Here(cells[1]), resume=False).groups
    ray = backend_named("ray", cells[1], address=None, workers=2)
    there = sweep(many, tmp_path / "ray", ray, resume=False).groups
    assert list(here) == list(there)
    for name in here:
        for one, other in zip(here[name], there[name], strict=True):
            for column, values in one.rounds.items():
                np.testing.assert_array_equal(values, other.rounds[column], err_msg=column)
    again = Counted(cells[1])
    sweep(many, tmp_path / "ray", again, resume=True)
    assert again.ran == [], "what the cluster made is known again"
