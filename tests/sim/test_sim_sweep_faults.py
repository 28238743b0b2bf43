"""Sweeps that a careful reader would trust wrongly: settings without effect, lost columns, failed runs, old files."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sim_worlds import blobs, write_plan, write_scenario

from p2pfl.errors import ConfigError, LocalError
from p2pfl.sim import (
    Cell,
    Inputs,
    SimResult,
    backend_named,
    cells_of,
    load_failed,
    read_scenario,
    simulate,
    summary_rows,
    sweep,
)
from p2pfl.sim.backends import check_room
from p2pfl.sim.results import Columns, parquet_bytes, read_parquet
from p2pfl.sim.scenario import check_scenario
from p2pfl.sim.sweep_tables import joined, labelled


@pytest.mark.parametrize(
    ("name", "values"),
    [("scenario.seeds", [1, 2]), ("scenario.name", ["one", "other"])],
)
def test_what_changes_nothing_is_not_varied(tmp_path: Path, name: str, values: Sequence[object]) -> None:
    read, inputs = read_scenario(write_scenario(tmp_path)), Inputs()
    with pytest.raises(ConfigError, match=f"{name}={values[0]} and {name}={values[1]} are the same run"):
        cells_of(read, {name: values}, [0], inputs.digest)


def test_what_is_varied_keeps_its_column_beside_one_of_that_name(tmp_path: Path) -> None:
    read, inputs = read_scenario(write_scenario(tmp_path)), Inputs()
    cells = cells_of(read, {"seconds": [30.0, 60.0], "execution": ["eager"]}, [0], inputs.digest)
    made = sweep(cells, tmp_path / "out", backend_named("here", inputs, address=None), resume=False)
    table = read_parquet(tmp_path / "out" / "rounds.parquet")
    assert set(table["time.seconds"]) == {30.0, 60.0} and set(table["execution"]) == {"eager"}
    assert table["seconds"].dtype == np.float64 and table["seconds"].max() > 60.0
    assert all(result.parameters is None for results in made.groups.values() for result in results)


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ([4, 16], [4, 16]),
        ([0.1, 1], [0.1, 1.0]),
        ([4, "all"], ["4", "all"]),
        ([0.25, [1, 2]], ["0.25", "[1, 2]"]),
        (
            ["ring", {"kind": "regular", "degree": 3, "seed": 0}, {"kind": "star"}, {"how": 1}],
            ["ring", "regular (degree=3, seed=0)", "star", "{'how': 1}"],
        ),
        ([True, False], ["True", "False"]),
        ([1, 2**80], ["1", str(2**80)]),
    ],
)
def test_numbers_that_were_varied_are_numbers_in_the_tables(values: list[Any], wanted: list[Any]) -> None:
    """Else a plot over peers needs 4 before 16, and text sorts "16" before "4"."""
    scenario = check_scenario({"scenario": {"name": "s", "plan": "p", "peers": 4}, "data": {"kind": "csv"}}, "s")
    cells = [Cell(f"of {value}", {"some.key": value}, scenario, 0, "") for value in values]
    table = joined([labelled(cell, {"round": np.arange(2)}) for cell in cells])
    again = read_parquet_bytes(table)["some.key"].tolist()
    assert again == [value for value in wanted for _ in range(2)]
    assert list(map(type, again)) == [type(value) for value in wanted for _ in range(2)]


def read_parquet_bytes(columns: Columns) -> Columns:
    """As it is read back from a file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.parquet"
        path.write_bytes(parquet_bytes(columns))
        return read_parquet(path)


def test_runs_without_a_result_are_named_on_the_page_and_later(tmp_path: Path) -> None:
    read, inputs = read_scenario(write_scenario(tmp_path)), Inputs()
    cells = cells_of(read, {"learning_rate": [0.1, 3e38], "execution": ["eager"]}, [0], inputs.digest)
    made = sweep(cells, tmp_path / "out", backend_named("here", inputs, address=None), resume=False)
    ((which, why),) = made.failed.items()
    assert "diverged" in why and load_failed(tmp_path / "out") == made.failed
    assert f"No result of {which}: {why}." in (tmp_path / "out" / "report.html").read_text()


def test_runs_cut_off_in_different_rounds_are_compared_in_one_that_all_have(tmp_path: Path) -> None:
    plan = write_plan(tmp_path / "plan")
    whole, other = (simulate(plan, blobs(), peers=4, rounds=6, seed=seed, execution="eager") for seed in (0, 1))
    assert 3 in other.evaluated
    cut = replace(other, rounds={name: column[:4] for name, column in other.rounds.items()}, interrupted=True)
    (row,) = summary_rows({"blobs": [whole, cut]})
    assert row["rounds"] == 3 and row["seeds"] == 2
    assert row["consensus distance"] == np.mean([whole.final(3)["distance"], other.final(3)["distance"]])
    (row,) = summary_rows({"blobs": [whole, other]})
    assert row["rounds"] == other.rounds["round"][-1]
    assert row["consensus distance"] == np.mean([whole.final()["distance"], other.final()["distance"]])


def test_an_interrupt_while_the_page_is_written_says_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, inputs, told = read_scenario(write_scenario(tmp_path)), Inputs(), list[str]()
    cells = cells_of(read, {"execution": ["eager"]}, [0], inputs.digest)
    here = backend_named("here", inputs, address=None)

    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("p2pfl.sim.sweeps.write_report", interrupted)
        with pytest.raises(KeyboardInterrupt):
            sweep(cells, tmp_path / "out", here, resume=False, tell=told.append)
    assert len(told) == 1 and str(tmp_path / "out") in told[0] and "--resume writes the rest" in told[0]
    assert sweep(cells, tmp_path / "out", here, resume=True, tell=told.append).waiting == 0
    assert (tmp_path / "out" / "report.html").is_file() and len(told) == 1


def test_parameters_of_an_older_result_do_not_stay(tmp_path: Path) -> None:
    plan = write_plan(tmp_path / "plan")
    one, other = (simulate(plan, blobs(), peers=4, rounds=1, seed=seed, execution="eager") for seed in (0, 1))
    one.save(tmp_path / "r", parameters=True)
    again = SimResult.load(other.save(tmp_path / "r"))
    assert again.facts["seed"] == 1 and again.parameters is None
    one.save(tmp_path / "r", parameters=True)
    (tmp_path / "r" / "parameters.safetensors").write_bytes(b"cut")
    with pytest.raises(ConfigError, match=r"parameters\.safetensors"):
        SimResult.load(tmp_path / "r")


def test_a_cluster_of_small_machines_is_told_at_once() -> None:
    nodes = [
        {"Alive": True, "Resources": {"CPU": 4.0}}, {"Alive": False, "Resources": {"CPU": 64.0}},
        {"Alive": True, "Resources": {}},
    ]  # fmt: skip
    check_room(nodes, 4)
    with pytest.raises(LocalError, match=r"takes 8 threads.*more than 4 cores"):
        check_room(nodes, 8)
