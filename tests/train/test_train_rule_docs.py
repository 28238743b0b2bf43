"""What is written about each update rule: sizes, ranges and the page of the manual are what the code does."""

from __future__ import annotations

import re

import pytest
import torch
from algorithms_page import BEGIN, END, PAGE, rules
from rule_rows import ROWS, made

from p2pfl.errors import ConfigError
from p2pfl.train.mixing import PeerGraph
from p2pfl.train.optimisers import optimiser_named
from p2pfl.train.rules import RULES, Context, rule_named


def told(name: str, label: str) -> str:
    found = re.search(rf"^    {label}: ((?:.|\n)*?)(?=^    [A-Z][a-z]+: |\Z)", RULES[name].__doc__ or "", re.MULTILINE)
    assert found, f"the docstring of {name} has no line {label}:"
    return " ".join(found[1].split())


def numbers_in(text: str, size: int) -> int:
    """The value of "2 P + 1" and the like."""
    found = re.match(r"(?:(\d+) )?(P)?(\d+)?(?: \+ (\d+))?", text)
    assert found
    return (int(found[1] or 1) * size if found[2] else int(found[1] or found[3] or 0)) + int(found[4] or 0)


@pytest.mark.parametrize(("name", "optimiser"), [(n, o) for n in ROWS for o in sorted(RULES[n].needs.optimisers)])
@pytest.mark.parametrize("size", [4, 7])
def test_state_and_messages_are_as_large_as_documented(name: str, optimiser: str, size: int) -> None:
    rule, x, graph = made(name, optimiser), torch.zeros(size, dtype=torch.float64), PeerGraph(0.5)
    state = rule.init(x, graph)
    kept = {part.rsplit(" with ", 1)[1]: part for part in told(name, "Keeps").split(";")[0].split(", ")}
    assert set(kept) == rule.needs.optimisers
    assert sum(value.numel() for value in state.values()) == numbers_in(kept[optimiser], size)
    _, messages = rule.send(state, x, Context(0, 0.1, 1), graph)
    assert [*messages] == [channel.name for channel in rule.channels]
    assert sum(message.numel() for message in messages.values()) == numbers_in(told(name, "Sends"), size)


@pytest.mark.parametrize("name", list(ROWS))
@pytest.mark.parametrize("label", ["Use", "Source", "Differs", "Verified"])
def test_the_docstring_says_what_people_need(name: str, label: str) -> None:
    assert len(told(name, label)) > 40
    assert re.search(r"\n        \S.*<-", RULES[name].__doc__ or ""), "the equation, indented"


def test_the_page_is_up_to_date() -> None:
    assert BEGIN + rules() + END in PAGE.read_text(), "run python tests/train/algorithms_page.py"


@pytest.mark.parametrize("name", list(ROWS))
def test_its_numbers_are_bounded(name: str) -> None:
    sgd = optimiser_named("sgd")
    for key, setting in RULES[name].settings.items():
        assert getattr(rule_named(name, sgd), key) == setting.default
        assert getattr(rule_named(name, sgd, {key: setting.low}), key) == setting.low
        beyond = setting.high if setting.below else setting.high * (1 + 1e-9)
        for wrong in (setting.low - 1e-9, beyond, float("nan"), float("inf"), True, "0.5", None):
            with pytest.raises(ConfigError, match=f"rule setting {key}"):
                rule_named(name, sgd, {key: wrong})
    with pytest.raises(ConfigError, match="has no setting 'colour'"):
        rule_named(name, sgd, {"colour": 1.0})
