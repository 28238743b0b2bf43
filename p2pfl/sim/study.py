"""From a scenario to a run: its plan, its examples, its partition, its faults; each read once for many cells."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from p2pfl.data import (
    Examples,
    Partition,
    Parts,
    holdings,
    holdings_figure,
    holdings_table,
    load_examples,
    partition_named,
)
from p2pfl.errors import ConfigError
from p2pfl.figures import to_svg
from p2pfl.files import write_atomic
from p2pfl.governance import Plan, plan_from_files, read_plan
from p2pfl.sim.checkpoints import Checkpoints
from p2pfl.sim.preparing import Simulation, examples_of_plan, prepare
from p2pfl.sim.results import SimResult
from p2pfl.sim.scenario import Scenario
from p2pfl.sim.sweeps import Cell, Watch

Shipped = tuple[bytes, bytes, Examples]


class Inputs:
    """Plans and examples by what a scenario says of them."""

    def __init__(self) -> None:
        self._plans: dict[str, Plan] = {}
        self._examples: dict[str, Examples] = {}
        self._digests: dict[str, bytes] = {}  # of the examples

    def plan(self, scenario: Scenario) -> Plan:
        """The scenario's plan. Raises ConfigError or PlanError."""
        path = scenario.scenario.plan
        if path not in self._plans:
            self._plans[path] = read_plan(Path(path))
        return self._plans[path]

    def examples(self, scenario: Scenario) -> Examples:
        """The scenario's examples. Raises ConfigError or DataError."""
        key = self._key(scenario)
        if key not in self._examples:
            if scenario.data["kind"] == "plan":
                self._examples[key] = self._through_the_plan(scenario)
            else:
                self._examples[key] = load_examples(scenario.data)
        return self._examples[key]

    def digest(self, scenario: Scenario) -> str:
        """SHA-256 over the plan's hash and the examples."""
        key = self._key(scenario)
        if key not in self._digests:  # some hundred megabytes, and a sweep asks for each of its settings
            self._digests[key] = _digest(self.examples(scenario))
        return hashlib.sha256(bytes.fromhex(self.plan(scenario).digest) + self._digests[key]).hexdigest()

    @staticmethod
    def _key(scenario: Scenario) -> str:
        """What the examples depend on."""
        plan = scenario.scenario.plan if scenario.data["kind"] == "plan" else ""
        return repr(sorted(scenario.data.items())) + plan

    def shipped(self, scenario: Scenario) -> Shipped:
        """What a worker on another machine needs."""
        plan = self.plan(scenario)
        return plan.source, plan.toml, self.examples(scenario)

    @classmethod
    def of_shipped(cls, scenario: Scenario, shipped: Shipped) -> Inputs:
        """The other end of `shipped`."""
        source, toml, examples = shipped
        inputs = cls()
        inputs._plans[scenario.scenario.plan] = plan_from_files(source, toml)
        inputs._examples[cls._key(scenario)] = examples
        return inputs

    def _through_the_plan(self, scenario: Scenario) -> Examples:
        path = scenario.data.get("path")
        if not isinstance(path, str) or set(scenario.data) != {"kind", "path"}:
            raise ConfigError('data of kind "plan" are read by the plan\'s load(); give it a path and nothing else')
        return examples_of_plan(self.plan(scenario), Path(path))


@dataclass(frozen=True)
class Holdings:
    """Who holds what in a scenario."""

    parts: Parts
    examples: Examples

    def plain(self) -> dict[str, Any]:
        """Classes, and each peer's examples of each."""
        classes, counts = holdings(self.parts, self.examples)
        return {"classes": [str(name) for name in classes], "examples": counts.tolist()}

    def lines(self) -> list[str]:
        """The table for people."""
        return holdings_table(self.parts, self.examples).splitlines()

    def plot(self, path: Path) -> None:
        """Draw it into an SVG file. Raises ConfigError without matplotlib, StoreError."""
        write_atomic(path, to_svg(holdings_figure(self.parts, self.examples)).encode(), private=False)


def holdings_of(scenario: Scenario, inputs: Inputs, seed: int) -> Holdings:
    """Who would hold what under this seed. Raises ConfigError or DataError."""
    examples = inputs.examples(scenario)
    return Holdings(_partition(scenario)(examples, scenario.scenario.peers, seed), examples)


def prepared(cell: Cell, inputs: Inputs) -> Simulation:
    """Everything of a cell but the training: whatever is wrong with it is said here.

    Raises ConfigError, PlanError or DataError.
    """
    scenario = cell.scenario
    return prepare(
        inputs.plan(scenario), inputs.examples(scenario), partition=_partition(scenario), topology=scenario.topology,
        peers=scenario.scenario.peers, rounds=scenario.scenario.rounds,
        closing_rounds=scenario.scenario.closing_rounds, seed=cell.seed, training=_training(scenario),
        weights=scenario.scenario.weights, time=scenario.time, faults=scenario.fault, evaluate=scenario.evaluate,
        steps=scenario.steps,
        execution=scenario.scenario.execution, device=scenario.scenario.device,
        name=scenario.scenario.name,
    )  # fmt: skip


def run_cell(
    cell: Cell, inputs: Inputs, watch: Watch | None, checkpoints: Checkpoints | None = None
) -> SimResult:  # fmt: skip
    """Prepare and run; Ctrl-C ends it with what there is, marked as interrupted."""
    return prepared(cell, inputs).run(watch.round if watch is not None else None, checkpoints)


def _digest(examples: Examples) -> bytes:
    found = hashlib.sha256()
    columns = [array for _, array in sorted(examples.columns.items())]
    for array in (*examples.train, *examples.test, *columns):
        found.update(f"{array.dtype.str} {array.shape}".encode())
        found.update(array.tobytes())
    return found.digest()


def _partition(scenario: Scenario) -> Partition:
    options = {name: value for name, value in scenario.partition.items() if name != "kind"}
    return partition_named(scenario.partition["kind"], options)


def _training(scenario: Scenario) -> dict[str, Any]:
    values = dict(scenario.training)
    if isinstance(values.get("optimiser"), str):  # --vary training.optimiser=sgd,adam
        values["optimiser"] = {"name": values["optimiser"]}
    return values
