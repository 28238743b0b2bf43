"""The stacked gradients against those of one module after the other."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from p2pfl.errors import PlanError
from p2pfl.train.keyed_dropout import KeyedDropout, has_dropout, key_dropout
from p2pfl.train.layout import Layout
from p2pfl.train.oracle import ModuleOracle, put
from p2pfl.train.plan_code import PlanCode
from p2pfl.train.stacked import StackedBatch, StackedOracle, private_buffers

PLAN = """
import torch
from torch import nn

def load(path):
    return {{}}

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        {body}

    def forward(self, x):
        return self.whole(x)

def model():
    return Model().double()

def loss(model, batch):
    x, label = batch
    return nn.functional.cross_entropy(model(x), label, reduction="none")
"""
MLP = "self.whole = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))"
FROZEN = MLP + "; self.whole[0].weight.requires_grad_(False)"
TIED = "self.a = nn.Linear(6, 6); self.b = nn.Linear(6, 6); self.b.weight = self.a.weight; self.whole = nn.Sequential(self.a, nn.Tanh(), self.b)"
NORM = "self.whole = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3))"
DROPOUT = (
    "self.whole = nn.Sequential(nn.Linear(6, 5), nn.Dropout(0.4), nn.Linear(5, 5), nn.Dropout(0.2), nn.Linear(5, 3))"
)


def world(body: str, sites: int = 4, batch: int = 8, **layout):
    plan = PlanCode(PLAN.format(body=body).encode())
    torch.manual_seed(1)
    module = plan.model()
    generator = torch.Generator().manual_seed(2)
    inputs = torch.randn(sites, batch, 6, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 3, (sites, batch), generator=generator)
    shape = Layout(module, dtype=torch.float64, **layout)
    x = shape.flatten(module) + 0.3 * torch.randn(sites, shape.size, generator=generator, dtype=torch.float64)
    return plan, module, shape, (inputs, labels), x


def one_by_one(plan, module, layout, data, x, counts=None):
    found = []
    for site in range(len(x)):
        own = copy.deepcopy(module).train()
        stop = None if counts is None else counts[site]
        batch = tuple(tensor[site, :stop] for tensor in data)
        oracle = ModuleOracle(plan, own, layout, lambda k, batch=batch: batch)
        found.append((oracle(x[site], 0), own))
    return found


@pytest.mark.parametrize("body", [MLP, FROZEN, TIED], ids=["mlp", "frozen", "tied"])
def test_gradients_and_losses_of_each_site(body: str) -> None:
    plan, module, layout, data, x = world(body)
    found = StackedOracle(plan, module, layout, lambda k: StackedBatch(data))(x, 0)
    for site, (own, _) in enumerate(one_by_one(plan, module, layout, data, x)):
        assert torch.allclose(found.grad[site], own.grad, atol=1e-14, rtol=0)
        assert torch.allclose(found.loss[site], own.loss, atol=1e-14, rtol=0)
    if body == FROZEN:
        assert not found.grad[:, :30].any() and found.grad[:, 30:].any()


def test_padding_counts_for_nothing() -> None:
    plan, module, layout, (inputs, labels), x = world(MLP)
    counts = [8, 3, 1, 5]
    weights = (torch.arange(8) < torch.tensor(counts).unsqueeze(-1)).double()
    found = StackedOracle(plan, module, layout, lambda k: StackedBatch((inputs, labels), weights))(x, 0)
    for site, (own, _) in enumerate(one_by_one(plan, module, layout, (inputs, labels), x, counts)):
        assert torch.allclose(found.grad[site], own.grad, atol=1e-14, rtol=0)
        assert torch.allclose(found.loss[site], own.loss, atol=1e-14, rtol=0)


@pytest.mark.parametrize("kind", ["shared", "private"])
def test_batch_norm_statistics_of_each_site(kind: str) -> None:
    plan, module, layout, data, x = world(NORM, batch_norm=kind)
    private = private_buffers(module, layout, len(x))
    module.train()
    oracle = StackedOracle(plan, module, layout, lambda k: StackedBatch(data), private=private)
    found = oracle(x, 0)
    assert (found.buffers is None) == (kind == "private")
    for site, (own, after) in enumerate(one_by_one(plan, module, layout, data, x)):
        assert torch.allclose(found.grad[site], own.grad, atol=1e-13, rtol=0)
        if found.buffers is not None:
            assert torch.allclose(found.buffers[site], own.buffers, atol=1e-14, rtol=0)
        for name, value in oracle.private.items():
            assert torch.allclose(value[site], after.get_buffer(name), atol=1e-14, rtol=0)
            assert not torch.equal(value[site], private[name][site]), "statistics move"


def test_sites_that_take_no_step_keep_their_statistics() -> None:
    plan, module, layout, data, x = world(NORM, batch_norm="private")
    private = private_buffers(module.train(), layout, len(x))
    active = torch.tensor([[True], [False], [True], [False]])
    oracle = StackedOracle(plan, module, layout, lambda k: StackedBatch(data, active=active), private=private)
    oracle(x, 0)
    for name, value in oracle.private.items():
        changed = [not torch.equal(value[site], private[name][site]) for site in range(4)]
        assert changed == [True, False, True, False]


def test_everything_frozen_is_refused() -> None:
    plan, module, layout, data, _ = world(MLP + "; self.requires_grad_(False)")
    with pytest.raises(PlanError, match="all parameters are frozen"):
        StackedOracle(plan, module, layout, lambda k: StackedBatch(data))


# --- dropout


def test_masks_are_those_of_each_site_alone() -> None:
    plan, module, layout, data, x = world(DROPOUT)
    keys = torch.tensor([5, 6, 7, 5])
    dropout = key_dropout(module.train())
    assert dropout is not None and not has_dropout(module)
    found = StackedOracle(plan, module, layout, lambda k: StackedBatch(data, keys=keys), dropout=dropout)(x, 0)
    for site in range(4):
        dropout.begin(keys[site])
        put(x[site], module, layout)
        loss = plan.loss(module, tuple(tensor[site] for tensor in data)).mean()
        assert torch.allclose(found.loss[site], loss.detach(), atol=1e-14, rtol=0)


def test_masks_depend_on_key_layer_call_and_element_alone() -> None:
    module = nn.Sequential(nn.Dropout(0.3), nn.Dropout(0.3)).train()
    source = key_dropout(module)
    assert source is not None
    ones = torch.ones(6, 50)

    def masks(key: int, rows: int = 6) -> list[torch.Tensor]:
        source.begin(torch.tensor(key))
        return [module[0](ones[:rows]), module[1](ones[:rows]), module[0](ones[:rows])]

    first = masks(1)
    assert all(torch.equal(one, two) for one, two in zip(first, masks(1), strict=True))
    assert all(torch.equal(one[:4], two) for one, two in zip(first, masks(1, rows=4), strict=True)), "padding"
    assert len({tuple(mask.reshape(-1).tolist()) for mask in [*first, *masks(2)]}) == 6


def test_as_many_are_kept_as_asked_for() -> None:
    module = nn.Sequential(nn.Dropout(0.3), nn.Dropout2d(0.5)).train()
    source = key_dropout(module)
    assert source is not None
    source.begin(torch.tensor(11))
    flat = module[0](torch.ones(1000, 100))
    kept = float((flat > 0).double().mean())
    assert abs(kept - 0.7) < 4 * (0.21 / 100_000) ** 0.5
    assert flat.max() == pytest.approx(1 / 0.7)
    channels = module[1](torch.ones(200, 50, 3, 3))
    assert torch.equal(channels, channels[..., :1, :1].expand_as(channels)), "whole channels"
    assert abs(float((channels > 0).double().mean()) - 0.5) < 4 * (0.25 / 10_000) ** 0.5


def test_dropout_is_nothing_in_evaluation_and_everything_at_one() -> None:
    module = nn.Sequential(nn.Dropout(1.0)).train()
    source = key_dropout(module)
    assert source is not None and isinstance(module[0], KeyedDropout)
    source.begin(torch.tensor(1))
    assert not module(torch.ones(3, 3)).any()
    assert torch.equal(module.eval()(torch.ones(3, 3)), torch.ones(3, 3))
    assert key_dropout(nn.Sequential(nn.Linear(2, 2))) is None
