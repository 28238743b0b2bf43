"""Peer-rounds per second of gossipy-dfl 0.0.1 on the simulator benchmark's work; run with the rival's own interpreter.

python gossipy_rounds.py PEERS ROUNDS

MLP 64-64-10, SGD, 100 examples per peer, one epoch of batch 20 (5 steps) per round, random 8-regular graph: each peer
pushes its model to one neighbour per round, and who receives one merges it with its own and trains. Evaluation is as
small as gossipy allows: one node at the end of each round.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import time
import types
import warnings

# gossipy imports torchvision for its downloads of pictures, which this work does not use; the wheel wants another torch
sys.modules["torchvision"] = types.ModuleType("torchvision")

import gossipy
import networkx
import numpy as np
import torch
from gossipy.core import AntiEntropyProtocol, CreateModelMode, StaticP2PNetwork
from gossipy.data import DataDispatcher
from gossipy.data.handler import ClassificationDataHandler
from gossipy.model.handler import TorchModelHandler
from gossipy.model.nn import TorchMLP
from gossipy.node import GossipNode
from gossipy.simul import GossipSimulator

ROUND_LENGTH = 10  # time steps of a round; fewer would save gossipy nothing that counts


class MLP(TorchMLP):
    """64-64-10, as it comes from torch."""

    def init_weights(self) -> None:
        """Nothing: torch has drawn the weights."""


def main(peers: int, rounds: int) -> None:
    """Print one line of JSON."""
    warnings.simplefilter("ignore")
    gossipy.set_seed(0)
    draws = np.random.default_rng(0)
    inputs = torch.tensor(draws.normal(size=(100 * peers, 64)), dtype=torch.float32)
    labels = torch.tensor(draws.integers(0, 10, 100 * peers))
    handler = ClassificationDataHandler(inputs, labels, inputs[:10], labels[:10])
    dispatcher = DataDispatcher(handler, n=peers, eval_on_user=False)
    graph = networkx.random_regular_graph(8, peers, seed=0)
    network = StaticP2PNetwork(peers, networkx.to_numpy_array(graph))
    prototype = TorchModelHandler(
        MLP(64, 10, (64,)), torch.optim.SGD, {"lr": 0.1}, torch.nn.CrossEntropyLoss(), local_epochs=1, batch_size=20,
        create_model_mode=CreateModelMode.MERGE_UPDATE,
    )  # fmt: skip
    nodes = GossipNode.generate(dispatcher, network, prototype, ROUND_LENGTH, True)
    simulator = GossipSimulator(nodes, dispatcher, ROUND_LENGTH, AntiEntropyProtocol.PUSH, sampling_eval=1 / peers)
    with contextlib.redirect_stdout(io.StringIO()):
        simulator.init_nodes()
        simulator.start(1)
        began = time.perf_counter()
        simulator.start(rounds)
        spent = time.perf_counter() - began
    print(
        json.dumps(
            {"peers": peers, "rounds": rounds, "seconds": spent, "peer_rounds_per_second": peers * rounds / spent}
        )
    )


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
