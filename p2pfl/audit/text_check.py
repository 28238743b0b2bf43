"""Checking the texts beside a log: each is the one that was signed, or an entry says that it was erased."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from p2pfl.audit.kinds import Kind
from p2pfl.audit.texts import SALT_SIZE, marks, salted_digest

MAX_GONE = 100_000
"""Texts that may be missing before the entry that says so is reached: a hostile file must not fill the memory."""


class TextCheck:
    """One pass over entries with the rows (field, salt, text) beside each of them."""

    def __init__(self) -> None:
        self._gone: dict[tuple[int, str], None] = {}

    def entry(self, number: int, kind: str, fields: Mapping[str, Any], rows: Sequence[tuple[Any, ...]]) -> str | None:
        """What is wrong beside this entry, or None."""
        signed = marks(kind, fields)
        for name, salt, text in rows:
            if type(name) is not str or name not in signed:
                return f"text of entry {number}: no field of the entry names it"
            sound = type(salt) is bytes and len(salt) == SALT_SIZE and type(text) is str
            if not sound or salted_digest(salt, text) != signed.pop(name):
                return f"text {name} of entry {number}: it is not the one that was signed"
        for name in signed:
            self._gone[(number, name)] = None
        if len(self._gone) > MAX_GONE:
            return f"text of entry {number}: more than {MAX_GONE} texts are missing"
        return self._erased(number, fields) if kind == Kind.TEXT_ERASED else None

    def _erased(self, number: int, fields: Mapping[str, Any]) -> str | None:
        named = fields.get("entries")
        for row in named if isinstance(named, list) else ():
            match row:
                case [int(entry), str(name)] if (entry, name) in self._gone:
                    del self._gone[(entry, name)]
                case _:
                    return f"entry {number}: it says that a text was erased which is there, or never was"
        return None

    def end(self, rows: Sequence[tuple[Any, ...]]) -> str | None:
        """After the last entry: rows that belong to none, and texts of which nobody says that they were erased."""
        if rows:
            return "text of an entry that is not there"
        for number, name in self._gone:
            return f"text {name} of entry {number}: missing, and no entry says that it was erased"
        return None
