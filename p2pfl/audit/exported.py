"""Reading and checking an export in JSON lines, with no key and without trust in whoever made or kept it.

The exact bytes in ``data`` are what counts; the readable fields beside them must say the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from p2pfl.audit.cosigned import Cosigned, check_cosigned, read_cosigned
from p2pfl.audit.export import EXPORT, line_of, read_entry
from p2pfl.audit.format import Entry, decode_body
from p2pfl.audit.held import check_held, read_held
from p2pfl.audit.texts import marks, put_back, salted_digest
from p2pfl.audit.verify import Verification
from p2pfl.crypto.base64_text import from_base64
from p2pfl.crypto.checkpoints import Checkpoint, open_checkpoint
from p2pfl.crypto.log_entries import read_entry_data
from p2pfl.crypto.merkle import leaf_hash
from p2pfl.crypto.range_proofs import MAX_OUTSIDE, range_root
from p2pfl.errors import RemoteError, StoreError

LINE_LIMIT = 2 * 1024 * 1024
"""Characters of one line: an entry of 64 KiB, its base64, and its body with every character escaped."""


@dataclass(frozen=True, slots=True)
class Header:
    """The first line of an export."""

    log: str
    origin: str
    size: int
    first: int
    last: int  # included
    checkpoint: bytes
    outside: tuple[bytes, ...]
    cosigned: tuple[Cosigned, ...] = ()
    held: tuple[bytes, ...] = ()

    @property
    def whole(self) -> bool:
        """All entries that the checkpoint covers are in it."""
        return self.first == 0 and self.last == self.size - 1


class _Bad(Exception):
    """The first bad place."""


def is_export(path: Path) -> bool:
    """Whether a file begins like an export in JSON lines."""
    try:
        with path.open("rb") as file:
            return file.read(24).startswith(b'{"p2pfl_audit_export"')
    except OSError:
        return False


def read_header(path: Path) -> Header:
    """The first line; nothing is verified. Raises StoreError."""
    try:
        with path.open(encoding="utf-8") as file:
            return _header(file.readline(LINE_LIMIT))
    except (_Bad, OSError, UnicodeError) as error:
        raise StoreError(f"{path} is no export of an audit log ({error}); export it again") from None


def read_exported(path: Path) -> Iterator[Entry]:
    """The entries of an export, oldest first; checks no signature. Raises StoreError."""
    try:
        with path.open(encoding="utf-8") as file:
            _header(file.readline(LINE_LIMIT))
            for number, line in enumerate(iter(lambda: file.readline(LINE_LIMIT), ""), start=2):
                data, texts = _data(line, number)
                entry = read_entry(data)[0]
                put_back(entry.kind, entry.body, texts)
                yield entry
    except (_Bad, RemoteError, OSError, UnicodeError) as error:
        raise StoreError(f"the export {path} cannot be read ({error}); run p2pfl audit verify") from None


def verify_export(path: Path, expected_peer: str | None = None, expected_origin: str | None = None) -> Verification:
    """Check every line of an export, as `verify_log` checks a database. Never raises for a damaged one."""
    check = _Check()
    problem = None
    try:
        with path.open(encoding="utf-8") as file:
            check.run(iter(lambda: file.readline(LINE_LIMIT), ""), expected_peer, expected_origin)
    except (_Bad, RemoteError) as error:
        problem = str(error)
    except (OSError, UnicodeError, RecursionError) as error:
        problem = f"file, after {check.entries} good entries: {error}"
    header = check.header
    origin, log = (header.origin[:200], header.log[:200]) if header is not None else ("", "")
    return Verification(problem is None, check.entries, int(problem is None), check.root.hex(), origin, log, problem)


class _Check:
    """One pass over the lines."""

    def __init__(self) -> None:
        self.header: Header | None = None
        self.entries = 0
        self.root = b""
        self._previous: bytes | None = None

    def run(self, lines: Iterator[str], peer: str | None, origin: str | None) -> None:
        self.header = header = _header(next(lines, ""))
        if peer is not None and header.log != peer:
            raise _Bad(f"line 1: the log belongs to {header.log[:200]}, not to {peer}")
        if origin is not None and header.origin != origin:
            raise _Bad(f"line 1: the log is {header.origin[:200]}, not {origin}")
        checkpoint = self._checkpoint(header)
        if checkpoint.size != header.size:
            raise _Bad("line 1: its size is not that of its checkpoint")
        leaves = (self._leaf(line, header) for line in lines)
        root = range_root(header.first, header.last + 1, header.size, leaves, header.outside)
        if next(leaves, None) is not None:
            raise _Bad("there are more entries than the first line says")
        if root != checkpoint.root:
            raise _Bad("the entries are not those that the checkpoint was signed over")
        self.root = root

    def _checkpoint(self, header: Header) -> Checkpoint:
        try:
            checkpoint = open_checkpoint(header.checkpoint, header.origin, header.log)
            check_cosigned(header.cosigned, checkpoint, header.origin, header.log)
            check_held(header.held)
            return checkpoint
        except RemoteError as error:
            raise _Bad(f"line 1: {error}") from None

    def _leaf(self, line: str, header: Header) -> bytes:
        number = self.entries + 2
        data, texts = _data(line, number)
        try:
            raw = read_entry_data(data)
            fields, _ = decode_body(raw.body)
            shown = line_of(data, texts)
        except (RemoteError, RecursionError) as error:
            raise _Bad(f"line {number}: {error}") from None
        if raw.position != header.first + self.entries:
            raise _Bad(f"line {number}: it has entry {raw.position}, not {header.first + self.entries}")
        if self._previous not in (None, raw.previous):
            raise _Bad(f"line {number}: entry {raw.position} does not follow the entry before it")
        if line != json.dumps(shown, allow_nan=False) + "\n":  # one spelling, so that no change goes unseen
            raise _Bad(f"line {number}: what is readable of entry {raw.position} is not what was signed")
        signed = marks(raw.kind, fields)
        for name, (salt, text) in texts.items():
            if salted_digest(salt, text) != signed.get(name):
                what = f"the text {name[:40]} of entry {raw.position}"
                raise _Bad(f"line {number}: {what} is not the one that was signed")
        self._previous = leaf_hash(data)
        self.entries += 1
        return self._previous


def _fields(line: str, number: int) -> dict[str, Any]:
    if len(line) >= LINE_LIMIT or not line.endswith("\n"):
        raise _Bad(f"line {number}: it is cut off or too long")
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        raise _Bad(f"line {number}: it is not JSON") from None
    if not isinstance(value, dict):
        raise _Bad(f"line {number}: it is no JSON object")
    return value


def _data(line: str, number: int) -> tuple[bytes, dict[str, tuple[bytes, str]]]:
    """The exact bytes of an entry, and (salt, text) of its free texts as far as they were exported."""
    fields = _fields(line, number)
    data, texts = fields.get("data"), fields.get("texts", {})
    found = from_base64(data) if isinstance(data, str) else None
    if found is None or not isinstance(texts, dict):
        raise _Bad(f"line {number}: it has no entry")
    read = {}
    for name, row in texts.items():
        match row:
            case [str(encoded), str(text)] if (salt := from_base64(encoded)) is not None:
                read[name] = (salt, text)
            case _:
                raise _Bad(f"line {number}: a text is in a form that no version writes")
    return found, read


def _header(line: str) -> Header:
    fields = _fields(line, 1)
    version = fields.get("p2pfl_audit_export")
    if version != EXPORT:
        raise _Bad(f"line 1: its format {str(version)[:20]} is not {EXPORT}, which this program reads")
    texts = [fields.get(name) for name in ("log", "origin", "checkpoint")]
    numbers = [fields.get(name) for name in ("size", "first", "last")]
    outside = fields.get("outside")
    if not isinstance(outside, list) or len(outside) > MAX_OUTSIDE:
        raise _Bad("line 1: it has no list of hashes beside the entries")
    hashes = [from_base64(item) if isinstance(item, str) else None for item in outside]
    match texts, numbers:
        case [str(log), str(origin), str(note)], [int(size), int(first), int(last)] if 0 <= first <= last < size:
            names = tuple(fields)
            one_spelling = line == json.dumps(fields) + "\n" and names in _HEADERS
            if None not in hashes and one_spelling:
                joined = tuple(item or b"" for item in hashes)
                return Header(log, origin, size, first, last, note.encode(), joined, *_witnesses(fields))
    raise _Bad("line 1: a field is missing or has the wrong type")


def _witnesses(fields: dict[str, Any]) -> tuple[tuple[Cosigned, ...], tuple[bytes, ...]]:
    try:
        return read_cosigned(fields.get("cosigned", [])), read_held(fields.get("held", []))
    except RemoteError as error:
        raise _Bad(f"line 1: {error}") from None


_HEADER = ("p2pfl_audit_export", "log", "origin", "size", "first", "last", "checkpoint", "outside")
_HEADERS = tuple((*_HEADER, *more) for more in ((), ("cosigned",), ("held",), ("cosigned", "held")))
