"""What theory says of each update rule: a new rule is a new row, and a rule without a row fails."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from p2pfl.train.optimisers import optimiser_named
from p2pfl.train.rules import Rule, State, rule_named

Sums = Callable[[State, Tensor], Tensor]
"""What of one site is summed over the sites with their shares, [n, P]."""


@dataclass(frozen=True)
class Row:
    """What theory says of a rule on heterogeneous quadratics."""

    exact: tuple[str, ...]  # graphs on which it ends at the weighted optimum with K = 1
    exact_steps: tuple[int, ...] = (1,)  # and with which K
    biased: tuple[str, ...] = ()  # graphs on which it does not
    zero: Sums | None = None  # a sum that is 0 after each merge
    keeps_sum: bool = True  # sum pi x is the same before and after the merge
    protected: bool = False  # the fixed point is lost with the sum, where one-sided losses are not taken back
    rate: float = 0.05
    rounds: int = 3000
    graphs: tuple[str, ...] = ("ring", "full", "tree")
    numbers: Mapping[str, float] = field(default_factory=dict)


ROWS = {
    "dpsgd": Row(exact=("full",), biased=("ring", "tree")),
    "fedprox": Row(exact=("full",), biased=("ring", "tree"), numbers={"proximal": 0.3}),
    "kgt": Row(
        exact=("ring", "full", "tree"), exact_steps=(1, 4), zero=lambda state, x: state["correction"], protected=True
    ),
    "quasi_global": Row(exact=("full",), biased=("ring", "tree"), rate=0.03, numbers={"beta": 0.5, "mu": 0.8}),
    "exact_diffusion": Row(
        exact=("ring", "full", "tree"), zero=lambda state, x: state["correction"], protected=True
    ),
    "gradient_tracking": Row(
        exact=("ring", "full", "tree"), zero=lambda state, x: state["tracked"] - state["gradient"], protected=True
    ),
    "relaysgd": Row(exact=("tree",), keeps_sum=False, graphs=("tree",)),
    "sgp": Row(exact=("full",), biased=("ring", "tree")),
    "cyclic": Row(exact=(), graphs=()),
}  # fmt: skip
ON_GRAPHS = [name for name, row in ROWS.items() if row.graphs]
"""All but the one that walks, whose rows are in test_train_cyclic.py."""


def made(name: str, optimiser: str = "sgd") -> Rule:
    return rule_named(name, optimiser_named(optimiser), ROWS[name].numbers)
