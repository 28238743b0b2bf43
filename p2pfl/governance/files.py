"""Small files that must be whole or absent after a crash."""

from __future__ import annotations

import os
from pathlib import Path

from p2pfl.errors import StoreError


def replace_file(path: Path, data: bytes) -> None:
    """Write with mode 0600: temporary file, fsync, rename, fsync of the folder. Raises StoreError."""
    temporary = path.with_name(path.name + ".new")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise StoreError(f"couldn't write {path}: {error.strerror}; check space and rights") from error
