"""What rules keep of float32's rounding over many rounds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from vector_worlds import schedule_of, settings_of

from p2pfl.sim.vectorised import VectorisedRun
from p2pfl.train.plan_code import PlanCode
from p2pfl.train.settings import read_settings

SITES, ROUNDS = 5, 400
POINT = PlanCode(b"""
import torch
from torch import nn

class Point(nn.Module):
    def __init__(self):
        super().__init__()
        self.place = nn.Parameter(torch.zeros(4))

def load(path): ...

def model():
    return Point()

def loss(model, batch):
    steepness, centre = batch
    return 0.5 * (steepness * (model.place - centre) ** 2).sum(-1)
""")


def end_of(rule: str, dtype: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    steepness = 1 + torch.rand(SITES, 4, generator=generator, dtype=torch.float64)
    centre = 7 + torch.randn(SITES, 4, generator=generator, dtype=torch.float64)
    rows = np.arange(SITES).reshape(SITES, 1)
    settings = settings_of(rule, local_steps=1, batch_size=1, learning_rate=0.05, dtype=dtype)
    schedule = schedule_of({"kind": "full"}, SITES, ROUNDS, 0, [1.0, 2.0, 3.0, 4.0, 5.0])
    run = VectorisedRun(POINT, read_settings(settings), (steepness, centre), rows, schedule, seed=0, execution="eager")
    while not run.done:
        run.step()
    return run.x.double()


@pytest.mark.parametrize("rule", ["kgt", pytest.param("gradient_tracking", marks=pytest.mark.slow), "exact_diffusion"])
def test_roundings_do_not_add_up(rule: str) -> None:
    """One rounding of x is 5e-7 here; 400 of them in one direction, divided by the learning rate, would be 4e-3."""
    exact, rounded = end_of(rule, "float64"), end_of(rule, "float32")
    assert float((exact - exact.mean(0)).abs().max()) < 1e-9, "the sites agree"
    assert float((exact - rounded).abs().max()) < 1e-5
