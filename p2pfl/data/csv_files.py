"""Owns reading a site's CSV file once: is it a table with a header, how large, and which bytes exactly."""

from __future__ import annotations

import csv
import hashlib
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from p2pfl.errors import DataError

LINE_LIMIT = 2**20  # bytes of one line; 10,000 columns of 100 characters, and a file without lines stops here
BLOCK = 2**20  # bytes read at a time for a fingerprint
DELIMITERS = (",", ";", "\t")  # spreadsheets write ; where the comma is the decimal sign

_HINT = "export it again as CSV with one header line and one line per record"


@dataclass(frozen=True, slots=True)
class Table:
    """What was found in a CSV file."""

    fingerprint: str  # SHA-256 of the file's bytes, hexadecimal
    rows: int  # records, the header not counted
    columns: int
    bytes: int


def read_table(path: Path) -> Table:
    """Check a CSV file (UTF-8) in one pass, holding a few lines at a time. Raises DataError."""
    check_file(path)
    try:
        with path.open("rb") as file:
            lines = _Lines(path, file)
            rows, columns = _count(path, lines)
            return Table(lines.hasher.hexdigest(), rows, columns, lines.bytes)
    except OSError as error:
        raise DataError(f"couldn't read {path}: {error.strerror}; check the file and its rights") from error


def fingerprint_file(path: Path) -> tuple[str, int]:
    """SHA-256 (hexadecimal) and size in bytes of a file, read in blocks. Raises DataError."""
    check_file(path)
    hasher, size = hashlib.sha256(), 0
    try:
        with path.open("rb") as file:
            while block := file.read(BLOCK):
                hasher.update(block)
                size += len(block)
    except OSError as error:
        raise DataError(f"couldn't read {path}: {error.strerror}; check the file and its rights") from error
    return hasher.hexdigest(), size


def delimiter_of(path: Path) -> str:
    """What stands between the values of a file that ``read_table`` has taken."""
    with path.open("rb") as file:
        return _delimiter(next(iter(_Lines(path, file))))


def check_file(path: Path) -> None:
    """Raise DataError unless ``path`` is a regular file: opening a pipe would wait for ever."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise DataError(f"there is no file {path}; check the name") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"couldn't read {path}: {reason}; check the file and its rights") from error
    if stat.S_ISDIR(mode):
        raise DataError(f"{path} is a folder; name the CSV file inside it")
    if not stat.S_ISREG(mode):
        raise DataError(f"{path} is not a regular file; name a CSV file")


class _Lines:
    """The file's lines as text; keeps hash and size of all bytes that went by."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path = path
        self._file = file
        self.hasher = hashlib.sha256()
        self.bytes = 0
        self.number = 0

    def __iter__(self) -> Iterator[str]:
        while line := self._file.readline(LINE_LIMIT + 1):
            self.number += 1
            self.hasher.update(line)
            self.bytes += len(line)
            yield self._text(line)

    def _text(self, line: bytes) -> str:
        if b"\0" in line:
            raise DataError(f"{self._path} is not a text file (line {self.number} has a zero byte); {_HINT}")
        if len(line) > LINE_LIMIT:
            raise DataError(f"{self._path}: line {self.number} has more than {LINE_LIMIT} bytes; {_HINT}")
        try:
            # Excel puts a byte order mark in front of UTF-8
            return line.decode("utf-8-sig" if self.number == 1 else "utf-8")
        except UnicodeDecodeError:
            raise DataError(f"{self._path}: line {self.number} is not UTF-8 text; save the file as CSV UTF-8") from None


def _count(path: Path, lines: _Lines) -> tuple[int, int]:
    iterator = iter(lines)
    first = next(iterator, "")
    if not first.strip():
        raise DataError(f"{path} is empty or begins with an empty line; {_HINT}")
    records = csv.reader(_chained(first, iterator), delimiter=_delimiter(first), strict=True)
    try:
        header = next(records)
        _check_header(path, header)
        rows, blank = 0, 0
        for record in records:
            if not record:
                blank = blank or lines.number
                continue
            _check_record(path, lines.number, blank, len(record), len(header))
            rows += 1
    except csv.Error as error:
        raise DataError(f"{path}: line {lines.number} is not CSV ({error}); mend that line, or {_HINT}") from error
    if rows == 0:
        raise DataError(f"{path} has a header but no records; {_HINT}")
    return rows, len(header)


def _delimiter(header: str) -> str:
    return max(DELIMITERS, key=header.count)  # the first of them where none occurs


def _chained(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest


def _check_record(path: Path, line: int, blank: int, found: int, wanted: int) -> None:
    if blank:
        raise DataError(f"{path}: line {blank} is empty; remove it")
    if found != wanted:
        raise DataError(f"{path}: line {line} has {found} values, the header has {wanted}; mend that line")


def _check_header(path: Path, header: Sequence[str]) -> None:
    names = [name.strip() for name in header]
    if all(_is_number(name) for name in names):
        raise DataError(f"{path}: the first line holds numbers, not names; put a header line in front")
    if "" in names:
        raise DataError(f"{path}: column {names.index('') + 1} has no name in the header; name each column")
    for place, name in enumerate(names):
        if name in names[:place]:
            raise DataError(f"{path}: the header names {name[:60]!r} twice; give each column its own name")


def _is_number(text: str) -> bool:
    if text in ("", "?", "NA"):  # the usual marks of missing values, which data lines hold among numbers
        return True
    try:
        float(text.replace(",", "."))
    except ValueError:
        return False
    return True
