"""Every rule with every optimiser, number of steps, topology, policy and unequal sites: run, or refused with a reason."""

from __future__ import annotations

import re
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from vector_worlds import schedule_of

from p2pfl.errors import ConfigError
from p2pfl.sim.vectorised import VectorisedRun
from p2pfl.topology import KINDS
from p2pfl.train.plan_code import PlanCode
from p2pfl.train.rules import RULES, check_combination
from p2pfl.train.settings import read_settings

SITES = 4
POINT = PlanCode(b"""
import torch
from torch import nn

def load(path): ...

def model():
    return nn.Linear(1, 1, bias=False)

def loss(model, batch):
    return ((model(batch[0]) - batch[1]) ** 2).sum(-1)
""")
TOPOLOGIES: dict[str, dict[str, Any]] = {
    "hierarchical": {"clusters": 2},
    "torus": {"rows": 2, "columns": 2},
    "regular": {"degree": 3, "seed": 0},
    "edges": {"edges": [[0, 1], [1, 2], [1, 3]]},
    "erdos_renyi": {"probability": 0.9, "seed": 0},
    "small_world": {"degree": 2, "probability": 0.0, "seed": 0},
    "two_clusters": {"bridges": 2},
    "tree": {"arity": 2},
    "double_tree": {},
    "base": {"k": 1},
    "matching": {"seed": 0},
    "epidemic": {"degree": 2, "seed": 0},
}
ROUNDS = 8  # enough for random matchings to join all sites
OPTIMISERS, STEPS, LATE, UNEQUAL = ("sgd", "momentum", "adam"), (1, 5), (0, 2), (False, True)


def one_round(rule: str, optimiser: str, most: int, kind: str, staleness: int, unequal: bool) -> torch.Tensor:
    settings = {
        "rule": rule, "optimiser": {"name": optimiser}, "learning_rate": 0.1, "local_steps": most, "batch_size": 2,
        "dtype": "float64", "staleness": staleness,
    }  # fmt: skip
    read = read_settings(settings)
    shares = [1.0, 1.0, 1.0, 1.0] if kind == "base" else [1.0, 2.0, 3.0, 4.0]
    schedule = schedule_of({"kind": kind, **TOPOLOGIES.get(kind, {})}, SITES, ROUNDS, 1, shares, staleness)
    x = torch.linspace(-1, 1, 8, dtype=torch.float64).unsqueeze(-1)
    rows = np.arange(8).reshape(SITES, 2)
    steps = [most, most - 1, most, most] if unequal else None
    run = VectorisedRun(POINT, read, (x, x**2), rows, schedule, seed=0, steps=steps, execution="loop")
    run.step()
    return run.x


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("rule", list(RULES))
def test_each_combination_runs_or_is_refused_with_a_reason(rule: str, kind: str) -> None:
    ran = []
    for optimiser, most, staleness, unequal in product(OPTIMISERS, STEPS, LATE, UNEQUAL):
        case = (optimiser, most, staleness, unequal)
        try:
            x = one_round(rule, optimiser, most, kind, staleness, unequal)
        except ConfigError as error:
            said = str(error)
            assert ":" in said and re.search(r"choose \w+", said), (case, said)
            assert said[0].islower() and not said.endswith("."), said
            continue
        assert bool(torch.isfinite(x).all()) and float(x.abs().max()) > 0
        ran.append(case)
    assert set(ran) == expected(rule, kind)


def expected(rule: str, kind: str) -> set[tuple[str, int, int, bool]]:
    """Written down once more, by rule and not by need, so that a need that is lost shows."""
    trees, several = {"chain", "star", "edges", "tree"}, {"hierarchical", "base", "matching", "epidemic"}
    if (rule == "relaysgd" and kind not in trees) or (rule == "exact_diffusion" and kind in several):
        return set()
    optimisers = OPTIMISERS if rule in ("dpsgd", "fedprox", "relaysgd") else ("sgd",)
    steps = (1,) if rule in ("exact_diffusion", "gradient_tracking") else STEPS
    late = LATE if rule in ("dpsgd", "fedprox") and kind not in several else (0,)
    return set(product(optimisers, steps, late, UNEQUAL))


def test_the_rules_that_a_refusal_names_would_fit() -> None:
    refused = 0
    for rule, optimiser, steps, edges, staleness, varying, statistics in product(
        RULES, OPTIMISERS, STEPS, (3, 4), LATE, (False, True), (False, True)
    ):
        facts: dict[str, Any] = {
            "sites": SITES, "edges": edges, "staleness": staleness, "steps": steps, "varying": varying,
            "statistics": statistics,
        }  # fmt: skip
        try:
            check_combination(rule, optimiser, **facts)
        except ConfigError as error:
            refused += 1
            named = str(error).rsplit("the rule ", 1)[1].replace(" or ", ", ").split(", ")
            assert named and rule not in named
            for other in named:
                check_combination(other, optimiser, **facts)
    assert refused > 100
