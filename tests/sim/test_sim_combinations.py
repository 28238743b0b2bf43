"""Every rule with every optimiser, steps, topology, weights, policy and unequal sites: run, or refused with a reason."""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sim_worlds import blobs, write_plan
from vector_worlds import schedule_of

from p2pfl.errors import ConfigError
from p2pfl.sim import simulate
from p2pfl.sim.vectorised import VectorisedRun
from p2pfl.topology import KINDS
from p2pfl.topology.changing import CHANGING
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
SEVERAL = {
    "hierarchical",
    "base",
    "matching",
    "epidemic",
    "exponential",
    "cyclic",
}  # mixings; the first alone has other weights
LISTED = [1.0, 3.0, 2.0, 4.0]  # in proportion to what each site counts by listed weights


def choices(kind: str) -> tuple[str, ...]:
    return ("metropolis", "uniform", "listed")[: 0 if kind in CHANGING else 2 if kind in SEVERAL else 3]


def spec_of(kind: str, weights: str) -> dict[str, Any]:
    spec = {"kind": kind, **TOPOLOGIES.get(kind, {})}
    if weights != "listed":
        return spec | ({"weights": weights} if weights != "shares" else {})
    edges = schedule_of(spec, SITES, 1).edges.tolist()
    return spec | {"weights": [[one, other, LISTED[other] / 16, LISTED[one] / 16] for one, other in edges]}


def one_round(
    rule: str, optimiser: str, most: int, spec: dict[str, Any], staleness: int, unequal: bool
) -> torch.Tensor:
    settings = {
        "rule": rule, "optimiser": {"name": optimiser}, "learning_rate": 0.1, "local_steps": most, "batch_size": 2,
        "dtype": "float64", "staleness": staleness,
    }  # fmt: skip
    read = read_settings(settings)
    shares = [1.0, 1.0, 1.0, 1.0] if spec["kind"] == "base" else [1.0, 2.0, 3.0, 4.0]
    schedule = schedule_of(spec, SITES, ROUNDS, 1, shares, staleness)
    x = torch.linspace(-1, 1, 8, dtype=torch.float64).unsqueeze(-1)
    rows = np.arange(8).reshape(SITES, 2)
    steps = [most, most - 1, most, most] if unequal else None
    run = VectorisedRun(POINT, read, (x, x**2), rows, schedule, seed=0, steps=steps, execution="loop")
    run.step()
    return run.x


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("rule", list(RULES))
def test_each_combination_runs_or_is_refused_with_a_reason(rule: str, kind: str) -> None:
    """With weights of the topology's own: one number of steps, so that the product stays small."""
    ran = []
    cases = [("shares", *case) for case in product(OPTIMISERS, STEPS, LATE, UNEQUAL)]
    cases += product(choices(kind), OPTIMISERS, STEPS[:1], LATE, UNEQUAL[:1])
    specs = {weights: spec_of(kind, weights) for weights in ("shares", *choices(kind))}
    for case in cases:
        weights, optimiser, most, staleness, unequal = case
        try:
            x = one_round(rule, optimiser, most, specs[weights], staleness, unequal)
        except ConfigError as error:
            said = str(error)
            assert ":" in said and re.search(r"choose \w+", said), (case, said)
            assert said[0].islower() and not said.endswith("."), said
            continue
        assert bool(torch.isfinite(x).all()) and float(x.abs().max()) > 0
        ran.append(case)
    assert set(ran) == expected(rule, kind)


def expected(rule: str, kind: str) -> set[tuple[str, str, int, int, bool]]:
    """Written down once more, by rule and not by need, so that a need that is lost shows."""
    trees = {"chain", "star", "edges", "tree"}
    if (rule == "relaysgd" and kind not in trees) or (rule == "exact_diffusion" and kind in SEVERAL):
        return set()
    if (kind == "exponential" and rule != "sgp") or (kind == "cyclic") != (rule == "cyclic"):
        return set()
    optimisers = OPTIMISERS if rule in ("dpsgd", "fedprox", "relaysgd", "sgp", "cyclic") else ("sgd",)
    steps = (1,) if rule in ("exact_diffusion", "gradient_tracking") else STEPS
    late = LATE if rule in ("dpsgd", "fedprox") and kind not in SEVERAL else (0,)
    own = () if rule == "relaysgd" else choices(kind)
    return {*product(("shares",), optimisers, steps, late, UNEQUAL), *product(own, optimisers, (1,), late, (False,))}


def test_the_rules_that_a_refusal_names_would_fit() -> None:
    refused = 0
    for rule, optimiser, steps, edges, staleness, varying, weighted, statistics in product(
        RULES, OPTIMISERS, STEPS, (3, 4), LATE, (False, True), (False, True), (False, True)
    ):
        facts: dict[str, Any] = {
            "sites": SITES, "edges": edges, "staleness": staleness, "steps": steps, "varying": varying,
            "weighted": weighted, "statistics": statistics,
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


# --- as people ask for it


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_plan(tmp_path_factory.mktemp("plan") / "plan")


WALK: dict[str, Any] = {"training": {"rule": "cyclic"}, "topology": {"kind": "cyclic"}}
AWAY = {"kind": "absent", "sites": [1], "first": 2, "last": 4}
ONE_STEP = {"rule": "exact_diffusion", "local_steps": 1}


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"training": {"rule": "exact_diffusion"}}, "at most 1 local step a round, not 3"),
        ({"training": ONE_STEP, "steps": [{"sites": 0, "local_steps": 4}]}, "at most 1 local step a round, not 4"),
        ({"training": ONE_STEP, "topology": {"kind": "hierarchical", "clusters": 2}}, "one and the same mixing"),
        ({"training": ONE_STEP | {"optimiser": {"name": "adam"}}}, "does not go with optimiser adam"),
        ({"training": ONE_STEP | {"rule_settings": {"beta": 0.5}}}, "rule exact_diffusion has no setting 'beta'"),
        ({"training": {"rule": "fedprox", "rule_settings": {"proximal": -1}}}, "proximal is -1"),
        ({"training": {"rule": "fedprox", "rule_settings": 3}}, "rule_settings is 3"),
        (
            {"training": {"rule": "relaysgd"}, "topology": {"kind": "chain", "weights": "uniform"}},
            "weights of its own: its relays",
        ),
        ({"training": {"rule": "cyclic"}}, "needs a model that walks"),
        ({"topology": WALK["topology"], "rounds": 9}, "does not go with the topology cyclic"),
        (WALK, "in 2 rounds the model does not come to all of the 5 sites"),
        ({**WALK, "rounds": 9, "faults": [AWAY]}, "its rounds wait for a site that is away"),
        ({"training": {"rule": "quasi_global"}, "time": {"seconds": 5.0, "staleness": 2}}, "asynchronous policy"),
    ],
)
def test_a_simulation_is_refused_before_it_begins(plan: Path, asked: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        simulate(plan, blobs(), **({"peers": 5, "rounds": 2, "execution": "loop"} | asked))


def test_another_rule_keeps_none_of_the_plan_s_numbers(tmp_path: Path) -> None:
    folder = write_plan(tmp_path / "plan")
    toml = folder / "plan.toml"
    toml.write_text(toml.read_text().replace('rule = "dpsgd"', 'rule = "fedprox"\nrule_settings = { proximal = 2.0 }'))
    assert "proximal" in toml.read_text()

    def run(**training: Any) -> np.ndarray:
        result = simulate(folder, blobs(), peers=4, rounds=2, execution="loop", training=training)
        assert result.parameters is not None
        return result.parameters

    plain, held, weaker = run(rule="dpsgd"), run(), run(rule_settings={"proximal": 0.0})
    assert np.abs(plain - held).max() > 1e-6
    np.testing.assert_allclose(weaker, plain, rtol=0, atol=1e-7)


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule != "relaysgd"])
def test_the_ways_of_execution_agree(plan: Path, rule: str) -> None:
    """Also where some have no step in a round; recorded local steps know none of the round's numbers."""
    most = RULES[rule].needs.most_steps or 3
    training = {"rule": rule, "local_steps": most, "dtype": "float64"}
    topology = {"kind": "cyclic" if rule == "cyclic" else "ring"}
    steps = [{"sites": 2, "local_steps": 0}]
    asked = {"peers": 5, "rounds": 5, "training": training, "steps": steps, "topology": topology}
    loop, eager, traced = (simulate(plan, blobs(), execution=way, **asked) for way in ("loop", "eager", "traced"))
    assert loop.parameters is not None
    np.testing.assert_allclose(eager.parameters, loop.parameters, rtol=0, atol=1e-12)
    np.testing.assert_allclose(traced.parameters, loop.parameters, rtol=0, atol=1e-12)
