"""What the first evaluation, or the smallest site, would stumble over is told before anything is trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sim_worlds import blobs, write_plan

from p2pfl.data import Examples, Parts, dirichlet, iid
from p2pfl.errors import ConfigError, PlanError
from p2pfl.sim import simulate
from p2pfl.sim.vectorised import VectorisedRun


@pytest.fixture(autouse=True)
def nothing_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even the engine's set-up, which comes before the first evaluation."""
    monkeypatch.setattr(VectorisedRun, "__init__", lambda *arguments, **options: pytest.fail("the run began"))


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    return write_plan(tmp_path / "plan")


def changed(plan: Path, old: str, new: str) -> Path:
    source = (plan / "plan.py").read_text()
    assert old in source
    (plan / "plan.py").write_text(source.replace(old, new))
    return plan


@pytest.mark.parametrize(
    "figure",
    [
        *("share", "site", "seconds", "neighbours", "local_steps", "bytes", "heartbeat_bytes"),
        *("examples", "loss", "seed", "setting"),
    ],
)
def test_a_figure_named_like_a_column_of_the_tables_is_refused(plan: Path, figure: str) -> None:
    changed(plan, '{"accuracy":', f'{{"right": 1.0, "{figure}":')
    with pytest.raises(ConfigError, match=f"'{figure}' has the name of a column"):
        simulate(plan, blobs(), peers=4, rounds=2, execution="eager")


@pytest.mark.parametrize("label", [3, -1])
@pytest.mark.parametrize("part", ["test", "training"])
def test_a_label_that_no_class_has_is_told_wherever_it_is(plan: Path, part: str, label: int) -> None:
    examples = blobs()
    labels = (examples.test if part == "test" else examples.train)[1]
    labels[-2] = label
    with pytest.raises(ConfigError, match=rf"loss\(\) does not take the {part} examples .*{label} is out of bounds"):
        simulate(plan, examples, peers=4, rounds=2, execution="eager")


def test_without_test_examples_all_training_examples_are_tried(plan: Path) -> None:
    """They are what is evaluated then."""
    changed(
        plan, "    return nn.functional", "    assert batch[1].max() < 3, 'a fourth cloud'\n    return nn.functional"
    )
    examples = blobs()
    with pytest.raises(ConfigError, match=r"training examples .*a fourth cloud"):
        simulate(plan, Examples((examples.train[0], np.r_[examples.train[1][:-1], 3])), peers=4, execution="loop")


@pytest.mark.parametrize("metrics", [True, False], ids=["with metrics", "loss alone"])
@pytest.mark.parametrize("change", ["x.mul_(0.5)", "x *= 0.5", "x[:1].zero_()"])
def test_a_plan_that_would_change_the_examples_is_refused_and_changes_none(
    plan: Path, change: str, metrics: bool
) -> None:
    """Else each evaluation would be of other examples than the one before, and so would the caller's next run."""
    changed(plan, "    return nn.functional", f"    x = batch[0]\n    {change}\n    return nn.functional")
    if not metrics:
        changed(plan, "def metrics", "def unused")
    examples = blobs()
    before = [array.copy() for array in (*examples.train, *examples.test)]
    with pytest.raises(PlanError, match=r"changes the examples that it is given.*write x = x / 255"):
        simulate(plan, examples, peers=4, rounds=2, execution="loop")
    for array, old in zip((*examples.train, *examples.test), before, strict=True):
        np.testing.assert_array_equal(array, old)


def test_metrics_that_would_change_the_examples_are_refused(plan: Path) -> None:
    changed(plan, '    return {"accuracy"', '    batch[0].abs_()\n    return {"accuracy"')
    with pytest.raises(PlanError, match="changes the examples"):
        simulate(plan, blobs(), peers=4, rounds=2)


LOSS = 'nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")'


@pytest.mark.parametrize("execution", ["auto", "loop", "eager"])
@pytest.mark.parametrize(
    ("old", "new", "wanted"),
    [
        (LOSS, f"{LOSS} > 0", "returned torch.bool; return real numbers"),
        (LOSS, f"{LOSS}.long()", "returned torch.int64; return real numbers"),
        (LOSS, f"{LOSS} * 1j", "returned torch.complex64; return real numbers"),
        (LOSS, f"{LOSS}.detach()", "the loss has no gradient"),
        ("nn.Linear(2, 8)", "nn.LazyLinear(8)", "layers without sizes.*give their sizes"),
    ],
)
def test_a_loss_without_a_gradient_is_told(plan: Path, old: str, new: str, wanted: str, execution: str) -> None:
    with pytest.raises(PlanError, match=wanted):
        simulate(changed(plan, old, new), blobs(), peers=4, rounds=2, execution=execution)


@pytest.mark.parametrize("partition", [dirichlet, iid])
def test_a_partition_that_was_not_called_is_told(plan: Path, partition: Callable[..., Parts]) -> None:
    with pytest.raises(ConfigError, match=f"the partition is {partition.__name__} itself; call it"):
        simulate(plan, blobs(), partition=partition, peers=4)


def test_heartbeats_that_would_fill_the_uplinks_can_be_left_out(plan: Path) -> None:
    """Two hundred sites with eight neighbours each and 10 Mbit/s; those of real machines cannot be left out."""
    graph = {"kind": "regular", "degree": 8, "seed": 0}
    examples = blobs(800)

    def begin(rounds: int, **time: object) -> None:
        simulate(plan, examples, topology=graph, peers=200, rounds=rounds, time={"bandwidth": 1.25e6, **time})

    with pytest.raises(ConfigError, match=r"heartbeats of 200 sites .*write heartbeats = false in \[time\]"):
        begin(100)
    for rounds, time in ((100, {"heartbeats": False}), (20, {})):  # they tell of at most as many messages as there are
        with pytest.raises(pytest.fail.Exception, match="the run began"):
            begin(rounds, **time)
    with pytest.raises(ConfigError, match="leave heartbeats = false out"):
        begin(100, heartbeats=False, clock="machines")


NORM = "nn.BatchNorm1d(8, track_running_stats=False)"


def one_at(site: int) -> Callable[[Examples, int, int], Parts]:
    """Sixty examples each, and one at this site."""
    rows = [np.arange(60 * peer, 60 * peer + 60) for peer in range(3)]
    rows[site] = rows[site][:1]
    return lambda examples, peers, seed: Parts(tuple(rows))


@pytest.mark.parametrize("execution", ["auto", "loop", "eager"])
@pytest.mark.parametrize("site", [0, 2])
def test_batch_norm_at_a_site_of_one_example_is_told_with_the_site(plan: Path, execution: str, site: int) -> None:
    changed(plan, "nn.Tanh()", NORM)
    with pytest.raises(ConfigError, match=f"site {site} has one example.*GroupNorm"):
        simulate(plan, blobs(), partition=one_at(site), peers=3, rounds=1, execution=execution)


def test_batch_norm_with_a_batch_size_of_one_is_told(plan: Path) -> None:
    changed(plan, "nn.Tanh()", NORM)
    with pytest.raises(ConfigError, match=r"batches of one example.*larger batch_size"):
        simulate(plan, blobs(), peers=3, rounds=1, training={"batch_size": 1}, execution="loop")


@pytest.mark.parametrize(("layer", "steps"), [("nn.GroupNorm(2, 8)", 3), (NORM, 0)])
def test_one_example_is_enough_where_nothing_depends_on_the_others(plan: Path, layer: str, steps: int) -> None:
    """Nor at a site that never trains."""
    changed(plan, "nn.Tanh()", layer)
    own = [{"sites": [1], "local_steps": steps}]
    with pytest.raises(pytest.fail.Exception, match="the run began"):
        simulate(plan, blobs(), partition=one_at(1), peers=3, rounds=1, steps=own, execution="loop")
