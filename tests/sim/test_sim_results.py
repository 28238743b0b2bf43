"""Results: columns, files, pages; runs that are the same give the same, and interrupted ones are usable."""

from __future__ import annotations

import os
import pickle
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
from sim_worlds import blobs, write_plan

import p2pfl
from p2pfl.data import dirichlet, quantity
from p2pfl.errors import ConfigError, P2PFLError
from p2pfl.figures import to_svg
from p2pfl.sim import SimResult, charts, simulate, warnings_of
from p2pfl.sim.charts import metric_chart, overview
from p2pfl.sim.results import FORMAT
from p2pfl.sim.vector_mixing import LinearMixing


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_plan(tmp_path_factory.mktemp("plan") / "plan")


@pytest.fixture(scope="module")
def result(plan: Path) -> SimResult:
    return simulate(
        plan, blobs(), partition=dirichlet(0.5), topology="ring", peers=6, rounds=8, seed=3,
        time={"seconds": 30.0, "bandwidth": 1e5}, evaluate={"every": 2, "sites": "all"}, execution="eager",
    )  # fmt: skip


def test_it_is_the_public_one() -> None:
    assert p2pfl.simulate is simulate and p2pfl.SimResult is SimResult


def test_columns(result: SimResult) -> None:
    rounds = result.rounds
    assert rounds["round"].tolist() == list(range(10)), "the start, 8 training rounds and a closing one"
    assert rounds["training"].tolist() == [False, *[True] * 8, False]
    accuracy = rounds["mean_model_accuracy"]
    assert np.isfinite(accuracy).tolist() == [round % 2 == 0 or round == 9 for round in range(10)]
    assert accuracy[-1] > 0.9 > accuracy[0]
    assert (rounds["worst_site_accuracy"][[0, 2, 4, 9]] <= rounds["sites_accuracy"][[0, 2, 4, 9]]).all()
    assert rounds["distance"][0] < 1e-6, "all begin alike, but for rounding"
    assert (rounds["distance"][[2, 4, 6, 8, 9]] > 0).all()
    assert (np.diff(rounds["seconds"][1:]) > 0).all() and (np.diff(rounds["bytes"][1:]) > 0).all()
    assert rounds["seconds"][1] >= 24.0, "a round of training takes its 30 s, give or take a fifth"
    assert result.metric == "accuracy" and result.higher_is_better
    assert result.sites["examples"].sum() == 180 and result.sites["neighbours"].tolist() == [2] * 6
    assert result.final()["round"] == 9
    assert set(result.cost) == {"set-up", "training", "mixing", "evaluation"}
    assert result.parameters is not None and result.parameters.shape == (6, 51)


def test_worst_and_best_are_the_sites_own(result: SimResult) -> None:
    assert result.rounds["worst_site_accuracy"][-1] == pytest.approx(result.sites["accuracy"].min())
    assert result.rounds["best_site_accuracy"][-1] == pytest.approx(result.sites["accuracy"].max())
    assert result.rounds["sites_accuracy"][-1] == pytest.approx(result.sites["accuracy"].mean())


@pytest.mark.parametrize(("figure", "line"), [("ece", ""), ("misses", 'LOWER_IS_BETTER = {"misses"}\n')])
def test_worst_and_best_of_a_figure_that_is_better_when_lower(tmp_path: Path, figure: str, line: str) -> None:
    plan = write_plan(tmp_path / "plan")
    source = (plan / "plan.py").read_text().replace('"accuracy": float(', f'"{figure}": 1.0 - float(')
    (plan / "plan.py").write_text(source + line)
    found = simulate(
        plan, blobs(), partition=dirichlet(0.5), peers=6, rounds=2, seed=1, evaluate={"sites": "all"}, execution="eager"
    )
    values = found.sites[figure]
    assert values.min() < values.max()
    assert found.rounds[f"worst_site_{figure}"][-1] == pytest.approx(values.max())
    assert found.rounds[f"best_site_{figure}"][-1] == pytest.approx(values.min())
    again = SimResult.load(found.save(tmp_path / "r"))
    assert again.metric == figure and not again.higher_is_better
    assert again.facts["lower_is_better"] == (["misses"] if line else [])


@pytest.mark.parametrize("line", ['LOWER_IS_BETTER = "misses"', "LOWER_IS_BETTER = {1}"])
def test_a_declaration_that_names_nothing_is_refused(tmp_path: Path, line: str) -> None:
    plan = write_plan(tmp_path / "plan")
    with (plan / "plan.py").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(P2PFLError, match="LOWER_IS_BETTER must be a set of names"):
        simulate(plan, blobs(), peers=4, rounds=2, execution="eager")


def test_the_same_arguments_give_the_same_numbers(result: SimResult, plan: Path) -> None:
    again = simulate(
        plan, blobs(), partition=dirichlet(0.5), topology="ring", peers=6, rounds=8, seed=3,
        time={"seconds": 30.0, "bandwidth": 1e5}, evaluate={"every": 2, "sites": "all"}, execution="eager",
    )  # fmt: skip
    for name, values in result.rounds.items():
        np.testing.assert_array_equal(values, again.rounds[name], err_msg=name)
    np.testing.assert_array_equal(result.parameters, again.parameters)


def test_saved_and_loaded(result: SimResult, tmp_path: Path) -> None:
    again = SimResult.load(result.save(tmp_path / "r", parameters=True))
    assert again.facts == result.facts and again.cost == result.cost
    for table in ("rounds", "sites"):
        mine, other = getattr(result, table), getattr(again, table)
        assert list(mine) == list(other)
        for name, values in mine.items():
            np.testing.assert_array_equal(values, other[name], err_msg=name)
            assert values.dtype == other[name].dtype, name
    np.testing.assert_array_equal(result.edges, again.edges)
    np.testing.assert_array_equal(result.parameters, again.parameters)
    assert SimResult.load(result.save(tmp_path / "without")).parameters is None
    assert list(again.frame.columns) == list(result.rounds) and len(again.site_frame) == 6


@pytest.mark.parametrize("damage", ["empty", "other format", "torn table", "no table", "not JSON"])
def test_a_folder_that_is_no_result(result: SimResult, tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "r"
    folder.mkdir()
    if damage != "empty":
        result.save(folder)
    if damage == "other format":
        text = (folder / "result.json").read_text()
        (folder / "result.json").write_text(text.replace(f'"format": {FORMAT}', '"format": 9'))
    if damage == "torn table":
        (folder / "rounds.parquet").write_bytes((folder / "rounds.parquet").read_bytes()[:100])
    if damage == "no table":
        (folder / "sites.parquet").unlink()
    if damage == "not JSON":
        (folder / "result.json").write_text("{")
    with pytest.raises(ConfigError, match="simulat"):
        SimResult.load(folder)


def test_the_page_needs_nothing_else(result: SimResult, tmp_path: Path) -> None:
    page = result.to_html(tmp_path / "report.html").read_text()
    assert page == result.to_html(tmp_path / "again.html").read_text()
    assert not re.findall(r"""(?:src|href)\s*=\s*["'](?!#|data:image)""", page), "nothing is loaded from elsewhere"
    assert "<script" not in page and page.count("<svg") == 6
    assert f"{result.final()['mean_model_accuracy']:.4f}" in page
    assert "default-src 'none'" in page


def test_a_plot(result: SimResult) -> None:
    figure = result.plot()
    assert len(figure.axes) >= 6
    drawn = figure.axes[0].get_lines()[0].get_ydata()
    np.testing.assert_allclose(
        drawn, result.rounds["mean_model_accuracy"][np.isfinite(result.rounds["mean_model_accuracy"])]
    )


def test_a_notebook_shows_the_plot_and_one_line(result: SimResult) -> None:
    """IPython asks an object for its picture; matplotlib's own hook needs pyplot, which nobody has to import."""
    figure = result.plot()
    assert figure._repr_png_().startswith(b"\x89PNG")
    assert pickle.loads(pickle.dumps(figure)).axes, "figures stay what can be pickled"
    accuracy = result.final()["mean_model_accuracy"]
    assert repr(result) == f"<SimResult 'blobs': 6 sites, round 9, accuracy of the mean model {accuracy:.4g}>"


def test_names_with_dollars_are_drawn_as_they_are(result: SimResult) -> None:
    groups = {r"a$\y$": [result], "$b": [result]}
    assert r"a$\y$" in to_svg(overview(groups)).replace("<!-- ", "")
    assert to_svg(metric_chart(groups, "round"))


def test_two_faults_of_one_kind_do_not_meet_at_the_same_sites(plan: Path) -> None:
    """At the same sites the second flip would change nothing."""
    flip = {"kind": "lying", "sites": 0.25}
    one, two = (
        simulate(plan, blobs(), peers=8, rounds=2, execution="eager", faults=faults)
        for faults in ((flip,), (flip, flip))
    )
    assert not np.array_equal(one.parameters, two.parameters)


def test_an_interrupt_leaves_what_there_is(plan: Path, tmp_path: Path) -> None:
    def stop(done: int, rounds: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    result = simulate(plan, blobs(), peers=4, rounds=8, evaluate={"every": 1}, execution="eager", progress=stop)
    assert result.interrupted
    assert result.rounds["round"].tolist() == [0, 1, 2, 3]
    assert np.isfinite(result.final()["mean_model_accuracy"])
    page = result.to_html(tmp_path / "report.html").read_text()
    assert "Interrupted before the last round" in page
    assert SimResult.load(result.save(tmp_path / "r")).interrupted


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ({"peers": 0}, "0 peers"),
        ({"peers": 1000}, "1000 peers"),
        ({"rule": "sgd"}, "unknown update rule"),
        ({"topology": "rng"}, "unknown topology"),
        ({"seed": -1}, "seed"),
        ({"weights": "votes"}, "weights"),
        ({"device": "gpu"}, "unknown device"),
        ({"execution": "fast"}, "execution"),
        ({"training": {"batch_size": 0}}, "batch_size"),
        ({"time": {"clok": "model"}}, "clok"),
        ({"time": "model"}, "time is 'model'; give a table"),
        ({"evaluate": "all"}, "evaluate is 'all'; give a table"),
        ({"training": 5}, "training is 5; give a table"),
        ({"faults": {"kind": "lying", "sites": 1}}, "give a list"),
        ({"faults": [{"kind": "lyin", "sites": 1}]}, "fault 0: kind is 'lyin'"),
        ({"faults": [{"kind": "lying", "sites": 1, "size": -1.0}]}, "fault 0: size is -1.0"),
        ({"partition": "dirichlt"}, "unknown partition"),
        ({"partition": {"alpha": 0.1}}, "kind is None"),
        ({"partition": 5}, "the partition is 5"),
        ({"topology": 5}, "the topology is 5"),
        ({"peers": 4.0}, "peers is 4.0; give a whole number"),
        ({"peers": True}, "peers is True; give a whole number"),
        ({"rounds": 2.5}, "rounds is 2.5; give a whole number"),
        ({"seed": 1.0}, "seed is 1.0; give a whole number"),
        ({"rule": 5}, "rule is 5; give a text"),
        ({"device": 0}, "device is 0; give a text"),
        ({"faults": [{"kind": "lying", "sites": [99]}]}, "fault"),
        ({"faults": [{"kind": "lying", "sites": [1], "first": 7}]}, "begins in round 7, but the last round is 6"),
        ({"faults": [{"kind": "absent", "sites": 1.0}]}, "all sites are absent in every training round"),
        (
            {"faults": [{"kind": "absent", "sites": [0, 1]}, {"kind": "absent", "sites": [2, 3], "last": 5}]},
            "all sites are absent in every training round",
        ),
    ],
)
def test_what_does_not_fit_is_refused(plan: Path, arguments: dict[str, object], wanted: str) -> None:
    with pytest.raises(P2PFLError, match=wanted):
        simulate(plan, blobs(), **({"peers": 4} | arguments))  # type: ignore[arg-type]


def test_numpy_numbers_and_other_forms_mean_the_same(plan: Path, tmp_path: Path) -> None:
    usual = simulate(
        plan, blobs(), partition=dirichlet(0.5), topology="ring", peers=4, rounds=2, seed=3, execution="eager",
        faults=[{"kind": "lying", "sites": [1]}],
    )  # fmt: skip
    other = simulate(
        plan, blobs(), partition={"kind": "dirichlet", "alpha": np.float64(0.5)}, topology=nx.cycle_graph(4),
        peers=np.int64(4), rounds=np.int64(2), seed=np.int64(3), execution="eager",  # type: ignore[arg-type]
        faults=[{"kind": "lying", "sites": np.array([1])}],
    )  # fmt: skip
    np.testing.assert_array_equal(usual.parameters, other.parameters)
    np.testing.assert_array_equal(usual.edges, other.edges)
    other.save(tmp_path / "r")
    spec = {"kind": "regular", "degree": np.int64(2), "seed": np.int64(0)}
    simulate(plan, blobs(), partition="iid", topology=spec, peers=4, rounds=1, execution="eager").save(tmp_path / "s")


def test_a_plan_that_cannot_run_for_many_sites_is_told_before_it_trains(tmp_path: Path) -> None:
    plan = write_plan(tmp_path / "plan")
    source = (plan / "plan.py").read_text()
    (plan / "plan.py").write_text(
        source.replace("    return nn.functional", "    batch[0].sum().item()\n    return nn.functional")
    )
    with pytest.raises(ConfigError, match="does not run for many sites at once"):
        simulate(plan, blobs(), peers=4, rounds=2, execution="eager")
    loop = simulate(plan, blobs(), peers=4, rounds=2, execution="loop")
    assert loop.facts["execution_facts"]["chosen"] == "loop"


def test_batch_norm_at_sites_with_fewer_examples_than_the_batch(tmp_path: Path) -> None:
    plan = write_plan(tmp_path / "plan")
    source = (plan / "plan.py").read_text()
    (plan / "plan.py").write_text(source.replace("nn.Tanh()", "nn.BatchNorm1d(8, track_running_stats=False)"))
    few = {"peers": 4, "rounds": 2, "partition": quantity(2.0), "seed": 1, "training": {"batch_size": 44}}
    for way in ("eager", "compiled"):
        with pytest.raises(ConfigError, match="depends on the others of its batch"):
            simulate(plan, blobs(), execution=way, **few)
    auto, loop = (simulate(plan, blobs(), execution=way, **few) for way in ("auto", "loop"))
    assert auto.facts["execution_facts"]["chosen"] == "loop"
    np.testing.assert_array_equal(auto.parameters, loop.parameters)


@pytest.mark.parametrize("data", [5, (1, 2, 3), {"tran": ()}, "missing.csv"])
def test_data_of_no_known_form(plan: Path, data: object) -> None:
    with pytest.raises(P2PFLError):
        simulate(plan, data, peers=2)  # type: ignore[arg-type]


def test_data_in_other_forms(plan: Path) -> None:
    examples = blobs()
    one = simulate(plan, examples, peers=4, rounds=2, execution="eager")
    (x, y), (tx, ty) = examples.train, examples.test
    for data in ((x, y, tx, ty), {"train": (x, y), "test": (tx, ty)}):
        other = simulate(plan, data, peers=4, rounds=2, execution="eager")
        np.testing.assert_array_equal(one.parameters, other.parameters)
    alone = simulate(plan, (x, y), peers=4, rounds=2, execution="eager")
    assert alone.facts["evaluated_on"] == "training examples"


@pytest.mark.parametrize("staleness", [0, 2])
def test_machines_decide_and_what_is_settled_at_the_end_counts(plan: Path, staleness: int) -> None:
    """All recorded rounds are learnt from, also the one in which late edges are settled; the last row is after it."""
    time = {"clock": "machines", "seconds": 5.0, "staleness": staleness, "profiles": {"slow": 1}}
    result = simulate(plan, blobs(), peers=5, rounds=6, closing_rounds=0, time=time, execution="eager")
    assert result.rounds["round"].tolist() == list(range(7))
    assert result.facts["clock"] == "machines" and 0 < result.facts["edges_mixed"] <= 1
    assert result.parameters is not None
    shares = result.sites["share"]
    mean = shares @ result.parameters
    distance = np.sqrt((shares * np.square(result.parameters - mean).sum(axis=1)).sum())
    assert result.rounds["distance"][-1] == pytest.approx(distance, rel=1e-4)
    assert result.rounds["seconds"][-1] == result.sites["seconds"].max()
    assert result.rounds["bytes"][-1] == pytest.approx(result.sites["bytes"].sum())


def test_rounds_longer_than_the_deadline_are_told(plan: Path) -> None:
    time = {"clock": "machines", "seconds": 300.0}  # the plan's deadline is 30 s
    result = simulate(plan, blobs(), peers=5, rounds=8, closing_rounds=2, time=time, execution="eager")
    assert result.facts["edges_mixed"] < 0.95
    (said,) = warnings_of({"long": [result]})
    assert "deadline" in said


def test_a_line_is_the_mean_of_all_seeds_at_each_round(plan: Path) -> None:
    results = [
        simulate(
            plan,
            blobs(),
            peers=4,
            rounds=4,
            seed=seed,
            time={"seconds": 30.0},
            evaluate={"every": 1},
            execution="eager",
        )
        for seed in range(3)
    ]
    ends = [result.rounds["seconds"][-1] / 3600 for result in results]
    assert len(set(ends)) == 3
    line = charts.metric_chart({"ring": results}, "seconds").axes[0].get_lines()[0]
    assert line.get_xdata()[-1] == pytest.approx(np.mean(ends))
    assert line.get_ydata()[-1] == pytest.approx(np.mean([result.final()["mean_model_accuracy"] for result in results]))


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT as a terminal's program has it: a shell starts what runs in the background with it ignored (POSIX sh)."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_inside_a_round_waits_for_its_end(plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The figures of the last row are those of a round that was: the same as without the interrupt."""
    whole = simulate(plan, blobs(), peers=4, rounds=6, evaluate={"every": 6}, execution="eager")
    step = LinearMixing.round

    def struck(self: LinearMixing, *arguments: object, **more: object) -> object:
        if arguments[2].round == 2:  # type: ignore[attr-defined]
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, *arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(LinearMixing, "round", struck)
    result = simulate(plan, blobs(), peers=4, rounds=6, evaluate={"every": 1}, execution="eager")
    assert result.interrupted and result.rounds["round"].tolist() == [0, 1, 2, 3]
    monkeypatch.undo()
    three = simulate(plan, blobs(), peers=4, rounds=3, closing_rounds=0, evaluate={"every": 1}, execution="eager")
    np.testing.assert_array_equal(result.parameters, three.parameters)
    assert result.rounds["mean_model_loss"][-1] == three.rounds["mean_model_loss"][-1]
    assert whole.rounds["train_loss"][3] == result.rounds["train_loss"][3]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
