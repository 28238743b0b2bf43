"""Sites with their own number of local steps, from `simulate` to the result: the same by every way, and what it costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sim_worlds import blobs, write_plan

from p2pfl.errors import P2PFLError
from p2pfl.sim import ComputeModel, SimResult, simulate
from p2pfl.sim.scenario import StepsTable
from p2pfl.sim.unequal_steps import steps_of_sites, with_steps

PLANS_STEPS = 3
UNEQUAL = [{"sites": [0, 2], "local_steps": 1}, {"sites": 2, "local_steps": 0}, {"sites": 4, "local_steps": 6}]
EACH = [1, 3, 0, 3, 6]


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_plan(tmp_path_factory.mktemp("plan") / "plan")


def run(plan: Path, **more: Any) -> SimResult:
    return simulate(plan, blobs(), **({"peers": 5, "rounds": 4, "execution": "eager", "steps": UNEQUAL} | more))


def test_the_last_table_that_names_a_site_holds() -> None:
    tables = [StepsTable.model_validate(table) for table in UNEQUAL]
    assert steps_of_sites(tables, 5, 0, PLANS_STEPS).tolist() == EACH
    assert steps_of_sites([], 3, 0, PLANS_STEPS).tolist() == [3, 3, 3]
    shares = [StepsTable(sites=0.25, local_steps=number) for number in (1, 2)]
    drawn = [steps_of_sites([*shares[:1], *more], 40, 1, PLANS_STEPS) for more in ((), shares[1:])]
    assert (drawn[0] == 1).sum() == 10 and (drawn[1] == 2).sum() == 10
    assert (drawn[1] == 1).sum() > 0, "each share is drawn anew"


@pytest.mark.parametrize(
    "training",
    [pytest.param({}, marks=pytest.mark.slow), {"rule": "kgt"}, {"optimiser": {"name": "adam"}}, {"rule": "relaysgd"}],
)
def test_the_ways_of_execution_agree(plan: Path, training: dict[str, Any]) -> None:
    """Every rule can: RelaySGD on a tree as well."""
    values = {"training": training | {"dtype": "float64"}, "topology": "chain", "closing_rounds": 0}
    loop, eager, traced = (run(plan, execution=way, **values) for way in ("loop", "eager", "traced"))
    equal = run(plan, steps=[], **values)
    assert loop.parameters is not None and eager.parameters is not None and equal.parameters is not None
    np.testing.assert_allclose(eager.parameters, loop.parameters, rtol=0, atol=1e-12)
    np.testing.assert_allclose(traced.parameters, loop.parameters, rtol=0, atol=1e-12)
    assert np.abs(equal.parameters - loop.parameters).max() > 1e-3


def test_a_table_that_says_what_the_plan_says_changes_nothing(plan: Path) -> None:
    same, plain = run(plan, steps=[{"sites": 1.0, "local_steps": PLANS_STEPS}]), run(plan, steps=[])
    np.testing.assert_array_equal(same.parameters, plain.parameters)


def test_the_result_says_who_took_how_many(plan: Path, tmp_path: Path) -> None:
    again = SimResult.load(run(plan).save(tmp_path / "r"))
    assert again.sites["local_steps"].tolist() == EACH
    assert again.facts["steps"] == UNEQUAL and again.facts["local_steps"] == PLANS_STEPS


def test_work_lasts_as_long_as_its_steps() -> None:
    compute = with_steps(ComputeModel(seconds=30.0, factors={3: 2.0, 4: 5.0}), np.array(EACH), PLANS_STEPS)
    alike = ComputeModel(seconds=30.0)
    for site, factor in enumerate([1 / 3, 1.0, 0.0, 2.0, 10.0]):
        assert compute.training(7, site, 2) == pytest.approx(factor * alike.training(7, site, 2))


@pytest.mark.parametrize("clock", ["model", "machines"])
def test_a_round_of_half_the_steps_lasts_half_as_long(plan: Path, clock: str) -> None:
    time = {"clock": clock, "seconds": 20.0, "latency": 0.0, "spread": 0.0}
    few = [{"sites": 1.0, "local_steps": 1}, {"sites": 3, "local_steps": 0}]
    usual, short = (run(plan, peers=4, time=time, rounds=5, steps=steps) for steps in ([], few))
    lasted = [np.diff(result.rounds["seconds"])[:5] for result in (usual, short)]
    np.testing.assert_allclose(lasted[0], 20.0, atol=0.1)
    np.testing.assert_allclose(lasted[1], 20.0 / 3, atol=0.1)


def test_machines_and_the_model_agree_on_unequal_steps(plan: Path) -> None:
    """Nobody is late here, so the machines mix everything, and the parameters are those of the plain schedule."""
    time = {"seconds": 3.0, "profiles": {"slow": 1}}
    model, machines = (run(plan, time=time | {"clock": clock}) for clock in ("model", "machines"))
    assert machines.facts["edges_mixed"] == 1.0
    np.testing.assert_allclose(machines.sites["seconds"], model.sites["seconds"], rtol=0.03)
    np.testing.assert_allclose(machines.parameters, model.parameters, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("steps", "wanted"),
    [
        ("few", "steps are 'few'; give a list"),
        ({"sites": 1, "local_steps": 2}, "give a list"),
        ([5], "steps 0 is 5; give a table"),
        ([{"sites": 1}], "steps 0: local_steps is missing"),
        ([{"sites": 1, "local_steps": 2, "rounds": 3}], "steps 0: rounds is not a known key"),
        ([{"sites": 1, "local_steps": True}], "steps 0: local_steps is True"),
        ([{"sites": [1, 5], "local_steps": 2}], "steps 0: sites"),
        ([{"sites": [], "local_steps": 2}], "steps 0: sites"),
        ([{"sites": 1, "local_steps": 2}, {"sites": -1, "local_steps": 2}], "steps 1: sites"),
        ([{"sites": 1.0, "local_steps": 0}], "all sites have 0 local steps, so nobody trains"),
    ],
)
def test_what_does_not_fit_is_refused_before_it_trains(plan: Path, steps: Any, wanted: str) -> None:
    with pytest.raises(P2PFLError, match=wanted) as refused:
        run(plan, steps=steps)
    assert "\n" not in str(refused.value)
