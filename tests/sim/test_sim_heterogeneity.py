"""The study of rules on unlike sites: its grid, its choice of rates, its columns, one run, and the committed page."""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

from p2pfl.sim import read_scenario
from p2pfl.topology import Schedule
from p2pfl.train.rules import RULES, check_combination
from p2pfl.types import PeerId

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("P2PFL_DATA", ROOT.parent / "shared" / "data"))
sys.path.insert(0, str(ROOT / "sims"))
try:
    runs, study = (importlib.import_module(name) for name in ("heterogeneity_runs", "heterogeneity"))
finally:
    sys.path.remove(str(ROOT / "sims"))


def job(runs: ModuleType, **changes: object) -> object:
    values = {"world": "heart", "method": "kgt", "graph": "ring", "rate": 0.3, "choice": 0, "seed": 1, "tuning": False}
    return runs.Job(**(values | changes))


@pytest.mark.parametrize("world", runs.WORLDS)
@pytest.mark.parametrize("name", runs.METHODS)
def test_every_line_can_be_run(world: str, name: str) -> None:
    """The rule goes with the steps and the graph; there are several rates; every rule of the library has a line.

    But sgp: on these graphs, which are not directed, it is dpsgd.
    """
    method, own = runs.METHODS[name], runs.WORLDS[world]
    check_combination(method.rule, "sgd", steps=1 if method.one else own.steps, walks=method.walks)
    assert len(set(runs.rates(name))) == runs.TRIED and own.labels <= 2
    assert not set(own.tuned_on) & set(runs.SEEDS) and len(runs.SEEDS) == 5
    for choice in method.choices:
        assert set(choice) <= set(RULES[method.rule].settings)
    assert {one.rule for one in runs.METHODS.values()} == set(RULES) - {"sgp"}


def test_the_scenario_is_that_of_the_study() -> None:
    scenario = read_scenario(ROOT / "sims" / "scenarios" / "mnist_labels.toml")
    world = runs.WORLDS["mnist-2"]
    assert scenario.partition == {"kind": "labels_per_peer", "labels": world.labels}
    assert scenario.topology == world.graphs["ring"][0]


def test_the_rate_with_the_best_mean_over_sites_and_seeds_is_taken() -> None:
    found = {
        job(runs, rate=0.1, seed=100): {"sites": [0.9, 0.9]},
        job(runs, rate=0.1, seed=101): {"sites": [0.1, 0.1]},
        job(runs, rate=0.3, seed=100): {"sites": [0.8, 0.4]},
        job(runs, rate=0.3, seed=101): {"sites": [0.6, 0.6]},
        job(runs, rate=1.0, seed=100): {"sites": [0.99, 0.99]},
        job(runs, rate=1.0, seed=101): {},  # diverged
    }
    assert study.tuned(study.scored(found)) == {("heart", "kgt", "ring"): (0.3, 0)}


def test_the_gap_closed_is_of_each_seed() -> None:
    local = [{"sites": [0.2, 0.4]}, {"sites": [0.1, 0.5]}]
    pooled = [{"mean": 0.9}, {"mean": 0.8}]
    own = [{"sites": [0.6, 0.6]}, {"sites": [0.8, 0.8]}]
    assert study.closed(own, local, pooled, min) == "79% (57% to 100%)"
    assert study.spread([0.25, 0.75]) == "0.500 (0.250 to 0.750)"
    line, beside = ("mnist-1", "kgt", "ring"), {("mnist-1", name, ""): local for name in ("local only", "pooled")}
    assert study.told(line, {line: [*own, {}], **beside}) == ["1 of 3 seeds diverged"]


@pytest.mark.parametrize(
    ("line", "models"),
    [
        (("mnist-1", "dpsgd", "ring"), "2"),
        (("mnist-1", "kgt", "ring"), "4"),
        (("mnist-1", "relaysgd", "ring"), "3.6"),  # 2 vectors over 9 edges from both ends, 10 sites
        (("heart", "kgt", "full"), "6"),
        (("mnist-1", "cyclic", ""), "2"),  # 10 visits a cycle, and both ends of each one send the model
        (("heart", "cyclic", ""), "2"),
        (("mnist-1", "cyclic, 50 steps", ""), "0.2"),  # a cycle in the time of ten rounds
        (("heart", "pooled", ""), "–"),
    ],
)
def test_what_sites_send_is_counted_in_models(line: tuple[str, str, str], models: str) -> None:
    assert study.sends(line) == models


@pytest.mark.parametrize("name", ["cyclic", "cyclic, 50 steps"])
@pytest.mark.parametrize("world", runs.WORLDS)
def test_where_a_model_walks_sites_take_as_many_steps_as_with_other_rules(world: str, name: str) -> None:
    """It comes to each site as often, or seldom and for longer; no graph of the world's makes another line."""
    own, method = runs.WORLDS[world], runs.METHODS[name]
    nodes = [PeerId(f"{number:02d}") for number in range(own.peers)]
    spec = dict(runs.graph_of(job(runs, world=world, method=name, graph="")))
    schedule = Schedule(spec, nodes, dict.fromkeys(nodes, 1.0), runs.rounds_of(own, method), 0)
    visits = Counter(node for t in range(schedule.rounds) for node in schedule.round(t).active)
    steps = {node: visits[node] * schedule.steps_of(node, own.steps * method.longer) for node in nodes}
    assert steps == dict.fromkeys(nodes, runs.rounds_of(own, runs.METHODS["dpsgd"]) * own.steps)
    assert [line for line in study.lines() if line[:2] == (world, name)] == [(world, name, "")]


@pytest.mark.skipif(not (DATA / "heart").is_dir(), reason=f"no heart disease data in {DATA}; set P2PFL_DATA")
def test_a_run_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four hospitals beside pooled and local, on a split of their own; the second time the file answers."""
    (tmp_path / "out").mkdir()
    together, pooled, local, walked = (
        runs.stored(job(runs, method=name, graph=graph), DATA, tmp_path / "out")
        for name, graph in (("kgt", "full"), ("pooled", ""), ("local only", ""), ("cyclic", ""))
    )
    assert len(together["sites"]) == len(local["sites"]) == 4 and len(pooled["sites"]) == 1
    assert min(local["sites"]) < min(together["sites"]) and abs(together["mean"] - pooled["mean"]) < 0.02
    # the last site gives what it has trained to the first one
    assert walked["mean"] == walked["sites"][0] == walked["sites"][-1] and len(walked["sites"]) == 4
    assert len(set(walked["sites"])) > 1
    other = runs.examples_of(DATA, "heart", 2, False)
    assert (runs.examples_of(DATA, "heart", 1, False).test[0].shape == other.test[0].shape) and len(other) > 600
    assert (runs.examples_of(DATA, "heart", 1, False).test[0] != other.test[0]).any()
    monkeypatch.setattr(runs, "figures", lambda *_: pytest.fail("it was made again"))
    again = runs.stored(job(runs, method="kgt", graph="full"), DATA, tmp_path / "out")
    assert again == together


def test_the_committed_page_has_all_lines() -> None:
    page = (ROOT / "sims" / "studies" / "heterogeneity.md").read_text()
    head, *tables, numbers = page.split("\n## ")
    assert study.ANSWER in head and len(study.ANSWER) > 200
    assert len(tables) == sum(len(world.graphs) for world in runs.WORLDS.values())
    for table in tables:
        assert re.findall(r"^\| ([^|-][^|]*) \|", table, re.MULTILINE) == list(runs.METHODS)
    tried = [study.numbers_of(name, choice) for name, one in runs.METHODS.items() for choice in range(len(one.choices))]
    assert all(f": {text} |" in numbers for text in tried if tried.count(text) == 1 and text)
    assert "`python sims/heterogeneity.py --data DIR` at commit" in page
