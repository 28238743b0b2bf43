"""`p2pfl audit erase`: take free text away from beside a log; the log itself stays whole."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from p2pfl.audit import AuditLog, copies_of, erase_texts, moment, read_entries
from p2pfl.cli.home import AsJson
from p2pfl.cli.output import note, passphrase, show
from p2pfl.crypto import is_sealed
from p2pfl.errors import ConfigError
from p2pfl.peer import open_home

OWN_NAME = "name"  # of the site itself: charter, settings and records of the home have it by design


def erase(
    place: Annotated[Path, typer.Argument(help="A home folder.", metavar="HOME")],
    position: Annotated[int | None, typer.Argument(help="The entry whose text goes.", metavar="[ENTRY]")] = None,
    before: Annotated[str | None, typer.Option("--before", help="All older entries: a date (UTC).")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All entries.")] = False,
    field: Annotated[str | None, typer.Option("--field", help="Only this field, such as reason.")] = None,
    passphrase_file: Annotated[Path | None, typer.Option("--passphrase-file", help="File with the passphrase.")] = None,
    as_json: AsJson = False,
) -> None:
    """Erase free text (names, reasons) of entries; an entry says which, and the log verifies as before.

    The peer must be stopped. Backups, exports and other hospitals' logs keep what they have; files of this home that
    have the same text (up.log, reports of runs) are named and left as they are.

    Example: p2pfl audit erase homes/lille 41
    """
    if [position is not None, before is not None, everything].count(True) != 1:
        raise ConfigError("say what to erase; give one entry, --before DATE, or --all")
    home = open_home(place)
    positions = [position] if position is not None else _positions(home.audit, before)
    identity = home.identity(passphrase(passphrase_file, is_sealed(home.path / "identity.key")))
    before_it = {entry.position: entry.body for entry in read_entries(home.audit)}
    with AuditLog.open(home.audit, identity) as log:
        done = erase_texts(log, positions, time.time_ns() // 1_000_000, field)
    copies = copies_of({before_it[entry][name] for entry, name in done.texts if name != OWN_NAME}, home.path)
    value = {
        "erased": [list(row) for row in done.texts], "wiped": done.wiped, "copies": [str(path) for path in copies]
    }  # fmt: skip
    lines = [f"erased       {name} of entry {entry}" for entry, name in done.texts]
    show(value, as_json, [*lines, *(f"still in     {path}" for path in copies)])
    if copies:
        note("the log no longer has these texts, the files named do: delete or edit them, and backups of them, by hand")
    if not done.wiped:
        note("another program reads the log: the text may stay in audit.db-wal until the peer has run and stopped once")


def _positions(path: Path, before: str | None) -> list[int]:
    """Entries older than a date, or all."""
    limit = None if before is None else moment(before)[0]
    return [entry.position for entry in read_entries(path) if limit is None or entry.time < limit]
