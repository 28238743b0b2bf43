"""`p2pfl audit export`: a log, or a part of it, for people and programs that have no home and no key."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from p2pfl.audit import csv_lines, json_lines, open_part, write_tiles
from p2pfl.cli.logs import find_log
from p2pfl.cli.output import note, write_result
from p2pfl.errors import ConfigError

TOLD_EVERY = 100_000
"""Entries between two words about the progress."""


class Form(StrEnum):
    """What an export is written as."""

    JSON = "json"
    CSV = "csv"
    TLOG = "tlog"


def export(
    place: Annotated[Path, typer.Argument(help="A home folder, or an audit.db file.", metavar="HOME")],
    start: Annotated[str | None, typer.Option("--from", help="First entry, or date such as 2026-03-01 (UTC).")] = None,
    end: Annotated[str | None, typer.Option("--to", help="Last entry or date, included.")] = None,
    form: Annotated[
        Form, typer.Option("--format", help="json: lines that can be verified; csv; tlog: tiles.")
    ] = Form.JSON,
    no_texts: Annotated[bool, typer.Option("--no-texts", help="Leave out what can be erased: names, reasons.")] = False,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write a file (tlog: a new folder) instead of printing.")
    ] = None,
) -> None:
    """Write entries so that they can be read without the home; json and tlog can be verified without it, too.

    Documents (deltas, records, evidence) are left out. json and csv hold names and reasons in clear, tlog none.

    Example: p2pfl audit export homes/lille --from 2026-03-01 --format json -o lille.jsonl
    """
    path = find_log(place).path
    with open_part(path, start, end) as part:
        if part.damaged:
            note(f"{part.damaged} damaged rows of {path.with_name('witness.db')} were left out; restore a backup of it")
        if form is Form.TLOG:
            if output is None:
                raise ConfigError("tiles are a folder of files; name a new one with -o")
            write_tiles(part, output, _told)
        else:
            lines = (json_lines if form is Form.JSON else csv_lines)(part, _told, with_texts=not no_texts)
            if output is None:
                sys.stdout.writelines(lines)
            else:
                write_result(output, lines)
    if output is not None:
        check = "" if form is Form.CSV else f"; anybody checks it with `p2pfl audit verify {output}`"
        note(f"wrote {part.last - part.first} entries to {output}{check}")


def _told(done: int, total: int) -> None:
    if done % TOLD_EVERY == 0 and done < total:
        note(f"{done} of {total} entries")
