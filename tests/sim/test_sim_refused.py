"""What callers of `simulate` hand over and what does not fit: one sentence, before anything is trained or evaluated."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sim_worlds import blobs, write_plan, write_scenario

from p2pfl.data import Examples, Parts, dirichlet, quantity
from p2pfl.errors import ConfigError, P2PFLError
from p2pfl.sim import Inputs, cells_of, prepared, read_scenario, simulate, varied, write_report


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_plan(tmp_path_factory.mktemp("plan") / "plan")


def given(rows: Sequence[Sequence[int]]) -> Callable[[Examples, int, int], Parts]:
    return lambda examples, peers, seed: Parts(tuple(np.array(part, dtype=np.int64) for part in rows))


@pytest.mark.parametrize(
    ("partition", "wanted"),
    [
        (given([[0, 1], [], [2], [3]]), "peer 1 no examples"),
        (given([[0], [1], [2, 30000], [3]]), "peer 2 row 30000 of 180"),
        (given([[0], [1], [2], [5, -1]]), "peer 3 row -1 of 180"),
        (given([[0], [1]]), "gave 2 where 4 peers' parts"),
        (given([[0, 7], [1], [2, 9, 7], [3]]), "row 7 to peer 0 and to peer 2"),
        (given([[0], [1], [9, 2, 9], [3]]), "row 9 twice to peer 2"),
        (lambda examples, peers, seed: [[0], [1], [2], [3]], "gave list where 4"),
    ],
)
def test_a_partition_of_ones_own_that_does_not_fit(plan: Path, partition: Any, wanted: str) -> None:
    with pytest.raises(ConfigError, match=wanted):
        simulate(plan, blobs(), partition=partition, peers=4, rounds=1)


def damaged(part: str, value: float) -> Examples:
    examples = blobs()
    getattr(examples, part)[0][37, 1] = value
    return examples


@pytest.mark.parametrize(("part", "name"), [("train", "training"), ("test", "test")])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_no_numbers_are_told_of_the_right_part(plan: Path, part: str, name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"the {name} examples have missing"):
        simulate(plan, damaged(part, value), peers=4, rounds=1, progress=lambda done, rounds: pytest.fail("trained"))


def test_missing_values_are_told_before_the_first_of_many_runs(tmp_path: Path) -> None:
    read, inputs = read_scenario(write_scenario(tmp_path)), Inputs()
    inputs.examples(read).test[0][0, 0] = np.nan
    (cell,) = cells_of(read, {}, [0], inputs.digest)
    with pytest.raises(ConfigError, match="the test examples"):
        prepared(cell, inputs)


@pytest.mark.parametrize("call", [lambda plan: simulate(5, blobs()), lambda plan: dirichlet("small")])  # type: ignore[arg-type]
def test_other_types(plan: Path, call: Callable[[Path], object]) -> None:
    with pytest.raises(P2PFLError):
        call(plan)


def test_arrays_that_are_read_only_are_no_reason_to_warn(plan: Path) -> None:
    examples = blobs()
    for array in (*examples.train, *examples.test):
        array.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        simulate(plan, examples, peers=4, rounds=1, execution="eager")


def test_an_asynchronous_plan_that_is_simulated_in_step_is_told(tmp_path: Path) -> None:
    read, inputs = read_scenario(write_scenario(tmp_path)), Inputs()
    with (tmp_path / "plan" / "plan.toml").open("a") as settings:
        settings.write('policy = "asynchronous"\nstaleness = 2\n')
    (cell,) = cells_of(read, {}, [0], inputs.digest)
    assert any("the plan is asynchronous, this run is not" in said for said in prepared(cell, inputs).remarks)
    machines = varied(read, {"time.clock": "machines", "staleness": 2})
    (cell,) = cells_of(machines, {}, [0], inputs.digest)
    assert not any("asynchronous" in said for said in prepared(cell, inputs).remarks)


def test_what_was_said_before_the_run_stays_with_the_result(tmp_path: Path) -> None:
    """Else "auto" that became the loop reads as if somebody had asked for the loop."""
    plan = write_plan(tmp_path / "plan")
    source = (plan / "plan.py").read_text()
    (plan / "plan.py").write_text(source.replace("nn.Tanh()", "nn.BatchNorm1d(8, track_running_stats=False)"))
    result = simulate(plan, blobs(), peers=4, rounds=1, partition=quantity(2.0), seed=1, training={"batch_size": 44})
    assert any("the sites train one after the other" in said for said in result.facts["remarks"])
    page = write_report({"few": [result]}, tmp_path / "page.html").read_text()
    assert "few: the loss of an example depends on the others" in page


@pytest.mark.parametrize("kept", ["private", "shared"])
def test_what_the_rule_refuses_comes_before_advice_that_would_not_help(tmp_path: Path, kept: str) -> None:
    """Few examples and batch norm: "loop" would do, but not with this rule."""
    folder = write_plan(tmp_path / "plan")
    source = (folder / "plan.py").read_text()
    (folder / "plan.py").write_text(source.replace("nn.Tanh()", "nn.BatchNorm1d(8)"))
    own: dict[str, Any] = {"peers": 4, "rounds": 1, "partition": quantity(2.0), "seed": 1, "execution": "eager"}
    training = {"batch_norm": kept, "batch_size": 44}
    with pytest.raises(ConfigError, match=r"rule sgp .*GroupNorm"):
        simulate(folder, blobs(), rule="sgp", training=training, **own)
    with pytest.raises(ConfigError, match='or execution = "loop"'):
        simulate(folder, blobs(), rule="dpsgd", training=training, **own)
