"""Session: what one peer computes, against the stacked form, with losses, with bad input."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from session_worlds import RUN, Consortium, key_of, lossy_rounds, quadratic_optimum, settings_of
from train_worlds import CLASSIFIER_PLAN, QUADRATIC_PLAN

from p2pfl.errors import ConfigError, DataError, IllegalStep, MalformedMessage, PlanError, SignatureRefused
from p2pfl.train.mixing import VectorGraph, VectorInbox, VectorRelays
from p2pfl.train.plan_code import PlanCode
from p2pfl.train.rules import Context, rule_named
from p2pfl.train.sampling import batch_indices
from p2pfl.train.session import Session
from p2pfl.train.stacked import StackedBatch, StackedOracle


def lossy_run(settle: bool, rounds: int = 300, seed: int = 0) -> tuple[Consortium, float]:
    """K-GT on a ring, 10 % of the edges lost on one side; what is owed is taken back 1 to 4 rounds later."""
    world = Consortium(QUADRATIC_PLAN, 4, rule="kgt")
    lossy_rounds(world, rounds, 4, loss=0.1, seed=seed, settle=settle)
    return world, float((world.stacked - quadratic_optimum(world.shares)).norm(dim=-1).max())


@pytest.mark.parametrize("seed", [0, 1])
def test_kgt_survives_one_sided_losses_when_they_are_taken_back(seed: int) -> None:
    world, error = lossy_run(settle=True, seed=seed)
    assert error < 1e-10
    assert world.drift() < 1e-12


def test_kgt_is_biased_when_losses_are_not_taken_back() -> None:
    world, error = lossy_run(settle=False)
    assert error > 1e-3
    assert world.drift() > 1e-3


@pytest.mark.parametrize("rule", ["dpsgd", "kgt", "relaysgd"])
@pytest.mark.parametrize("plan", [QUADRATIC_PLAN, CLASSIFIER_PLAN])
def test_sessions_equal_the_stacked_form(rule: str, plan: bytes) -> None:
    world = Consortium(plan, 4, "tree" if rule == "relaysgd" else "ring", rule=rule)
    code, session = PlanCode(plan), world.sessions[0]
    x = world.stacked
    data = [code.load(f"{i}", torch.float64)["train"] for i in range(4)]
    for number in range(20):
        world.round(number)
    graph = VectorGraph(4, world.edges, world.shares)
    stacked, module = rule_named(rule, session._settings.optimiser), code.model().double()
    state, relays = stacked.init(x, graph), VectorRelays(graph)
    for number in range(20):

        def batch(step: int, number: int = number) -> StackedBatch:
            count = len(data[0][0])
            chosen = [batch_indices(key_of(i), RUN, number, step, count, 8) for i in range(4)]
            return StackedBatch(tuple(torch.stack([data[i][p][chosen[i]] for i in range(4)]) for p in range(2)))

        context = Context(number, 0.04, 3)
        if plan is QUADRATIC_PLAN:
            oracle = quadratic_oracle(data)
        else:
            oracle = StackedOracle(code, module, session._layout, batch)
        state, x = stacked.local(state, x, context, oracle)
        state, messages = stacked.send(state, x, context, graph)
        state, x = stacked.merge(state, x, context, VectorInbox(graph, messages, relays))
    assert float((world.stacked - x).abs().max()) < 1e-12


def quadratic_oracle(data: list[tuple]):
    curvature, centre = torch.cat([d[0] for d in data]), torch.cat([d[1] for d in data])

    def oracle(x: torch.Tensor, k: int):
        from p2pfl.train.rules import Gradient

        grad = (curvature @ (x - centre).unsqueeze(-1)).squeeze(-1)
        return Gradient(grad, grad.sum(-1))

    return oracle


def relaying(sites: int = 6, **settings) -> Consortium:
    return Consortium(QUADRATIC_PLAN, sites, "tree", **{"rule": "relaysgd", "local_steps": 1, **settings})


@pytest.mark.parametrize("loss", [0.0, 0.05])
def test_relaysgd_reaches_the_weighted_optimum_also_with_losses(loss: float) -> None:
    """What the machines settle about one-sided losses, taken back or forgotten, moves nothing."""
    world, chance = relaying(4, learning_rate=0.1), random.Random(1)
    directed = [(receiver, sender) for receiver, sender, _ in world.edges]
    owed: list[list] = [[] for _ in world.sessions]
    taken_back = 0
    for number in range(500):
        lost = frozenset(edge for edge in directed if chance.random() < loss)
        world.round(number, lost, owed)
        owed = [[] for _ in world.sessions]
        for receiver, sender in set(directed) - lost:
            if (sender, receiver) in lost:
                owed[receiver].append((str(sender), number, 0))
                taken_back += 1
            else:
                world.sessions[receiver].forget([(str(sender), number, 0)])
    assert float((world.stacked - quadratic_optimum(world.shares)).norm(dim=-1).max()) < 1e-10
    assert (taken_back > 0) == (loss > 0)


def test_closing_rounds_of_relaysgd_average() -> None:
    world = relaying(local_steps=5)
    for number in range(30):
        world.round(number)
    mean = world.mean
    apart = float((world.stacked - mean).abs().max())
    for number in range(30, 430):
        world.mix(number, closing=True)
    assert torch.allclose(world.mean, mean, atol=1e-12, rtol=0)
    assert float((world.stacked - mean).abs().max()) < 1e-3 * apart


def test_relaysgd_refuses_two_mixings_and_messages_that_are_not_here() -> None:
    world = relaying(3)
    for session in world.sessions:
        session.train(0, 1)
    sent = [session.encode(0, 0, False) for session in world.sessions]
    first = world.sessions[0]
    keys = {message["channel"]: f"1/{message['channel']}" for message in sent[1]}
    for message in sent[1]:
        first.receive(keys[message["channel"]], message["channel"], message["payload"], message["result"])
    before = first.digest()
    for wrong, match in (
        ({"model": "1/model"}, "no message of channel relay from 1"),
        ({**keys, "relay": "1/none"}, "no message of channel relay under"),
        ({**keys, "model": "1/none"}, "no message of channel model"),
    ):
        with pytest.raises(IllegalStep, match=match):
            first.mix(0, 0, [("1", 0.2, wrong)], [], True, False)
    assert first.digest() == before
    first.mix(0, 0, [("1", 0.2, keys)], [], True, False)
    first.train(1, 1)
    with pytest.raises(IllegalStep, match="mixes once per round"):
        first.encode(1, 1, False)


def test_relaysgd_shares_all_parameters() -> None:
    plan = CLASSIFIER_PLAN.replace(b"nn.Linear(6, 5),", b"nn.Linear(6, 5), nn.BatchNorm1d(5),")
    with pytest.raises(ConfigError, match="shares all parameters"):
        Session(plan, settings_of(rule="relaysgd", batch_norm="private"))


def test_closing_rounds_keep_the_mean_and_agree() -> None:
    world = Consortium(QUADRATIC_PLAN, 4, rule="kgt")
    for number in range(10):
        world.round(number)
    mean, drift = world.mean, [s.state["correction"] for s in world.sessions]
    for number in range(10, 80):
        world.mix(number, closing=True)
    assert torch.allclose(world.mean, mean, atol=1e-13, rtol=0)
    assert float((world.stacked - mean).abs().max()) < 1e-9
    assert all(torch.equal(a, s.state["correction"]) for a, s in zip(drift, world.sessions, strict=True))


def test_two_mixings_in_one_round_equal_the_squared_matrix() -> None:
    world = Consortium(QUADRATIC_PLAN, 4, rule="kgt")
    graph = VectorGraph(4, world.edges, world.shares)
    start = world.stacked
    for session in world.sessions:
        session.train(0, 3)
    x = world.stacked
    first_z = z = (start - x) / (0.04 * 3)
    for _ in range(2):
        x, z = x + graph.pull(x), z + graph.pull(z)
    world.mix(0, steps=2)
    assert torch.allclose(world.stacked, x, atol=1e-13, rtol=0)
    corrections = torch.stack([session.state["correction"] for session in world.sessions])
    assert torch.allclose(corrections, z - first_z, atol=1e-12, rtol=0)


def test_a_round_left_between_two_mixings_keeps_the_weighted_mean() -> None:
    world = Consortium(QUADRATIC_PLAN, 4)
    world.round(0)
    mean = world.mean
    sent = [session.encode(1, 0, True) for session in world.sessions]
    for receiver, sender, _ in world.edges:
        message = sent[sender][0]
        session = world.sessions[receiver]
        session.receive(f"{sender}", "x", message["payload"], message["result"])
    for i, session in enumerate(world.sessions):
        edges = [(f"{s}", w, {"x": f"{s}"}) for r, s, w in world.edges if r == i]
        session.mix(1, 0, edges, [], False, True)
    world.mix(2, closing=True)
    assert torch.allclose(world.mean, mean, atol=1e-13, rtol=0)


def test_float32_receivers_hold_the_senders_bits() -> None:
    sender, receiver = (Session(CLASSIFIER_PLAN, settings_of(rule="kgt", dtype="float32")) for _ in range(2))
    initial = sender.initial(0)
    for site, session in enumerate((sender, receiver)):
        session.load_data(str(site))
        session.begin(initial, RUN, key_of(site), 0.5)
    sender.train(0, 3)
    before = sender.vector
    messages = sender.encode(0, 0, False)
    for message in messages:
        receiver.receive(message["channel"], message["channel"], message["payload"], message["result"])
    assert messages[0]["result"] == sender.digest()
    assert float((sender.vector - before).abs().max()) < 1e-6


def ready(plan: bytes = CLASSIFIER_PLAN, **settings) -> Session:
    session = Session(plan, settings_of(**settings))
    session.load_data("0")
    session.begin(session.initial(0), RUN, key_of(0), 0.5)
    return session


def messages_of(session: Session, round: int = 0) -> list[dict]:
    session.train(round, 2)
    return session.encode(round, 0, False)


def test_describe_and_begin_name_sizes_and_bases() -> None:
    session = Session(CLASSIFIER_PLAN, settings_of(rule="kgt", dtype="float32"))
    size = 4 * (6 * 5 + 5 + 5 * 2 + 2)
    channels = [{"name": "x", "size": size, "base": "model"}, {"name": "z", "size": size, "base": "zero"}]
    assert session.describe() == {"parameters": size // 4, "dtype": "float32", "channels": channels}
    specs = session.begin(session.initial(0), RUN, key_of(0), 0.5)
    assert [spec["base"] for spec in specs] == [session.digest(), hashlib.sha256(bytes(size)).hexdigest()]


def test_the_initial_file_depends_on_the_seed_alone() -> None:
    session = Session(CLASSIFIER_PLAN, settings_of())
    torch.manual_seed(1)
    first = session.initial(7)
    after = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(after, torch.rand(1))
    assert session.initial(7) == first != session.initial(8)


def test_the_same_key_draws_the_same_run_and_another_key_another() -> None:
    digests = []
    for key in (b"a" * 32, b"a" * 32, b"b" * 32):
        session = Session(CLASSIFIER_PLAN, settings_of())
        session.load_data("0")
        session.begin(session.initial(0), RUN, key, 0.5)
        session.train(0, 3)
        digests.append(session.digest())
    assert digests[0] == digests[1] != digests[2]


def test_no_steps_change_nothing() -> None:
    session = ready(rule="kgt")
    before = session.digest()
    assert session.train(0, 0) == {"loss": 0.0, "examples": 0}
    assert session.digest() == before
    z = {m["channel"]: m["payload"] for m in session.encode(0, 0, False)}["z"]
    assert not any(z)


def test_training_learns_and_evaluates() -> None:
    session = ready(rule="kgt", learning_rate=0.3)
    before = session.evaluate("train")
    for number in range(60):
        session.train(number, 5)
        session.mix(number, 0, [], [], True, False)
    after = session.evaluate("train")
    assert after["loss"] < 0.7 * before["loss"] and after["accuracy"] > 0.85
    assert (after["examples"], session.evaluate("test")["examples"]) == (40, 20)
    tensors = safetensors.torch.load(session.result())
    assert sorted(tensors) == ["0.bias", "0.weight", "2.bias", "2.weight"]


def damaged(payload: bytes, value: float) -> bytes:
    array = np.frombuffer(payload, dtype="<f8").copy()
    array[3] = value
    return array.tobytes()


@pytest.mark.parametrize(
    ("mutate", "error"),
    [
        (lambda p, r: (p[:-1], r), MalformedMessage),
        (lambda p, r: (p[:-8], r), MalformedMessage),
        (lambda p, r: (p + p, r), MalformedMessage),
        (lambda p, r: (b"", r), MalformedMessage),
        (lambda p, r: (damaged(p, float("nan")), r), MalformedMessage),
        (lambda p, r: (damaged(p, float("inf")), r), MalformedMessage),
        (lambda p, r: (damaged(p, 1.0), r), SignatureRefused),
        (lambda p, r: (p, "0" * 64), SignatureRefused),
    ],
)
def test_a_wrong_delta_is_refused_and_leaves_nothing(mutate, error: type[Exception]) -> None:
    sender, receiver = ready(), ready()
    message = messages_of(sender)[0]
    payload, result = mutate(message["payload"], message["result"])
    messages_of(receiver)
    before = receiver.digest()
    with pytest.raises(error):
        receiver.receive("k", "x", payload, result)
    with pytest.raises(IllegalStep):
        receiver.mix(0, 0, [("b", 0.5, {"x": "k"})], [], True, False)
    assert receiver.digest() == before


def test_an_overflowing_delta_is_refused() -> None:
    session = ready(dtype="float32")
    session.train(0, 1)
    size = len(session.encode(0, 0, False)[0]["payload"]) // 4
    huge = np.full(size, 3e38, dtype="<f4")
    huge[::2] = np.inf
    with pytest.raises(MalformedMessage, match="NaN or infinite"):
        session.receive("k", "x", huge.tobytes(), "0" * 64)


def test_every_flipped_byte_of_a_delta_is_refused() -> None:
    sender, receiver = ready(dtype="float32"), ready(dtype="float32")
    message = messages_of(sender)[0]
    refused = 0
    for place in range(len(message["payload"])):
        payload = bytearray(message["payload"])
        payload[place] ^= 0x80
        try:
            receiver.receive("k", "x", bytes(payload), message["result"])
        except (SignatureRefused, MalformedMessage):
            refused += 1
        else:  # a change below the rounding of base + delta: the receiver holds exactly what was signed
            assert torch.equal(receiver._exchange._received["k"].value, sender.vector)
    assert refused > 0.5 * len(message["payload"])


@pytest.mark.parametrize(
    ("edges", "corrections", "last"),
    [
        ([("b", 0.3, {"x": "nothing"})], [], True),
        ([("b", 0.3, {})], [], True),
        ([("b", 0.3, {"x": "k", "z": "k"})], [], True),
        ([("b", 0.0, {"x": "k"})], [], True),
        ([("b", float("nan"), {"x": "k"})], [], True),
        ([("b", 1.5, {"x": "k"})], [], True),
        ([("b", 0.3, {"x": "k"}), ("b", 0.3, {"x": "l"})], [], True),
        ([("b", 0.3, {"x": "k"}), ("c", 0.3, {"x": "k"})], [], True),
        ([("b", 0.3, {"x": "k"})], [("b", 0, 0)], True),
        ([("b", 0.3, {"x": "k"})], [("z", 9, 0)], True),
        ([], [("b", 9, 0)], False),
    ],
)
def test_an_illegal_mix_changes_nothing(edges, corrections, last: bool) -> None:
    session = ready()
    message = messages_of(session)[0]
    for key in "kl":
        session.receive(key, "x", message["payload"], message["result"])
    before = session.digest()
    with pytest.raises(IllegalStep):
        session.mix(0, 0, edges, corrections, last, False)
    assert session.digest() == before
    good = [("b", 0.3, {"x": "k"}), ("c", 0.3, {"x": "l"})]
    assert session.mix(0, 0, good, [], True, False)["distance"] == 0.0


def test_a_displacement_is_taken_back_once_and_not_after_it_is_forgotten() -> None:
    session, other = ready(), ready()
    other.train(7, 3)
    message = other.encode(7, 0, False)[0]
    for number in range(3):
        before = messages_of(session, number) and session.vector
        session.receive("k", "x", message["payload"], message["result"])
        mixed = session.mix(number, 0, [("b", 0.25, {"x": "k"})], [], True, False)
        assert mixed["digest"] == session.digest() and mixed["distance"] > 0
        expected = before + 0.25 * (other.vector - before)
        assert torch.allclose(session.vector, expected, atol=1e-14, rtol=0)
    session.forget([("b", 0, 0), ("b", 0, 0)])
    moved = session.vector
    session.mix(3, 0, [], [("b", 2, 0)], True, True)
    assert torch.allclose(session.vector, moved - (expected - before), atol=1e-14, rtol=0)
    for tag in [("b", 0, 0), ("b", 2, 0)]:
        with pytest.raises(IllegalStep, match="settle it once"):
            session.mix(4, 0, [], [tag], True, True)


@pytest.mark.parametrize(
    "call",
    [
        lambda s: s.train(0, 1),
        lambda s: s.encode(0, 0, False),
        lambda s: s.mix(1, 0, [("b", 0.5, {"x": "k"})], [], True, False),
        lambda s: s.receive("k", "z", b"", ""),
        lambda s: s.begin(s.initial(0), RUN, b"short", 0.5),
    ],
)
def test_calls_out_of_order_are_refused(call) -> None:
    session = ready()
    messages_of(session)
    with pytest.raises(IllegalStep):
        call(session)


def test_nothing_works_before_begin() -> None:
    session = Session(CLASSIFIER_PLAN, settings_of())
    for call in (
        session.digest,
        session.result,
        lambda: session.train(0, 1),
        lambda: session.evaluate("test"),
    ):
        with pytest.raises(IllegalStep, match="call begin first"):
            call()


def test_diverging_training_is_named_and_changes_nothing() -> None:
    session = ready(QUADRATIC_PLAN, learning_rate=1e200)
    before = session.digest()
    with pytest.raises(PlanError, match="lower learning_rate"):
        session.train(0, 5)
    assert session.digest() == before


def test_an_abandoned_round_does_not_leak_into_the_next() -> None:
    left, straight = ready(), ready()
    for session in (left, straight):
        session.train(0, 2)
        session.encode(0, 0, False)
    straight.mix(0, 0, [], [], True, False)
    results = []
    for session in (left, straight):
        session.train(1, 2)
        results.append(session.encode(1, 0, False)[0]["result"])
    assert results[0] == results[1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rule": "fedavg"}, "choose one of dpsgd"),
        ({"rule": "kgt", "optimiser": {"name": "adam"}}, "choose sgd"),
        ({"optimiser": "adam"}, "write for example"),
        ({"learning_rate": 0}, "positive number"),
        ({"learning_rate": float("nan")}, "positive number"),
        ({"local_steps": 0}, "whole number"),
        ({"batch_size": True}, "whole number"),
        ({"dtype": "float16"}, "'float32' or 'float64'"),
        ({"buffers": "all"}, "'exclude' or 'share'"),
        ({"momentum": 0.9}, "known ones are"),
    ],
)
def test_wrong_settings_are_refused(change: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Session(CLASSIFIER_PLAN, settings_of(**change))


def test_a_missing_setting_is_named() -> None:
    with pytest.raises(ConfigError, match="batch_size is missing"):
        Session(CLASSIFIER_PLAN, {k: v for k, v in settings_of().items() if k != "batch_size"})


def test_missing_data_are_named(tmp_path: Path) -> None:
    session = Session(CLASSIFIER_PLAN, settings_of())
    assert session.check() == ["no data are loaded; register a file for the plan's tag"]
    with pytest.raises(DataError, match=r"load\(\) failed: ValueError"):
        session.load_data(str(tmp_path / "not a number.csv"))
    session.load_data("0")
    assert session.check() == []
