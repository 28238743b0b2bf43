"""Owns a plan as bytes: plan.py and plan.toml, the hash that sites approve, and the bundle that travels.

plan hash = SHA-256(frame("p2pfl/1/plan", "plan.py", source, "plan.toml", toml)), each part after its
length. The code is never run here and, when it comes from another member, not even parsed.
"""

from __future__ import annotations

import os
import symtable
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from p2pfl.crypto import pack, read_fields, sha256, unpack
from p2pfl.crypto.uvarint import frame
from p2pfl.errors import ConfigError, MalformedMessage, PlanError
from p2pfl.files import read_bounded
from p2pfl.governance.plan_settings import TOML_LIMIT, PlanSettings, parse_settings
from p2pfl.types import Digest

BUNDLE_LIMIT = 256 * 1024  # bytes of code and settings together; a plan is a few hundred lines
PLAN_CODE = "plan.py"
PLAN_SETTINGS = "plan.toml"
FUNCTIONS = ("model", "loss", "load")  # what plan.py must define (docs/plans.md)

_LABEL = b"p2pfl/1/plan"
_BUNDLE_FIELDS: dict[str, type | tuple[type, ...]] = {PLAN_CODE: bytes, PLAN_SETTINGS: bytes}


@dataclass(frozen=True, slots=True)
class Plan:
    """The exact bytes of a plan's two files, and what the second says."""

    source: bytes
    toml: bytes
    settings: PlanSettings

    @property
    def digest(self) -> Digest:
        """The plan hash; see the top of this module."""
        parts = (PLAN_CODE.encode(), self.source, PLAN_SETTINGS.encode(), self.toml)
        return sha256(frame(_LABEL, *parts))

    def bundle(self) -> bytes:
        """Both files as one msgpack map, 256 KiB at most. Raises PlanError when they are longer."""
        data = pack({PLAN_CODE: self.source, PLAN_SETTINGS: self.toml})
        if len(data) > BUNDLE_LIMIT:
            raise PlanError(
                f"the plan has {len(data)} bytes of code and settings; shorten it to {BUNDLE_LIMIT} at most"
            )
        return data

    def session_settings(self) -> dict[str, Any]:
        """What the worker's training session takes, as plain values."""
        return self.settings.session_settings()


def read_plan(folder: Path) -> Plan:
    """The plan in ``folder``. Raises ConfigError if a file cannot be read, PlanError for what it says."""
    if not os.path.isdir(folder):  # unlike Path.is_dir, no error for a name too long
        raise ConfigError(f"{folder} is not a folder; give the folder that holds {PLAN_CODE} and {PLAN_SETTINGS}")
    return plan_from_files(
        read_bounded(folder / PLAN_CODE, BUNDLE_LIMIT), read_bounded(folder / PLAN_SETTINGS, TOML_LIMIT)
    )


def plan_from_files(source: bytes, toml: bytes) -> Plan:
    """A plan of this site's own, from the bytes of its files. Raises PlanError."""
    check_source(source)
    plan = Plan(source, toml, parse_settings(toml))
    plan.bundle()
    return plan


def plan_from_bundle(data: bytes) -> Plan:
    """A plan that another member proposes. Raises LimitExceeded or MalformedMessage."""
    value = unpack(data, what="a proposed plan", limit=BUNDLE_LIMIT, max_items=len(_BUNDLE_FIELDS))
    fields = read_fields(value, "a proposed plan", _BUNDLE_FIELDS)
    plan_source, toml = fields[PLAN_CODE], fields[PLAN_SETTINGS]
    try:
        plan_source.decode("utf-8")
        settings = parse_settings(toml)
    except UnicodeDecodeError as error:
        raise MalformedMessage("a proposed plan's code is not UTF-8 text; ask the proposer to mend it") from error
    except PlanError as error:
        raise MalformedMessage(f"a proposed plan cannot be used: {error}") from error
    return Plan(plan_source, toml, settings)


def check_source(source: bytes) -> symtable.SymbolTable:
    """The names in a plan.py of our own. PlanError unless it compiles and defines model, loss and load."""
    try:
        text = source.decode("utf-8")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # doubtful escapes and the like are the plan's own business
            compile(text, PLAN_CODE, "exec", dont_inherit=True)
            table = symtable.symtable(text, PLAN_CODE, "exec")
    except UnicodeDecodeError as error:
        raise PlanError(f"{PLAN_CODE} is not UTF-8 text; save it as UTF-8") from error
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = getattr(error, "lineno", None)
        where = f"{PLAN_CODE}, line {line}" if line else PLAN_CODE
        reason = getattr(error, "msg", None) or str(error) or "nested too deeply"
        raise PlanError(f"{where} is not Python: {reason}; mend that line") from error
    missing = [name for name in FUNCTIONS if name not in defined_names(table)]
    if missing:
        raise PlanError(f"{PLAN_CODE} has no function {missing[0]}; write one as docs/plans.md describes")
    return table


def defined_names(table: symtable.SymbolTable) -> set[str]:
    """Names that the module itself binds: definitions, assignments, imports."""
    return {symbol.get_name() for symbol in table.get_symbols() if symbol.is_assigned() or symbol.is_imported()}
