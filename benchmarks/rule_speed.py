"""How long a simulated round of each update rule takes, beside one of D-PSGD with as many steps on the same graph.

The work: the MLP 64-64-10, 200 sites, 5 local steps of batch 20 (1 where a rule takes no more), float32, a random
8-regular graph, a binary tree for the rule that needs one, and for the one that walks its own rounds, in each of which
one site trains. Rounds of the rule and of D-PSGD take turns in one
process, so that other work on the machine slows both; the ratio is that of the medians, and "per channel" divides it
by the vectors that the rule gossips. The aim is at most 3 per channel. "mixing ratio" is the same of what a round is
beside its local steps: sending, the sparse products and the merge.

    python benchmarks/rule_speed.py [--sites 200] [--rounds 60] [--way traced] [--rule kgt]... [--json]
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import figures
import networkx as nx
import numpy as np
import torch
from simulator import BATCH, DEGREE, EXAMPLES, HEAD, MODELS, STEPS, machine

from p2pfl.sim.vectorised import VectorisedRun
from p2pfl.topology import Schedule
from p2pfl.train.plan_code import PlanCode
from p2pfl.train.rules import RULES
from p2pfl.train.settings import read_settings
from p2pfl.types import PeerId

AIM = 3.0  # times D-PSGD, for each gossiped channel
WARM = 3  # rounds that are not counted: recording, and the rule's first states
HEADS = ("rule", "graph", "steps", "channels", "ms", "D-PSGD ms", "ratio", "per channel", "mixing ratio")


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sites", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--way", default="traced", choices=("loop", "eager", "traced", "compiled"))
    parser.add_argument("--rule", action="append", choices=RULES, help="this one only; repeatable")
    parser.add_argument("--json", action="store_true")
    wanted = parser.parse_args()
    found = [measure(name, wanted.sites, wanted.rounds, wanted.way) for name in wanted.rule or RULES]
    result = {"machine": machine(), "way": wanted.way, "sites": wanted.sites, "aim": AIM, "rules": found}
    rows = [[row[head] for head in HEADS] for row in found]
    title = f"one round of {wanted.sites} sites, {wanted.way}, medians of {wanted.rounds} rounds that take turns"
    figures.show(result, figures.table(title, HEADS, rows), wanted.json)


def measure(name: str, sites: int, rounds: int, way: str) -> dict[str, Any]:
    """One rule and D-PSGD in turns."""
    needs, channels = RULES[name].needs, RULES[name].channels
    steps = min(STEPS, needs.most_steps or STEPS)
    graph = {"tree": "tree", "walk": "cyclic"}.get(needs.mixing, "regular")
    beside = "regular" if graph == "cyclic" else graph
    runs = [engine(name, sites, rounds, steps, graph, way), engine("dpsgd", sites, rounds, steps, beside, way)]
    spent: tuple[list[float], list[float]] = ([], [])
    mixing: tuple[list[float], list[float]] = ([], [])
    for round_ in range(rounds + WARM):
        for place, run in enumerate(runs):
            began = time.perf_counter()
            facts = run.step()
            seconds = time.perf_counter() - began
            if round_ >= WARM:
                spent[place].append(seconds)
                mixing[place].append(facts.seconds["mixing"])
    own, yardstick = map(statistics.median, spent)
    mixed, other = map(statistics.median, mixing)
    return {
        "rule": name, "graph": graph, "steps": steps, "channels": len(channels), "ms": own * 1000,
        "D-PSGD ms": yardstick * 1000, "ratio": own / yardstick, "per channel": own / yardstick / len(channels),
        "mixing ratio": mixed / other, "mixing ms": mixed * 1000, "seconds": spent[0],
    }  # fmt: skip


def engine(rule: str, sites: int, rounds: int, steps: int, graph: str, way: str) -> VectorisedRun:
    """A run that has not begun."""
    body, shape, classes = MODELS["mlp"]
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, classes, (sites * EXAMPLES,), generator=generator)
    data = torch.randn((len(labels), *shape), generator=generator), labels
    rows = [np.arange(number * EXAMPLES, (number + 1) * EXAMPLES) for number in range(sites)]
    nodes = [PeerId(f"{number:06d}") for number in range(sites)]
    edges = [list(edge) for edge in nx.random_regular_graph(DEGREE, sites, seed=0).edges]
    specs = {
        "tree": {"kind": "tree", "arity": 2},
        "cyclic": {"kind": "cyclic"},
        "regular": {"kind": "edges", "edges": edges},
    }
    schedule = Schedule(specs[graph], nodes, dict.fromkeys(nodes, 1.0), max(rounds + WARM, sites), 0)
    settings = {"rule": rule, "learning_rate": 0.05, "local_steps": steps, "batch_size": BATCH}
    return VectorisedRun(
        PlanCode((HEAD + body).encode()), read_settings(settings), data, rows, schedule, seed=0, execution=way
    )


if __name__ == "__main__":
    main()
