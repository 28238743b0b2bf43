"""Owns finding the source text of a function or class, also one that was typed into a notebook."""

from __future__ import annotations

import ast
import inspect
import linecache
import textwrap
from types import FunctionType
from typing import Any

from p2pfl.errors import PlanError


def source_of(thing: Any) -> str:
    """The source of a function or class, decorators included, without indentation.

    Raises PlanError for lambdas, closures, builtins, callable objects, and where no source can be found.
    """
    name = str(getattr(thing, "__name__", type(thing).__name__))
    if not isinstance(thing, (FunctionType, type)):
        raise PlanError(f"{name} is neither a function nor a class; wrap it in a function with def")
    if name == "<lambda>":
        raise PlanError("a lambda has no name to approve it by; write it as a function with def")
    for function in _functions(thing):
        # __class__ is the cell that Python itself makes for super()
        free = [variable for variable in function.__code__.co_freevars if variable != "__class__"]
        if free:
            raise PlanError(
                f"{name} uses {free[0]} of the function around it, which the plan's file would not have; "
                "define it at the top level and pass what it needs in constants or helpers"
            )
    return _class_source(thing) if isinstance(thing, type) else _function_source(thing)


def _functions(thing: Any) -> list[FunctionType]:
    """The function itself, or all functions a class defines; of decorated ones, what stands in the source."""
    values = [thing] if isinstance(thing, FunctionType) else list(vars(thing).values())
    parts = [part for value in values for part in _parts(value)]
    unwrapped = [inspect.unwrap(part) for part in parts if isinstance(part, FunctionType)]
    return [function for function in unwrapped if isinstance(function, FunctionType)]


def _parts(value: Any) -> tuple[Any, ...]:
    if isinstance(value, property):
        return (value.fget, value.fset, value.fdel)
    return (value.__func__,) if isinstance(value, (classmethod, staticmethod)) else (value,)


def _function_source(function: FunctionType) -> str:
    try:
        return textwrap.dedent(inspect.getsource(function))
    except (OSError, TypeError) as error:
        raise _no_source(function.__name__) from error


def _class_source(cls: type) -> str:
    """inspect finds a class through its module's file, which a notebook has not; its methods know better."""
    for function in _functions(cls):
        if not function.__qualname__.startswith(cls.__qualname__ + "."):
            continue
        file, line = function.__code__.co_filename, function.__code__.co_firstlineno
        text = "".join(linecache.getlines(file))
        found = _class_around(text, cls.__name__, line)
        if found:
            return found
    try:
        return textwrap.dedent(inspect.getsource(cls))
    except (OSError, TypeError) as error:
        raise _no_source(cls.__name__) from error


def _class_around(text: str, name: str, line: int) -> str | None:
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):  # a cell with magic commands
        return None
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and node.name == name and node.lineno <= line <= (node.end_lineno or 0):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            return textwrap.dedent("\n".join(text.splitlines()[first - 1 : node.end_lineno]))
    return None


def _no_source(name: str) -> PlanError:
    return PlanError(f"the source of {name} cannot be found; define it in a file or a notebook cell and run that")
