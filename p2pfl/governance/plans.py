"""Plans: plan.py (plain torch) and plan.toml, and the hash a site approves.

plan hash = SHA-256 over labelled, length-framed code and settings, so that no byte can move from one to the other.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from p2pfl.crypto import pack, read_fields, sha256, unpack
from p2pfl.errors import ConfigError, PlanError, RemoteError
from p2pfl.types import Digest

BUNDLE_LIMIT = 256 * 1024  # bytes of code and settings together; a plan is a few hundred lines


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PlanTable(_Table):
    """[plan]"""

    name: str = Field(min_length=1, max_length=100)
    description: str = Field(default="", max_length=4000)


class DataTable(_Table):
    """[data]"""

    tag: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")


class TrainingTable(_Table):
    """[training]"""

    rule: str = "dpsgd"
    optimiser: dict[str, Any] = Field(default_factory=lambda: {"name": "sgd"})
    learning_rate: float = Field(gt=0, allow_inf_nan=False)
    local_steps: int = Field(default=1, ge=1, le=1_000_000)
    batch_size: int = Field(default=32, ge=1)
    rounds: int = Field(ge=1, le=1_000_000)
    closing_rounds: int = Field(default=5, ge=0, le=1000)
    deadline: float = Field(default=30.0, gt=0, le=86400)
    dtype: Literal["float32", "float64"] = "float32"
    batch_norm: Literal["private", "shared"] | None = None
    buffers: Literal["exclude", "share"] = "exclude"


class PlanSettings(_Table):
    """The whole of plan.toml."""

    plan: PlanTable
    data: DataTable
    training: TrainingTable
    topology: dict[str, Any] = Field(default_factory=lambda: {"kind": "ring"})

    def topology_spec(self) -> dict[str, Any]:
        """The graph as plain data."""
        return dict(self.topology)


@dataclass(frozen=True)
class Plan:
    """One plan: its code, its settings file, and the settings read from it."""

    source: bytes
    toml: bytes
    settings: PlanSettings

    @property
    def digest(self) -> Digest:
        """The plan hash that sites approve."""
        return sha256(pack(["p2pfl plan v1", "plan.py", self.source, "plan.toml", self.toml]))

    def bundle(self) -> bytes:
        """Code and settings as they travel with a proposal. Raises PlanError above 256 KiB."""
        data = pack({"plan.py": self.source, "plan.toml": self.toml})
        if len(data) > BUNDLE_LIMIT:
            raise PlanError(f"the plan has {len(data)} bytes, at most {BUNDLE_LIMIT} travel; keep data out of plan.py")
        return data

    def session_settings(self) -> dict[str, Any]:
        """The settings of a training session."""
        training = self.settings.training
        names = ("rule", "optimiser", "learning_rate", "local_steps", "batch_size", "dtype", "batch_norm", "buffers")
        return {name: getattr(training, name) for name in names}


def read_plan(folder: Path) -> Plan:
    """Read a plan folder. Raises PlanError or ConfigError in one sentence."""
    if not folder.is_dir():
        raise PlanError(f"{folder} is no folder; a plan is a folder with plan.py and plan.toml")
    parts = []
    for name in ("plan.py", "plan.toml"):
        path = folder / name
        try:
            with path.open("rb") as file:
                parts.append(file.read(BUNDLE_LIMIT + 1))
        except OSError as error:
            raise PlanError(f"couldn't read {path}: {error.strerror}; a plan has plan.py and plan.toml") from error
    plan = _plan(parts[0], parts[1], str(folder))
    plan.bundle()
    return plan


def plan_from_bundle(data: bytes) -> Plan:
    """The plan that came with a proposal. Raises RemoteError."""
    fields = read_fields(
        unpack(data, what="plan", limit=BUNDLE_LIMIT), "plan", {"plan.py": bytes, "plan.toml": bytes}
    )
    try:
        return _plan(fields["plan.py"], fields["plan.toml"], "proposed plan")
    except (ConfigError, PlanError) as error:
        raise RemoteError(f"proposal with an unusable plan: {error}") from error


def _plan(source: bytes, toml: bytes, where: str) -> Plan:
    try:
        compile(source, "plan.py", "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        raise PlanError(f"{where}: plan.py is not valid Python: {error}; mend it") from error
    try:
        settings = PlanSettings.model_validate(tomllib.loads(toml.decode("utf-8")))
    except UnicodeDecodeError as error:
        raise PlanError(f"{where}: plan.toml is not UTF-8 text; save it again") from error
    except tomllib.TOMLDecodeError as error:
        raise PlanError(f"{where}: plan.toml is not valid TOML: {error}; mend this line") from error
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        given = f", not {first['input']!r}" if first["type"] not in ("missing", "extra_forbidden") else ""
        raise PlanError(f"{where}: plan.toml: {key}: {first['msg']}{given}; mend this key") from error
    return Plan(source, toml, settings)
