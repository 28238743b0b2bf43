"""The vectorised engine against deployed sessions: float64, 20 rounds free-running, within 1e-12."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from vector_worlds import engine, finished, in_memory, settings_of, tables, vectorised, virtual_clock

from p2pfl.train.rules import RULES

TOPOLOGIES = {
    "ring": {"kind": "ring"},
    "full": {"kind": "full"},
    "hierarchical": {"kind": "hierarchical", "clusters": 2},
    "chain": {"kind": "chain"},
    "star": {"kind": "star"},
    "matching": {"kind": "matching", "seed": 1},
    "epidemic": {"kind": "epidemic", "degree": 2, "seed": 1},
    "exponential": {"kind": "exponential"},
    "cyclic": {"kind": "cyclic"},
    "cyclic, metropolis": {"kind": "cyclic", "weights": "metropolis"},
    "all hops": {"kind": "exponential", "hops": "all"},
    "local choice": {"kind": "epidemic", "degree": 2, "seed": 1, "choice": "local"},
    "local choice, metropolis": {
        "kind": "epidemic",
        "degree": 2,
        "seed": 1,
        "choice": "local",
        "weights": "metropolis",
    },
    "period": {"kind": "hierarchical", "clusters": 2, "period": 3},
    "tree": {"kind": "edges", "edges": [[0, 1], [0, 2], [1, 3], [1, 4], [2, 5], [2, 6]]},
    "metropolis matching": {"kind": "matching", "seed": 1, "weights": "metropolis"},
    "metropolis star": {"kind": "star", "weights": "metropolis"},
    "uniform tree": {"kind": "tree", "arity": 2, "weights": "uniform"},
    "listed chain": {
        "kind": "chain",
        "weights": [[0, 1, 0.1, 0.3], [2, 1, 0.6, 0.2], [2, 3, 0.3, 0.7], [3, 4, 0.2, 0.9]],
    },
}
ONE_STEP = {
    "exact_diffusion": 1,
    "gradient_tracking": 1,
}  # local steps where a rule takes no more; else those of settings_of
NUMBERS = {"fedprox": {"proximal": 0.5}, "quasi_global": {"beta": 0.8, "mu": 0.7}}
ANYWHERE = ("dpsgd", "kgt", "fedprox", "quasi_global", "gradient_tracking")


def slow(rows: list[tuple[str, str, int]]) -> list[Any]:
    return [pytest.param(*row, marks=pytest.mark.slow) for row in rows]


def settings_for(rule: str, **more: Any) -> dict[str, Any]:
    own = {"local_steps": ONE_STEP.get(rule, 3), "rule_settings": NUMBERS.get(rule, {})}
    return settings_of(rule, **own, **more)


LINEAR = [(rule, *world) for rule in ("dpsgd", "kgt") for world in (("ring", 8), ("full", 4), ("hierarchical", 6))]
LINEAR += [(rule, *world) for rule in ANYWHERE[2:] for world in (("ring", 5), ("hierarchical", 4))]
LINEAR += [("sgp", "ring", 5), ("sgp", "hierarchical", 4)]
LINEAR += [("exact_diffusion", "full", 4), ("exact_diffusion", "tree", 7)]
CHANGING = [
    ("dpsgd", "matching", 7), ("kgt", "matching", 6), ("dpsgd", "epidemic", 6), ("kgt", "period", 6),
    ("quasi_global", "matching", 6), ("gradient_tracking", "epidemic", 6),
]  # fmt: skip
DIRECTED = [
    ("sgp", "local choice", 7), ("sgp", "exponential", 6), ("sgp", "all hops", 5), ("sgp", "exponential", 2),
    ("sgp", "local choice, metropolis", 6), ("sgp", "period", 6),
]  # fmt: skip
WALKING = [("cyclic", "cyclic", 5), ("cyclic", "cyclic, metropolis", 4), ("cyclic", "cyclic", 2)]
WEIGHTED = [
    ("dpsgd", "metropolis star", 5), ("kgt", "uniform tree", 6), ("gradient_tracking", "listed chain", 5),
    ("exact_diffusion", "uniform tree", 4), ("kgt", "metropolis matching", 6),
]  # fmt: skip
RELAYED = [("relaysgd", "chain", 5), ("relaysgd", "star", 6), ("relaysgd", "tree", 7)]


def test_every_rule_has_rows() -> None:
    assert {rule for rule, *_ in LINEAR + RELAYED + WALKING} == set(RULES)


@pytest.mark.parametrize(
    ("rule", "kind", "sites"),
    [
        *LINEAR,
        *CHANGING[:2],
        *DIRECTED[:2],
        *WALKING,
        *WEIGHTED[:2],
        *RELAYED[2:],
        *slow(CHANGING[2:] + DIRECTED[2:] + WEIGHTED[2:] + RELAYED[:2]),
    ],
)
def test_same_as_peers_in_memory(tmp_path: Path, rule: str, kind: str, sites: int) -> None:
    data, settings = tables(sites), settings_for(rule)
    deployed = in_memory(tmp_path, data, settings, TOPOLOGIES[kind], rounds=18, closing=2)
    run = vectorised(deployed, data, settings)
    start = run.x.clone()
    finished(run)
    assert float((run.x - deployed.x).abs().max()) < 1e-12
    assert float((start - deployed.x).abs().min(-1).values.max()) > 1e-6, "training is to move every entry"


@pytest.mark.parametrize(
    ("rule", "kind", "sites"),
    [
        *[("kgt", "ring", 5), ("dpsgd", "hierarchical", 4), CHANGING[0], RELAYED[0]],
        *slow([("dpsgd", "ring", 5), ("kgt", "hierarchical", 4), ("dpsgd", "full", 8), ("kgt", "full", 8)]),
        *[("quasi_global", "hierarchical", 4), ("gradient_tracking", "ring", 4), ("exact_diffusion", "star", 4)],
        *WEIGHTED[:3],
        *DIRECTED[:2],
        *WALKING[:2],
        *slow(DIRECTED[2:]),
        *slow(CHANGING[1:] + RELAYED[1:]),
    ],
)
def test_same_as_the_virtual_clock(tmp_path: Path, rule: str, kind: str, sites: int) -> None:
    data, settings = tables(sites), settings_for(rule)
    deployed = virtual_clock(tmp_path, data, settings, TOPOLOGIES[kind], rounds=20, closing=0)
    run = finished(vectorised(deployed, data, settings))
    assert float((run.x - deployed.x).abs().max()) < 1e-12


@pytest.mark.parametrize(
    ("optimiser", "limit"), [({"name": "sgd"}, 1e-6), ({"name": "momentum"}, 1e-6), ({"name": "adam"}, 1e-3)]
)
def test_one_round_in_float32(tmp_path: Path, optimiser: dict[str, Any], limit: float) -> None:
    data, settings = tables(5), settings_of(optimiser=optimiser, dtype="float32", learning_rate=0.01)
    deployed = in_memory(tmp_path, data, settings, TOPOLOGIES["ring"], rounds=1, closing=0)
    run = finished(vectorised(deployed, data, settings))
    assert float((run.x - deployed.x).abs().max()) < limit


@pytest.mark.parametrize("execution", ["loop", "eager"])
@pytest.mark.parametrize("optimiser", [{"name": "momentum"}, {"name": "adam"}])
def test_optimisers_and_ways(tmp_path: Path, optimiser: dict[str, Any], execution: str) -> None:
    data, settings = tables(4), settings_of(optimiser=optimiser, learning_rate=0.01)
    deployed = in_memory(tmp_path, data, settings, TOPOLOGIES["ring"], rounds=20, closing=0)
    run = finished(vectorised(deployed, data, settings, execution=execution))
    assert run.execution.chosen == execution
    assert float((run.x - deployed.x).abs().max()) < 1e-12


@pytest.mark.parametrize(
    ("rule", "kind", "sites"),
    [
        *[
            ("dpsgd", "full", 4),
            ("kgt", "hierarchical", 6),
            ("fedprox", "ring", 5),
            ("quasi_global", "hierarchical", 6),
        ],
        *slow([("dpsgd", "ring", 5), ("dpsgd", "hierarchical", 6), ("kgt", "ring", 5), ("kgt", "full", 4)]),
    ],
)
@pytest.mark.parametrize("execution", [pytest.param("loop", marks=pytest.mark.slow), "eager"])
def test_unequal_local_steps(tmp_path: Path, rule: str, kind: str, sites: int, execution: str) -> None:
    """Also a site that mixes and never trains."""
    data, settings, steps = tables(sites), settings_for(rule), [3, 0, 1, 7, 2, 3][:sites]
    deployed = virtual_clock(tmp_path, data, settings, TOPOLOGIES[kind], rounds=20, closing=2, steps=steps)
    own = [steps[number] for number in deployed.order]
    run = finished(vectorised(deployed, data, settings, execution=execution, steps=own))
    assert float((run.x - deployed.x).abs().max()) < 1e-12
    equal = finished(vectorised(deployed, data, settings, execution=execution))
    assert float((equal.x - deployed.x).abs().max()) > 1e-3, "or the numbers of steps decide nothing"


@pytest.mark.parametrize(
    ("rule", "most"),
    [("kgt", 1), ("kgt", 3), ("quasi_global", 3), ("exact_diffusion", 1), ("gradient_tracking", 1), ("fedprox", 3)],
)
def test_sites_without_a_step(tmp_path: Path, rule: str, most: int) -> None:
    """All others take the same number, so nothing else tells the engine that some take none."""
    data, settings, steps = tables(5), settings_for(rule) | {"local_steps": most}, [most, 0, most, most, 0]
    deployed = virtual_clock(tmp_path, data, settings, TOPOLOGIES["ring"], rounds=20, closing=2, steps=steps)
    own = [steps[number] for number in deployed.order]
    run = finished(vectorised(deployed, data, settings, steps=own))
    assert float((run.x - deployed.x).abs().max()) < 1e-12
    equal = finished(vectorised(deployed, data, settings))
    assert float((equal.x - deployed.x).abs().max()) > 1e-3


@pytest.mark.parametrize(("rule", "kind", "sites"), WEIGHTED)
def test_other_weights_end_elsewhere(rule: str, kind: str, sites: int) -> None:
    """Or the rows above would hold also if no world minded the weights."""
    data, settings = tables(sites), settings_for(rule)
    own, shares = TOPOLOGIES[kind], {key: value for key, value in TOPOLOGIES[kind].items() if key != "weights"}
    ends = [finished(engine(data, spec, rounds=18, closing=2, settings=settings)).x for spec in (own, shares)]
    assert float((ends[0] - ends[1]).abs().max()) > 1e-3
