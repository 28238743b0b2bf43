"""The demo's data, its plans, its evaluator, and its claims over seeds in memory."""

from __future__ import annotations

import csv
import math
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from p2pfl.demo.evaluation import EVERYBODY, Evaluator
from p2pfl.demo.hospitals import (
    HEART,
    HEART_ATTRIBUTES,
    Hospital,
    builtin_hospitals,
    charter_order,
    heart_hospitals,
    write_csv,
    write_everybody,
)
from p2pfl.demo.in_memory import PLANS, run_in_memory
from p2pfl.errors import ConfigError, DataError, PlanError
from p2pfl.governance import read_plan
from p2pfl.train.plan_code import load_plan_module
from p2pfl.train.session import Session

DATA = Path(os.environ.get("P2PFL_DATA", Path(__file__).parents[3] / "shared" / "data")) / "heart"
needs_heart = pytest.mark.skipif(
    not DATA.is_dir(), reason=f"no UCI heart disease data in {DATA}; set P2PFL_DATA to the folder above it"
)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """As in the worker: figures do not depend on the number of cores."""
    torch.set_num_threads(1)


# --- the built-in hospitals


def test_the_builtin_hospitals_share_all_patients() -> None:
    hospitals = builtin_hospitals(0)
    assert [site.name for site in hospitals] == ["Lille", "Rouen", "Caen", "Amiens"]
    assert [site.patients for site in hospitals] == [228, 170, 114, 57]  # 40, 30, 20, 10 % of 569
    together = np.concatenate([site.values for site in hospitals])
    assert len(np.unique(together, axis=0)) == 569  # nobody twice
    assert sum(site.labels.sum() for site in hospitals) == 212  # malignant, as the data set's description says
    radius = [site.values[:, site.features.index("mean radius")].mean() for site in hospitals]
    assert radius == sorted(radius, reverse=True)
    assert [site.name for site in charter_order(hospitals)] == ["Lille", "Caen", "Rouen", "Amiens"]


@pytest.mark.parametrize("seed", range(0, 200, 7))
def test_a_quarter_of_each_label_is_for_testing(seed: int) -> None:
    for site in builtin_hospitals(seed):
        for label in (0, 1):
            of_label = site.labels == label
            assert of_label.sum() >= 4
            assert (of_label & site.test).sum() == round(0.25 * of_label.sum()) >= 1


def test_the_same_seed_gives_the_same_hospitals_and_another_does_not() -> None:
    rows = [[site.rows() for site in builtin_hospitals(seed)] for seed in (3, 3, 4)]
    assert rows[0] == rows[1]
    assert rows[0] != rows[2]


def test_a_negative_seed_and_missing_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="negative"):
        builtin_hospitals(-1)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ConfigError, match=r"pip install 'p2pfl-consortium\[demo\]'"):
        builtin_hospitals(0)


def test_the_granted_file(tmp_path: Path) -> None:
    values = np.array([[1.0, np.nan], [0.1 + 0.2, -2.5]])
    site = Hospital("Lille", ("a", "b"), values, np.array([0, 1]), np.array([True, False]))
    write_csv(site, tmp_path / "lille.csv")
    assert (tmp_path / "lille.csv").read_text() == "a,b,label,part\n1,,0,test\n0.3,-2.5,1,train\n"
    write_everybody([site, site], tmp_path / "all.csv")
    assert len((tmp_path / "all.csv").read_text().splitlines()) == 5
    with pytest.raises(ConfigError, match="couldn't write"):
        write_csv(site, tmp_path / "nowhere" / "lille.csv")


# --- the heart hospitals


@needs_heart
def test_the_heart_hospitals_keep_their_names_and_patients() -> None:
    hospitals = heart_hospitals(DATA, 0)
    assert [site.name for site in hospitals] == ["Cleveland", "Hungary", "Switzerland", "VA"]
    assert [site.patients for site in hospitals] == [303, 294, 123, 200]
    assert [int(site.labels.sum()) for site in hospitals] == [139, 106, 115, 149]
    assert hospitals[0].columns == (*HEART_ATTRIBUTES, "label", "part")
    for site in hospitals:
        for label in (0, 1):
            of_label = site.labels == label
            assert (of_label & site.test).sum() == round(0.25 * of_label.sum())


GOOD_ROW = "63.0,1.0,1.0,145.0,233.0,1.0,2.0,150.0,0.0,2.3,3.0,?,-9,2\n"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "no rows"),
        (GOOD_ROW.encode() * 10_001, "too many rows"),
        (GOOD_ROW.encode() + b"1,2,3\n", "row 2 has 3 values instead of 14"),
        (GOOD_ROW.replace("145.0", "high").encode(), "row 1: could not convert"),
        (GOOD_ROW.replace("145.0", "inf").encode(), "row 1: "),
        (GOOD_ROW.replace(",2\n", ",7\n").encode(), "the diagnosis '7' is not 0 to 4"),
        (GOOD_ROW.replace(",2\n", ",?\n").encode(), "the diagnosis '\\?' is not 0 to 4"),
        (b"\xff\xfe\x00", "couldn't read"),
    ],
)
def test_a_damaged_heart_file_is_refused(tmp_path: Path, content: bytes, says: str) -> None:
    for file in HEART.values():
        (tmp_path / file).write_text(GOOD_ROW * 8)
    (tmp_path / HEART["VA"]).write_bytes(content)
    with pytest.raises(DataError, match=says):
        heart_hospitals(tmp_path, 0)


def test_a_missing_heart_folder_or_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no folder"):
        heart_hospitals(tmp_path / "no", 0)
    for file in list(HEART.values())[:3]:
        (tmp_path / file).write_text(GOOD_ROW)
    with pytest.raises(ConfigError, match=r"lacks processed\.va\.data"):
        heart_hospitals(tmp_path, 0)


# --- the plans


@pytest.mark.parametrize("name", ["breast_cancer", "heart"])
def test_the_plans_are_sound(name: str, tmp_path: Path) -> None:
    plan = read_plan(PLANS / name)
    training = plan.settings.training
    assert (training.local_steps, training.batch_size, training.rounds) == (5, 32, 40)
    session = Session(plan.source, plan.session_settings())
    values = np.full((40, 13), np.nan)
    site = Hospital("VA", HEART_ATTRIBUTES, values, np.arange(40) % 2, np.arange(40) % 4 == 0)
    site = site if name == "heart" else builtin_hospitals(0)[3]
    write_csv(site, tmp_path / "site.csv")
    assert sum(session.load_data(str(tmp_path / "site.csv")).values()) == site.patients
    assert session.check() == []


def test_missing_values_of_the_heart_plan_become_the_centre() -> None:
    plan = load_plan_module(read_plan(PLANS / "heart").source)
    row = dict.fromkeys(HEART_ATTRIBUTES, "")
    assert plan.inputs(row) == [0.0] * 15
    assert plan.inputs({**row, "chol": "0", "trestbps": "0"}) == [0.0] * 15
    cells = ["65", "1", "4", "150", "290", "0", "2", "115", "1", "0", "1", "0", "3"]
    full = dict(zip(HEART_ATTRIBUTES, cells, strict=True))
    assert plan.inputs(full) == [1, 1, 1, -1, -1, 1, 0, 1, 0, 0, 0, 1, 0, 0, 1]


def test_ranges_of_the_breast_cancer_plan_are_the_published_ones() -> None:
    from sklearn.datasets import load_breast_cancer

    plan = load_plan_module(read_plan(PLANS / "breast_cancer").source)
    found = load_breast_cancer()
    assert list(plan.RANGES) == [str(name) for name in found.feature_names]
    row = re.compile(r"^[a-z ]+ \((?:mean|standard error|worst)\): +([\d.]+) +([\d.]+)$", re.MULTILINE)
    published = [(float(least), float(greatest)) for least, greatest in row.findall(found.DESCR)]
    assert list(plan.RANGES.values()) == published


@pytest.mark.parametrize(
    ("scores", "labels", "auc"),
    [
        ([1.0, 2.0, 3.0, 4.0], [0, 0, 1, 1], 1.0),
        ([1.0, 2.0, 3.0, 4.0], [1, 1, 0, 0], 0.0),
        ([1.0, 3.0, 2.0, 4.0], [0, 0, 1, 1], 0.75),
        ([2.0, 2.0, 2.0, 2.0], [0, 1, 0, 1], 0.5),
        ([1.0, 2.0, 2.0], [0, 0, 1], 0.75),
        ([1.0, 2.0], [1, 1], None),
    ],
)
@pytest.mark.parametrize("name", ["breast_cancer", "heart"])
def test_the_auc_is_the_rank_statistic(name: str, scores: list[float], labels: list[int], auc: float | None) -> None:
    plan = load_plan_module(read_plan(PLANS / name).source)
    batch = (torch.tensor(scores).unsqueeze(1), torch.tensor(labels, dtype=torch.float32))
    figures = plan.metrics(torch.nn.Identity(), batch)
    assert figures == ({} if auc is None else {"auc": auc})


# --- the evaluator


@pytest.fixture(scope="module")
def small() -> list[Hospital]:
    return builtin_hospitals(0)


def test_the_evaluator_by_hand(tmp_path: Path, small: list[Hospital]) -> None:
    plan = read_plan(PLANS / "breast_cancer")
    evaluator = Evaluator(plan, small, tmp_path)
    initial = Session(plan.source, plan.session_settings()).initial(0)
    assert evaluator.auc(initial, EVERYBODY) == 0.5  # all weights zero: every pair is a tie
    found = evaluator.evaluate({"Lille": initial, "Caen": None}, initial, lambda name: b"k" * 16, rounds=2)
    rows = {row.name: row for row in found.rows}
    assert (rows["Lille"].together, rows["Lille"].together_home) == (0.5, 0.5)
    assert (rows["Caen"].together, rows["Caen"].together_home, rows["Rouen"].together) == (None, None, None)
    assert found.together == 0.5
    assert set(found.matrix) == {site.name for site in small}
    assert rows["Amiens"].alone == found.matrix["Amiens"][EVERYBODY]
    assert rows["Amiens"].alone_home == found.matrix["Amiens"]["Amiens"]
    assert min(found.pooled, *found.pooled_home.values()) > 0.8
    assert math.isnan(evaluator.evaluate({}, initial, lambda name: b"k" * 16, rounds=1).together)


def test_an_auc_that_is_not_there_is_said(tmp_path: Path, small: list[Hospital]) -> None:
    healthy = small[0].labels == 0
    site = Hospital(
        "Lille", small[0].features, small[0].values[healthy], small[0].labels[healthy], small[0].test[healthy]
    )
    plan = read_plan(PLANS / "breast_cancer")
    evaluator = Evaluator(plan, [site], tmp_path)
    initial = Session(plan.source, plan.session_settings()).initial(0)
    with pytest.raises(PlanError, match='no "auc" on the test patients of Lille'):
        evaluator.auc(initial, "Lille")


def test_two_hospitals_of_one_name_are_refused(tmp_path: Path, small: list[Hospital]) -> None:
    with pytest.raises(ConfigError, match="give each its own"):
        Evaluator(read_plan(PLANS / "breast_cancer"), [small[0], small[0]], tmp_path)


def test_on_the_full_graph_all_end_with_the_weighted_mean(tmp_path: Path, small: list[Hospital]) -> None:
    run = run_in_memory(PLANS / "breast_cancer", small, 0, {"kind": "full"}, rounds=2, closing_rounds=1)
    assert run.distance < 1e-6  # one mixing on the full graph is the mean, up to rounding in float32
    aucs = {row.together for row in run.evaluation.rows}
    assert max(aucs) - min(aucs) < 1e-3


def test_accelerated_closing_rounds_bring_hospitals_closer(small: list[Hospital]) -> None:
    plain, fast = (
        run_in_memory(PLANS / "breast_cancer", small, 0, {"kind": "chain", "closing": way}, rounds=2, closing_rounds=6)
        for way in ("plain", "chebyshev")
    )
    assert fast.distance < plain.distance / 2 and fast.initial == plain.initial


def test_one_hospital_together_is_alone(small: list[Hospital]) -> None:
    run = run_in_memory(PLANS / "breast_cancer", small[:1], 5, rounds=3, closing_rounds=0)
    row = run.evaluation.rows[0]
    assert row.together == row.alone
    assert row.together_home == row.alone_home


def test_the_same_seed_gives_the_same_models(small: list[Hospital]) -> None:
    spec = {"kind": "hierarchical", "clusters": 2}
    runs = [run_in_memory(PLANS / "breast_cancer", small, seed, spec, rounds=2) for seed in (1, 1, 2)]
    assert runs[0].models == runs[1].models
    assert runs[0].models != runs[2].models


# --- the claims


def claims(run: Callable[[int], list[Hospital]], plan: str, seeds: range) -> dict[str, np.ndarray]:
    """Per seed and hospital: AUC alone, together, alone at home, together at home; and pooled."""
    runs = [run_in_memory(PLANS / plan, run(seed), seed).evaluation for seed in seeds]
    names = ("alone", "together", "alone_home", "together_home")
    table = {name: np.array([[getattr(row, name) for row in item.rows] for item in runs]) for name in names}
    return {**table, "pooled": np.array([item.pooled for item in runs])}


BUILT_IN_SEEDS = [
    pytest.param(range(3), id="3"),
    pytest.param(range(3, 20), id="20", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("seeds", BUILT_IN_SEEDS)
def test_builtin_as_good_as_pooled_and_no_worse_than_the_best_alone(seeds: range) -> None:
    found = claims(builtin_hospitals, "breast_cancer", seeds)
    assert np.abs(found["together"] - found["pooled"][:, None]).max() <= 0.01
    assert (found["together"].min(axis=1) - found["alone"].max(axis=1)).min() >= -0.01


@needs_heart
def test_heart_as_good_as_pooled() -> None:
    found = claims(lambda seed: heart_hospitals(DATA, seed), "heart", range(3))
    assert np.abs(found["together"].mean(axis=1) - found["pooled"]).max() <= 0.01


@needs_heart
@pytest.mark.slow
def test_heart_over_twenty_splits() -> None:
    found = claims(lambda seed: heart_hospitals(DATA, seed), "heart", range(20))
    close = np.abs(found["together"].mean(axis=1) - found["pooled"]) <= 0.01
    assert close.sum() >= 18
    assert (found["together"].mean(axis=0) > found["alone"].mean(axis=0)).all()
    cleveland, hungary, switzerland, va = (found["together_home"] - found["alone_home"]).mean(axis=0)
    assert switzerland >= 0.03
    assert va >= 0.02
    assert min(cleveland, hungary) >= -0.015


def test_the_granted_file_is_plain_csv(tmp_path: Path, small: list[Hospital]) -> None:
    write_csv(small[3], tmp_path / "amiens.csv")
    with (tmp_path / "amiens.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == small[3].patients
    assert {row["part"] for row in rows} == {"train", "test"}
    assert [float(row["mean radius"]) for row in rows] == small[3].values[:, 0].tolist()
