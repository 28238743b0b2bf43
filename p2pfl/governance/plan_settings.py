"""Owns plan.toml: its tables, what each value may be, and one clear sentence for each that is not."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from p2pfl.errors import PlanError
from p2pfl.governance.rule_limits import (
    LIMITS,
    closing_problem,
    delays_problem,
    directed_problem,
    numbers_problem,
    statistics_problem,
    steps_problem,
    varying_problem,
    walking_problem,
    weights_problem,
)
from p2pfl.governance.topologies import (
    CHANGING,
    DEFAULT_TOPOLOGY,
    accelerated,
    by_shares,
    directed,
    topology_problem,
    walks,
)
from p2pfl.settings_files import SHOWN, Table, parse_tables
from p2pfl.types import CATCH_UP_ROUNDS

WALK_CLOSES = 3  # closing rounds: nothing came, it is taken back, all get it
TOML_LIMIT = 64 * 1024  # bytes; the longest list of edges (2016 pairs) takes 24 KiB
TAG_FORM = "1 to 64 of a-z, 0-9, '.', '_' and '-', beginning with a letter or digit"
MAX_ROUNDS = 100_000
MAX_CLOSING_ROUNDS = 1000  # gossip refuses proposals with more
MAX_STALENESS = 8  # gossip refuses more
DEFAULT_STALENESS = 2
MAX_DEADLINE = 24 * 3600.0  # seconds; gossip refuses more: nobody waits longer than a day for one round
MAX_CATCH_UP_ROUNDS = 1000  # gossip refuses more

_TAG = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_OPTIONS = {"sgd": set[str](), "momentum": {"beta"}, "adam": {"beta1", "beta2", "epsilon"}}

Count = Annotated[int, Field(ge=1, le=1_000_000_000)]
Unit = Annotated[float, Field(ge=0, lt=1)]


class PlanTable(Table):
    """``[plan]``: what people read in lists of proposals."""

    name: str = Field(min_length=1, max_length=64)
    description: str = Field(default="", max_length=2000)

    @field_validator("name")
    @classmethod
    def _printable(cls, name: str) -> str:
        if not name.isprintable():
            raise ValueError("write a plain name without control characters")
        return name


class DataTable(Table):
    """``[data]``: the tag of the dataset that each site grants."""

    tag: str

    @field_validator("tag")
    @classmethod
    def _tag_form(cls, tag: str) -> str:
        if not _TAG.fullmatch(tag):
            raise ValueError(f"write {TAG_FORM}")
        return tag


class OptimiserTable(Table):
    """``optimiser``: the local optimiser and its options."""

    name: Literal["sgd", "momentum", "adam"] = "sgd"
    beta: Unit | None = None
    beta1: Unit | None = None
    beta2: Unit | None = None
    epsilon: Annotated[float, Field(gt=0, lt=1)] | None = None

    @model_validator(mode="after")
    def _own_options(self) -> OptimiserTable:
        foreign = sorted(self.model_fields_set - _OPTIONS[self.name] - {"name"})
        if foreign:
            allowed = ", ".join(sorted(_OPTIONS[self.name])) or "none"
            raise ValueError(f"{self.name} has no option {foreign[0]}; its options are: {allowed}")
        return self


class TrainingTable(Table):
    """``[training]``: the update rule, the local steps, how many rounds and how long one may take."""

    rule: Literal[
        "dpsgd", "fedprox", "kgt", "quasi_global", "exact_diffusion", "gradient_tracking", "relaysgd", "sgp", "cyclic"
    ]
    rule_settings: dict[str, float] = Field(default={}, max_length=8)  # the rule's own numbers
    optimiser: OptimiserTable = OptimiserTable()
    learning_rate: float = Field(gt=0)
    local_steps: Count
    batch_size: Count
    rounds: int = Field(ge=1, le=MAX_ROUNDS)
    closing_rounds: int = Field(default=5, ge=0, le=MAX_CLOSING_ROUNDS)
    tolerance: float | None = Field(default=None, gt=0)  # of the distances at the end, in parameter units
    dtype: Literal["float32", "float64"] = "float32"
    batch_norm: Literal["private", "shared"] | None = None
    buffers: Literal["exclude", "share"] | None = None
    catch_up_rounds: int = Field(default=CATCH_UP_ROUNDS, ge=1, le=MAX_CATCH_UP_ROUNDS)
    deadline: float = Field(default=30.0, gt=0, le=MAX_DEADLINE)  # seconds a round waits for a neighbour at most
    policy: Literal["synchronous", "asynchronous"] = "synchronous"
    staleness: Annotated[int, Field(ge=1, le=MAX_STALENESS)] | None = None  # own rounds; only if asynchronous
    steps_range: Annotated[list[Count], Field(min_length=2, max_length=2)] | None = None  # what sites may choose from

    @property
    def late_rounds(self) -> int:
        """Own rounds that an edge may be mixed late; 0 in synchronous runs."""
        return 0 if self.policy == "synchronous" else self.staleness or DEFAULT_STALENESS

    @property
    def allowed_steps(self) -> tuple[int, int]:
        """The fewest and the most local steps that a site may take in a round."""
        low, high = self.steps_range or (self.local_steps, self.local_steps)
        return low, high

    @model_validator(mode="after")
    def _range_fits(self) -> TrainingTable:
        if self.steps_range is not None and self.policy == "synchronous":
            raise ValueError(
                'steps_range is for policy = "asynchronous" only: in synchronous rounds all sites take local_steps'
            )
        low, high = self.allowed_steps
        if not low <= self.local_steps <= high:
            raise ValueError(f"steps_range is {self.steps_range}; write [fewest, most] with local_steps between them")
        return self

    @model_validator(mode="after")
    def _policy_fits(self) -> TrainingTable:
        if self.policy == "synchronous" and self.staleness is not None:
            raise ValueError('staleness is for policy = "asynchronous" only; leave it out, or choose that policy')
        return self

    @model_validator(mode="after")
    def _rule_fits(self) -> TrainingTable:
        problem = numbers_problem(self.rule, self.rule_settings)
        problem = problem or steps_problem(self.rule, self.optimiser.name, self.allowed_steps[1])
        if self.policy == "asynchronous":
            problem = problem or delays_problem(self.rule)
        if self.batch_norm == "shared" or self.buffers == "share":
            problem = problem or statistics_problem(self.rule)
        if problem:
            raise ValueError(problem)
        return self


class ArgumentsTable(Table):
    """``[arguments]``: what the proposer may change while the run is under way, each with lowest and highest value."""

    learning_rate: Annotated[list[float], Field(min_length=2, max_length=2)] | None = None
    local_steps: Annotated[list[Count], Field(min_length=2, max_length=2)] | None = None
    batch_size: Annotated[list[Count], Field(min_length=2, max_length=2)] | None = None

    @field_validator("learning_rate", "local_steps", "batch_size")
    @classmethod
    def _lowest_first(cls, bounds: list[float] | None) -> list[float] | None:
        if bounds is not None and not 0 < bounds[0] <= bounds[1]:
            raise ValueError("write the lowest value above 0, then the highest, such as [0.01, 0.1]")
        return bounds


class PlanSettings(Table):
    """All of plan.toml."""

    plan: PlanTable
    data: DataTable
    topology: dict[str, Any] | None = None
    training: TrainingTable
    arguments: ArgumentsTable = ArgumentsTable()

    @model_validator(mode="after")
    def _inside(self) -> PlanSettings:
        begins = {name: getattr(self.training, name) for name in ArgumentsTable.model_fields}
        for name, value in begins.items():
            bounds = getattr(self.arguments, name)
            if bounds is not None and not bounds[0] <= value <= bounds[1]:
                raise ValueError(f"[arguments] {name} is {bounds}, and [training] begins with {value}; include it")
        return self

    def argument_problem(self, arguments: Mapping[str, int | float]) -> str | None:
        """What is wrong with new values of arguments in a run of this plan; None if they lie within its ranges."""
        allowed = {name: bounds for name, bounds in self.arguments.model_dump().items() if bounds is not None}
        if not arguments:
            return "no argument is given; name at least one, such as learning_rate=0.05"
        for name, value in arguments.items():
            if name not in allowed:
                known = ", ".join(sorted(allowed)) or "nothing"
                return f"the approved plan does not let {name[:SHOWN]} change; it allows: {known}"
            low, high = allowed[name]
            if name != "learning_rate" and type(value) is not int:
                return f"{name} is {value}; write a whole number"
            if not low <= value <= high:
                return f"{name} = {value} is outside the approved range of {low} to {high}"
        return None

    @property
    def newcomer_problem(self) -> str | None:
        """Why no member can join a run of this plan that has begun; None if they can."""
        reason = LIMITS[self.training.rule].no_newcomers
        return f"rule {self.training.rule} takes nobody in later: {reason}" if reason else None

    @property
    def halved(self) -> bool:
        """Whether the rule mixes with (I + W) / 2, also in closing rounds."""
        return LIMITS[self.training.rule].halved

    def graph_problem(self, sites: int, edges: int, spec: Mapping[str, Any]) -> str | None:
        """Why the rule does not go with a topology, whose connected graph has so many sites and (undirected) edges;
        None if it does."""
        problem = self._mixing_problem(spec)
        if problem:
            return problem
        if not LIMITS[self.training.rule].tree or edges == sites - 1:
            return None
        return (
            f"rule {self.training.rule} needs a tree, and {edges} edges between {sites} sites make cycles; "
            f"choose the topology chain or star, or edges that are a tree, or another rule"
        )

    @field_validator("topology")
    @classmethod
    def _topology_form(cls, topology: dict[str, Any] | None) -> dict[str, Any] | None:
        problem = None if topology is None else topology_problem(topology)
        if problem:
            raise ValueError(problem)
        return topology

    def topology_spec(self) -> dict[str, Any]:
        """The plan's topology; a ring where it has no ``[topology]``."""
        return dict(DEFAULT_TOPOLOGY if self.topology is None else self.topology)

    @model_validator(mode="after")
    def _one_mixing(self) -> PlanSettings:
        spec = self.topology_spec()
        kind = spec.get("kind")
        if self.training.late_rounds and kind in CHANGING:
            raise ValueError(
                f'policy = "asynchronous" mixes once per round on one graph, and that of the topology {kind} changes; '
                "choose another topology or the synchronous policy"
            )
        problem = self._mixing_problem(spec)
        if problem:
            raise ValueError(problem)
        return self

    def _mixing_problem(self, spec: Mapping[str, Any]) -> str | None:
        rule = self.training.rule
        problem = walking_problem(rule, walks=walks(spec))
        if not problem and walks(spec) and self.training.closing_rounds < WALK_CLOSES:
            return (
                f"closing_rounds is {self.training.closing_rounds}, and a model that walks needs {WALK_CLOSES}: what "
                f"was lost on the last way is taken back first; write {WALK_CLOSES} or more, or leave it out"
            )
        problem = problem or (directed_problem(rule) if directed(spec) else None)
        problem = problem or (varying_problem(rule) if spec.get("kind") in CHANGING else None)
        problem = problem or (None if by_shares(spec) else weights_problem(rule))
        if problem or not accelerated(spec):
            return problem
        if self.training.late_rounds:
            return (
                'policy = "asynchronous" closes plainly, since a site may still train while the others close; choose '
                'closing = "plain" or the synchronous policy'
            )
        return closing_problem(rule)

    @model_validator(mode="after")
    def _steps_later(self) -> PlanSettings:
        most = (self.arguments.local_steps or [self.training.local_steps])[-1]
        problem = steps_problem(self.training.rule, self.training.optimiser.name, most)
        if problem:
            raise ValueError(problem)
        return self

    def session_settings(self) -> dict[str, Any]:
        """What the worker's training session takes, as plain values."""
        training = self.training
        values: dict[str, Any] = {
            "rule": training.rule,
            "optimiser": training.optimiser.model_dump(exclude_none=True),
            "learning_rate": training.learning_rate,
            "local_steps": training.local_steps,
            "batch_size": training.batch_size,
            "dtype": training.dtype,
        }
        if training.rule_settings:
            values["rule_settings"] = dict(training.rule_settings)
        if training.late_rounds:
            values["staleness"] = training.late_rounds
        for name in ("batch_norm", "buffers"):
            if getattr(training, name) is not None:
                values[name] = getattr(training, name)
        return values


def parse_settings(toml: bytes) -> PlanSettings:
    """The settings in the bytes of a plan.toml. Raises PlanError that names key, value and allowed."""
    return parse_tables(
        toml, PlanSettings, name="plan.toml", page="docs/governance.md", limit=TOML_LIMIT, error=PlanError
    )
