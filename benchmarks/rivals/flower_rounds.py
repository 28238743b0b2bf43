"""Peer-rounds per second of Flower's simulation on the simulator benchmark's work; run with the rival's interpreter.

python flower_rounds.py CLIENTS ROUNDS

Flower has a server: in each round it sends one model to all clients, each makes 5 steps (`flower_client.py`), and
FedAvg takes the mean of all. No evaluation. RIVAL_CPUS: processors that a client asks for, possibly a fraction; as many
workers run beside each other as the machine then has room for.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from typing import Any

from flower_client import app, model
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation


def measure(clients: int, rounds: int) -> dict[str, Any]:
    """Whole rounds after a first one, whose end is also that of the workers' start."""
    ends: list[float] = []
    server = ServerApp()

    @server.main()
    def serve(grid: Grid, context: Context) -> None:
        strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=clients, min_available_nodes=clients)
        strategy.start(
            grid,
            ArrayRecord(model().state_dict()),
            num_rounds=1 + rounds,
            evaluate_fn=lambda number, arrays: ends.append(time.perf_counter()),  # before the first round, too
        )

    processors = float(os.environ.get("RIVAL_CPUS", "1"))
    run_simulation(
        server_app=server,
        client_app=app,
        num_supernodes=clients,
        backend_config={
            "client_resources": {"num_cpus": processors, "num_gpus": 0.0},
            "init_args": {"_node_ip_address": "127.0.0.1", "include_dashboard": False, "log_to_driver": False},
        },
    )
    assert len(ends) == 2 + rounds
    spent = ends[-1] - ends[1]
    return {
        "peers": clients, "rounds": rounds, "seconds": spent, "peer_rounds_per_second": clients * rounds / spent,
    }  # fmt: skip


if __name__ == "__main__":
    with contextlib.redirect_stdout(sys.stderr):
        found = measure(int(sys.argv[1]), int(sys.argv[2]))
    print(json.dumps(found), flush=True)
