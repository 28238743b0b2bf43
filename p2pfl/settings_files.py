"""Settings that people write as TOML: read against pydantic tables, with one clear sentence for the first fault."""

from __future__ import annotations

import re
import tomllib
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from p2pfl.errors import P2PFLError

SHOWN = 60  # characters of a wrong value that an error repeats
_TYPE = re.compile(r"(int|float|str|bool|constrained-\w+|(list|dict|literal|function-\w+)\[.*\])$")


class Table(BaseModel):
    """One table of a settings file: unknown keys, other types and infinite numbers are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


Tables = TypeVar("Tables", bound=BaseModel)


def parse_tables(
    toml: bytes, tables: type[Tables], *, name: str, page: str, limit: int, error: type[P2PFLError]
) -> Tables:
    """The tables in the bytes of a settings file; ``name`` and ``page`` (of the manual) go into messages.

    Raises ``error`` with a sentence that names key, value and what is allowed.
    """
    if len(toml) > limit:
        raise error(f"{name} has {len(toml)} bytes; shorten it to {limit} at most")
    try:
        values = tomllib.loads(toml.decode("utf-8-sig"))  # some editors begin with a mark
    except UnicodeDecodeError as reason:
        raise error(f"{name} is not UTF-8 text; save it as UTF-8") from reason
    # ValueError: also numbers of more than 4300 digits; RecursionError: nested brackets
    except (ValueError, RecursionError) as reason:
        text = " ".join(str(reason).split())[:200] or "it is nested too deeply"
        raise error(f"{name} is not valid TOML: {text}; mend that place") from reason
    return check_tables(values, tables, name=name, page=page, error=error)


def check_tables(values: object, tables: type[Tables], *, name: str, page: str, error: type[P2PFLError]) -> Tables:
    """The same for values that are no text any more."""
    try:
        return tables.model_validate(values)
    except ValidationError as reason:
        # pydantic puts the errors of all fields first to last; one at a time is what a person can mend
        raise error(f"{name}: {_sentence(reason.errors(), tables, page)}") from reason


def _sentence(faults: list[ErrorDetails], tables: type[BaseModel], page: str) -> str:
    fault = faults[0]
    kind, context = fault["type"], fault.get("ctx", {})
    place = fault["loc"] if kind == "extra_forbidden" else _place(fault)
    where = ".".join(str(part)[:SHOWN] for part in place) or "the file"
    shown = repr(fault["input"])[:SHOWN]
    if kind == "missing":
        return f"{where} is missing; add it ({page} lists all keys)"
    if kind == "extra_forbidden":
        return f"{where} is not a known key; the known ones there are {_known_keys(fault['loc'], tables)}"
    if kind == "value_error":
        # what a whole table says about itself repeats no value
        return str(context["error"]) if isinstance(fault["input"], dict) else f"{where} is {shown}; {context['error']}"
    # one error for each of several types that a key may have
    wanted = [_wanted(other["type"], other.get("ctx", {}), page) for other in faults if _place(other) == place]
    inside = [other for other in faults if _place(other)[:-1] == place and isinstance(other["loc"][-1], int)]
    wanted += [f"a list, each of it {_wanted(other['type'], other.get('ctx', {}), page)}" for other in inside[:1]]
    return f"{where} is {shown}; write {' or '.join(dict.fromkeys(wanted))}"


def _place(fault: ErrorDetails) -> tuple[int | str, ...]:
    """Where the fault is, without the types that pydantic adds where a key may have several."""
    return tuple(part for part in fault["loc"] if not (isinstance(part, str) and _TYPE.match(part)))


def _wanted(kind: str, context: dict[str, Any], page: str) -> str:
    """What a key takes, from pydantic's error types (docs.pydantic.dev/latest/errors/validation_errors)."""
    simple = {
        "int_type": "a whole number",
        "float_type": "a number",
        "bool_type": "true or false",
        "finite_number": "a finite number",
        "string_type": "a text in quotes",
        "string_pattern_mismatch": f"a text that fits {context.get('pattern')}",
        "list_type": "a list",
        "string_too_short": "at least one character",
        "string_too_long": f"at most {context.get('max_length')} characters",
        "literal_error": str(context.get("expected")),
        "greater_than": f"a number above {context.get('gt')}",
        "greater_than_equal": f"a number of {context.get('ge')} or more",
        "less_than": f"a number below {context.get('lt')}",
        "less_than_equal": f"a number of {context.get('le')} or less",
    }
    return simple.get(kind, f"a table such as {page} shows")


def _known_keys(location: tuple[int | str, ...], tables: type[BaseModel]) -> str:
    model: type[BaseModel] = tables
    for part in location[:-1]:
        if isinstance(part, int):
            continue
        found = _table_in(model.model_fields[part].annotation)
        assert found is not None
        model = found
    return ", ".join(model.model_fields)


def _table_in(annotation: Any) -> type[BaseModel] | None:
    """The table that a field holds: itself, one of several, or of a list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((table for part in getattr(annotation, "__args__", ()) if (table := _table_in(part))), None)
