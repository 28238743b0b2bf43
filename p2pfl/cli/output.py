"""What the command line prints: results on standard output, everything else on standard error."""

from __future__ import annotations

import getpass
import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from p2pfl.errors import ConfigError
from p2pfl.peer import read_text

PASSPHRASE_VARIABLE = "P2PFL_PASSPHRASE"  # noqa: S105 - the variable's name, not a passphrase

_PIPE_WIDTH = 160  # columns where nobody looks: a table in a file should not be cut
out = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else _PIPE_WIDTH)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def show(value: Any, as_json: bool, lines: Iterable[str]) -> None:
    """One JSON value, or lines for people."""
    if as_json:
        sys.stdout.write(json.dumps(value, default=str, indent=1) + "\n")
        return
    for line in lines:
        out.print(line, markup=False)


def show_table(value: Any, as_json: bool, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """One JSON value, or a table for people."""
    if as_json:
        sys.stdout.write(json.dumps(value, default=str, indent=1) + "\n")
        return
    table = Table(*columns, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*("" if cell is None else str(cell) for cell in row))
    out.print(table)


def note(text: str) -> None:
    """Something worth knowing that is not the result."""
    err.print(f"p2pfl: {text}", markup=False)


def passphrase(file: Path | None, sealed: bool, *, new: bool = False) -> str | None:
    """The passphrase of a sealed key: from a file, the environment or a prompt; None for a bare key."""
    if not sealed:
        return None
    if file is not None:
        return _first_line(read_text(file, limit=4096), str(file))
    if os.environ.get(PASSPHRASE_VARIABLE):
        return os.environ[PASSPHRASE_VARIABLE]
    if not sys.stdin.isatty():
        raise ConfigError(
            f"the key is sealed and there is no terminal to ask; give --passphrase-file or set {PASSPHRASE_VARIABLE}"
        )
    value = getpass.getpass("Passphrase: ")
    if new and value != getpass.getpass("Once more: "):
        raise ConfigError("the two passphrases differ; start again")
    if not value:
        raise ConfigError("an empty passphrase protects nothing; choose one, or say --bare")
    return value


def _first_line(text: str, where: str) -> str:
    line = text.splitlines()[0].strip() if text.strip() else ""
    if not line:
        raise ConfigError(f"{where} is empty; its first line must be the passphrase")
    return line


def write_result(path: Path, data: bytes) -> None:
    """Write a file the user named. Raises ConfigError in plain words."""
    try:
        path.write_bytes(data)
    except OSError as error:
        raise ConfigError(f"couldn't write {path}: {error.strerror}; choose another place") from error
