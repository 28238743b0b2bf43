"""scikit-learn's linear estimators as models of a plan: their coefficients are the vector that peers exchange.

    objective(w, b) = (1/N) sum_n loss(y_n, w x_n + b) + penalty |w|^2

the estimator's own, divided by N where scikit-learn sums over examples; b is not penalised. Source of the objectives:
scikit-learn's user guide, section 1.1 "Linear Models" and 1.5 "Stochastic Gradient Descent". Nothing of scikit-learn is
imported here: the estimator comes from the plan.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from p2pfl.errors import PlanError


def _logistic(outputs: Tensor, labels: Tensor, classes: int) -> Tensor:
    """One output for two classes, softmax over more: as LogisticRegression."""
    if classes == 2:
        return functional.binary_cross_entropy_with_logits(
            outputs.squeeze(-1), labels.to(outputs.dtype), reduction="none"
        )
    return functional.cross_entropy(outputs, labels, reduction="none")


def _one_against_all(margin: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor, int], Tensor]:
    """The sum over one binary problem per class, one problem for two classes: as SGDClassifier and LinearSVC."""

    def losses(outputs: Tensor, labels: Tensor, classes: int) -> Tensor:
        wanted = labels.unsqueeze(-1) if classes == 2 else functional.one_hot(labels, classes)
        return margin((2.0 * wanted.to(outputs.dtype) - 1.0) * outputs).sum(-1)

    return losses


def _squared(outputs: Tensor, labels: Tensor, classes: int) -> Tensor:
    return (outputs.squeeze(-1) - labels).square()


_HINGE = _one_against_all(lambda margin: (1.0 - margin).clamp(min=0.0))
_SQUARED_HINGE = _one_against_all(lambda margin: (1.0 - margin).clamp(min=0.0).square())
_LOG_LOSS = _one_against_all(lambda margin: functional.softplus(-margin))


class _Objective(NamedTuple):
    """``losses`` per example times ``scale``; the penalty is ``strength``(parameters, N) |w|^2."""

    losses: Callable[[Tensor, Tensor, int], Tensor]
    strength: Callable[[Mapping[str, Any], int], float]
    scale: float = 1.0
    classifies: bool = True
    counts: bool = True  # whether the penalty is divided by the number of examples


def _of_c(given: Mapping[str, Any], examples: int) -> float:
    return 0.5 / (float(given["C"]) * examples)


def _of_alpha(given: Mapping[str, Any], examples: int) -> float:
    return 0.5 * float(given["alpha"])


_OBJECTIVES: Mapping[tuple[str, str | None], _Objective] = {
    ("LinearRegression", None): _Objective(_squared, lambda given, examples: 0.0, classifies=False, counts=False),
    ("Ridge", None): _Objective(_squared, lambda given, examples: float(given["alpha"]) / examples, classifies=False),
    ("LogisticRegression", None): _Objective(_logistic, _of_c),
    ("LinearSVC", "squared_hinge"): _Objective(_SQUARED_HINGE, _of_c),
    ("LinearSVC", "hinge"): _Objective(_HINGE, _of_c),
    ("SGDClassifier", "log_loss"): _Objective(_LOG_LOSS, _of_alpha, counts=False),
    ("SGDClassifier", "hinge"): _Objective(_HINGE, _of_alpha, counts=False),
    ("SGDClassifier", "squared_hinge"): _Objective(_SQUARED_HINGE, _of_alpha, counts=False),
    ("SGDRegressor", "squared_error"): _Objective(_squared, _of_alpha, scale=0.5, classifies=False, counts=False),
}
"""By estimator and its ``loss``; a new one is a row here."""


class LinearEstimator(nn.Module):
    """A module with an estimator's objective; parameters ``coefficients`` [k, F] and ``intercept`` [k], at first 0.

    k is 1 for a regression or two classes, else the number of classes. Labels are positions 0 to k-1 in ``classes``.
    """

    def __init__(self, estimator: Any, features: int, classes: Sequence[Any] = (), examples: int | None = None) -> None:
        """``examples``: of all sites together, for estimators whose penalty counts against a sum over examples.

        PlanError for an estimator, a penalty or a setting that has no such form, and for what is missing.
        """
        super().__init__()
        self._objective, given = _objective_of(estimator)
        self._classes = len(classes)
        if features < 1:
            raise PlanError(f"a linear model of {features} features; give the number of inputs")
        if self._objective.classifies != bool(classes) or self._classes == 1:
            wanted = "two or more" if self._objective.classifies else "no"
            raise PlanError(f"{type(estimator).__name__} takes {wanted} classes, not {self._classes}; mend the plan")
        if self._objective.counts and not examples:
            raise PlanError(
                f"the penalty of {type(estimator).__name__} is set against a sum over all examples; "
                "give their number at all sites together: examples=..."
            )
        self._penalty = self._objective.strength(given, examples or 1)
        rows = self._classes if self._classes > 2 else 1
        self.coefficients = nn.Parameter(torch.zeros(rows, features))
        self.intercept = nn.Parameter(torch.zeros(rows), requires_grad=bool(given.get("fit_intercept", True)))

    def forward(self, inputs: Tensor) -> Tensor:
        """Inputs [B, F]; the decision function [B, k], or the predictions [B, 1]."""
        return functional.linear(inputs, self.coefficients, self.intercept)

    def losses(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """[B]: each example's share of the objective, so that their mean is the objective. For a plan's ``loss``."""
        losses = self._objective.scale * self._objective.losses(self(inputs), labels, self._classes)
        return losses + self._penalty * self.coefficients.square().sum()


def fitted(estimator: Any, parameters: Mapping[str, Any], classes: Sequence[Any] = ()) -> Any:
    """The estimator itself with a trained model's ``coefficients`` and ``intercept``, ready for ``predict``.

    ``parameters``: tensors or arrays by name, such as a report's model file holds. PlanError for others.
    """
    objective, _ = _objective_of(estimator)
    if not {"coefficients", "intercept"} <= set(parameters):
        raise PlanError(f"parameters {', '.join(map(str, parameters))[:200]} are no linear estimator's; give its own")
    coefficients, intercept = (
        torch.as_tensor(parameters[name]).detach().double().cpu().numpy().copy()
        for name in ("coefficients", "intercept")
    )
    rows = len(classes) if len(classes) > 2 else 1
    if coefficients.ndim != 2 or len(coefficients) != rows or intercept.shape != (rows,):
        raise PlanError(
            f"coefficients of shape {coefficients.shape} for {len(classes)} classes; give those of this model"
        )
    estimator.n_features_in_ = coefficients.shape[1]
    if objective.classifies:
        estimator.classes_ = np.array(list(classes))
        estimator.coef_, estimator.intercept_ = coefficients, intercept
    else:
        alone = type(estimator).__name__ == "SGDRegressor"  # the one whose intercept is an array
        estimator.coef_, estimator.intercept_ = coefficients[0], intercept if alone else float(intercept[0])
    return estimator


def _objective_of(estimator: Any) -> tuple[_Objective, Mapping[str, Any]]:
    name = type(estimator).__name__
    given: Mapping[str, Any] = getattr(estimator, "get_params", dict)()
    known = sorted({one for one, _ in _OBJECTIVES})
    if name not in known:
        raise PlanError(f"{name} has no linear form here; take one of {', '.join(known)}")
    loss = given.get("loss")
    if (name, loss) not in _OBJECTIVES:
        losses = ", ".join(str(other) for one, other in _OBJECTIVES if one == name)
        raise PlanError(f"{name} with loss {loss!r} has no such form here; take {losses}")
    _check_penalty(name, given)
    return _OBJECTIVES[name, loss], given


def _check_penalty(name: str, given: Mapping[str, Any]) -> None:
    """Only what `LinearEstimator` computes: an l2 penalty, no weights, no constraints."""
    penalty = given.get("penalty", "l2")
    if penalty not in ("l2", "deprecated") or (penalty == "deprecated" and given.get("l1_ratio")):
        raise PlanError(f"{name} with another penalty than l2 has no such form here; take l2 (weak: a large C)")
    for setting in ("class_weight", "positive"):
        if given.get(setting):
            raise PlanError(f"{name} with {setting} = {given[setting]!r} has no such form here; leave it out")
    if name == "LinearSVC" and given.get("fit_intercept", True):
        raise PlanError(
            "LinearSVC penalises its intercept, too; take fit_intercept=False, or SGDClassifier with loss squared_hinge"
        )
    for setting in ("C", "alpha"):
        value = given.get(setting, 1.0)
        if not isinstance(value, int | float) or not 0 <= value < float("inf") or (setting == "C" and value == 0):
            raise PlanError(f"{name} with {setting} = {value!r}; give one positive number")
