"""What the first evaluation, or the smallest site, would stumble over is told before anything is trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sim_worlds import blobs, write_plan

from p2pfl.data import Examples, Parts
from p2pfl.errors import ConfigError
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
