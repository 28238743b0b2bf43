"""Scenarios: what to simulate, as a TOML file that people write (docs/simulations.md lists all keys)."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from p2pfl.errors import ConfigError
from p2pfl.files import read_bounded
from p2pfl.settings_files import Table, check_tables, parse_tables
from p2pfl.topology.graphs import EXAMPLES, KEYS

PAGE = "docs/simulations.md"
LIMIT = 1024 * 1024  # bytes; the edges of a graph of some thousand sites
MOST_PEERS = 1_000_000
MOST_SEEDS = 1000
MOST_STEPS = 100_000  # of one site in a round

Share = Annotated[float, Field(ge=0, le=1)]
YEAR = 365.0 * 86_400.0  # seconds; local steps that take longer are a slip of the pen


class ScenarioTable(Table):
    """``[scenario]``: the plan, how many peers, how many rounds, which seeds."""

    name: str = Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    description: str = Field(default="", max_length=2000)
    plan: str  # a folder with plan.py and plan.toml, relative to the scenario
    peers: int = Field(ge=1, le=MOST_PEERS)
    rounds: int | None = Field(default=None, ge=1, le=1_000_000)  # None: the plan's
    closing_rounds: int | None = Field(default=None, ge=0, le=1000)  # None: the plan's
    seeds: int | list[int] = 1  # so many from 0, or these
    weights: Literal["samples", "equal"] = "samples"
    execution: Literal["auto", "compiled", "traced", "eager", "loop"] = (
        "auto"  # "auto" measures; ways differ in rounding
    )
    device: str = "cpu"

    @field_validator("seeds")
    @classmethod
    def _some_seeds(cls, seeds: int | list[int]) -> int | list[int]:
        count = seeds if isinstance(seeds, int) else len(seeds)  # a number is no list yet: it may be huge
        listed = [] if isinstance(seeds, int) else seeds
        if not 1 <= count <= MOST_SEEDS or len(set(listed)) != len(listed) or min(listed, default=0) < 0:
            raise ValueError(f"write a number of seeds, or a list of different ones from 0 on; at most {MOST_SEEDS}")
        return seeds


class TimeTable(Table):
    """``[time]``: what a round takes in a simulated consortium; without it, neither seconds nor bytes are simulated."""

    clock: Literal["model", "machines"] = "model"
    # of the local_steps of the plan or [training] in one round, at a site without a profile: "fast" ones take half
    seconds: float = Field(default=60.0, gt=0, le=YEAR)
    spread: Share = 0.2  # of these seconds, from round to round
    latency: float = Field(default=0.02, ge=0, le=86_400)  # seconds one way; up to a day
    # bytes per second of the uplink of a site whose profile names none: 100 Mbit/s; up to a petabyte
    bandwidth: float = Field(default=12.5e6, ge=1, le=1e15)
    # of each profile: the number of a site (1), numbers ([1, 4]), or a share of all sites (0.25) drawn with the seed
    profiles: dict[str, float | int | list[int]] = Field(default={})
    staleness: int = Field(default=0, ge=0, le=8)  # own rounds that an edge may be mixed late; 0: synchronous
    heartbeats: bool = True  # whether they take their part of the uplinks; deployed sites' always do


class FaultTable(Table):
    """One ``[[fault]]``: what a site does wrong, or what happens to it."""

    kind: Literal["lying", "absent"]
    sites: int | float | list[int]  # a site's number, a share of all sites drawn with the seed, or numbers
    how: Literal["flip", "scale", "noise"] = "flip"  # of a lying site's messages
    size: float = Field(default=1.0, gt=0)  # factor of "scale", standard deviation of "noise"
    first: int = Field(default=0, ge=0)  # round, from 0
    last: int | None = Field(default=None, ge=0)  # None: to the end


class StepsTable(Table):
    """One ``[[steps]]``: sites that take another number of local steps than the plan or ``[training]`` says."""

    sites: int | float | list[int]  # a site's number, a share of all sites drawn with the seed, or numbers
    local_steps: int = Field(ge=0, le=MOST_STEPS)  # in a round; 0: mixes, does not train


class EvaluateTable(Table):
    """``[evaluate]``: how often, and of how many sites; evaluation costs as much as training."""

    every: int | None = Field(default=None, ge=1)  # rounds; None: some twenty times in a run
    sites: Literal["all", "none"] | Annotated[int, Field(ge=0)] = 16  # a sample of so many, drawn by the seed

    @field_validator("sites")
    @classmethod
    def _no_sites(cls, sites: str | int) -> str | int:
        return "none" if sites == 0 else sites


class Scenario(Table):
    """A whole scenario file."""

    scenario: ScenarioTable
    data: dict[str, Any]
    partition: dict[str, Any] = Field(default={"kind": "iid"})
    topology: dict[str, Any] | None = None  # None: the plan's
    training: dict[str, Any] = Field(default={})  # in place of the plan's [training]
    time: TimeTable | None = None
    fault: list[FaultTable] = Field(default=[])
    steps: list[StepsTable] = Field(default=[])  # the last one that names a site holds
    evaluate: EvaluateTable = EvaluateTable()

    @field_validator("data", "partition", "topology")
    @classmethod
    def _named(cls, table: dict[str, Any] | None) -> dict[str, Any] | None:
        if table is not None and not isinstance(table.get("kind"), str):
            raise ValueError('give it a kind, such as kind = "mnist" for data, "dirichlet" for a partition, "ring"')
        return table

    @property
    def seeds(self) -> list[int]:
        """All seeds."""
        given = self.scenario.seeds
        return list(range(given)) if isinstance(given, int) else list(given)


def read_scenario(path: Path | str) -> Scenario:
    """The scenario in a TOML file; paths in it become absolute. Raises ConfigError for whatever is wrong in it."""
    place = Path(path)
    if os.path.isdir(place):  # unlike Path.is_dir, no error for a name too long
        raise ConfigError(f"{place} is a folder; give the scenario's TOML file")
    toml = read_bounded(place, LIMIT)
    scenario = parse_tables(toml, Scenario, name=place.name, page=PAGE, limit=LIMIT, error=ConfigError)
    return placed(scenario, place.resolve().parent)


def placed(scenario: Scenario, folder: Path) -> Scenario:
    """The same with the plan's and the data's paths taken from ``folder``."""
    values = scenario.model_dump()
    values["scenario"]["plan"] = str(folder / values["scenario"]["plan"])  # an absolute path stays
    for name in ("path", "test_path"):
        if isinstance(values["data"].get(name), str) and not values["data"][name].startswith("$"):
            values["data"][name] = str(folder / values["data"][name])
    return check_scenario(values, scenario.scenario.name)


def check_scenario(values: Mapping[str, Any], name: str) -> Scenario:
    """A scenario from plain values. Raises ConfigError."""
    return check_tables(dict(values), Scenario, name=name, page=PAGE, error=ConfigError)


SHORT = {
    "peers": "scenario.peers", "rounds": "scenario.rounds", "closing_rounds": "scenario.closing_rounds",
    "weights": "scenario.weights", "execution": "scenario.execution",
    "topology": "topology.kind", "degree": "topology.degree",
    "clusters": "topology.clusters", "partition": "partition.kind", "alpha": "partition.alpha",
    "rule": "training.rule", "learning_rate": "training.learning_rate", "local_steps": "training.local_steps",
    "batch_size": "training.batch_size", "plan": "scenario.plan", "bandwidth": "time.bandwidth",
    "staleness": "time.staleness", "profiles": "time.profiles", "seconds": "time.seconds",
}  # fmt: skip
"""What ``--vary`` takes without its table."""


def varied(scenario: Scenario, changes: Mapping[str, Any]) -> Scenario:
    """The scenario with some keys changed: names as in SHORT, or "table.key".

    Another topology or partition keeps none of the old one's options that were not given with it. ConfigError.
    """
    values = scenario.model_dump()
    # kinds first, whatever the order: a new kind drops the old one's options, not those given with it
    kinds = [name for name in changes if SHORT.get(name, name).endswith(".kind")]
    for name in [*kinds, *(name for name in changes if name not in kinds)]:
        value = changes[name]
        if name == "fault":
            values["fault"] = _faults(values["fault"], value)
            continue
        table, dot, key = SHORT.get(name, name).partition(".")
        if not dot or table not in values:
            raise ConfigError(f"{name!r} cannot be varied; use {', '.join(SHORT)}, fault, or table.key of the scenario")
        if isinstance(values[table], list):
            raise ConfigError(f"{name!r} cannot be varied: there may be several [[{table}]]; write another scenario")
        if key == "kind" and table in ("topology", "partition"):
            values[table] = dict(value) if isinstance(value, Mapping) else {"kind": value}
        else:
            values[table] = {**(values[table] or {}), key: value}
    if "topology.kind" in [SHORT.get(name, name) for name in changes]:
        _check_whole(values["topology"])
    return check_scenario(values, scenario.scenario.name)


def _faults(faults: list[dict[str, Any]], how: Any) -> list[dict[str, Any]]:
    """The faults with lies of another kind, or none of them. ConfigError where that changes nothing."""
    if not faults:
        raise ConfigError(f"fault={how} changes nothing in a scenario without faults; add a [[fault]] to it")
    if how == "none":
        return []
    if not any(fault["kind"] == "lying" for fault in faults):
        raise ConfigError(f'fault={how} says how sites lie, but no [[fault]] has kind = "lying"; add one')
    return [{**fault, "how": how} if fault["kind"] == "lying" else fault for fault in faults]


def _check_whole(topology: Mapping[str, Any]) -> None:
    """ConfigError for a graph that was varied by its name alone and needs options; says them as they are written."""
    kind = topology.get("kind")
    needed = sorted(KEYS.get(kind, frozenset()) if isinstance(kind, str) else ())
    missing = [key for key in needed if key not in topology]
    if not missing or not set(missing) <= EXAMPLES.keys():
        return  # what else is wrong with it, the topology says itself
    options = ", ".join(f"{key} = {topology.get(key, EXAMPLES.get(key))}" for key in needed)
    raise ConfigError(
        f"the topology {kind} needs {' and '.join(missing)}, too; write it as "
        f"--vary 'topology={{ kind = \"{kind}\", {options} }}', beside other topologies or alone"
    )


def read_variation(text: str) -> tuple[str, list[Any]]:
    """``topology=ring,full`` as its name and values; numbers, texts and TOML values, as well {kind = "star"}.

    Raises ConfigError.
    """
    name, equals, listed = text.partition("=")
    if not equals or not name.strip() or not listed.strip():
        raise ConfigError(f"--vary {text[:60]!r} varies nothing; write it as --vary topology=ring,full")
    values = [_value(item.strip()) for item in _items(listed)]
    if len(set(map(repr, values))) != len(values) or "" in values:
        raise ConfigError(f"--vary {text[:60]!r} names a value twice, or an empty one; give each once")
    return name.strip(), values


def _items(listed: str) -> list[str]:
    """The text's parts between commas, but for those inside brackets."""
    items, depth = [""], 0
    for letter in listed:
        depth += (letter in "[{") - (letter in "]}")
        if letter == "," and depth <= 0:
            items.append("")
        else:
            items[-1] += letter
    return items


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
