"""Small files: read bounded, replaced so that they are whole or as before after a crash. For every room."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from p2pfl.errors import ConfigError, StoreError


def read_bounded(path: Path, limit: int) -> bytes:
    """The file's bytes. Raises ConfigError: missing, no regular file, unreadable, over ``limit`` bytes."""
    try:
        # a pipe would block for ever, a device never end
        if not stat.S_ISREG(path.stat().st_mode):
            raise ConfigError(f"{path} is not a regular file; check the name")
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"couldn't read {path}: {reason}; check the name and the rights") from error
    if len(data) > limit:
        raise ConfigError(f"{path} is larger than {limit} bytes; this is not the file meant here")
    return data


def write_atomic(path: Path, data: bytes, *, private: bool = True) -> None:
    """Replace the file, mode 0600 if ``private``. Raises StoreError; the old content then still stands."""
    replace_atomic(path, lambda file: file.write(data), private=private)


def replace_atomic(path: Path, write: Callable[[BinaryIO], object], *, private: bool = True) -> None:
    """`write_atomic` with what ``write`` writes into the file it is given."""
    if not path.name or os.path.isdir(path):  # unlike Path.is_dir, no error for a name too long
        raise StoreError(f"couldn't write {path}: it is a folder; give a file's name")
    # the process id keeps a command-line verb and a running peer from sharing one temporary file
    temporary = path.with_name(f"{path.name}.{os.getpid()}.new")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600 if private else 0o666)
        try:
            with os.fdopen(descriptor, "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)
    except OSError as error:
        raise StoreError(f"couldn't write {path}: {error.strerror}; check space and rights") from error


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable (fsync(2): the file's own sync does not cover its directory entry)."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
