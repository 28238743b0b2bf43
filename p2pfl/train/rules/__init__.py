"""The update rules by name. A new one is a file here, a row in RULES, and a row in the battery of the tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from p2pfl.errors import ConfigError
from p2pfl.train.optimisers import Optimiser
from p2pfl.train.rules.combinations import Combination, choice, keeps_nothing, problem_of
from p2pfl.train.rules.cyclic import Cyclic
from p2pfl.train.rules.dpsgd import DPSGD
from p2pfl.train.rules.exact_diffusion import ExactDiffusion
from p2pfl.train.rules.fedprox import FedProx
from p2pfl.train.rules.gradient_tracking import GradientTracking
from p2pfl.train.rules.interface import (
    WEIGHT,
    Channel,
    Context,
    Gradient,
    Graph,
    Inbox,
    Messages,
    Needs,
    Oracle,
    Rule,
    Setting,
    State,
)
from p2pfl.train.rules.kgt import KGT
from p2pfl.train.rules.numbers import checked_numbers
from p2pfl.train.rules.quasi_global import QuasiGlobal
from p2pfl.train.rules.relaysgd import RelaySGD
from p2pfl.train.rules.sgp import SGP

__all__ = [
    "DPSGD",
    "KGT",
    "RULES",
    "SGP",
    "WEIGHT",
    "Channel",
    "Combination",
    "Context",
    "Cyclic",
    "ExactDiffusion",
    "FedProx",
    "Gradient",
    "GradientTracking",
    "Graph",
    "Inbox",
    "Messages",
    "Needs",
    "Oracle",
    "QuasiGlobal",
    "RelaySGD",
    "Rule",
    "Setting",
    "State",
    "check_combination",
    "keeps_nothing",
    "rule_named",
]

RULES: Mapping[str, type[Rule]] = {
    "dpsgd": DPSGD,
    "fedprox": FedProx,
    "kgt": KGT,
    "quasi_global": QuasiGlobal,
    "exact_diffusion": ExactDiffusion,
    "gradient_tracking": GradientTracking,
    "relaysgd": RelaySGD,
    "sgp": SGP,
    "cyclic": Cyclic,
}


def rule_named(name: str, optimiser: Optimiser, numbers: Mapping[str, object] | None = None) -> Rule:
    """The rule with this name and its own numbers, defaults where none are given.

    ConfigError if it is unknown, does not go with the optimiser, or does not have such a number.
    """
    known = _known(name)
    check_combination(name, optimiser.name)
    make: Callable[..., Rule] = known
    return make(optimiser, **checked_numbers(name, known.settings, numbers or {}))


def check_combination(rule: str, optimiser: str, **facts: int | bool | None) -> None:
    """Refuse what does not go together; ConfigError gives the reason and what would fit.

    ``facts`` are those of `Combination` that are known, by name.
    """
    asked = Combination(optimiser, **facts)  # type: ignore[arg-type]  # the names are the fields'
    problem = problem_of(rule, _known(rule).needs, asked)
    if problem is not None:
        # a walk is another way of training altogether, and no remedy for what a rule does not go with
        others = [name for name, known in RULES.items() if asked.walks or known.needs.mixing != "walk"]
        raise ConfigError(choice(problem, [name for name in others if not problem_of(name, RULES[name].needs, asked)]))


def _known(name: str) -> type[Rule]:
    if name not in RULES:
        raise ConfigError(f"unknown update rule {name!r}; choose one of {', '.join(RULES)}")
    return RULES[name]
