"""Flat vectors of any module: order, views, buffers, batch norm; model files and digests."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from p2pfl.errors import MalformedMessage, PlanError
from p2pfl.train import model_files
from p2pfl.train.layout import Layout
from p2pfl.train.session import Session


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
        self.second.weight = self.first.weight
        self.scalar = nn.Parameter(torch.tensor(2.0))
        self.register_buffer("mean", torch.ones(2))
        self.register_buffer("count", torch.tensor(7))


def norm_net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))


def test_parameters_come_in_order_and_tied_ones_once() -> None:
    module = Tied()
    layout = Layout(module)
    assert [(e.name, e.shape) for e in layout.entries] == [("scalar", ()), ("first.weight", (3, 3))]
    assert torch.equal(layout.flatten(module)[1:], module.first.weight.detach().reshape(-1))


def test_unflatten_gives_views_in_both_forms() -> None:
    layout = Layout(Tied())
    for vector in (torch.arange(10.0), torch.arange(30.0).reshape(3, 10)):
        views = layout.unflatten(vector)
        assert views["first.weight"].shape == (*vector.shape[:-1], 3, 3)
        assert views["scalar"].shape == vector.shape[:-1]
        assert all(view.untyped_storage().data_ptr() == vector.untyped_storage().data_ptr() for view in views.values())


def test_float_buffers_are_shared_by_choice_and_integers_never() -> None:
    layout = Layout(Tied(), buffers="share")
    assert [e.name for e in layout.buffers] == ["mean"] and layout.buffer_size == 2 and layout.size == 12


@pytest.mark.parametrize(
    ("choice", "size", "shared"),
    [
        ("private", 4 * 3 + 3 + 6 + 3 * 2 + 2, 4 * 3 + 3 + 3 * 2 + 2),
        ("shared", 4 * 3 + 3 + 6 + 3 * 2 + 2 + 6, None),
    ],
)
def test_batch_norm_by_choice(choice: str, size: int, shared: int | None) -> None:
    layout = Layout(norm_net(), batch_norm=choice)
    assert layout.size == size and layout.shared_size == (shared or size)
    assert int(layout.shared_mask.sum()) == layout.shared_size
    vector = torch.arange(float(size))
    shared_values = layout.select_shared(vector)
    assert torch.equal(layout.spread_shared(shared_values), vector * layout.shared_mask)
    replaced = layout.replace_shared(vector, shared_values + 1)
    assert torch.equal(replaced - vector, layout.shared_mask.float())


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (norm_net(), "say batch_norm"),
        (nn.ReLU(), "no parameters"),
        (nn.Linear(2, 2, dtype=torch.complex64), "real CPU tensors"),
        (nn.Linear(2, 2, device="meta"), "real CPU tensors"),
    ],
)
def test_modules_that_do_not_fit_are_refused(module: nn.Module, words: str) -> None:
    with pytest.raises(PlanError, match=words):
        Layout(module)


def test_the_page_about_plans_quotes_what_a_silent_plan_is_told() -> None:
    with pytest.raises(PlanError) as refused:
        Layout(norm_net())
    remedy = str(refused.value).split("; ")[1]
    assert f'"{remedy}"' in " ".join((Path(__file__).parents[2] / "docs" / "plans.md").read_text().split())


def test_a_model_all_private_is_refused() -> None:
    with pytest.raises(PlanError, match="share at least one"):
        Layout(nn.Sequential(nn.BatchNorm1d(3)), batch_norm="private")


def test_batch_norm_without_statistics_needs_no_choice() -> None:
    assert Layout(nn.BatchNorm1d(3, track_running_stats=False)).size == 6


NORM_PLAN = b"""
import torch
from torch import nn
def load(path):
    generator = torch.Generator().manual_seed(int(path.stem))
    inputs = 3 + torch.randn(30, 4, generator=generator)
    return {"train": (inputs, inputs.sum(1, keepdim=True))}
def model():
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 1), nn.Dropout(0.2))
def loss(model, batch):
    return (model(batch[0]) - batch[1]).square().mean(-1)
"""


def norm_session(choice: str, site: int, rule: str = "dpsgd") -> Session:
    settings = {"rule": rule, "learning_rate": 0.05, "local_steps": 3, "batch_size": 10, "batch_norm": choice}
    session = Session(NORM_PLAN, settings)
    session.load_data(str(site))
    session.begin(session.initial(0), b"run", bytes([site]) * 32, 0.5)
    return session


@pytest.mark.parametrize("rule", ["dpsgd", "kgt"])
@pytest.mark.parametrize("choice", ["private", "shared"])
def test_two_sites_with_batch_norm_share_what_was_chosen(choice: str, rule: str) -> None:
    sites = [norm_session(choice, site, rule) for site in range(2)]
    for number in range(3):
        sent = []
        for session in sites:
            session.train(number, 3)
            sent.append(session.encode(number, 0, False))
        for session, other in zip(sites, sent[::-1], strict=True):
            for message in other:
                session.receive(message["channel"], message["channel"], message["payload"], message["result"])
            keys = {message["channel"]: message["channel"] for message in other}
            session.mix(number, 0, [("other", 0.5, keys)], [], True, False)
    ours, theirs = (safetensors.torch.load(session.result()) for session in sites)
    equal = {name for name in ours if torch.allclose(ours[name], theirs[name], atol=1e-6)}
    private = {"1.weight", "1.bias", "1.running_mean", "1.running_var"} if choice == "private" else set()
    assert equal == set(ours) - private
    assert not torch.allclose(ours["1.running_mean"], torch.zeros(3))
    if choice == "shared":
        assert sites[0]._layout.buffer_size == 6


def test_dropout_follows_the_site_key_and_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(3)
    first = norm_session("private", 0)
    state = torch.get_rng_state()
    first.train(0, 3)
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(4)
    second = norm_session("private", 0)
    second.train(0, 3)
    assert first.digest() == second.digest()


def test_initial_file_round_trip_and_digest() -> None:
    module, other = norm_net(), norm_net()
    layout = Layout(module, batch_norm="shared")
    data = model_files.initial_file(module)
    assert torch.equal(model_files.load(data, other, layout), layout.flatten(module))
    assert model_files.file_digest(data) == hashlib.sha256(data).hexdigest()


def without(tensors: dict, name: str) -> dict:
    return {key: value for key, value in tensors.items() if key != name}


@pytest.mark.parametrize(
    ("mutate", "words"),
    [
        (lambda t: without(t, "0.bias"), "lack tensor 0.bias"),
        (lambda t: {**t, "extra": torch.zeros(1)}, "unknown tensor extra"),
        (lambda t: {**t, "0.bias": torch.zeros(4)}, r"0.bias is torch.float32 \(4,\)"),
        (lambda t: {**t, "0.bias": torch.zeros(3, dtype=torch.float64)}, "0.bias is torch.float64"),
        (lambda t: {**t, "0.bias": torch.full((3,), float("nan"))}, "not finite"),
    ],
)
def test_a_wrong_initial_file_is_refused(mutate, words: str) -> None:
    module = norm_net()
    tensors = safetensors.torch.load(model_files.initial_file(module))
    layout = Layout(module, batch_norm="private")
    before = layout.flatten(module)
    with pytest.raises(MalformedMessage, match=words):
        model_files.load(safetensors.torch.save(mutate(tensors)), module, layout)
    assert torch.equal(before, layout.flatten(module))


@pytest.mark.parametrize("cut", [0, 4, 9, 60, -1])
def test_a_damaged_initial_file_is_refused(cut: int) -> None:
    module = norm_net()
    data = model_files.initial_file(module)[:cut]
    with pytest.raises(MalformedMessage, match="not a safetensors file"):
        model_files.read_tensors(data, module)


def test_vector_digest_is_over_little_endian_bytes() -> None:
    vector = torch.tensor([1.0, -2.5], dtype=torch.float32)
    expected = hashlib.sha256(bytes.fromhex("0000803f000020c0")).hexdigest()
    assert model_files.vector_digest(vector) == expected
    assert model_files.vector_digest(torch.stack((vector, vector)).T[:, 0]) == expected
