"""A site's mixings once more, from its messages alone: the bits of its session, through losses and corrections."""

from __future__ import annotations

import random
from typing import Any

import pytest
from test_train_checkpoints import NORM_PLAN, Operation, recording
from test_train_session import Consortium, settings_of
from train_worlds import CLASSIFIER_PLAN, QUADRATIC_PLAN

from p2pfl.errors import IllegalStep, MalformedMessage, SignatureRefused
from p2pfl.train.replay import SiteReplay, why_not

WORLDS: dict[str, tuple[bytes, dict[str, Any]]] = {
    "dpsgd": (QUADRATIC_PLAN, {"rule": "dpsgd"}),
    "kgt, float32": (CLASSIFIER_PLAN, {"rule": "kgt", "dtype": "float32"}),
    "quasi_global": (QUADRATIC_PLAN, {"rule": "quasi_global", "rule_settings": {"beta": 0.5}}),
    "exact_diffusion, float32": (CLASSIFIER_PLAN, {"rule": "exact_diffusion", "local_steps": 1, "dtype": "float32"}),
    "gradient_tracking": (QUADRATIC_PLAN, {"rule": "gradient_tracking", "local_steps": 1}),
    "private norms": (NORM_PLAN, {"batch_norm": "private", "dtype": "float32"}),
}
ROUNDS, CLOSING, STEPS = 6, 2, 2


def lossy(plan: bytes, settings: dict[str, Any]) -> tuple[Consortium, list[list[Operation]]]:
    """Three sites, two mixings a round, a third of the edges lost one-sidedly and taken back in the next round."""
    world = Consortium(plan, 3, **settings)
    done: list[list[Operation]] = [[] for _ in world.sessions]
    for session, rows in zip(world.sessions, done, strict=True):
        recording(session, rows)
    chance, directed = random.Random(2), [(receiver, sender) for receiver, sender, _ in world.edges]
    owed: list[list[list[Any]]] = [[] for _ in world.sessions]
    for number in range(ROUNDS + CLOSING):
        closing = number >= ROUNDS
        lost = frozenset(edge for edge in directed if not closing and chance.random() < 0.3)
        due, owed = owed, [[] for _ in world.sessions]
        if not closing:
            for session in world.sessions:
                session.train(number, world.steps)
        world.mix(number, lost, due, closing, STEPS)
        for receiver, sender in set(directed) - lost:
            if (sender, receiver) in lost:
                owed[receiver] += [[str(sender), number, step] for step in range(STEPS)]
    return world, done


def replay_of(world: Consortium, settings: dict[str, Any]) -> SiteReplay:
    return SiteReplay(settings_of(**settings), world.sessions[0].base()["vector"])


def replayed(replay: SiteReplay, rows: list[Operation]) -> list[tuple[str, str]]:
    """The digest of each mixing: replayed, and as the session gave it."""
    found, heard = [], {}
    for name, said, answer in rows:
        if name == "encode":
            for row in answer:
                replay.send(row["channel"], (row["payload"], row["result"]))
            follows = said["step"] > 0 or said["closing"]
            assert replay.own(first=said["step"] == 0, follows=follows) is None
        elif name == "receive":
            heard[said["key"]] = (said["key"], said["channel"], (said["payload"], said["result"]))
        elif name == "mix":
            for row in heard.values():
                replay.receive(*row)
            heard = {}
            place = (said["round"], said["step"])
            edges = [(row[0], row[1], row[2]) for row in said["edges"]]
            tags = [(row[0], *place) for row in said["edges"]]
            taken = [(row[0], row[1], row[2]) for row in said["corrections"]]
            found.append((replay.mix(tags, edges, taken, place, last=said["last"]), answer["shared"]))
    return found


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name == "kgt, float32" else ()) for name in WORLDS]
)
def test_the_same_bits_through_losses_corrections_and_closing_rounds(name: str) -> None:
    world, done = lossy(*WORLDS[name])
    assert any(said.get("corrections") for rows in done for _, said, _ in rows), "nothing was ever taken back"
    for rows, session in zip(done, world.sessions, strict=True):
        replay = replay_of(world, WORLDS[name][1])
        found = replayed(replay, rows)
        assert len(found) == (ROUNDS + CLOSING) * STEPS
        assert [digest for digest, _ in found] == [logged for _, logged in found]
        assert replay.compare(session.shared()) is None
        private = WORLDS[name][1].get("batch_norm") == "private"
        assert (found[-1][0] == session.digest()) is not private, "private entries are in no delta"


def test_what_was_changed_comes_out_elsewhere() -> None:
    """One bit of a weight or of a message; a message without training before it that does not follow."""
    world, done = lossy(*WORLDS["dpsgd"])
    settings, rows = WORLDS["dpsgd"][1], done[0]
    place = next(number for number, (name, said, _) in enumerate(rows) if name == "mix" and said["edges"])
    name, said, answer = rows[place]
    weighed = {**said, "edges": [[row[0], row[1] * (1 + 2**-50), row[2]] for row in said["edges"]]}
    replay = replay_of(world, settings)
    found = replayed(replay, [*rows[:place], (name, weighed, answer)])
    assert found[-1][0] != found[-1][1] and all(one == other for one, other in found[:-1])

    last = max(number for number, (name, _, _) in enumerate(rows) if name == "encode")
    payload, result = rows[last][2][0]["payload"], rows[last][2][0]["result"]
    replay = replay_of(world, settings)
    replayed(replay, rows[:last])
    with pytest.raises(SignatureRefused):
        replay.send("x", (bytes([payload[0] ^ 1]) + payload[1:], result))
    foreign = next(answer for name, _, answer in done[1] if name == "encode")
    replay.send("x", (foreign[0]["payload"], foreign[0]["result"]))
    apart = replay.own(first=False, follows=True)
    assert apart is not None and apart.index == 0 and apart.there != apart.replayed


def test_what_is_not_there_is_refused_and_nothing_is_guessed() -> None:
    world, done = lossy(*WORLDS["dpsgd"])
    replay = replay_of(world, WORLDS["dpsgd"][1])
    first = next(answer for name, _, answer in done[0] if name == "encode")
    with pytest.raises(IllegalStep, match="no message of channel x"):
        replay.own(first=True, follows=False)
    replay.send("x", (first[0]["payload"], first[0]["result"]))
    replay.own(first=True, follows=False)
    with pytest.raises(IllegalStep, match="no displacement of 1 in round 0"):
        replay.mix([], [], [("1", 0, 0)], (1, 0), last=True)
    with pytest.raises(IllegalStep, match="receive it first"):
        replay.mix([("1", 0, 0)], [("1", 0.2, {"x": "1/x"})], [], (0, 0), last=True)
    with pytest.raises(MalformedMessage, match="no channel 'q'"):
        replay.send("q", (b"", ""))
    with pytest.raises(MalformedMessage, match="no vector"):
        SiteReplay(settings_of(), b"123")
    replay.go_on(None)
    assert not replay.begun
    replay.go_on(world.sessions[0].shared())
    assert replay.begun and replay.compare(world.sessions[0].shared()) is None


def test_runs_that_are_not_replayed_say_why() -> None:
    assert why_not(settings_of()) is None and why_not(settings_of(rule="kgt")) is None
    assert "asynchronous" in str(why_not(settings_of(staleness=2)))
    assert "all the rounds before it" in str(why_not(settings_of(rule="relaysgd")))
    assert "closing rounds are accelerated" in str(why_not(settings_of(), accelerated=True))
