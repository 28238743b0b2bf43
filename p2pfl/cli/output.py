"""What the command line prints: results on standard output, everything else on standard error.

Names, reasons and code may come from another site. Nothing in them may draw over the terminal, change the
direction of writing, begin a new line, or be taken for markup: every line goes through ``visible``.
"""

from __future__ import annotations

import errno
import getpass
import json
import math
import os
import secrets
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.cells import cell_len
from rich.console import Console

from p2pfl.errors import ConfigError
from p2pfl.peer import read_text

PASSPHRASE_VARIABLE = "P2PFL_PASSPHRASE"  # noqa: S105 - the variable's name, not a passphrase

out = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)

_EMPTY_LOOKING = frozenset(
    # printable for Python, yet drawn as nothing: Default_Ignorable_Code_Point of Unicode 16 and the braille blank
    [0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x2800, 0x3164, 0xFFA0, *range(0x180B, 0x1810), *range(0xFE00, 0xFE10),
     *range(0xE0100, 0xE01F0)]
)  # fmt: skip


_DATABASES = ("audit.db", "witness.db")
_SQLITE = b"SQLite format 3\0"


def visible(text: str) -> str:
    """The text with control, bidirectional and invisible characters as escapes such as \\x1b or \\u202e."""
    return "".join(
        letter if letter.isprintable() and ord(letter) not in _EMPTY_LOOKING else _escaped(letter) for letter in text
    )


def _escaped(letter: str) -> str:
    number = ord(letter)
    if letter in "\n\r\t":
        return {"\n": "\\n", "\r": "\\r", "\t": "\\t"}[letter]
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def to_json(value: Any, indent: int | None = 1) -> str:
    """ASCII JSON; what JSON has no number for (infinite, not a number) becomes null."""
    return json.dumps(_finite(value), default=str, indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def say(line: str) -> None:
    """One line of the result, at once: a reader at the other end of a pipe waits for it."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def show(value: Any, as_json: bool, lines: Iterable[str]) -> None:
    """One JSON value, or lines for people."""
    if as_json:
        say(to_json(value))
        return
    for line in lines:
        say(visible(line))


def show_table(value: Any, as_json: bool, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """One JSON value, or a table for people; never cut to the width of the terminal, so that it can be piped."""
    cells = [list(columns), *([visible("" if cell is None else str(cell)) for cell in row] for row in rows)]
    widths = [max(cell_len(row[place]) for row in cells) for place in range(len(columns))]
    show(
        value,
        as_json,
        (
            "  ".join(cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in cells
        ),
    )


def note(text: str) -> None:
    """Something worth knowing that is not the result."""
    sys.stderr.write(f"p2pfl: {visible(text)}\n")
    sys.stderr.flush()


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
    try:
        value = getpass.getpass("Passphrase: ")
        again = getpass.getpass("Once more: ") if new else value
    except EOFError as error:
        raise ConfigError(f"no passphrase was typed; give --passphrase-file or set {PASSPHRASE_VARIABLE}") from error
    if value != again:
        raise ConfigError("the two passphrases differ; start again")
    if not value:
        raise ConfigError("an empty passphrase protects nothing; choose one, or say --bare")
    return value


def _first_line(text: str, where: str) -> str:
    line = text.splitlines()[0].strip() if text.strip() else ""
    if not line:
        raise ConfigError(f"{where} is empty; its first line must be the passphrase")
    return line


def write_result(path: Path, data: bytes | Iterable[str]) -> None:
    """Write a file the user named, at once or line by line: whole, or as it was before.

    Raises ConfigError in plain words; also where that would replace a file of a home, or any database.
    """
    try:
        target = path.resolve() if path.is_symlink() else path
        if target.exists() and not target.is_file():
            if not isinstance(data, bytes):
                raise ConfigError(f"{path} exists and is no file; choose another name")
            target.write_bytes(data)  # /dev/stdout and the like
            return
        _refuse_own(path, target.resolve())
        temporary = target.with_name(f".{target.name[:200]}.{secrets.token_hex(4)}.new")
        try:
            with temporary.open("xb") as file:
                file.writelines([data] if isinstance(data, bytes) else (line.encode() for line in data))
            if target.exists():
                temporary.chmod(target.stat().st_mode & 0o777)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        reason = os.strerror(errno.EISDIR) if path.is_dir() else error.strerror
        raise ConfigError(f"couldn't write {path}: {reason}; choose another place") from error


def _refuse_own(path: Path, target: Path) -> None:
    """A home's key, log or charter cannot be made again: whatever is in a home, no result replaces it."""
    home = next((folder for folder in target.parents if os.path.lexists(folder / "home.toml")), None)
    if home is not None and (target.exists() or target.name.startswith(_DATABASES)):
        raise ConfigError(f"{path} is a file of the home {home}, which no result may replace; choose another place")
    bare = target.with_name(target.name.removesuffix("-wal").removesuffix("-shm").removesuffix("-journal"))
    if bare.is_file():
        with bare.open("rb") as file:
            if file.read(len(_SQLITE)) == _SQLITE:
                raise ConfigError(f"{path} is a database or belongs to one, such as a log; choose another place")
