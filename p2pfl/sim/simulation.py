"""`simulate`: one call from a plan and data to a result.

result = simulate("plans/mlp", from_scikit_learn("digits"), partition=dirichlet(0.1), topology="ring", peers=100)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from p2pfl.data import Examples, Partition
from p2pfl.governance import Plan, read_plan
from p2pfl.sim.arguments import faults_of, mapping_of, partition_of, path_of, spec_of, steps_of, table_of, text, whole
from p2pfl.sim.results import SimResult
from p2pfl.sim.scenario import EvaluateTable, FaultTable, StepsTable, TimeTable

if TYPE_CHECKING:
    import networkx as nx

Progress = Callable[[int, int], None]


def simulate(
    plan: Plan | Path | str,
    data: Examples | Sequence[Any] | Mapping[str, Any] | Path | str,
    *,
    partition: Partition | str | Mapping[str, Any] | None = None,
    topology: str | Mapping[str, Any] | nx.Graph | None = None,
    rule: str | None = None,
    peers: int = 16,
    rounds: int | None = None,
    closing_rounds: int | None = None,
    seed: int = 0,
    training: Mapping[str, Any] | None = None,
    weights: str = "samples",
    time: TimeTable | Mapping[str, Any] | None = None,
    faults: Sequence[FaultTable | Mapping[str, Any]] = (),
    steps: Sequence[StepsTable | Mapping[str, Any]] = (),
    evaluate: EvaluateTable | Mapping[str, Any] | None = None,
    device: str = "cpu",
    execution: str = "auto",
    progress: Progress | None = None,
    name: str = "",
) -> SimResult:
    """Train ``peers`` simulated sites with the rules of deployed ones; returns a `SimResult`.

    ``plan``: a plan, or the folder of one. ``data``: `p2pfl.data.Examples`, (inputs, labels), (inputs, labels, test
    inputs, test labels), a mapping {"train": (...), "test": (...)}, or a file that the plan's own ``load`` reads.
    ``partition``: from `p2pfl.data`, or as a scenario has it (default: `iid`). ``topology``: a kind, a spec or a
    networkx graph on the positions 0 to peers - 1 (default: the plan's, or a ring).
    ``rule``, ``training``: in place of what the plan says. ``weights``: "samples" or "equal" shares. ``time``,
    ``faults``, ``steps``, ``evaluate``: as in a scenario (docs/simulations.md). ``execution``: "auto", "compiled",
    "traced", "eager", "loop". ``progress`` is called with (rounds done, rounds).

    The same arguments give the same numbers, whatever the chunks; on another kind of processor up to rounding. An
    interrupt (Ctrl-C) ends the run with what there is: see ``SimResult.interrupted``.

    Raises ConfigError, PlanError or DataError before any training for whatever does not go together.
    """
    # here, so that the name alone loads no torch
    from p2pfl.sim.preparing import examples_of, prepare

    found = plan if isinstance(plan, Plan) else read_plan(path_of("plan", plan))
    changes = mapping_of("training", training or {}) | ({} if rule is None else {"rule": text("rule", rule)})
    peers = whole("peers", peers)
    prepared = prepare(
        found, examples_of(data, found), partition=partition_of(partition), topology=spec_of(topology, peers),
        peers=peers, rounds=None if rounds is None else whole("rounds", rounds),
        closing_rounds=None if closing_rounds is None else whole("closing_rounds", closing_rounds),
        seed=whole("seed", seed), training=changes, weights=text("weights", weights),
        time=None if time is None else table_of(TimeTable, "time", time), faults=faults_of(faults),
        steps=steps_of(steps),
        evaluate=EvaluateTable() if evaluate is None else table_of(EvaluateTable, "evaluate", evaluate),
        device=text("device", device), execution=text("execution", execution), name=text("name", name),
    )  # fmt: skip
    return prepared.run(progress)
