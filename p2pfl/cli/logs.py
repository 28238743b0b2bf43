"""Logs that a command line names: a home, or a database or an export without one; opened, checked, and read."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from p2pfl.audit import (
    Entry,
    LogFacts,
    Verification,
    gather_sources,
    is_cut_off,
    is_database,
    is_source,
    is_table,
    read_source,
    verify_source,
)
from p2pfl.cli.proofs import owner_of, whole_charter
from p2pfl.crypto import log_origin
from p2pfl.errors import ConfigError
from p2pfl.governance import fingerprint
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


def find_log(place: Path) -> NamedLog:
    """The log in a home folder, in a file, or in a folder of tiles. Raises ConfigError."""
    if is_table(place):
        raise ConfigError(f"{place} is an export in csv, which is for reading alone; export the log again as json")
    if is_source(place):
        return NamedLog(place, None, None, {})
    if is_cut_off(place):
        raise ConfigError(f"the tiles in {place} have no checkpoint: their export was cut off; export the log again")
    home = open_home(place)
    if home.audit.is_file() and not is_database(home.audit):
        raise ConfigError(f"{home.audit} is an export and no log of this home; restore the home from a backup")
    peer, origin, names = home.member().peer_id, None, {}
    with contextlib.suppress(ConfigError):  # a log is checked without a charter, too: it can then say no wrong name
        charter = home.charter()
        names = {str(member.peer_id): member.name for member in charter.members}
        origin = log_origin(charter.name, peer)
    return NamedLog(home.audit, peer, origin, names)


CharterOption = Annotated[
    Path | None,
    typer.Option("--charter", help="Each log must be a member's of this charter; names are taken from it."),
]


@dataclass(frozen=True, slots=True)
class GivenLogs:
    """Several logs, each verified: where they were found, what they say, and what their owners are called."""

    named: list[NamedLog]
    logs: list[LogFacts]
    names: dict[str, str]
    fingerprint: str | None  # of the charter; None without one

    def whose_names(self) -> str:
        """For people: who says that these logs are those of the hospitals named."""
        if self.fingerprint is not None:
            return f"charter      {self.fingerprint}"
        return (
            "names        are the logs' and homes' own; with --charter they, and who may own a log, are the charter's"
        )


def read_logs(places: list[Path], charter_file: Path | None) -> GivenLogs:
    """Verify and read each log. Raises StoreError for one that does not hold, ConfigError for a stranger's."""
    charter = None if charter_file is None else whole_charter(charter_file)
    named = [find_log(place) for place in places]
    logs = gather_sources((item.path, item.peer, item.origin) for item in named)
    if charter is not None:
        for log in logs:
            owner_of(log.origin, log.peer, charter)
        names = {str(member.peer_id): member.name for member in charter.members}
        return GivenLogs(named, logs, names, fingerprint(charter))
    names = {log.peer: log.name for log in logs if log.name}
    for item in named:
        names.update(item.names)
    return GivenLogs(named, logs, names, None)
