"""The vectorised engine by itself: ways of execution, chunks, unequal sites and steps, faults, refusals, exact theory."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest
import torch
from vector_worlds import PLAN, engine, finished, joined, schedule_of, settings_of, tables

from p2pfl.errors import ConfigError, IllegalStep, PlanError
from p2pfl.sim.vector_faults import Absent, Noise, Scaled
from p2pfl.sim.vectorised import VectorisedRun
from p2pfl.topology import spectral_gap
from p2pfl.train import local_phase
from p2pfl.train.local_phase import ExecutionWarning
from p2pfl.train.plan_code import PlanCode
from p2pfl.train.settings import read_settings

RING = {"kind": "ring"}
DROPOUT = PLAN.replace("nn.Tanh()", "nn.Tanh(), nn.Dropout(0.3)")
FUNCTIONAL = PLAN.replace("model(x), label", "nn.functional.dropout(model(x), 0.3), label")
BRANCHES = PLAN.replace(
    "    x, label = batch\n    return nn", "    x, label = batch\n    x = x if x.sum() > -1e9 else -x\n    return nn"
)


# --- ways of execution


@pytest.mark.parametrize(
    ("rule", "execution"),
    [("dpsgd", "eager"), ("dpsgd", "loop"), ("kgt", "eager"), ("kgt", "loop"), ("kgt", "traced"),
     pytest.param("dpsgd", "traced", marks=pytest.mark.slow)],
)  # fmt: skip
def test_chunks_and_ways_change_nothing_but_rounding(rule: str, execution: str) -> None:
    """A chunk may round its products otherwise than a larger one: some units of the last of 53 bits per step."""
    settings = settings_of(rule)
    whole = finished(engine(tables(7), RING, settings=settings, plan=DROPOUT, steps=[3, 1, 0, 2, 3, 2, 1]))
    for chunk in (1, 3, 7, 50):
        other = engine(
            tables(7),
            RING,
            settings=settings,
            plan=DROPOUT,
            steps=[3, 1, 0, 2, 3, 2, 1],
            chunk=chunk,
            execution=execution,
        )
        assert float((finished(other).x - whole.x).abs().max()) < 1e-12
        assert other.execution.chosen == execution and other.execution.fell_back == ()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("optimiser", [{"name": "sgd"}, pytest.param({"name": "adam"}, marks=pytest.mark.slow)])
def test_compiled_changes_nothing_but_rounding(optimiser: dict[str, Any]) -> None:
    """Dropout, padding, unequal steps and a last chunk that is filled up, all at once."""
    settings = settings_of(optimiser=optimiser, local_steps=2, learning_rate=0.01)
    more = {"settings": settings, "plan": DROPOUT, "steps": [2, 1, 0, 2, 2, 1, 1]}
    eager = finished(engine(tables(7), RING, **more))
    compiled = finished(engine(tables(7), RING, chunk=4, execution="compiled", **more))
    assert compiled.execution.chosen == "compiled" and compiled.execution.fell_back == ()
    assert compiled.execution.compile_seconds > 0
    assert float((compiled.x - eager.x).abs().max()) < 1e-12


WITHOUT_COMPILER = """
import warnings
from vector_worlds import engine, tables
run = engine(tables(4), {"kind": "ring"}, rounds=1, execution="compiled")
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    run.step()
print([str(one.message) for one in caught if one.category.__name__ == "ExecutionWarning"])
print(run.execution)
"""


def test_no_compiler_falls_back_aloud(tmp_path: Path) -> None:
    here = Path(__file__).parent
    ways = os.pathsep.join([str(here), str(here.parent), str(here.parents[1])])
    nowhere = {"CXX": "no-such-compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "PYTHONPATH": ways}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_COMPILER],
        env={**os.environ, **nowhere},
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr
    warned, execution = done.stdout.strip().splitlines()
    assert "compiled is not possible" in warned and "a slower way is used" in warned
    assert execution.startswith(("eager (compiled is not possible)", "loop (compiled is not possible)"))
    assert "compiled is not possible (" in execution


@pytest.mark.parametrize("plan", [FUNCTIONAL, BRANCHES], ids=["torch's randomness", "branches on values"])
@pytest.mark.parametrize("execution", ["auto", "eager"])
def test_a_plan_that_does_not_vmap_falls_back_aloud(plan: str, execution: str) -> None:
    run = engine(tables(4), RING, rounds=3, plan=plan, execution=execution)
    with pytest.warns(ExecutionWarning, match="eager is not possible"):
        run.step()
    assert run.execution.chosen == "loop"
    again = engine(tables(4), RING, rounds=3, plan=plan, execution="loop", chunk=3)
    assert torch.equal(finished(run).x, finished(again).x)


def test_auto_measures_and_says_why() -> None:
    run = engine(tables(4), RING, rounds=3, execution="auto")
    run.step()
    assert set(run.execution.seconds) == {"loop", "eager"}
    assert run.execution.chosen == min(run.execution.seconds, key=run.execution.seconds.__getitem__)
    assert re.fullmatch(r"about 1 s in all, and recording takes up to \d s", run.execution.why)


@pytest.mark.parametrize("optimiser", [{"name": "sgd"}, {"name": "adam"}])
def test_what_is_recorded_does_the_same_operations(optimiser: dict[str, Any]) -> None:
    """Dropout, padding, unequal steps; the same chunks give the same bits, but for Adam's rounding of its constants."""
    settings = settings_of(optimiser=optimiser, local_steps=2, learning_rate=0.01)
    more = {"settings": settings, "plan": DROPOUT, "steps": [2, 1, 0, 2, 2, 1, 1], "chunk": 6}
    eager = finished(engine(tables(7), RING, **more))
    traced = finished(engine(tables(7), RING, execution="traced", **more))
    assert traced.execution.chosen == "traced" and traced.execution.fell_back == ()
    assert float((traced.x - eager.x).abs().max()) <= (0.0 if optimiser["name"] == "sgd" else 1e-14)


@pytest.mark.parametrize("counts", ["calls.append(1); x = x * len(calls)", "x = x if random.random() < 1 else -x"])
@pytest.mark.parametrize("execution", ["traced", "compiled"])
def test_a_plan_that_does_not_do_the_same_each_time_is_not_recorded(execution: str, counts: str) -> None:
    plan = (
        PLAN.replace("    x, label = batch\n", f"    x, label = batch\n    {counts}\n")
        + "\nimport random\ncalls = []\n"
    )
    run = engine(tables(4), RING, rounds=2, plan=plan, execution=execution)
    with pytest.warns(ExecutionWarning, match="does not do the same each time"):
        run.step()
    assert run.execution.chosen in ("eager", "loop")


@pytest.mark.parametrize(("sites", "threads", "most", "expected"), [(1000, 2, 32, 32), (100, 2, 32, 25), (3, 2, 32, 2),
    (1, 2, 32, 1), (5, 2, 1, 1), (33, 1, 32, 17), (10_000, 2, 128, 125)])  # fmt: skip
def test_chunks_are_even(sites: int, threads: int, most: int, expected: int) -> None:
    """All threads have as many chunks, none above the most, and no more chunks than needed."""
    size = local_phase.even(sites, threads, most)
    assert size == expected <= most
    own = -(-sites // threads)
    assert -(-own // size) == -(-own // most)


def test_blocks_are_larger_than_chunks_and_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    one = finished(engine(tables(11), RING, rounds=3, chunk=2, execution="eager"))
    monkeypatch.setattr(local_phase, "BLOCK_SITES", 3)
    other = finished(engine(tables(11), RING, rounds=3, chunk=2, execution="eager"))
    assert torch.equal(one.x, other.x)


@pytest.mark.timeout(300)
def test_auto_compiles_where_much_is_to_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_phase, "COMPILE_SECONDS", 0.0)
    monkeypatch.setattr(local_phase, "TRACE_SECONDS", 0.0)
    run = engine(tables(4), RING, rounds=3, execution="auto", settings=settings_of(local_steps=1))
    run.step()
    assert set(run.execution.seconds) == {"loop", "eager", "traced", "compiled"}
    assert run.execution.chosen == min(run.execution.seconds, key=run.execution.seconds.__getitem__)
    assert run.execution.why == "measured to be the fastest"


# --- against one site after the other, written out


def test_unequal_steps_are_those_of_each_site() -> None:
    """K-GT on a ring of unequal sites: z_i = (x_start - x) / (lr K_i)."""
    data, steps = tables(4), [3, 1, 2, 0]
    run = engine(data, RING, settings=settings_of("kgt"), steps=steps, rounds=1)
    start = run.x.clone()
    alone = [engine(data, RING, settings=settings_of("kgt"), steps=[k] * 4, rounds=1) for k in (3, 1, 2)]
    for other in alone:
        other._train(0, np.ones(4, dtype=bool), other._each)
    run._train(0, np.ones(4, dtype=bool), run._each)
    for site, other in enumerate(alone):
        assert torch.allclose(run.x[site], other.x[site], atol=1e-14, rtol=0)
    assert torch.equal(run.x[3], start[3]) and torch.equal(run.state["start"][3], start[3])


CHANGING = [
    {"kind": "hierarchical", "clusters": 2, "period": 2},
    {"kind": "matching", "seed": 0},
    {"kind": "epidemic", "degree": 2, "seed": 0},
]


@pytest.mark.parametrize("spec", [RING, {"kind": "full"}, {"kind": "hierarchical", "clusters": 2}, *CHANGING])
def test_the_weighted_mean_is_kept_by_mixing(spec: Any) -> None:
    run = engine(tables(6), spec, rounds=1, closing=12)
    run.step()
    mean = run.shares @ run.x
    finished(run)
    assert torch.allclose(run.shares @ run.x, mean, atol=1e-14, rtol=0)


# --- exact theory


def mixes_only(graph: nx.Graph) -> VectorisedRun:
    """All sites equal; 40 closing rounds after one without a step to take."""
    sites = graph.number_of_nodes()
    spec = {"kind": "edges", "edges": [list(edge) for edge in graph.edges]}
    schedule = schedule_of(spec, sites, 1, 40)
    x = torch.zeros(2, 6, dtype=torch.float64), torch.zeros(2, dtype=torch.int64)
    steps = [1] + [0] * (sites - 1)
    return VectorisedRun(
        PlanCode(PLAN.encode()), read_settings(settings_of()), x, [[0]] * sites, schedule, seed=0, steps=steps
    )


R1 = [
    (nx.cycle_graph(9), 0.1559703713), (nx.cycle_graph(16), 0.0507469783), (nx.cycle_graph(64), 0.0032101822),
    (nx.path_graph(9), 0.0402049195), (nx.path_graph(100), 0.0003289598),
    (nx.grid_2d_graph(4, 4, periodic=True), 0.4), (nx.grid_2d_graph(5, 5, periodic=True), 0.2763932023),
    (nx.grid_2d_graph(8, 8, periodic=True), 0.1171572875),
    (nx.hypercube_graph(3), 0.5), (nx.hypercube_graph(5), 1 / 3), (nx.star_graph(11), 1 / 12),
    (nx.barbell_graph(5, 0), 0.0497396469), (nx.barbell_graph(10, 0), 0.0153680096),
    (nx.davis_southern_women_graph(), 0.0820975027),
]  # fmt: skip


@pytest.mark.parametrize(("graph", "gap"), R1)
def test_contraction_is_the_spectral_one(graph: nx.Graph, gap: float) -> None:
    """Started on the second eigenvector of W, each closing round shrinks the disagreement by exactly 1 - gap."""
    run = mixes_only(nx.convert_node_labels_to_integers(graph))
    matrix = run.schedule.round(1).mixings[0].matrix.toarray()
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    second = torch.from_numpy(vectors[:, np.argsort(np.abs(values))[-2]])
    run.round = 1
    run.x[:] = second.unsqueeze(-1) * torch.linspace(1, 2, run.x.shape[1], dtype=torch.float64)
    for _ in range(10):
        before = run.x.norm()
        run.step()
        assert float(run.x.norm() / before) == pytest.approx(1 - gap, abs=1e-10)
    assert spectral_gap(matrix) == pytest.approx(gap, abs=1e-10)


def test_the_full_graph_agrees_at_once() -> None:
    run = mixes_only(nx.complete_graph(12))
    run.round = 1
    run.x[:] = torch.randn(run.x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mean = run.x.mean(0)
    run.step()
    assert torch.allclose(run.x, mean.expand_as(run.x), atol=1e-14, rtol=0)


# --- faults


def test_absent_sites_stand_still_and_nothing_is_biased() -> None:
    run = engine(tables(6), RING, rounds=4, settings=settings_of("kgt"), faults=[Absent([2], since=1, until=3)])
    run.step()
    before = run.x[2].clone()
    assert run.step().trained == 5 and run.step().trained == 5
    assert torch.equal(run.x[2], before)
    assert run.step().trained == 6 and not torch.equal(run.x[2], before)
    drift = run.shares @ run.state["correction"]
    assert float(drift.abs().max()) < 1e-14


def test_a_liar_moves_its_neighbours_only() -> None:
    honest, lied = (engine(tables(8), RING, rounds=1, faults=f) for f in ((), [Scaled([3], -1.0)]))
    honest.step(), lied.step()
    moved = (honest.x - lied.x).abs().amax(-1) > 1e-12
    assert moved.nonzero().reshape(-1).tolist() == [2, 4], "its own parameters are honest"
    weights = honest.schedule.round(0).mixings[0].matrix.toarray()
    twin = engine(tables(8), RING, rounds=1)
    twin._train(0, np.ones(8, dtype=bool), twin._each)
    for site in (2, 4):
        assert torch.allclose(lied.x[site], honest.x[site] - 2 * weights[site, 3] * twin.x[3], atol=1e-14, rtol=0)


def test_noise_is_keyed_and_gaussian() -> None:
    message = torch.zeros(2, 100_000, dtype=torch.float64)
    from p2pfl.sim.vector_faults import Sending

    fault, sites = Noise([0, 1], deviation=2.0, seed=5), torch.tensor([0, 1])
    whole = fault.sent(message, sites, Sending(3, 0, 0, 0))
    part = fault.sent(message[1:, 500:700], sites[1:], Sending(3, 0, 0, 500))
    assert torch.equal(part, whole[1:, 500:700])
    assert abs(float(whole.mean())) < 4 * 2 / 200_000**0.5
    assert float(whole.std()) == pytest.approx(2.0, rel=0.01)
    assert abs(float((whole[0] * whole[1]).mean())) < 4 * 4 / 100_000**0.5
    assert not torch.equal(whole, fault.sent(message, sites, Sending(4, 0, 0, 0)))


# --- refusals


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"execution": "fast"}, "execution 'fast' is unknown"),
        ({"chunk": 0}, "chunks of 0 sites"),
        ({"sampling": "secret"}, "sampling 'secret' is unknown"),
        ({"steps": [1, 2]}, "local steps"),
        ({"steps": [0, 0, 0, 0]}, "local steps"),
        ({"initial": torch.zeros(3)}, "initial parameters of shape"),
        ({"faults": [Absent([9])]}, "names site 9"),
        ({"faults": [Absent([1], since=3, until=3)]}, "from round 3 to 3"),
        ({"seed": -1}, "seed -1"),
    ],
)
def test_bad_arguments_are_refused_before_training(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        engine(tables(4), RING, **change)


@pytest.mark.parametrize("spec", [*CHANGING, {"kind": "matching", "seed": 1}])
def test_relays_need_the_same_graph_in_each_round(spec: Any) -> None:
    """Two sites that are matched in each round are a tree all the same, and refused for the kind."""
    sites = 2 if spec["kind"] == "matching" and spec["seed"] else 6
    with pytest.raises(ConfigError, match="relaysgd needs one and the same mixing in every round"):
        engine(tables(sites), spec, settings=settings_of("relaysgd"))


def test_data_that_do_not_fit_are_refused() -> None:
    train, rows = joined(tables(4))
    parts = PlanCode(PLAN.encode()), read_settings(settings_of()), train

    def start(rows: Any, data: Any = train) -> None:
        VectorisedRun(*parts[:2], data, rows, schedule_of(RING, 4, 3), seed=0)

    with pytest.raises(ConfigError, match="data of 3 sites"):
        start(rows[:3])
    with pytest.raises(ConfigError, match="site 1 has no training examples"):
        start([rows[0], [], rows[2], rows[3]])
    with pytest.raises(ConfigError, match="has row"):
        start([[0], [1], [2], [10_000]])
    with pytest.raises(ConfigError, match="missing or infinite"):
        start(rows, (train[0].clone().fill_(torch.nan), train[1]))


def test_batch_norm_with_too_few_examples_is_refused() -> None:
    plan = PLAN.replace("nn.Tanh()", "nn.BatchNorm1d(7)")
    with pytest.raises(ConfigError, match="padding would enter its statistics"):
        engine(tables(3), RING, plan=plan, settings=settings_of(batch_norm="private"))
    engine(tables(3), RING, plan=plan, settings=settings_of(batch_norm="private", batch_size=5))


UNTRACKED = PLAN.replace("nn.Tanh()", "nn.BatchNorm1d(7, track_running_stats=False)")
CENTRED = PLAN.replace("model(x), label", "model(x) - model(x).mean(0), label")
BLIND = UNTRACKED.replace(
    "def loss", "def ones(model):\n    nn.init.zeros_(model[2].weight)\n    return model\n\ndef loss"
)
BLIND = BLIND.replace("return nn.Sequential(", "return ones(nn.Sequential(").replace(
    "nn.Linear(7, 3))", "nn.Linear(7, 3)))"
)


@pytest.mark.parametrize("plan", [UNTRACKED, CENTRED, BLIND], ids=["untracked", "centred loss", "only the gradient"])
def test_examples_that_see_each_other_are_not_padded(plan: str) -> None:
    with pytest.raises(ConfigError, match="padding would enter its statistics"):
        engine(tables(3), RING, plan=plan)
    engine(tables(3), RING, plan=plan, settings=settings_of(batch_size=5))
    engine(tables(3), RING, plan=plan, execution="loop")


@pytest.mark.parametrize("layer", ["nn.GroupNorm(1, 7)", "nn.Dropout(0.5)", "nn.LayerNorm(7)"])
def test_examples_that_stand_alone_are_padded(layer: str) -> None:
    plan = PLAN.replace("nn.Tanh()", layer)
    one, two = (finished(engine(tables(3), RING, rounds=2, plan=plan, execution=way)) for way in ("eager", "loop"))
    assert float((one.x - two.x).abs().max()) < 1e-12


def test_divergence_is_said() -> None:
    run = engine(tables(4), RING, rounds=60, settings=settings_of(learning_rate=1e308))
    with warnings.catch_warnings(), pytest.raises(PlanError, match="diverged in round"):
        warnings.simplefilter("ignore")
        finished(run)


@pytest.mark.parametrize(
    ("faults", "says"),
    [
        ([Scaled([2], 1e300, 1)], "site 2 lies about the parameters: give that fault a smaller size"),
        ([Noise([0], 1e300, 5, 0), Scaled([2, 0], 1e300, 0)], "2 sites lie about the parameters"),
        ([Absent([1], 0), Scaled([2], 2.0, 9)], "; lower learning_rate in the plan"),
    ],
)
def test_divergence_names_what_lies(faults: list[Any], says: str) -> None:
    rate = 0.1 if "lie" in says else 1e308
    run = engine(tables(4), RING, rounds=60, settings=settings_of(learning_rate=rate), faults=faults)
    with warnings.catch_warnings(), pytest.raises(PlanError, match="diverged in round.*" + says):
        warnings.simplefilter("ignore")
        finished(run)


def test_rounds_end() -> None:
    run = finished(engine(tables(3), RING, rounds=2))
    with pytest.raises(IllegalStep, match="2 rounds"):
        run.step()


def test_batch_norm_runs_as_one_module_each() -> None:
    """Private statistics stay with their sites, the same in the loop and side by side."""
    plan, settings = PLAN.replace("nn.Tanh()", "nn.BatchNorm1d(7)"), settings_of(batch_norm="private", batch_size=5)
    one, two = (
        finished(engine(tables(4), RING, plan=plan, settings=settings, execution=way)) for way in ("eager", "loop")
    )
    assert float((one.x - two.x).abs().max()) < 1e-12
    for name, value in one.population.private.items():
        assert torch.allclose(value, two.population.private[name], atol=1e-12, rtol=0)
    entry = next(e for e in one.layout.entries if e.private)
    assert float((one.x[0] - one.x[1])[entry.start : entry.stop].abs().max()) > 1e-3


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of a process can be read on Linux")
@pytest.mark.parametrize("rule", [pytest.param("dpsgd", marks=pytest.mark.slow), "kgt"])
def test_memory_of_a_peer_is_below_eight_times_its_parameters(rule: str) -> None:
    """The peak of a process of its own above what it has with its data: 2,000 peers of 4,810 parameters."""
    script = Path(__file__).parents[2] / "benchmarks" / "simulator.py"
    command = [sys.executable, str(script), "--case", "mlp", "2000", "eager", "--rounds", "2", "--rule", rule]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert 1.0 < found["memory"] < 8.0
