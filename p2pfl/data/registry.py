"""The registry of granted datasets: a tag, a file, its fingerprint. A plan names the tag, never a path."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from p2pfl.errors import DataError, StoreError

TAG = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
BLOCK = 1 << 20
REGISTRY_LIMIT = 1 << 20  # bytes of the registry file; some thousand tags
ROW_LIMIT = 1 << 20  # bytes of one CSV field; a free-text note is shorter


@dataclass(frozen=True, slots=True)
class RegisteredDataset:
    """One granted file. ``fingerprint`` is the SHA-256 of its bytes, ``added`` in Unix seconds."""

    tag: str
    path: str
    fingerprint: str
    rows: int
    columns: int
    bytes: int
    added: int


class Registry:
    """The datasets of one home, kept in one JSON file that is replaced atomically."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def add(self, tag: str, file: Path | str, now: int, *, replace: bool = False) -> RegisteredDataset:
        """Grant a CSV file (with a header) under a tag. Raises DataError in plain words, or StoreError."""
        if not TAG.fullmatch(tag):
            raise DataError(f"tag {tag!r}: use 1 to 63 lower-case letters, digits, - and _, for example heart")
        path = Path(file).absolute()
        known = self._read()
        if tag in known and not replace:
            raise DataError(
                f"tag {tag!r} already stands for {known[tag].path}; choose another tag, or add it with --replace"
            )
        rows, columns = _measure(path)
        dataset = RegisteredDataset(tag, str(path), _fingerprint(path), rows, columns, path.stat().st_size, now)
        known[tag] = dataset
        self._write(known)
        return dataset

    def list(self) -> list[RegisteredDataset]:
        """All granted datasets by tag."""
        return [dataset for _, dataset in sorted(self._read().items())]

    def resolve(self, tag: str) -> RegisteredDataset:
        """The dataset behind a tag, its file unchanged since it was granted. Raises DataError."""
        known = self._read()
        if tag not in known:
            have = ", ".join(sorted(known)) or "none"
            raise DataError(f"no data is registered under tag {tag!r} (registered: {have}); use `p2pfl data add`")
        dataset = known[tag]
        if _fingerprint(Path(dataset.path)) != dataset.fingerprint:
            raise DataError(
                f"{dataset.path} has changed since it was registered as {tag!r}; "
                "check it and register it again with `p2pfl data add --replace`"
            )
        return dataset

    def _read(self) -> dict[str, RegisteredDataset]:
        try:
            raw = self._path.read_bytes()
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise StoreError(f"couldn't read {self._path}: {error.strerror}; check the rights") from error
        try:
            if len(raw) > REGISTRY_LIMIT:
                raise ValueError("too large")
            rows: dict[str, Any] = json.loads(raw)
            return {tag: RegisteredDataset(**row) for tag, row in rows.items()}
        except (ValueError, TypeError, AttributeError) as error:
            raise DataError(f"{self._path} is damaged ({error}); move it away and register the data again") from error

    def _write(self, known: dict[str, RegisteredDataset]) -> None:
        text = json.dumps({tag: asdict(dataset) for tag, dataset in sorted(known.items())}, indent=1)
        temporary = self._path.with_suffix(".new")
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self._path)
        except OSError as error:
            raise StoreError(f"couldn't write {self._path}: {error.strerror}; check space and rights") from error


def _fingerprint(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(BLOCK):
                digest.update(block)
    except OSError as error:
        raise DataError(f"couldn't read {path}: {error.strerror}; check the name and the rights") from error
    return digest.hexdigest()


def _measure(path: Path) -> tuple[int, int]:
    """Rows (without the header) and columns of a CSV file. Raises DataError for what is not one."""
    if path.is_dir():
        raise DataError(f"{path} is a folder; name the CSV file in it")
    previous = csv.field_size_limit(ROW_LIMIT)
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, None)
            if not header or all(not name.strip() for name in header):
                raise DataError(f"{path} is empty; a CSV file with a header row is needed")
            if "\0" in "".join(header):
                raise DataError(f"{path} is not a text file; a CSV file with a header row is needed")
            rows = 0
            for row in reader:
                if len(row) != len(header):
                    raise DataError(
                        f"{path}, line {reader.line_num}: {len(row)} fields where the header has {len(header)}; "
                        "mend this line"
                    )
                rows += 1
    except OSError as error:
        raise DataError(f"couldn't read {path}: {error.strerror}; check the name and the rights") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not a UTF-8 text file; save it as CSV in UTF-8") from error
    except csv.Error as error:
        raise DataError(f"{path} is not a CSV file: {error}; save it as CSV again") from error
    finally:
        csv.field_size_limit(previous)
    if rows == 0:
        raise DataError(f"{path} has a header but no rows; nothing could be trained on")
    return rows, len(header)
