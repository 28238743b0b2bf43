"""The client of `flower_rounds.py`: MLP 64-64-10, 5 steps of SGD of batch 20 on 100 examples of its own.

A module of its own, so that Ray's workers import it once; what a script defines is sent to them with every message.
"""

from __future__ import annotations

from functools import cache

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

EXAMPLES, BATCH = 100, 20

app = ClientApp()


def model() -> torch.nn.Module:
    """64-64-10."""
    return torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))


@cache
def examples(number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random numbers with random labels; a worker draws those of a client once."""
    generator = torch.Generator().manual_seed(number)
    inputs = torch.randn((EXAMPLES, 64), generator=generator)
    return inputs, torch.randint(0, 10, (EXAMPLES,), generator=generator)


@app.train()
def train(message: Message, context: Context) -> Message:
    """One epoch from the server's model."""
    net = model()
    net.load_state_dict(message.content["arrays"].to_torch_state_dict())
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
    inputs, labels = examples(int(context.node_config["partition-id"]))
    for rows in torch.randperm(EXAMPLES).split(BATCH):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(net(inputs[rows]), labels[rows]).backward()
        optimiser.step()
    metrics = MetricRecord({"num-examples": EXAMPLES})
    content = RecordDict({"arrays": ArrayRecord(net.state_dict()), "metrics": metrics})
    return Message(content=content, reply_to=message)
