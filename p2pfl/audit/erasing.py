"""Erasing free text from beside a log, with an entry that says which, not what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from p2pfl.audit.format import NewEntry
from p2pfl.audit.kinds import Kind
from p2pfl.audit.log import AuditLog
from p2pfl.errors import ConfigError

AT_ONCE = 1000
"""Texts that one entry names: its body has at most 64 KiB."""


@dataclass(frozen=True, slots=True)
class Erased:
    """What was erased, as (entry, field), and whether no copy stays in the files of the log."""

    texts: tuple[tuple[int, str], ...]
    wiped: bool


def erase_texts(log: AuditLog, positions: Sequence[int] | range, now_ms: int, field: str | None = None) -> Erased:
    """Erase the texts of these entries, or one field of them, and write down which.

    The entry and the erasure are one transaction. Raises ConfigError when there is nothing to erase, StoreError.
    """
    wanted = set(positions)
    found = [(entry, name) for entry, name in log.texts() if entry in wanted and field in (None, name)]
    if not found:
        raise ConfigError("none of these entries has free text that is still there; `p2pfl audit show` says what has")
    for start in range(0, len(found), AT_ONCE):
        part = found[start : start + AT_ONCE]
        body = {"entries": [list(row) for row in part]}
        log.append([NewEntry(Kind.TEXT_ERASED, body)], now_ms, erase=part)
    return Erased(tuple(found), log.wipe())
