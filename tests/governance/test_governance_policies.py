"""Plans with a policy: what may be combined, and the sentence for what may not."""

from __future__ import annotations

import pytest

from p2pfl.errors import PlanError
from p2pfl.governance.plan_settings import parse_settings

RING = {"kind": "ring"}
PLAN = """
[plan]
name = "points"
[data]
tag = "points"
[topology]
kind = "{kind}"
[training]
rule = "{rule}"
learning_rate = 0.1
local_steps = 1
batch_size = 8
rounds = 5
{more}
"""


def text(more: str = "", rule: str = "dpsgd", kind: str = "ring") -> bytes:
    extra = "\nclusters = 2" if kind == "hierarchical" else ""
    return PLAN.format(more=more, rule=rule, kind=kind).replace(f'"{kind}"', f'"{kind}"{extra}').encode()


def test_relaysgd_needs_a_tree_and_says_what_to_choose() -> None:
    settings = parse_settings(text(rule="relaysgd", kind="chain"))
    assert settings.graph_problem(4, 3, RING) is None and settings.graph_problem(1, 0, RING) is None
    problem = str(settings.graph_problem(4, 4, RING))
    assert "relaysgd needs a tree" in problem and "4 edges between 4 sites" in problem and "chain or star" in problem
    assert parse_settings(text()).graph_problem(4, 4, RING) is None
    # two edges between three sites, but not in the same rounds
    changing = str(settings.graph_problem(3, 2, {"kind": "base"}))
    assert "one and the same mixing in every round" in changing and "choose the topology ring or chain" in changing
    assert "cannot begin in the middle" in str(settings.newcomer_problem)


def test_a_plan_is_synchronous_unless_it_says_otherwise() -> None:
    settings = parse_settings(text())
    assert settings.training.late_rounds == 0
    assert "staleness" not in settings.session_settings()
    assert parse_settings(text(rule="kgt", kind="hierarchical")).training.late_rounds == 0


@pytest.mark.parametrize(("more", "staleness"), [("", 2), ("staleness = 1", 1), ("staleness = 8", 8)])
def test_an_asynchronous_plan_tells_worker_and_proposal_its_staleness(more: str, staleness: int) -> None:
    settings = parse_settings(text(f'policy = "asynchronous"\n{more}'))
    assert settings.training.late_rounds == settings.session_settings()["staleness"] == staleness


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (text("staleness = 2"), ["staleness", 'policy = "asynchronous"']),
        (text('policy = "asynchronous"\nstaleness = 0'), ["training.staleness is 0", "1 or more"]),
        (text('policy = "asynchronous"\nstaleness = 9'), ["training.staleness is 9", "8 or less"]),
        (text('policy = "asynchronous"\nstaleness = 2.0'), ["training.staleness is 2.0", "whole number"]),
        (text("steps_range = [1, 4]"), ["steps_range", 'policy = "asynchronous"']),
        (text('policy = "asynchronous"\nsteps_range = [2, 4]'), ["steps_range is [2, 4]", "local_steps between"]),
        (text('policy = "asynchronous"\nsteps_range = [4, 1]'), ["steps_range is [4, 1]"]),
        (text('policy = "asynchronous"\nsteps_range = [1]'), ["training.steps_range"]),
        (text('policy = "asynchronous"\nsteps_range = [0, 4]'), ["training.steps_range"]),
        (text('policy = "late"'), ["training.policy is 'late'", "asynchronous"]),
        (text('policy = "asynchronous"', rule="kgt"), ["rule kgt", "neither proven nor measured", "dpsgd"]),
        (text('policy = "asynchronous"', rule="relaysgd"), ["rule relaysgd", "counted twice"]),
        (text('policy = "asynchronous"', kind="hierarchical"), ["hierarchical", "once per round", "choose another"]),
    ],
)
def test_what_does_not_go_together_is_refused_with_the_reason(source: bytes, words: list[str]) -> None:
    with pytest.raises(PlanError) as caught:
        parse_settings(source)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "{" not in str(caught.value), "no dump of the table"
