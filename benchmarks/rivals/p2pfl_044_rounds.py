"""Peer-rounds per second of p2pfl 0.4.4 from PyPI (another project of our name); run with that project's interpreter.

python p2pfl_044_rounds.py PEERS ROUNDS

MLP 64-64-10, SGD, 100 examples per peer, one epoch of batch 20 (5 steps) per round, its protocol in memory, its
settings for one machine (`set_standalone_settings`). Neighbours: 8 each, all others where there are no more than 9
peers. Every peer is in the train set, and its FedAvg has every peer wait for the models of all others. No evaluation.
RIVAL_ACTORS: processes of its pool on Ray; 0 trains in the peers' own threads. RIVAL_PERIOD: seconds between two looks
at who still needs a model, where its settings say 2.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
import traceback
import types
import warnings
from typing import Any

import lightning
import torch


def without_torchvision() -> None:
    """Placeholders: p2pfl imports torchvision for downloads of pictures, and wants one of an older torch.

    Lightning, which would ask for its version, has to be imported before.
    """
    import lightning.pytorch  # noqa: F401 (on Ray's workers this comes first)

    for name in ("torchvision", "torchvision.datasets"):
        sys.modules[name] = types.ModuleType(name)


without_torchvision()

from p2pfl.settings import Settings

ACTORS = int(os.environ.get("RIVAL_ACTORS", "0"))
Settings.general.DISABLE_RAY = ACTORS == 0  # read by p2pfl's own imports
if ACTORS:
    import ray

    ray.init(
        namespace="p2pfl",
        include_dashboard=False,
        log_to_driver=False,
        _node_ip_address="127.0.0.1",
        runtime_env={"worker_process_setup_hook": without_torchvision},
    )

import datasets
import networkx
import numpy as np
from p2pfl.communication.protocols.protobuff.memory import MemoryCommunicationProtocol
from p2pfl.learning.dataset.p2pfl_dataset import P2PFLDataset
from p2pfl.learning.frameworks.pytorch.lightning_learner import LightningLearner
from p2pfl.learning.frameworks.pytorch.lightning_model import LightningModel
from p2pfl.management.logger import logger
from p2pfl.node import Node
from p2pfl.utils.utils import set_standalone_settings, wait_convergence

PERIOD = float(os.environ["RIVAL_PERIOD"]) if "RIVAL_PERIOD" in os.environ else None
DEGREE = 8
PATIENCE = 120  # seconds until all peers know each other
POLL = 0.01  # seconds between looks at the peers' rounds


class MLP(lightning.LightningModule):
    """64-64-10 with SGD."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))

    def training_step(self, batch: dict[str, torch.Tensor], number: int) -> torch.Tensor:
        """Cross-entropy of a batch."""
        return torch.nn.functional.cross_entropy(self.layers(batch["x"]), batch["y"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain SGD."""
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Learner(LightningLearner):
    """Its own, without evaluation: peers in threads write results into one folder, and stop where a file is missing."""

    def evaluate(self) -> dict[str, float]:
        """Nothing, which it takes as no figures."""
        return {}


def examples(draws: np.random.Generator, count: int) -> datasets.Dataset:
    """Random numbers with random labels."""
    inputs, labels = draws.normal(size=(count, 64)), draws.integers(0, 10, count)
    return datasets.Dataset.from_dict({"x": inputs.tolist(), "y": labels.tolist()})


def peer(number: int) -> Node:
    """A node that has started, with its own examples."""
    draws = np.random.default_rng(number)
    torch.manual_seed(0)
    node = Node(
        LightningModel(MLP()),
        P2PFLDataset(datasets.DatasetDict({"train": examples(draws, 100)}), batch_size=20),
        addr=f"node-{number}",
        learner=Learner(),
        protocol=MemoryCommunicationProtocol(),
    )
    node.start()
    return node


def reach(nodes: list[Node], wanted: int, total: int) -> float:
    """The time at which the last node has finished ``wanted`` rounds."""
    while True:
        done = [total if node.learning_workflow.finished else node.state.round or 0 for node in nodes]
        if min(done) >= wanted:
            return time.perf_counter()
        for node in nodes:
            node.assert_running(True)  # an error stops a node
        time.sleep(POLL)


def measure(peers: int, rounds: int) -> dict[str, Any]:
    """Whole rounds of all peers after a first one."""
    nodes = [peer(number) for number in range(peers)]
    degree = min(DEGREE, peers - 1)
    for one, other in networkx.random_regular_graph(degree, peers, seed=0).edges:
        nodes[one].connect(nodes[other].addr)
    wait_convergence(nodes, peers - 1, wait=PATIENCE)
    nodes[0].set_start_learning(rounds=1 + rounds, epochs=1, trainset_size=peers)
    began = reach(nodes, 1, 1 + rounds)
    spent = reach(nodes, 1 + rounds, 1 + rounds) - began
    models = [np.concatenate([part.ravel() for part in node.get_model().get_parameters()]) for node in nodes]
    apart = max(float(np.abs(model - models[0]).max()) for model in models)
    return {
        "peers": peers, "rounds": rounds, "seconds": spent, "peer_rounds_per_second": peers * rounds / spent,
        "apart": apart,
    }  # fmt: skip


def main(peers: int, rounds: int) -> None:
    """Print one line of JSON; the nodes' threads end with the process."""
    warnings.simplefilter("ignore")
    set_standalone_settings()
    Settings.training.RAY_ACTOR_POOL_SIZE = ACTORS
    if PERIOD is not None:
        Settings.gossip.MODELS_PERIOD = PERIOD
        Settings.gossip.PERIOD = (
            0.02  # seconds between two looks for messages; its 0 has each peer's thread look always
        )
        Settings.gossip.EXIT_ON_X_EQUAL_ROUNDS = 10_000  # looks; the ten it has would pass before a peer has trained
    logger.set_level("ERROR")
    status = 1
    try:
        with contextlib.redirect_stdout(sys.stderr):
            found = measure(peers, rounds)
        print(json.dumps(found), flush=True)
        status = 0
    except Exception:
        traceback.print_exc()
    finally:
        if ACTORS:
            ray.shutdown()
        os._exit(status)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
