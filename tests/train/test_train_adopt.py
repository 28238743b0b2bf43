"""A session that goes on from a mean of other sites' parameters: the formula, what it refuses, what a kill leaves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_train_session import RUN, Consortium, key_of, settings_of
from test_train_worker import Process, value
from train_worlds import CLASSIFIER_PLAN, QUADRATIC_PLAN

from p2pfl.errors import IllegalStep
from p2pfl.train import deltas
from p2pfl.train.rules import RULES
from p2pfl.train.session import Session

NORM_PLAN = CLASSIFIER_PLAN.replace(
    b"nn.Linear(6, 5), nn.Tanh()", b"nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Tanh()"
)
CASES: dict[str, tuple[bytes, dict[str, Any]]] = {
    "dpsgd, sgd": (QUADRATIC_PLAN, {"rule": "dpsgd"}),
    "dpsgd, adam, float32": (CLASSIFIER_PLAN, {"optimiser": {"name": "adam"}, "dtype": "float32"}),
    "kgt": (QUADRATIC_PLAN, {"rule": "kgt"}),
    "relaysgd": (QUADRATIC_PLAN, {"rule": "relaysgd"}),
    "private norms": (NORM_PLAN, {"batch_norm": "private", "dtype": "float32"}),
}
both = pytest.mark.parametrize("name", CASES)


def world_of(name: str) -> tuple[Consortium, list[list[Any]]]:
    """Three sites after some rounds, and the others' newest states as site 0 received them; one was trained on."""
    plan, settings = CASES[name]
    world = Consortium(plan, 3, "tree" if settings.get("rule") == "relaysgd" else "full", **settings)
    for number in range(3):
        world.round(number)
    rows = []
    for place in (1, 2):
        world.sessions[place].train(3, world.steps)
        message = world.sessions[place].encode(3, 0, False)[0]
        world.sessions[0].receive(f"state {place}", message["channel"], message["payload"], message["result"])
        rows.append([f"{place}", [0.4, 0.6][place - 1], {message["channel"]: f"state {place}"}])
    return world, rows


def shared(session: Session) -> torch.Tensor:
    return session._layout.select_shared(session.vector).clone()


@both
@pytest.mark.parametrize("own", [0.0, 16 / 40, 0.999])
def test_the_parameters_are_the_weighted_mean_to_the_last_digit(name: str, own: float) -> None:
    world, rows = world_of(name)
    first = world.sessions[0]
    before, whole = shared(first), first.vector.clone()
    state = {key: value.clone() for key, value in first.state.items()}
    m1, m2 = (shared(world.sessions[place]) for place in (1, 2))
    answer = first.adopt(round=40, own=own, states=rows)
    after = shared(first)
    assert torch.equal(after, own * before + (1.0 - own) * (0.4 * m1 + 0.6 * m2))
    assert answer == {"digest": first.digest(), "distance": float(torch.linalg.vector_norm(after - before))}
    assert answer["distance"] > 0
    assert all(torch.equal(first.state[key], value) for key, value in state.items()), "the rule's state stays"
    assert first.state.keys() == state.keys()
    assert torch.equal(first._layout.replace_shared(whole, after), first.vector), "private buffers stay"
    with pytest.raises(IllegalStep, match="receive it first"):
        first.adopt(round=40, own=own, states=rows)


@both
def test_the_next_round_begins_from_there(name: str) -> None:
    """With a message of the new parameters, and mixed as ever; K-GT's sum of corrections stays 0."""
    world, rows = world_of(name)
    first = world.sessions[0]
    first.adopt(round=4, own=0.4, states=rows)
    start = shared(first)
    first.encode(4, 0, True)
    torch.testing.assert_close(shared(first), start, rtol=1e-6, atol=1e-6)
    first.mix(4, 0, [], [], True, True)
    for session in world.sessions[1:]:
        session.mix(3, 0, [], [], True, False)
    for number in range(5, 8):
        world.round(number)
    if name == "kgt":
        assert world.drift() < 1e-12


def changed(rows: list[list[Any]], **changes: Any) -> list[list[Any]]:
    """The rows with another last one."""
    origin, weight, keys = rows[-1]
    return [*rows[:-1], [changes.get("origin", origin), changes.get("weight", weight), changes.get("keys", keys)]]


REFUSALS = {
    "an unknown key": lambda rows: (0.5, changed(rows, keys={"x": "state 7"}), "receive it first"),
    "one key twice": lambda rows: (0.5, changed(rows, keys=rows[0][2]), "take it once"),
    "another channel": lambda rows: (0.5, changed(rows, keys={"z": "state 2"}), "channel x alone"),
    "two channels": lambda rows: (0.5, changed(rows, keys={"x": "state 2", "z": "state 2"}), "channel x alone"),
    "a site twice": lambda rows: (0.5, changed(rows, origin="1"), "one of each"),
    "no state": lambda rows: (0.5, [], "one of each"),
    "weights over 1": lambda rows: (0.5, changed(rows, weight=0.7), "sum to 1"),
    "a weight of 0": lambda rows: (0.5, [[*rows[0][:1], 1.0, rows[0][2]], [*rows[1][:1], 0.0, rows[1][2]]], "above 0"),
    "a weight that is no number": lambda rows: (0.5, changed(rows, weight=float("nan")), "above 0"),
    "nothing to take in": lambda rows: (1.0, rows, "own weight 1.0"),
    "an own weight below 0": lambda rows: (-0.1, rows, "own weight -0.1"),
    "an own weight that is no number": lambda rows: (float("nan"), rows, "own weight nan"),
}


@pytest.mark.parametrize("refusal", REFUSALS)
def test_what_is_refused_changes_nothing(refusal: str) -> None:
    world, rows = world_of("kgt")
    first = world.sessions[0]
    before = first.digest()
    own, wrong, match = REFUSALS[refusal](rows)
    with pytest.raises(IllegalStep, match=match):
        first.adopt(round=40, own=own, states=wrong)
    assert first.digest() == before
    first.adopt(round=40, own=0.5, states=rows)  # the messages are still here


def test_a_rule_says_whether_its_state_allows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(rule.needs.adopts for rule in RULES.values())
    world, rows = world_of("dpsgd, sgd")
    first = world.sessions[0]
    rule = first._rule
    monkeypatch.setattr(rule, "needs", replace(rule.needs, adopts=False))
    before = first.digest()
    with pytest.raises(IllegalStep, match="cannot go on from other sites' parameters"):
        first.adopt(round=40, own=0.5, states=rows)
    assert first.digest() == before


@both
def test_a_checkpoint_on_either_side_has_the_same_bits(name: str, tmp_path: Path) -> None:
    """Killed before its commit it is repeated, after it not: the same parameters and the same rounds follow."""
    plan, settings = CASES[name]
    world, rows = world_of(name)
    first = world.sessions[0]
    initial = first.initial(seed=5)
    saved = {"before": first.save(str(tmp_path / "before"))}
    messages = []
    for place, row in zip((1, 2), rows, strict=True):
        again = Session(plan, settings_of(**settings))
        again.load_data(f"{place}")
        path = str(tmp_path / f"{place}")
        share = float(world.shares[place])
        again.restore(path, initial, RUN, key_of(place), share, world.sessions[place].save(path))
        payload, _, result = deltas.encode(shared(again), again._exchange._bases[first._model_channel])  # type: ignore[union-attr]
        messages.append((row[2][first._model_channel], first._model_channel, payload, result))
    first.adopt(round=9, own=0.4, states=rows)
    saved["after"] = first.save(str(tmp_path / "after"))
    followed = []
    for moment, digest in saved.items():
        session = Session(plan, settings_of(**settings))
        session.load_data("0")
        session.restore(str(tmp_path / moment), initial, RUN, key_of(0), float(world.shares[0]), digest)
        if moment == "before":
            for message in messages:
                session.receive(*message)
            session.adopt(round=9, own=0.4, states=rows)
        assert session.digest() == first.digest()
        session.train(9, world.steps)
        followed.append([session.encode(9, 0, False), session.digest()])
    first.train(9, world.steps)
    assert followed[0] == followed[1] == [first.encode(9, 0, False), first.digest()]


def test_through_the_process_as_here() -> None:
    settings = settings_of(rule="kgt")
    here, process = Session(QUADRATIC_PLAN, settings), Process()
    try:
        value(process.ask("open", source=QUADRATIC_PLAN, settings=settings))
        value(process.ask("load_data", path="0"))
        here.load_data("0")
        begun = {"initial": here.initial(1), "run": b"run", "key": b"k" * 32, "share": 0.25}
        assert value(process.ask("begin", **begun)) == here.begin(**begun)
        message = here.encode(0, 0, False)[0] | {"key": "state"}
        value(process.ask("receive", **message))
        here.receive(**message)
        value(process.ask("train", round=1, steps=2))
        here.train(1, 2)
        arguments = {"round": 2, "own": 0.25, "states": [["b", 1.0, {message["channel"]: "state"}]]}
        assert value(process.ask("adopt", **arguments)) == here.adopt(**arguments)
        again = process.ask("adopt", **arguments)
        assert not again["ok"] and "receive it first" in again["error"]
    finally:
        process.close()
