"""Logs that a command line names: a home, or a database or an export without one; opened, checked, and read."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from p2pfl.audit import Entry, LogFacts, Verification, gather_source, is_database, is_source, read_source, verify_source
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

    @property
    def is_database(self) -> bool:
        """Whether it is a log's own file, of which any entry can be proved; else it is an export."""
        return is_database(self.path)

    def verify(self, progress: Callable[[int, int], None] = lambda done, of: None) -> Verification:
        """Check the whole log; ``progress`` hears now and then how many entries are done, of how many."""
        return verify_source(self.path, self.peer, self.origin, progress)

    def entries(self, start: int = 0, kind: str | None = None) -> Iterator[Entry]:
        """The entries from a position on, of one kind or of all, oldest first; checks nothing."""
        return read_source(self.path, start, kind)

    def facts(self) -> LogFacts:
        """What it says of each run, after checking the whole log. Raises StoreError if it does not hold."""
        return gather_source(self.path, self.peer, self.origin)


def find_log(place: Path) -> NamedLog:
    """The log in a home folder, in a file, or in a folder of tiles. Raises ConfigError."""
    if is_source(place):
        return NamedLog(place, None, None, {})
    home = open_home(place)
    peer, origin, names = home.member().peer_id, None, {}
    with contextlib.suppress(ConfigError):  # a log is checked without a charter, too: it can then say no wrong name
        charter = home.charter()
        names = {str(member.peer_id): member.name for member in charter.members}
        origin = log_origin(charter.name, peer)
    return NamedLog(home.audit, peer, origin, names)
