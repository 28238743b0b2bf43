"""Owns the site's list of granted datasets: tag, file, fingerprint. A plan names only the tag."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from p2pfl.data.csv_files import fingerprint_file, read_table
from p2pfl.errors import ConfigError, DataError
from p2pfl.files import write_atomic

TAG_FORM = "1 to 64 of a-z, 0-9, '.', '_' and '-', beginning with a letter or digit"
MAX_DATASETS = 1000  # per site; lists stay readable, the file stays under 1 MiB
REGISTRY_LIMIT = 8 * 2**20  # bytes; 1000 entries with the longest paths (4096 bytes, PATH_MAX)

_FORMAT = "p2pfl data registry v1"
_TAG = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
_COUNTS = ("rows", "columns", "bytes", "added")


@dataclass(frozen=True, slots=True)
class RegisteredDataset:
    """One granted file as it was when it was added."""

    tag: str
    path: Path  # absolute, links resolved
    fingerprint: str  # SHA-256 of the file's bytes, hexadecimal
    rows: int  # records, the header not counted
    columns: int
    bytes: int
    added: int  # Unix seconds


class Registry:
    """The datasets of one home, in one JSON file that is replaced as a whole."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def add(self, tag: str, file: Path, now: int, *, replace: bool = False) -> RegisteredDataset:
        """Check a CSV file and register it under ``tag``; ``now`` in Unix seconds.

        The same file again changes nothing. Raises DataError for a bad tag or file, or a tag in use without
        ``replace``; ConfigError for a damaged registry; StoreError if it cannot be written.
        """
        _check_tag(tag)
        known = {dataset.tag: dataset for dataset in self.list()}
        try:
            absolute = file.resolve()
        except (
            OSError,
            RuntimeError,
            ValueError,
        ) as error:  # RuntimeError: links in a circle (Python < 3.13)
            raise DataError(f"couldn't find {file}: its links lead nowhere; check the name") from error
        table = read_table(absolute)
        added = RegisteredDataset(tag, absolute, table.fingerprint, table.rows, table.columns, table.bytes, now)
        before = known.get(tag)
        if before is not None and not replace:
            if (before.path, before.fingerprint) == (added.path, added.fingerprint):
                return before
            raise DataError(
                f"the tag {tag} already stands for {before.path} with other content or place; "
                f"choose another tag, or run `p2pfl data add ... --tag {tag} --replace` to replace it"
            )
        if before is None and len(known) >= MAX_DATASETS:
            raise DataError(f"{MAX_DATASETS} datasets are registered already; remove some from {self._path}")
        self._write((known | {tag: added}).values())
        return added

    def list(self) -> tuple[RegisteredDataset, ...]:
        """All registered datasets, oldest first. Raises ConfigError for a damaged registry."""
        try:
            with self._path.open("rb") as file:
                data = file.read(REGISTRY_LIMIT + 1)
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise ConfigError(f"couldn't read {self._path}: {error.strerror}; check its rights") from error
        try:
            return _datasets(data)
        # RecursionError: json descends into nested lists
        except (ValueError, RecursionError) as error:
            raise ConfigError(
                f"{self._path} is damaged ({str(error)[:80]}); delete it and add the datasets again"
            ) from error

    def resolve(self, tag: str) -> RegisteredDataset:
        """The dataset a plan's tag stands for, its file read again and compared with the fingerprint.

        Raises DataError for an unknown tag, a missing or a changed file; ConfigError for a damaged registry.
        """
        _check_tag(tag)
        known = {dataset.tag: dataset for dataset in self.list()}
        if tag not in known:
            tags = ", ".join(sorted(known)) or "none yet"
            raise DataError(
                f"no dataset is registered under the tag {tag} (registered: {tags[:200]}); "
                f"run `p2pfl data add HOME --tag {tag} FILE`"
            )
        dataset = known[tag]
        fingerprint, _ = fingerprint_file(dataset.path)
        if fingerprint != dataset.fingerprint:
            raise DataError(
                f"{dataset.path} has changed since it was registered as {tag}; "
                f"if that is meant, run `p2pfl data add HOME --tag {tag} {dataset.path} --replace`"
            )
        return dataset

    def _write(self, datasets: Iterable[RegisteredDataset]) -> None:
        rows = [
            {
                "tag": one.tag,
                "path": str(one.path),
                "fingerprint": one.fingerprint,
                **{name: getattr(one, name) for name in _COUNTS},
            }
            for one in datasets
        ]
        try:
            data = json.dumps({"format": _FORMAT, "datasets": rows}, indent=1, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError as error:  # Python's surrogates for names that are not UTF-8
            raise DataError("the file's name is not valid UTF-8; rename the file") from error
        write_atomic(self._path, data)


def _check_tag(tag: str) -> None:
    if not _TAG.fullmatch(tag):
        raise DataError(f"{tag[:80]!r} is not a tag; write {TAG_FORM}")


def _datasets(data: bytes) -> tuple[RegisteredDataset, ...]:
    if len(data) > REGISTRY_LIMIT:
        raise ValueError("it is too long")
    value = json.loads(data)
    if not isinstance(value, dict) or set(value) != {"format", "datasets"} or value["format"] != _FORMAT:
        raise ValueError("it is not a registry of this version")
    if not isinstance(value["datasets"], list):
        raise ValueError("its datasets are not a list")
    datasets = tuple(_dataset(row) for row in value["datasets"])
    if len({dataset.tag for dataset in datasets}) != len(datasets):
        raise ValueError("a tag is there twice")
    return datasets


def _dataset(row: Any) -> RegisteredDataset:
    names = {"tag", "path", "fingerprint", *_COUNTS}
    if not isinstance(row, dict) or set(row) != names:
        raise ValueError("an entry has wrong fields")
    if not all(isinstance(row[name], str) for name in ("tag", "path", "fingerprint")):
        raise ValueError("an entry has a field of the wrong type")
    if not all(type(row[name]) is int and row[name] >= 0 for name in _COUNTS):
        raise ValueError("an entry has a number that is none")
    if not _TAG.fullmatch(row["tag"]) or not _FINGERPRINT.fullmatch(row["fingerprint"]):
        raise ValueError("an entry has a tag or fingerprint that is none")
    path = Path(row["path"])
    if not path.is_absolute():
        raise ValueError("an entry's path is not absolute")
    return RegisteredDataset(**{**row, "path": path})
