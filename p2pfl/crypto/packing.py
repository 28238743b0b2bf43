"""Owns msgpack: how our values become bytes, and how foreign bytes become values within stated limits.

msgpack is not canonical (map order is free, over-long integers are accepted), so nothing is ever verified
by packing again: signatures and digests cover the received bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn

import msgpack

from p2pfl.errors import IllegalStep, LimitExceeded, MalformedMessage

MAX_DEPTH = 16
"""Nested arrays and maps. Our deepest message (a start record inside an envelope) needs 6."""

_SHOWN_CHARACTERS = 80
"""How much of a foreign text an error message repeats: logs must not grow by what strangers send."""

_CONTAINERS = (dict, list)  # exactly these come out of the decoder
_PLAIN = frozenset({type(None), bool, int, float, str, bytes})  # and these, beside extension types
_SHORT_MAP = 0x80  # first byte of a map of up to 15 pairs: 0x80 and their number

_UPDATE_HINT = "ask the sender's site to check its version"


def pack(value: object) -> bytes:
    """The value as msgpack bytes; text and binary stay apart (``use_bin_type``).

    Takes None, bool, int (64 bits), float, str, bytes and lists, tuples, dicts of these; tuples come
    back as lists. Raises IllegalStep for anything else, which is a bug in the caller.
    """
    return packer()(value)


def packer() -> Callable[[object], bytes]:
    """`pack` for many values, one after the other in one thread: making its buffer costs more than a short value."""
    encode = msgpack.Packer(use_bin_type=True).pack

    def pack_next(value: object) -> bytes:
        try:
            return bytes(encode(value))
        except (TypeError, ValueError, OverflowError) as error:
            raise IllegalStep(
                f"a value of type {type(value).__name__} cannot be packed ({error}); "
                "convert it to plain numbers, text, bytes, lists and dicts first"
            ) from error

    return pack_next


def unpack(data: bytes, *, what: str, limit: int, max_items: int = 4096) -> Any:
    """The value in ``data``, which comes from outside.

    ``what`` names the message in errors; ``limit`` is the largest accepted length in bytes; ``max_items``
    the largest length of any single array or map. Memory while decoding stays below
    1024 (the decoder's own depth) x max_items x 8 bytes, 32 MiB by default.

    Raises LimitExceeded when ``data`` is too long, MalformedMessage for everything else: truncated or
    trailing bytes, extension types and timestamps, duplicate map keys, keys that are neither text nor
    bytes, invalid UTF-8, too many items, depth above MAX_DEPTH. Floats may be infinite or NaN.
    """
    if len(data) > limit:
        raise LimitExceeded(
            f"{what} has {len(data)} bytes, more than the {limit} allowed; "
            "the sender's site must send less or the charter must raise the limit"
        )
    try:
        value = _decoded(data, limit, max_items, object_pairs_hook=_mapping, ext_hook=_refuse_extension)
    # every failure of the decoder is one of these: ExtraData, FormatError and StackError are ValueErrors
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        reason = str(error)[:_SHOWN_CHARACTERS] or type(error).__name__
        raise MalformedMessage(f"{what} cannot be decoded ({reason}); {_UPDATE_HINT}") from error
    _check_depth(value, what)
    return value


def unpack_short_map(data: bytes, *, limit: int, max_items: int = 4096) -> dict[Any, Any] | None:
    """What `unpack` returns for ``data``, if that is a map of at most 15 plain values and lists; None if it is not.

    The lists hold plain values, or lists of them. None says nothing of the data: `unpack` may take or refuse it.
    Half the time of `unpack`, for nothing of ours is called while decoding.
    """
    if not 0 < len(data) <= limit or data[0] & 0xF0 != _SHORT_MAP:
        return None
    try:
        found: dict[Any, Any] = _decoded(data, limit, max_items)
    except (ValueError, TypeError, msgpack.UnpackException):
        return None
    if len(found) != data[0] & 0x0F:  # a key that was named twice is there once
        return None
    for value in found.values():
        if type(value) in _PLAIN or _is_plain_list(value):
            continue
        if type(value) is not list or not all(type(item) in _PLAIN or _is_plain_list(item) for item in value):
            return None
    return found


def _decoded(data: bytes, limit: int, max_items: int, **hooks: Any) -> Any:
    """The decoder with all its limits: both ways of reading take and refuse the same."""
    size = len(data)
    # an item takes at least one byte: a short message cannot make the decoder reserve a long list
    items = size if size < max_items else max_items
    return msgpack.unpackb(
        data,
        raw=False,
        strict_map_key=True,
        max_str_len=limit,
        max_bin_len=limit,
        max_array_len=items,
        max_map_len=items,
        max_ext_len=0,
        **hooks,
    )


def _is_plain_list(value: Any) -> bool:
    return type(value) is list and _PLAIN.issuperset(map(type, value))


def read_fields(value: Any, what: str, spec: Mapping[str, type | tuple[type, ...]]) -> dict[str, Any]:
    """The fields of a decoded map, in the order of ``spec``, after checking names and types.

    The set of keys must be exactly that of ``spec``. A bool is not an int, and an int is not a float: write
    ``(int, float)`` where both are meant, ``type(None)`` where a field may be empty. Raises MalformedMessage.
    """
    if not isinstance(value, dict):
        raise MalformedMessage(f"{what} is not a map of fields; {_UPDATE_HINT}")
    if value.keys() != spec.keys():
        missing = _names(spec.keys() - value.keys())
        unknown = _names(value.keys() - spec.keys())
        raise MalformedMessage(f"{what} has wrong fields (missing: {missing}; unknown: {unknown}); {_UPDATE_HINT}")
    for name, wanted in spec.items():
        allowed = wanted if isinstance(wanted, tuple) else (wanted,)
        if type(value[name]) not in allowed:
            expected = " or ".join(kind.__name__ for kind in allowed)
            found = type(value[name]).__name__
            raise MalformedMessage(f"{what}: field {name} is {found}, not {expected}; {_UPDATE_HINT}")
    return {name: value[name] for name in spec}


def _mapping(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    mapping = dict(pairs)
    if len(mapping) != len(pairs):
        # readers differ on which one wins, so a duplicate could mean two things to two members
        raise ValueError("a map names one key twice")
    return mapping


def _refuse_extension(code: int, data: bytes) -> NoReturn:
    raise ValueError("extension types are not used here")


def _check_depth(value: Any, what: str) -> None:
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [
            inner
            for outer in level
            if type(outer) in _CONTAINERS  # asked here and not in a function: logs are made of many small values
            for inner in (outer.values() if type(outer) is dict else outer)
        ]
        if not level:
            return
    raise MalformedMessage(f"{what} is nested deeper than {MAX_DEPTH} levels; {_UPDATE_HINT}")


def _names(keys: Iterable[Any]) -> str:
    text = ", ".join(sorted(repr(key)[:_SHOWN_CHARACTERS] for key in keys)) or "none"
    return text[: 4 * _SHOWN_CHARACTERS]
