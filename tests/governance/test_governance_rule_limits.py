"""What plans may ask of each rule: the same as the training room says, and refused with a reason and what would fit."""

from __future__ import annotations

from functools import partial
from itertools import product
from typing import Any

import pytest

from p2pfl.errors import ConfigError, PlanError
from p2pfl.governance import plan_from_files
from p2pfl.governance.plan_settings import PlanSettings, parse_settings
from p2pfl.governance.rule_limits import LIMITS
from p2pfl.governance.topologies import CHANGING, directed, walks
from p2pfl.topology import KINDS, Schedule
from p2pfl.train.rules import RULES, check_combination
from p2pfl.train.settings import read_settings
from p2pfl.types import PeerId

PLAN = """
[plan]
name = "points"
[data]
tag = "points"
[training]
rule = "{rule}"
optimiser = {{ name = "{optimiser}" }}
learning_rate = 0.1
local_steps = {steps}
batch_size = 8
rounds = 5
{more}
"""
OPTIONS = {
    "ring": {}, "full": {}, "star": {}, "chain": {}, "hypercube": {}, "hierarchical": {"clusters": 2},
    "torus": {"rows": 2, "columns": 4}, "regular": {"degree": 3, "seed": 0}, "edges": {"edges": [[k, k + 1] for k in range(7)]},
    "erdos_renyi": {"probability": 0.5, "seed": 0}, "small_world": {"degree": 4, "probability": 0.2, "seed": 0},
    "two_clusters": {"bridges": 1}, "tree": {"arity": 2}, "double_tree": {}, "base": {"k": 1}, "matching": {"seed": 0},
    "epidemic": {"degree": 2, "seed": 0}, "exponential": {}, "cyclic": {},
}  # fmt: skip


WALK = '[topology]\nkind = "cyclic"'
MIXING = set(RULES) - {"cyclic"}  # all others


def plan(rule: str, more: str = "", optimiser: str = "sgd", steps: int = 1) -> bytes:
    return PLAN.format(rule=rule, optimiser=optimiser, steps=steps, more=more).encode()


def test_both_rooms_know_the_same_rules_with_the_same_limits() -> None:
    assert list(LIMITS) == list(RULES)
    assert PlanSettings.model_fields["training"].annotation.model_fields["rule"].annotation.__args__ == tuple(RULES)
    for name, limits in LIMITS.items():
        needs = RULES[name].needs
        assert bool(limits.no_delays) == (not needs.delays) and limits.no_delays == needs.delays_reason
        assert bool(limits.sgd_only) == (needs.optimisers == {"sgd"}) and limits.sgd_only == needs.reason
        assert bool(limits.one_step) == (needs.most_steps == 1) and limits.one_step == needs.steps_reason
        assert bool(limits.static) == needs.static and limits.static == needs.static_reason
        assert bool(limits.by_shares) == needs.by_shares and limits.by_shares == needs.by_shares_reason
        assert bool(limits.tree) == (needs.mixing == "tree")
        assert bool(limits.no_statistics) == (not needs.statistics) and limits.no_statistics == needs.statistics_reason
        assert limits.walks == (needs.mixing == "walk")
        assert bool(limits.balanced) == (needs.mixing not in ("columns", "walk"))
        assert limits.balanced in ("", needs.unweighed_reason)
        assert limits.halved == needs.halved
        assert (limits.plain_closing == "") == needs.accelerated and limits.plain_closing == needs.closing_reason
        own = {key: (number.low, number.high, number.below) for key, number in limits.numbers.items()}
        assert own == {key: (s.low, s.high, s.below) for key, s in RULES[name].settings.items()}


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_both_rooms_know_the_same_changing_topologies(kind: str) -> None:
    nodes = [PeerId(f"{number}") for number in range(8)]
    schedule = Schedule({"kind": kind, **OPTIONS[kind]}, nodes, dict.fromkeys(nodes, 1 / 8), 8, 2)
    mixings = {id(mixing) for t in range(schedule.total) for mixing in schedule.round(t).mixings}
    assert schedule.same_each_round == (kind not in CHANGING) == (len(mixings) == 1)


@pytest.mark.parametrize(
    "spec",
    [*({"kind": kind, **options} for kind, options in OPTIONS.items()),
     {"kind": "epidemic", "degree": 2, "seed": 0, "choice": "local"},
     {"kind": "epidemic", "degree": 2, "seed": 0, "choice": "common"}, {"kind": "exponential", "hops": "all"}],
    ids=str,
)  # fmt: skip
def test_both_rooms_know_the_same_directed_topologies(spec: dict[str, Any]) -> None:
    nodes = [PeerId(f"{number}") for number in range(8)]
    schedule = Schedule(spec, nodes, dict.fromkeys(nodes, 1 / 8), 8, 2)
    assert schedule.directed == directed(spec) and schedule.walks == walks(spec)


@pytest.mark.parametrize("rule", sorted(MIXING))
@pytest.mark.parametrize(
    "topology", ['kind = "exponential"', 'kind = "epidemic"\ndegree = 2\nseed = 0\nchoice = "local"']
)
def test_rules_without_weights_take_no_directed_topology(rule: str, topology: str) -> None:
    source = plan(rule, f"[topology]\n{topology}")
    if rule == "sgp":
        assert parse_settings(source).topology_spec()
        return
    with pytest.raises(PlanError, match=f"rule {rule} does not go with a directed topology: .* or the rule sgp"):
        parse_settings(source)
    with pytest.raises(ConfigError, match=f"rule {rule} does not go with a directed topology: .* or the rule sgp"):
        check_combination(rule, "sgd", directed=True, varying=True)


@pytest.mark.parametrize("rule", sorted(RULES))
@pytest.mark.parametrize("topology", ["", '[topology]\nkind = "chain"', '[topology]\nkind = "exponential"', WALK])
def test_one_rule_walks_and_no_other(rule: str, topology: str) -> None:
    if rule == "cyclic" and topology == WALK:
        parse_settings(plan(rule, topology))
        check_combination(rule, "sgd", directed=True, varying=True, walks=True)
    elif topology == WALK:
        said = f"rule {rule} does not go with the topology cyclic: .*; choose another topology, .*, or the rule cyclic$"
        with pytest.raises(PlanError, match=said):
            parse_settings(plan(rule, topology))
        with pytest.raises(ConfigError, match=said):
            check_combination(rule, "sgd", directed=True, varying=True, walks=True)
    elif rule == "cyclic":
        said = "rule cyclic needs a model that walks: .*; choose the topology cyclic, or the rule (dpsgd|sgp)"
        with pytest.raises(PlanError, match=said):
            parse_settings(plan(rule, topology))
        with pytest.raises(ConfigError, match=said):
            check_combination(rule, "sgd", directed="exponential" in topology, walks=False)


def test_a_walk_closes_in_more_than_two_rounds() -> None:
    source = plan("cyclic", f"closing_rounds = 2\n{WALK}")
    with pytest.raises(PlanError, match="closing_rounds is 2, and a model that walks needs 3: what was lost"):
        parse_settings(source)
    assert parse_settings(plan("cyclic", f"closing_rounds = 3\n{WALK}")).training.closing_rounds == 3


def test_nobody_joins_a_walk_later() -> None:
    assert "rule cyclic takes nobody in later: whose turn" in str(parse_settings(plan("cyclic", WALK)).newcomer_problem)


@pytest.mark.parametrize("rule", sorted(MIXING))
def test_rules_that_close_plainly_take_no_accelerated_closing_rounds(rule: str) -> None:
    source = plan(rule, '[topology]\nkind = "chain"\nclosing = "chebyshev"')
    if rule not in ("sgp", "exact_diffusion"):
        assert parse_settings(source).topology_spec()["closing"] == "chebyshev"
        check_combination(rule, "sgd", accelerated=True)
        return
    said = f'rule {rule} does not go with accelerated closing rounds: .*; choose closing = "plain", or the rule dpsgd'
    with pytest.raises(PlanError, match=said):
        parse_settings(source)
    with pytest.raises(ConfigError, match=said):
        check_combination(rule, "sgd", accelerated=True)


@pytest.mark.parametrize("more", [{}, {"hops": "all"}], ids=["one peer", "all hops"])
def test_directed_topologies_close_plainly(more: dict[str, Any]) -> None:
    """Also the static exponential one: its matrix is not symmetric, and its eigenvalues are no numbers from -1 to 1."""
    spec, nodes = {"kind": "exponential", **more, "closing": "chebyshev"}, [PeerId(f"{number}") for number in range(8)]
    lines = "\n".join(f'{key} = "{value}"' for key, value in spec.items())
    with pytest.raises(PlanError, match=r"closing.*plain"):
        parse_settings(plan("sgp", f"[topology]\n{lines}"))
    with pytest.raises(ConfigError, match='give closing = "plain" or another kind'):
        Schedule(spec, nodes, dict.fromkeys(nodes, 1 / 8), 6, 2)


@pytest.mark.parametrize("rule", sorted(RULES))
def test_plans_and_sessions_refuse_the_same(rule: str) -> None:
    refused = 0
    statistics = ("", 'batch_norm = "private"', 'batch_norm = "shared"', 'buffers = "share"')
    for optimiser, steps, policy, more in product(("sgd", "momentum", "adam"), (1, 5), (False, True), statistics):
        asked: dict[str, Any] = {
            "rule": rule, "optimiser": {"name": optimiser}, "learning_rate": 0.1, "local_steps": steps, "batch_size": 8,
        }  # fmt: skip
        if more:
            asked[more.split()[0]] = more.split('"')[1]
        walk = WALK if rule == "cyclic" else ""
        lines = more + ('\npolicy = "asynchronous"\n' if policy else "\n") + walk
        if policy:
            asked["staleness"] = 2
        found = []
        source = plan(rule, lines, optimiser, steps)
        for call in (partial(parse_settings, source), partial(read_settings, asked)):
            try:
                call()
                found.append("")
            except (PlanError, ConfigError) as error:
                found.append(str(error))
        assert bool(found[0]) == bool(found[1]), found
        if found[0]:
            refused += 1
            for text in found:
                assert f"rule {rule}" in text and ": " in text and "choose " in text and "the rule " in text, text
    assert (refused == 0) == (rule in ("dpsgd", "fedprox"))


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (plan("fedprox", "rule_settings = { proximal = -1 }"), ["proximal is -1", "from 0 to 1000"]),
        (plan("fedprox", "rule_settings = { proximal = true }"), ["proximal", "a number"]),
        (plan("fedprox", "rule_settings = { proximal = nan }"), ["proximal", "finite"]),
        (plan("fedprox", "rule_settings = { beta = 0.5 }"), ["fedprox has no setting beta", "proximal"]),
        (plan("quasi_global", "rule_settings = { mu = 1.0 }"), ["mu is 1", "not including, 1"]),
        (plan("dpsgd", "rule_settings = { proximal = 1.0 }"), ["dpsgd has no setting proximal", "none"]),
        (plan("dpsgd", "rule_settings = 3"), ["rule_settings"]),
        (plan("exact_diffusion", "[arguments]\nlocal_steps = [1, 4]"), ["at most 1 local step", "not 4", "kgt"]),
        (plan("exact_diffusion", '[topology]\nkind = "hierarchical"\nclusters = 2'), ["same mixing", "ring or chain", "kgt"]),
        (plan("relaysgd", '[topology]\nkind = "hierarchical"\nclusters = 2'), ["same mixing", "ring or chain"]),
        (plan("relaysgd", '[topology]\nkind = "chain"\nweights = "uniform"'), ["weights of its own", 'choose weights = "shares"', "kgt"]),
        (plan("relaysgd", '[topology]\nkind = "chain"\nweights = [[0, 1, 0.5, 0.5]]'), ["weights of its own"]),
    ],
)  # fmt: skip
def test_wrong_numbers_and_graphs_are_refused_in_the_plan(source: bytes, words: list[str]) -> None:
    with pytest.raises(PlanError) as caught:
        parse_settings(source)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize("rule", ["exact_diffusion", "relaysgd"])
def test_a_proposal_s_own_topology_is_judged_too(rule: str) -> None:
    settings = parse_settings(plan(rule, '[topology]\nkind = "chain"'))
    assert settings.graph_problem(4, 3, {"kind": "chain"}) is None
    assert "same mixing" in str(settings.graph_problem(4, 3, {"kind": "hierarchical"}))
    said = settings.graph_problem(4, 3, {"kind": "chain", "weights": "metropolis"})
    assert ("weights of its own" in str(said)) == (rule == "relaysgd")
    assert settings.graph_problem(4, 3, {"kind": "chain", "weights": "shares"}) is None
    assert parse_settings(plan("kgt")).graph_problem(4, 5, {"kind": "hierarchical"}) is None


def test_a_rule_s_numbers_reach_the_session_and_the_plan_s_identity() -> None:
    code = b"def load(path): ...\ndef model(): ...\ndef loss(model, batch): ...\n"
    plans = [plan_from_files(code, plan("fedprox", f"rule_settings = {{ proximal = {mu} }}")) for mu in (0.5, 0.25)]
    read = [read_settings(found.session_settings()) for found in plans]
    assert [found.rule.proximal for found in read] == [0.5, 0.25]  # type: ignore[attr-defined]
    assert plans[0].digest != plans[1].digest
    from p2pfl.train.checkpoints import plan_identity

    assert len({plan_identity(code, found.session_settings()) for found in plans}) == 2
    assert "rule_settings" not in plan_from_files(code, plan("fedprox")).session_settings()
