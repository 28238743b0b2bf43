"""Rounds that only add the pull: which rules have them, and that the kernel that makes them changes no bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from vector_worlds import engine, schedule_of, settings_of, tables

from p2pfl.sim.plain_merges import only_adds
from p2pfl.sim.vector_faults import Scaled
from p2pfl.sim.vector_mixing import LinearMixing, ScheduledPulls
from p2pfl.sim.vectorised import VectorisedRun
from p2pfl.train.add_product import Addition
from p2pfl.train.mixing import PeerGraph, VectorGraph
from p2pfl.train.rules import RULES, Context, Rule, State
from p2pfl.train.settings import read_settings

TRAINING = {"dpsgd", "fedprox"}  # rules whose every round is that
CLOSING = {*TRAINING, "quasi_global", "relaysgd"}
RING = {"kind": "ring"}


def rule_of(name: str) -> Rule:
    steps = RULES[name].needs.most_steps or 2
    settings = settings_of(name, local_steps=steps, optimiser={"name": min(RULES[name].needs.optimisers)})
    return read_settings(settings).rule


def model_of(rule: Rule) -> str:
    return next(channel.name for channel in rule.channels if channel.base == "model")


def asked(rule: Rule, *, closing: bool) -> bool:
    context, graph = Context(3, 0.1, 2, None, closing), PeerGraph(0.5)
    state = rule.init(torch.zeros(4), graph)
    return only_adds(rule, state, context, graph, model_of(rule), closing=closing)


@pytest.mark.parametrize("name", RULES)
def test_rules_that_only_add(name: str) -> None:
    assert asked(rule_of(name), closing=False) == (name in TRAINING)
    assert asked(rule_of(name), closing=True) == (name in CLOSING)


class Bent:
    """D-PSGD with another merge, or another message."""

    def __init__(self, bend: str) -> None:
        self._rule, self._bend = rule_of("dpsgd"), bend

    def __getattr__(self, name: str) -> Any:
        return getattr(self._rule, name)

    def send(self, state: State, x: Tensor, context: Context, graph: Any) -> Any:
        messages = {"two": {"x": x, "y": x}, "other": {"x": x + x}, "none": {}}.get(self._bend, {"x": x})
        return ({**state, "new": x} if self._bend == "new" else state), messages

    def merge(self, state: State, x: Tensor, context: Context, inbox: Any) -> Any:
        pull = inbox.pull("x")
        merged = {
            "turned": lambda: pull + x, "twice": lambda: x + pull + pull, "alone": lambda: pull, "itself": lambda: x,
            "doubled": lambda: x + x, "half": lambda: x + pull / 2, "sum": lambda: torch.add(x, pull),
            "number": lambda: x + 1, "total": lambda: x + inbox.total("x"), "unknown": lambda: x + inbox.pull("y"),
            "norm": lambda: x + pull / pull.norm(),
        }.get(self._bend, lambda: x + pull)()  # fmt: skip
        return dict.fromkeys(state, x) if self._bend == "state" else state, merged


BENDS = [
    "two",
    "other",
    "none",
    "new",
    "turned",
    "twice",
    "alone",
    "itself",
    "doubled",
    "half",
    "sum",
    "number",
    "total",
]


@pytest.mark.parametrize("bend", [*BENDS, "unknown", "norm"])
def test_any_other_round_is_seen(bend: str) -> None:
    rule: Any = Bent(bend)
    assert not only_adds(rule, {}, Context(0, 0.1, 1), PeerGraph(0.5), "x", closing=False)


def test_a_changed_state_is_seen() -> None:
    rule: Any = Bent("state")
    context, graph = Context(0, 0.1, 1), PeerGraph(0.5)
    assert only_adds(rule, {}, context, graph, "x", closing=False), "there is no state to change"
    assert not only_adds(rule, {"momentum": torch.zeros(2)}, context, graph, "x", closing=False)


# --- the kernel


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many sites the kernel mixed, each time."""
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        pytest.skip("a processor that the kernel is not for")
    found: list[int] = []
    mix = Addition.__call__

    def counted(self: Addition, product: Any, x: Tensor) -> None:
        found.append(len(x))
        mix(self, product, x)

    monkeypatch.setattr(Addition, "__call__", counted)
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("closing", [False, True])
@pytest.mark.parametrize("name", sorted({"kgt", "exact_diffusion", *CLOSING} - {"relaysgd"}))
def test_the_kernel_changes_no_bit(name: str, closing: bool, dtype: torch.dtype, calls: list[int]) -> None:
    """Of rules with other rounds, too: those it does not touch."""
    rule, sites, size = rule_of(name), 12, 300
    schedule = schedule_of(RING, sites, 3, 0, [float(1 + site) for site in range(sites)])
    mixing, nobody = schedule.round(0).mixings[0], np.array([], dtype=np.int64)
    graph = VectorGraph.from_matrix(mixing.matrix, torch.tensor(schedule.law, dtype=dtype))
    pull = ScheduledPulls(sites, torch.device("cpu")).of(mixing, nobody)
    start = torch.randn(sites, size, generator=torch.Generator().manual_seed(1), dtype=dtype)
    found = []
    for quick in (False, True):
        x, state = start.clone(), {key: value.clone() + 0.5 for key, value in rule.init(start, graph).items()}
        linear = LinearMixing(rule, graph, None)
        assert not quick or linear.quicken() is None
        for t in range(2):
            linear.round(x, state, Context(t, 0.1, 2, None, closing), [pull], closing=closing)
        found.append((x, state))
    assert torch.equal(found[0][0], found[1][0]) and not torch.equal(found[0][0], start)
    assert all(torch.equal(value, found[1][1][key]) for key, value in found[0][1].items())
    assert calls == [sites] * (2 if name in (CLOSING if closing else TRAINING) else 0)


def mixed(run: VectorisedRun) -> Tensor:
    assert run.population.quicken() is None
    while not run.done:
        run.step()
    return run.x


@pytest.mark.parametrize(
    ("topology", "more", "times"),
    [
        (RING, {}, 6),
        ({"kind": "matching", "seed": 3}, {}, 6),
        ({**RING, "closing": "chebyshev"}, {}, 4),
        (RING, {"faults": [Scaled([2], -1.0, since=1, until=3)]}, 4),
    ],
)
def test_in_runs_it_is_used_where_it_fits(
    topology: dict[str, Any], more: dict[str, Any], times: int, calls: list[int]
) -> None:
    plain = engine(tables(6), topology, rounds=4, closing=2, **more)
    quick = engine(tables(6), topology, rounds=4, closing=2, **more)
    while not plain.done:
        plain.step()
    assert not calls
    assert torch.equal(mixed(quick), plain.x)
    assert len(calls) == times
