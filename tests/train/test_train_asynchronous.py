"""Sessions in asynchronous runs: edges that are mixed late, training that keeps what was mixed, checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_train_session import RUN, key_of, settings_of
from train_worlds import CLASSIFIER_PLAN, QUADRATIC_PLAN

from p2pfl.errors import ConfigError, IllegalStep
from p2pfl.train.session import Session

CHANNEL = "x"
WEIGHT = 0.25


def pair(plan: bytes = QUADRATIC_PLAN, **settings: Any) -> tuple[Session, Session, bytes]:
    """Two sites of one run, and the run's initial file."""
    sessions = [Session(plan, settings_of(**{"staleness": 2, **settings})) for _ in range(2)]
    initial = sessions[0].initial(seed=5)
    for number, session in enumerate(sessions):
        session.load_data(f"{number}")
        session.begin(initial, RUN, key_of(number), 0.5)
    return sessions[0], sessions[1], initial


def announce(session: Session, round_: int, closing: bool = False) -> dict[str, Any]:
    (message,) = session.encode(round_, 0, closing)
    return message


def hear(session: Session, message: dict[str, Any], key: str = "message") -> None:
    session.receive(key, message["channel"], message["payload"], message["result"])


def test_a_late_edge_is_mixed_against_the_own_message_of_its_own_round() -> None:
    one, other, _ = pair()
    own, theirs = [], []
    for round_ in range(3):
        for session, messages in ((one, own), (other, theirs)):
            session.train(round_, 3)
            messages.append(announce(session, round_))
            if round_ < 2:
                session.mix(round_, 0, [], [], True, False)
    before, sent = one.vector.clone(), {round_: values["x"] for (round_, _), values in one._exchange.past.items()}  # type: ignore[union-attr]
    hear(one, theirs[0])
    hear(other, own[0])
    past = {round_: values["x"] for (round_, _), values in other._exchange.past.items()}  # type: ignore[union-attr]
    one.mix(2, 0, [["1", WEIGHT, {CHANNEL: "message"}, 0, 0]], [], True, False)
    assert torch.equal(one.vector, before + WEIGHT * (past[0] - sent[0]))
    assert not torch.equal(sent[0], sent[2]), "or the round would not matter"
    assert set(one._exchange.kept) == {("1", 0, 0)}, "it is settled under its own round"  # type: ignore[union-attr]


def test_what_is_mixed_after_training_keeps_both() -> None:
    """The local steps are a displacement: the same mixing adds the same, whatever was trained since its round."""
    trained, idle, _ = pair()
    partner = pair()[1]
    message = None
    for session in (trained, idle, partner):
        session.train(0, 3) if session is not idle else session.train(0, 0)
        sent = announce(session, 0)
        message = sent if session is partner else message
    assert message is not None
    starts = {}
    for session, steps in ((trained, 3), (idle, 0)):
        session.mix(0, 0, [], [], True, False)
        session.train(1, steps)
        announce(session, 1)
        starts[session] = (session.vector.clone(), session._exchange.past[(0, 0)]["x"])  # type: ignore[union-attr]
        hear(session, message)
        session.mix(1, 0, [["2", WEIGHT, {CHANNEL: "message"}, 0, 0]], [], True, False)
    partner_sent = partner._exchange.past[(0, 0)]["x"]  # type: ignore[union-attr]
    for session, (before, own) in starts.items():
        assert torch.equal(session.vector, before + WEIGHT * (partner_sent - own))


def test_only_the_newest_own_messages_are_kept() -> None:
    one, other, _ = pair()
    other.train(0, 3)
    hear(one, announce(other, 0))
    for round_ in (0, 3, 4, 9):  # a slow site's round numbers jump
        one.train(round_, 3)
        announce(one, round_)
        if round_ < 9:
            one.mix(round_, 0, [], [], True, False)
    assert list(one._exchange.past) == [(3, 0), (4, 0), (9, 0)]  # type: ignore[union-attr]
    before = one.digest()
    with pytest.raises(IllegalStep, match="not kept"):
        one.mix(9, 0, [["1", WEIGHT, {CHANNEL: "message"}, 0, 0]], [], True, False)
    assert one.digest() == before


def test_a_synchronous_run_keeps_none(tmp_path: Path) -> None:
    one, _, _ = pair(staleness=0)
    sizes = []
    for round_ in range(3):
        one.train(round_, 3)
        announce(one, round_)
        one.mix(round_, 0, [], [], True, False)
        one.save(str(tmp_path / "saved"))
        sizes.append((tmp_path / "saved").stat().st_size)
    assert not one._exchange.past  # type: ignore[union-attr]
    assert len(set(sizes)) == 1


def test_closing_rounds_need_none_of_them() -> None:
    one, _, _ = pair()
    one.train(0, 3)
    announce(one, 0)
    one.mix(0, 0, [], [], True, False)
    announce(one, 1, closing=True)
    assert not one._exchange.past  # type: ignore[union-attr]


@pytest.mark.parametrize("optimiser", ["sgd", "momentum", "adam"])
def test_a_message_under_a_later_round_holds_the_training_and_changes_nothing_else(optimiser: str) -> None:
    """The site was overtaken while it trained: round 0's work goes out as round 7's message."""
    one, _, _ = pair(optimiser={"name": optimiser})
    one.train(0, 3)
    trained, state = one.vector.clone(), {name: value.clone() for name, value in one.state.items()}
    announce(one, 7)
    torch.testing.assert_close(one.vector, trained, rtol=0, atol=1e-15)
    assert one.state.keys() == state.keys()
    assert all(torch.equal(one.state[name], value) for name, value in state.items())
    one.mix(7, 0, [], [], True, False)
    one.train(8, 3)
    assert not torch.equal(one.vector, trained)


@pytest.mark.parametrize("plan", [QUADRATIC_PLAN, CLASSIFIER_PLAN])
def test_a_restored_session_mixes_late_edges_with_equal_bits(tmp_path: Path, plan: bytes) -> None:
    """Killed between its message and its mixing, with an own round number that had jumped."""
    one, other, initial = pair(plan, optimiser={"name": "adam"})
    other.train(0, 3)
    message = announce(other, 0)
    one.train(0, 3)
    announce(one, 0)
    one.mix(0, 0, [], [], True, False)
    one.train(1, 3)
    announce(one, 5)
    digest = one.save(str(tmp_path / "saved"))
    again = Session(plan, settings_of(staleness=2, optimiser={"name": "adam"}))
    again.load_data("0")
    again.restore(str(tmp_path / "saved"), initial, RUN, key_of(0), 0.5, digest)
    assert again.save(str(tmp_path / "again")) == digest
    for session in (one, again):
        hear(session, message)
        session.mix(5, 0, [["1", WEIGHT, {CHANNEL: "message"}, 0, 0]], [], True, False)
        session.train(6, 3)
        announce(session, 6)
        session.mix(6, 0, [], [["1", 0, 0]], True, False)
    assert one.digest() == again.digest()
    assert one.save(str(tmp_path / "saved")) == again.save(str(tmp_path / "again"))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rule": "kgt"}, "asynchronous policy"),
        ({"rule": "relaysgd"}, "asynchronous policy"),
        ({"staleness": 9}, "0 to 8"),
        ({"staleness": True}, "whole number"),
    ],
)
def test_what_does_not_go_with_it_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Session(QUADRATIC_PLAN, settings_of(**{"staleness": 2, **settings}))
