"""`simulate`: one call from a plan and data to a result.

result = simulate("plans/mlp", from_scikit_learn("digits"), partition=dirichlet(0.1), topology="ring", peers=100)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from p2pfl.data import Examples, Partition, iid
from p2pfl.errors import ConfigError
from p2pfl.governance import Plan, read_plan
from p2pfl.settings_files import check_tables
from p2pfl.sim.results import SimResult
from p2pfl.sim.scenario import PAGE, EvaluateTable, FaultTable, TimeTable

Progress = Callable[[int, int], None]


def simulate(
    plan: Plan | Path | str,
    data: Examples | Sequence[Any] | Mapping[str, Any] | Path | str,
    *,
    partition: Partition | None = None,
    topology: str | Mapping[str, Any] | None = None,
    rule: str | None = None,
    peers: int = 16,
    rounds: int | None = None,
    closing_rounds: int | None = None,
    seed: int = 0,
    training: Mapping[str, Any] | None = None,
    weights: str = "samples",
    time: TimeTable | Mapping[str, Any] | None = None,
    faults: Sequence[FaultTable | Mapping[str, Any]] = (),
    evaluate: EvaluateTable | Mapping[str, Any] | None = None,
    device: str = "cpu",
    execution: str = "auto",
    progress: Progress | None = None,
    name: str = "",
) -> SimResult:
    """Train ``peers`` simulated sites with the rules of deployed ones; returns a `SimResult`.

    ``plan``: a plan, or the folder of one. ``data``: `p2pfl.data.Examples`, (inputs, labels), (inputs, labels, test
    inputs, test labels), a mapping {"train": (...), "test": (...)}, or a file that the plan's own ``load`` reads.
    ``partition``: from `p2pfl.data` (default: `iid`). ``topology``: a kind or a spec (default: the plan's, or a ring).
    ``rule``, ``training``: in place of what the plan says. ``weights``: "samples" or "equal" shares. ``time``,
    ``faults``, ``evaluate``: as in a scenario (docs/simulations.md). ``execution``: "auto", "compiled", "eager",
    "loop". ``progress`` is called with (rounds done, rounds).

    The same arguments give the same numbers, whatever the chunks; on another kind of processor up to rounding. An
    interrupt (Ctrl-C) ends the run with what there is: see ``SimResult.interrupted``.

    Raises ConfigError, PlanError or DataError before any training for whatever does not go together.
    """
    # here, so that the name alone loads no torch
    from p2pfl.sim.preparing import examples_of, prepare

    found = plan if isinstance(plan, Plan) else read_plan(Path(plan))
    changes = dict(training or {}) | ({} if rule is None else {"rule": rule})
    prepared = prepare(
        found, examples_of(data, found), partition=partition or iid(), topology=_spec(topology), peers=peers,
        rounds=rounds, closing_rounds=closing_rounds, seed=seed, training=changes, weights=weights,
        time=_table(TimeTable, time), faults=[FaultTable.model_validate(fault) for fault in map(_plain, faults)],
        evaluate=_table(EvaluateTable, evaluate) or EvaluateTable(), device=device, execution=execution, name=name,
    )  # fmt: skip
    return prepared.run(progress)


def _spec(topology: str | Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    return {"kind": topology} if isinstance(topology, str) else topology


def _plain(value: Any) -> Any:
    return value.model_dump() if isinstance(value, FaultTable) else value


def _table(kind: Any, value: Any) -> Any:
    if value is None or isinstance(value, kind):
        return value
    return check_tables(
        dict(value), kind, name=kind.__name__.removesuffix("Table").lower(), page=PAGE, error=ConfigError
    )
