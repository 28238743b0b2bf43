"""The shapes that charters and plans allow are those that topology builds, and nothing else."""

from __future__ import annotations

import json
from typing import Any

import pytest

from p2pfl.governance import plan_from_files
from p2pfl.governance.topologies import CHANGING, topology_problem
from p2pfl.topology import KINDS, Schedule, build_graph
from p2pfl.types import PeerId

SOURCE = b"def model(): ...\ndef loss(model, batch): ...\ndef load(path): ...\n"
SPECS: list[dict[str, Any]] = [
    {"kind": "ring"},
    {"kind": "full"},
    {"kind": "hierarchical", "clusters": 2},
    {"kind": "edges", "edges": [[0, 1], [1, 2], [2, 3]]},
    {"kind": "star"},
    {"kind": "chain"},
    {"kind": "torus", "rows": 2, "columns": 2},
    {"kind": "hypercube"},
    {"kind": "regular", "degree": 3, "seed": 2**32 - 1},
    {"kind": "erdos_renyi", "probability": 0.7, "seed": 0},
    {"kind": "small_world", "degree": 2, "probability": 0.25, "seed": 3},
    {"kind": "two_clusters", "bridges": 4},
    {"kind": "tree", "arity": 2},
    {"kind": "double_tree"},
    {"kind": "base", "k": 1},
    {"kind": "matching", "seed": 0},
    {"kind": "epidemic", "degree": 2, "seed": 5},
    {"kind": "exponential"},
    {"kind": "cyclic"},
]


@pytest.mark.parametrize("spec", SPECS, ids=[spec["kind"] for spec in SPECS])
def test_what_is_allowed_is_built(spec: dict[str, Any]) -> None:
    assert topology_problem(spec) is None
    assert len(build_graph(spec, [PeerId(name) for name in "abcd"])) == 4
    assert "write exactly" in str(topology_problem({**spec, "colour": "red"}))


@pytest.mark.parametrize("spec", SPECS, ids=[spec["kind"] for spec in SPECS])
def test_a_spec_comes_back_from_a_plan_as_it_was(spec: dict[str, Any]) -> None:
    table = "\n".join(f"{key} = {json.dumps(value)}" for key, value in spec.items())
    rule = "cyclic" if spec["kind"] == "cyclic" else "sgp"
    training = f'rule = "{rule}"\noptimiser = {{ name = "sgd" }}\nlearning_rate = 0.1\nlocal_steps = 1\nbatch_size = 4\nrounds = 9'
    toml = f'[plan]\nname = "a"\n[data]\ntag = "a"\n[topology]\n{table}\n[training]\n{training}\n'
    assert plan_from_files(SOURCE, toml.encode()).settings.topology_spec() == spec


def test_every_kind_is_in_the_list() -> None:
    assert {spec["kind"] for spec in SPECS} == set(KINDS)


def test_a_period_may_be_left_out() -> None:
    nodes = [PeerId(name) for name in "abcd"]
    for spec in ({"kind": "hierarchical", "clusters": 2}, {"kind": "hierarchical", "clusters": 2, "period": 5}):
        assert topology_problem(spec) is None
        assert Schedule(spec, nodes, dict.fromkeys(nodes, 0.25), 2, 0).total == 2


def test_the_kinds_that_change_are_those_of_the_schedules() -> None:
    nodes = [PeerId(name) for name in "abcd"]
    for spec in SPECS:
        found = Schedule(spec, nodes, dict.fromkeys(nodes, 0.25), 20, 0)
        assert found.same_each_round is (spec["kind"] not in CHANGING)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ({"kind": "torus", "rows": 1, "columns": 2}, "topology rows is 1; write a whole number from 2 to 63"),
        ({"kind": "torus", "rows": 2, "columns": "2"}, "topology columns is '2'; write a whole number"),
        ({"kind": "torus", "rows": 2}, "write exactly columns, kind, rows"),
        ({"kind": "regular", "degree": 64, "seed": 0}, "topology degree is 64; write a whole number from 1 to 63"),
        ({"kind": "regular", "degree": 3, "seed": -1}, "topology seed is -1"),
        ({"kind": "regular", "degree": 3, "seed": True}, "topology seed is True"),
        ({"kind": "erdos_renyi", "probability": 1.5, "seed": 0}, "probability is 1.5; write a number from 0 to 1"),
        ({"kind": "small_world", "degree": 2, "probability": "1", "seed": 0}, "probability is '1'; write a number"),
        ({"kind": "base", "k": 0}, "topology k is 0; write a whole number from 1 to 63"),
        ({"kind": "epidemic", "degree": 3}, "write exactly degree, kind, seed"),
        ({"kind": "exponential", "hops": "two"}, "topology hops is 'two'; write one of one, all"),
        ({"kind": "epidemic", "degree": 3, "seed": 0, "choice": 1}, "choice is 1; write one of common, local"),
        ({"kind": "hierarchical", "clusters": 2, "period": 0}, "topology period is 0; write a whole number from 1"),
        (
            {"kind": "hierarchical", "clusters": 2, "heads": 1},
            "exactly clusters, kind, and if you like closing, period",
        ),
    ],
)
def test_wrong_numbers_are_said(spec: dict[str, Any], says: str) -> None:
    assert says in str(topology_problem(spec))
