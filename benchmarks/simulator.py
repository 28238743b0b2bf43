"""How many peer-rounds per second the vectorised engine makes, and what memory a peer takes.

The work: 5 local steps of batch 20 per round, 100 examples per peer, then mixing on a random 8-regular graph, float32,
D-PSGD; sampling and mixing are part of every figure. Models: the MLP 64-64-10, logistic regression of 64 inputs, a
small CNN on inputs of MNIST's shape. Random numbers stand in for data: the time does not depend on them.

    python benchmarks/simulator.py [--quick] [--only mlp] [--device cuda] [--rivals DIR [--rival NAME]...] [--json]
    python benchmarks/simulator.py --case mlp 10000 compiled [--rounds 20]

Each case runs in a process of its own. Its first round is warm-up (compiling) and is told apart. "memory" is what the
peers' parameters, state and all that is temporary add at the peak to the process with its data, in units of one peer's
parameters; "peak" is the whole process. Of few peers most of it is what each process has once, such as chunks in
work on each thread. "memory of each further peer" leaves that out: between two sizes n1 < n2 of the same model and way,
(m2 - m1) / (n2 - n1), m in bytes, again in units of one peer's parameters.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import rival_rounds

HEAD = """
import torch
from torch import nn

def load(path):
    return {}

def loss(model, batch):
    x, label = batch
    return nn.functional.cross_entropy(model(x), label, reduction="none")

def model():
    return """
MODELS: Mapping[str, tuple[str, tuple[int, ...], int]] = {  # model, shape of an example, classes
    "mlp": ("nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))", (64,), 10),
    "logistic": ("nn.Linear(64, 2)", (64,), 2),
    "cnn": (
        "nn.Sequential(nn.Conv2d(1, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2), nn.ReLU(), "
        "nn.Flatten(), nn.Linear(576, 10))",
        (1, 28, 28),
        10,
    ),
}
CASES = [
    ("mlp", 100, "compiled"), ("mlp", 1000, "compiled"), ("mlp", 1000, "traced"), ("mlp", 1000, "eager"),
    ("mlp", 1000, "loop"),
    ("mlp", 10_000, "compiled"),
    ("logistic", 100, "compiled"), ("logistic", 1000, "compiled"), ("logistic", 10_000, "compiled"),
    ("logistic", 100_000, "compiled"),
    ("cnn", 16, "loop"), ("cnn", 64, "loop"), ("cnn", 256, "loop"), ("cnn", 256, "auto"),
]  # fmt: skip
STEPS, BATCH, EXAMPLES, DEGREE = 5, 20, 100, 8
POOL = 1_000_000  # different examples at most; further peers hold the same ones again
SECONDS = 6.0  # measured per case, at least two rounds
SMALL = 128  # peers of the run that fills caches before memory is looked at


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", nargs=3, metavar=("MODEL", "PEERS", "WAY"))
    parser.add_argument("--only", choices=MODELS)
    parser.add_argument("--quick", action="store_true", help="up to 1,000 peers")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--rule", default="dpsgd")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--rivals", type=Path, help="folder for the rivals' own virtual environments; measure them, too"
    )
    names = [rival.key for rival in rival_rounds.RIVALS]
    parser.add_argument("--rival", action="append", choices=names, help="this one only, with --rivals; repeatable")
    parser.add_argument("--json", action="store_true")
    wanted = parser.parse_args()
    if wanted.rival and not wanted.rivals:
        parser.error("--rival needs the folder for its environment: --rivals DIR")
    if wanted.case:
        model, peers, way = wanted.case
        print(json.dumps(measure(model, int(peers), way, wanted.rounds, wanted.device, wanted.rule)))
        return
    found = []
    for model, peers, way in CASES:
        if (wanted.only not in (None, model)) or (wanted.quick and peers > 1000):
            continue
        rounds = ["--rounds", "20"] if peers == 10_000 and model == "mlp" else []
        command = [sys.executable, __file__, "--case", model, str(peers), way, *rounds, "--device", wanted.device]
        done = subprocess.run([*command, "--rule", wanted.rule], stdout=subprocess.PIPE, text=True, check=True)
        found.append(json.loads(done.stdout.splitlines()[-1]))
        print(f"{model}, {peers} peers, {way}: {found[-1]['peer_rounds']:.0f}/s", file=sys.stderr)
    rivals = beside(wanted.rivals, wanted.rival) if wanted.rivals else []
    further = further_peers(found)
    result = {
        "machine": machine(),
        "cases": found,
        "further_peers": further,
        "rivals": rivals,
        "ratios": ratios(found, rivals),
    }
    tables = [table(found), *([further_table(further)] if further else []), *rival_tables(found, rivals)]
    print(json.dumps(result, indent=2) if wanted.json else "\n\n".join(tables))


def beside(folder: Path, names: list[str] | None = None) -> list[dict[str, Any]]:
    """The rivals on the same work, in the same run; all of them if none is named."""
    rivals = []
    for rival in rival_rounds.RIVALS:
        if names is None or rival.key in names:
            rivals.append(rival_rounds.measure(rival, folder))
            speed = rivals[-1].get("peer_rounds")
            print(f"{rival.name}: {f'{speed:.3g}/s' if speed else rivals[-1]['failed']}", file=sys.stderr)
    return rivals


def ratios(found: list[dict[str, Any]], rivals: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """How many times a rival's peer-rounds per second each way makes, same model; the rival at its peers."""
    same = [case for case in found if (case["model"], case["peers"]) == ("mlp", rival_rounds.PEERS)]
    return [
        {
            "way": case["way"],
            "rival": rival["name"],
            "rival_peers": rival["peers"],
            "ratio": case["peer_rounds"] / rival["peer_rounds"],
        }
        for rival in rivals
        if "failed" not in rival
        for case in same
    ]


def further_peers(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What each further peer takes, in peers' parameters, between consecutive sizes of the same model and way."""
    by_way: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for case in sorted(found, key=lambda case: case["peers"]):
        by_way.setdefault((case["model"], case["way"]), []).append(case)
    return [
        {
            "model": model,
            "way": way,
            "peers": [less["peers"], more["peers"]],
            "memory": (more["memory"] * more["peers"] - less["memory"] * less["peers"])
            / (more["peers"] - less["peers"]),
        }
        for (model, way), cases in by_way.items()
        for less, more in pairwise(cases)
        if more["peers"] > less["peers"]
    ]


def further_table(rows: list[dict[str, Any]]) -> str:
    """The same as text."""
    import figures

    return figures.table(
        "memory of each further peer, in peers' parameters",
        ["model, way", "from", "to", "memory"],
        [
            [f"{row['model']}, {row['way']}", *(f"{peers:,}" for peers in row["peers"]), f"{row['memory']:.1f} P"]
            for row in rows
        ],
    )


def rival_tables(found: list[dict[str, Any]], rivals: list[dict[str, Any]]) -> list[str]:
    """The rivals as text; nothing if none was measured."""
    import figures

    if not rivals:
        return []
    speeds = [
        [
            rival["name"],
            rival["peers"],
            rival.get("peer_rounds", "-"),
            rival.get("way") or f"failed: {rival['failed']}",
            other_ways(rival),
        ]
        for rival in rivals
    ]
    times = [
        [
            f"{row['way']} / {row['rival']}" + f" at {row['rival_peers']}" * (row["rival_peers"] != rival_rounds.PEERS),
            row["ratio"],
        ]
        for row in ratios(found, rivals)
    ]
    notes = [f"- {rival['name']} {rival['note']}." for rival in rivals if rival["note"]]
    return [
        figures.table(
            "rivals, MLP, the quickest of the ways tried",
            ["rival", "peers", "peer-rounds/s", "quickest way", "other ways"],
            speeds,
        ),
        *(["\n".join(notes)] if notes else []),
        figures.table(f"ratios at {rival_rounds.PEERS} peers", ["ways", "times"], times),
    ]


def other_ways(rival: dict[str, Any]) -> str:
    """What the ways of running a rival that were not the quickest made, per second."""
    slower = [run for run in rival["runs"] if run["way"] != rival.get("way") and "failed" not in run]
    return ", ".join(f"{run['way']}: {run['peer_rounds_per_second']:.3g}" for run in slower) or "-"


def measure(model: str, peers: int, way: str, rounds: int | None, device: str, rule: str = "dpsgd") -> dict[str, Any]:
    """One case, in this process."""
    import torch

    body, shape, classes = MODELS[model]
    generator = torch.Generator().manual_seed(0)
    examples = min(POOL if model == "mlp" else POOL // 10, peers * EXAMPLES)
    labels = torch.randint(0, classes, (examples,), generator=generator)
    data = torch.randn((examples, *shape), generator=generator), labels
    few = min(peers, SMALL)
    warm = engine(HEAD + body, data, *world(few, len(labels)), "traced" if way == "auto" else way, device, rule)
    warm.step(), warm.step()
    del warm
    give_back()
    began = time.perf_counter()
    schedule, rows = world(peers, len(labels))
    graph = time.perf_counter() - began
    base = memory_now()
    began = time.perf_counter()
    run = engine(HEAD + body, data, schedule, rows, way, device, rule)
    prepared = time.perf_counter()
    run.step()
    first = time.perf_counter() - prepared
    reset_peak(device)
    spent, times, done = 0.0, {"local": 0.0, "mixing": 0.0}, 0
    processor = time.process_time()
    while done < (rounds or 2) or (rounds is None and spent < SECONDS and done < 95):
        at = time.perf_counter()
        facts = run.step()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        spent += time.perf_counter() - at
        times = {name: times[name] + facts.seconds[name] for name in times}
        done += 1
    processor = time.process_time() - processor
    own = (memory_peak() - base) / (peers * run.layout.size * 4)
    if device.startswith("cuda"):
        own = torch.cuda.max_memory_allocated() - sum(tensor.nbytes for tensor in run.data)
        own /= peers * run.layout.size * 4
    return {
        "model": model, "parameters": run.layout.size, "peers": peers, "asked": way, "way": run.execution.chosen,
        "why": str(run.execution), "rounds": done, "seconds": spent, "peer_rounds": peers * done / spent,
        "peer_steps": peers * done * STEPS / spent, "per_processor_second": peers * done / processor,
        "graph": graph, "setup": prepared - began, "warm_up": first,
        "local": times["local"] / done, "mixing": times["mixing"] / done,
        "memory": own, "peak_bytes": memory_peak(), "loss": facts.loss, "device": device, "rule": rule,
    }  # fmt: skip


def world(peers: int, examples: int) -> tuple[Any, list[Any]]:
    """The schedule, and who has which examples."""
    import networkx as nx
    import numpy as np

    from p2pfl.topology import Schedule
    from p2pfl.types import PeerId

    nodes = [PeerId(f"{number:06d}") for number in range(peers)]
    edges = [list(edge) for edge in nx.random_regular_graph(DEGREE, peers, seed=0).edges]
    schedule = Schedule({"kind": "edges", "edges": edges}, nodes, dict.fromkeys(nodes, 1.0), 100, 0)
    return schedule, [np.arange(number * EXAMPLES, (number + 1) * EXAMPLES) % examples for number in range(peers)]


def engine(plan: str, data: Any, schedule: Any, rows: Any, way: str, device: str, rule: str) -> Any:
    """A run that has not begun."""
    from p2pfl.sim.vectorised import VectorisedRun
    from p2pfl.train.plan_code import PlanCode
    from p2pfl.train.settings import read_settings

    settings = {"rule": rule, "learning_rate": 0.05, "local_steps": STEPS, "batch_size": BATCH}
    return VectorisedRun(
        PlanCode(plan.encode()), read_settings(settings), data, rows, schedule, seed=0, execution=way, device=device
    )


def give_back() -> None:
    """What is free goes back to the system: else the next run takes of it, and seems to need less than it does."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def memory_now() -> int:
    """Bytes that this process has in memory."""
    return _status("VmRSS")


def memory_peak() -> int:
    """The most since the last reset."""
    return _status("VmHWM")


def reset_peak(device: str) -> None:
    """From now on. See proc(5), /proc/pid/clear_refs."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.reset_peak_memory_stats()
    Path("/proc/self/clear_refs").write_text("5")


def _status(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def machine() -> dict[str, Any]:
    """Cores, interpreter and versions."""
    import figures
    import torch

    return {**figures.machine(), "torch": torch.__version__}


def table(found: list[dict[str, Any]]) -> str:
    """The cases as text."""
    import figures

    head = [
        "model, peers, way",
        "peer-rounds/s",
        "peer-steps/s",
        "local ms",
        "mixing ms",
        "warm-up s",
        "memory",
        "peak",
    ]
    rows = [
        [
            f"{case['model']}, {case['peers']:,}, {case['way']}",
            f"{case['peer_rounds']:,.0f}",
            f"{case['peer_steps']:,.0f}",
            case["local"] * 1000,
            case["mixing"] * 1000,
            case["warm_up"],
            f"{case['memory']:.1f} P",
            f"{case['peak_bytes'] / 1e9:.2f} GB",
        ]
        for case in found
    ]
    return figures.table(
        "simulator: rounds and steps of all peers together per second; 5 steps of batch 20 per round, 8 neighbours",
        head,
        rows,
    )


if __name__ == "__main__":
    main()
