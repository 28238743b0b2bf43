"""scikit-learn's linear estimators as models: the same optimum as its own fit, also when several sites train."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris
from sklearn.linear_model import Lasso, LinearRegression, LogisticRegression, Ridge, SGDClassifier, SGDRegressor
from sklearn.svm import LinearSVC

from p2pfl import simulate
from p2pfl.data import by_column, from_arrays
from p2pfl.errors import PlanError
from p2pfl.governance import read_plan
from p2pfl.train import LinearEstimator, fitted


def scaled(load) -> tuple[np.ndarray, np.ndarray]:
    x, y = load(return_X_y=True)
    return (x - x.mean(0)) / x.std(0), y


CANCER, IRIS, DIABETES = scaled(load_breast_cancer), scaled(load_iris), scaled(load_diabetes)


def minimised(model: LinearEstimator, x: np.ndarray, y: np.ndarray) -> LinearEstimator:
    """By another method than scikit-learn's, in float64."""
    model = model.double()
    inputs, labels = torch.from_numpy(x), torch.from_numpy(y)
    free = [parameter for parameter in model.parameters() if parameter.requires_grad]
    steps = torch.optim.LBFGS(
        free, max_iter=2000, tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def objective() -> torch.Tensor:
        steps.zero_grad()
        value = model.losses(inputs, labels).mean()
        value.backward()
        return value

    steps.step(objective)
    return model


@pytest.mark.parametrize(
    ("estimator", "data"),
    [
        (LogisticRegression(C=0.3, tol=1e-10, max_iter=5000), CANCER),
        (LogisticRegression(C=2.0, tol=1e-10, max_iter=5000, fit_intercept=False), CANCER),
        (LogisticRegression(C=0.5, tol=1e-10, max_iter=5000), IRIS),
        (Ridge(alpha=20.0), DIABETES),
        (LinearRegression(), (DIABETES[0][:, :6], DIABETES[1])),
        (LinearSVC(C=0.1, fit_intercept=False, tol=1e-12, max_iter=1_000_000), IRIS),
    ],
)
def test_its_optimum_is_that_of_the_estimators_own_fit(estimator, data) -> None:
    x, y = data
    classes = () if data[1].dtype.kind == "f" else tuple(np.unique(y))
    model = minimised(LinearEstimator(estimator, x.shape[1], classes, examples=len(x)), x, y)
    own = estimator.fit(x, y)
    assert np.abs(model.coefficients.detach().numpy() - np.atleast_2d(own.coef_)).max() < 1e-5 * np.abs(own.coef_).max()
    assert np.abs(model.intercept.detach().numpy() - own.intercept_).max() < 1e-4


def test_stochastic_estimators_have_the_objectives_of_the_others() -> None:
    x, y = CANCER
    exact = LogisticRegression(C=1 / (0.01 * len(x)), tol=1e-10, max_iter=5000).fit(x, y)
    model = minimised(LinearEstimator(SGDClassifier(loss="log_loss", alpha=0.01), 30, (0, 1)), x, y)
    assert np.abs(model.coefficients.detach().numpy() - exact.coef_).max() < 1e-6
    x, y = DIABETES
    ridge = Ridge(alpha=0.02 * len(x)).fit(x, y)
    model = minimised(LinearEstimator(SGDRegressor(alpha=0.02), 10), x, y)
    assert np.abs(model.coefficients.detach().numpy() - ridge.coef_).max() < 1e-6 * np.abs(ridge.coef_).max()


@pytest.mark.parametrize(("loss", "power"), [("hinge", 1), ("squared_hinge", 2)])
def test_hinge_losses_are_sums_over_one_problem_per_class(loss: str, power: int) -> None:
    x, y = IRIS
    model = LinearEstimator(SGDClassifier(loss=loss, alpha=0.5), 4, (0, 1, 2)).double()
    rng = np.random.default_rng(0)
    w, b = rng.normal(size=(3, 4)), rng.normal(size=3)
    model.load_state_dict({"coefficients": torch.from_numpy(w), "intercept": torch.from_numpy(b)})
    signs = np.where(y[:, None] == np.arange(3), 1.0, -1.0)
    expected = (np.maximum(0, 1 - signs * (x @ w.T + b)) ** power).sum(1).mean() + 0.25 * (w**2).sum()
    assert float(model.losses(torch.from_numpy(x), torch.from_numpy(y)).mean().detach()) == pytest.approx(
        expected, rel=1e-12
    )


PLAN = '''
"""Malignant or benign, by a logistic regression of scikit-learn."""
import torch
from sklearn.linear_model import LogisticRegression

from p2pfl.train import LinearEstimator


def load(path):
    return {}


def model():
    return LinearEstimator(LogisticRegression(C=0.01), features=30, classes=("malignant", "benign"), examples=569)


def loss(model, batch):
    return model.losses(*batch)
'''
SETTINGS = """
[plan]
name = "linear"
[data]
tag = "cancer"
[topology]
kind = "ring"
[training]
rule = "kgt"
learning_rate = 0.3
local_steps = 2
batch_size = 1000
rounds = 500
closing_rounds = 40
dtype = "float64"
"""


def test_five_sites_find_what_one_fit_on_all_data_finds(tmp_path: Path) -> None:
    (tmp_path / "plan.py").write_text(PLAN)
    (tmp_path / "plan.toml").write_text(SETTINGS)
    x, y = CANCER
    site = np.searchsorted([170, 230, 340, 480], np.arange(len(x)), side="right")
    result = simulate(
        read_plan(tmp_path), from_arrays(x, y, columns={"site": site}), partition=by_column("site"), peers=5, seed=1,
        execution="eager",
    )  # fmt: skip
    alone = LogisticRegression(C=0.01, solver="newton-cholesky", tol=1e-12).fit(x, y)
    assert result.parameters is not None
    assert np.abs(result.parameters - result.parameters[0]).max() < 1e-8, "all sites hold the same model"
    model = {"coefficients": result.parameters[:1, :30], "intercept": result.parameters[0, 30:]}
    together = fitted(LogisticRegression(C=0.01), model, classes=("malignant", "benign"))
    assert np.abs(together.coef_ - alone.coef_).max() < 1e-9
    assert np.abs(together.intercept_ - alone.intercept_).max() < 1e-9
    assert np.abs(together.predict_proba(x) - alone.predict_proba(x)).max() < 1e-9
    assert set(together.predict(x)) == {"malignant", "benign"}


@pytest.mark.parametrize(
    ("estimator", "data"),
    [
        (LogisticRegression(), IRIS),
        (SGDClassifier(loss="hinge"), CANCER),
        (Ridge(), DIABETES),
        (SGDRegressor(), DIABETES),
    ],
)
def test_a_fitted_estimator_predicts_what_the_module_does(estimator, data) -> None:
    x, y = data
    classes = () if y.dtype.kind == "f" else tuple(np.unique(y))
    model = LinearEstimator(estimator, x.shape[1], classes, examples=len(x)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
        outputs = model(torch.from_numpy(x)).numpy()
    ready = fitted(estimator, dict(model.named_parameters()), classes)
    if not classes:
        assert np.allclose(ready.predict(x), outputs[:, 0], atol=1e-12)
    else:
        places = outputs.argmax(1) if len(classes) > 2 else (outputs[:, 0] > 0).astype(int)
        assert (ready.predict(x) == np.array(classes)[places]).all()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: LinearEstimator(Lasso(), 3), "Lasso has no linear form here; take one of LinearRegression, "),
        (lambda: LinearEstimator(SGDClassifier(penalty="l1"), 3, (0, 1)), "another penalty than l2"),
        (lambda: LinearEstimator(LogisticRegression(l1_ratio=0.5), 3, (0, 1), 10), "another penalty than l2"),
        (lambda: LinearEstimator(SGDClassifier(loss="perceptron"), 3, (0, 1)), "take log_loss, hinge, squared_hinge"),
        (lambda: LinearEstimator(LogisticRegression(class_weight="balanced"), 3, (0, 1), 10), "class_weight"),
        (lambda: LinearEstimator(LogisticRegression(), 3, (0, 1)), "at all sites together: examples="),
        (lambda: LinearEstimator(LogisticRegression(), 3, (), 10), "takes two or more classes, not 0"),
        (lambda: LinearEstimator(LogisticRegression(), 3, (0,), 10), "takes two or more classes, not 1"),
        (lambda: LinearEstimator(Ridge(), 3, (0, 1), 10), "takes no classes, not 2"),
        (lambda: LinearEstimator(Ridge(alpha=-1.0), 3, (), 10), "alpha = -1.0; give one positive number"),
        (lambda: LinearEstimator(Ridge(positive=True), 3, (), 10), "positive = True"),
        (lambda: LinearEstimator(Ridge(), 0, (), 10), "give the number of inputs"),
        (lambda: LinearEstimator(LinearSVC(), 3, (0, 1), 10), "fit_intercept=False"),
        (lambda: fitted(Ridge(), {"weight": torch.zeros(1, 3)}), "no linear estimator's"),
        (
            lambda: fitted(Ridge(), {"coefficients": torch.zeros(2, 3), "intercept": torch.zeros(2)}),
            "for 0 classes",
        ),
    ],
)
def test_what_has_no_such_form_is_refused_with_what_would_fit(make, words: str) -> None:
    with pytest.raises(PlanError, match=words):
        make()
