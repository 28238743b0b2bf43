"""Logs that a command line names: a home, or a database without one; opened, checked, and read."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from p2pfl.audit import Entry, Verification, read_entries, verify_log
from p2pfl.crypto import log_origin
from p2pfl.errors import ConfigError
from p2pfl.peer import open_home


@dataclass(frozen=True, slots=True)
class NamedLog:
    """One log and what is known of it from outside: its owner, its origin, and the members' names."""

    path: Path
    peer: str | None
    origin: str | None
    names: dict[str, str]

    def verify(self) -> Verification:
        """Check the whole log."""
        return verify_log(self.path, self.peer, self.origin)

    def entries(self) -> Iterator[Entry]:
        """All entries, oldest first; checks nothing."""
        return read_entries(self.path)


def find_log(place: Path) -> NamedLog:
    """The log in a home folder, or in a file. Raises ConfigError."""
    if place.is_file():
        return NamedLog(place, None, None, {})
    home = open_home(place)
    peer, origin, names = home.member().peer_id, None, {}
    with contextlib.suppress(ConfigError):  # a log is checked without a charter, too: it can then say no wrong name
        charter = home.charter()
        names = {str(member.peer_id): member.name for member in charter.members}
        origin = log_origin(charter.name, peer)
    return NamedLog(home.audit, peer, origin, names)
