"""Owns writing a plan folder from a notebook: the source of functions and classes, imports, settings.

What a function means must stand in the file that sites read and approve. So closures and lambdas are refused,
and so is every name that the written file would not define.
"""

from __future__ import annotations

import ast
import builtins
import json
import symtable
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from p2pfl.errors import PlanError
from p2pfl.files import write_atomic
from p2pfl.governance.plan_source import source_of
from p2pfl.governance.plans import (
    PLAN_CODE,
    PLAN_SETTINGS,
    Plan,
    check_source,
    defined_names,
    plan_from_files,
)

_MODULE_NAMES = frozenset({"__name__", "__file__", "__doc__", "__annotations__", "__spec__"})


def write_plan(
    folder: Path,
    *,
    model: Callable[..., Any],
    loss: Callable[..., Any],
    load: Callable[..., Any],
    metrics: Callable[..., Any] | None = None,
    helpers: Sequence[Callable[..., Any]] = (),
    imports: Sequence[str] = (),
    constants: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any],
    replace: bool = False,
) -> Plan:
    """Write plan.py and plan.toml into ``folder`` and return them as the plan they read back to.

    ``model`` is a class or a function; ``helpers`` are further functions and classes they use, in the order
    in which the file needs them; ``imports`` are import lines; ``constants`` plain values by name;
    ``settings`` the tables of plan.toml. Raises PlanError before anything is written, or StoreError.
    """
    roles = {"load": load, "model": model, "loss": loss}
    if metrics is not None:
        roles["metrics"] = metrics
    source = _source(roles, helpers, imports, constants or {})
    plan = plan_from_files(source, _toml(settings))
    _check_names(check_source(source))
    _prepare(folder, replace)
    write_atomic(folder / PLAN_CODE, plan.source)
    write_atomic(folder / PLAN_SETTINGS, plan.toml)
    return plan


def _prepare(folder: Path, replace: bool) -> None:
    if not replace and ((folder / PLAN_CODE).exists() or (folder / PLAN_SETTINGS).exists()):
        raise PlanError(f"{folder} already holds a plan; choose another folder or pass replace=True")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PlanError(f"couldn't make the folder {folder}: {error.strerror}; choose another one") from error


def _source(
    roles: Mapping[str, Callable[..., Any]],
    helpers: Sequence[Callable[..., Any]],
    imports: Sequence[str],
    constants: Mapping[str, Any],
) -> bytes:
    for line in imports:
        _check_import(line)
    written: dict[str, Callable[..., Any]] = {}
    blocks = ["\n".join(line.strip() for line in imports)] if imports else []
    blocks += ["\n".join(_constant(name, value) for name, value in constants.items())] if constants else []
    for thing in (*helpers, *roles.values()):
        name = str(getattr(thing, "__name__", ""))
        if written.get(name) is thing:
            continue
        if name in written:
            raise PlanError(f"two different things are called {name}; rename one of them")
        blocks.append(source_of(thing))
        written[name] = thing
    for role, thing in roles.items():
        if thing.__name__ != role:
            if role in written:
                raise PlanError(f"{role}={thing.__name__}, but another thing is called {role}; rename that one")
            blocks.append(f"{role} = {thing.__name__}")
    return ("\n\n\n".join(block.strip("\n") for block in blocks) + "\n").encode("utf-8")


def _check_import(line: str) -> None:
    try:
        statements = ast.parse(line.strip()).body
    except (SyntaxError, ValueError) as error:
        raise PlanError(f"imports has {line[:60]!r}, which is not Python; write for example 'import torch'") from error
    if not statements or not all(isinstance(one, (ast.Import, ast.ImportFrom)) for one in statements):
        raise PlanError(f"imports has {line[:60]!r}; write import lines only, values go into constants")


def _constant(name: str, value: Any) -> str:
    text = repr(value)
    try:
        same = name.isidentifier() and ast.literal_eval(text) == value
    except (ValueError, SyntaxError):  # arrays, models, infinities: their repr is no literal
        same = False
    if not same:
        raise PlanError(
            f"the constant {name} is not a plain value (number, text, tuple, list or dict of these); "
            "compute it inside the function that uses it"
        )
    return f"{name} = {text}"


def _check_names(table: symtable.SymbolTable) -> None:
    """Raise PlanError for the first name that no line of the file defines. symtable knows Python's scopes."""
    defined = defined_names(table) | set(dir(builtins)) | _MODULE_NAMES
    for owner, name in _global_names(table):
        if name not in defined:
            raise PlanError(
                f"{owner} uses the name {name}, which the plan's file would not define; "
                f"pass it in imports, helpers or constants, or move it into {owner}"
            )


def _global_names(table: symtable.SymbolTable, owner: str = PLAN_CODE) -> Iterator[tuple[str, str]]:
    for symbol in table.get_symbols():
        top = table.get_type() == "module"
        if symbol.is_referenced() and (symbol.is_global() or (top and not symbol.is_assigned())):
            yield owner, symbol.get_name()
    for child in table.get_children():
        yield from _global_names(child, child.get_name() if owner == PLAN_CODE else owner)


def _toml(settings: Mapping[str, Any]) -> bytes:
    lines: list[str] = []
    for table, values in settings.items():
        if not isinstance(values, Mapping):
            raise PlanError(f"settings: {table} is {values!r:.60}; give a table, such as {{'name': ...}}")
        lines.append(f"[{_key(table)}]")
        lines += [f"{_key(key)} = {_value(key, value)}" for key, value in values.items() if value is not None]
        lines.append("")
    return "\n".join(lines).encode("utf-8")


def _key(key: Any) -> str:
    return _quoted(str(key)) if not str(key).isidentifier() or not str(key).isascii() else str(key)


def _value(key: str, value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)  # repr of a float is valid TOML, inf and nan included
    if isinstance(value, str):
        return _quoted(value)
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_value(key, item) for item in value) + "]"
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_key(name)} = {_value(key, item)}" for name, item in value.items()) + " }"
    raise PlanError(f"settings: {key} is of type {type(value).__name__}; give a number, text, list or dict")


def _quoted(text: str) -> str:
    """A TOML basic string: JSON's escapes are TOML's, but for DEL, which JSON leaves alone."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
