"""Reading files of unknown origin in bounded memory, plain or gzip."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from p2pfl.data.csv_files import check_file
from p2pfl.errors import DataError

MOST_BYTES = 4 * 2**30  # of the arrays of one file; MNIST as float32 has 0.19 GiB


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """The file's bytes, unpacked if the name ends in .gz. DataError for what cannot be read, also while it is read."""
    check_file(path)
    try:
        packed = path.suffix == ".gz"
        with cast(IO[bytes], gzip.open(path, "rb") if packed else path.open("rb")) as file:
            yield file
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise DataError(f"{path} is not a whole gzip file ({error}); get it again") from error
    except OSError as error:
        raise DataError(f"couldn't read {path}: {error.strerror}; check the file and its rights") from error


def check_size(path: Path, examples: int, numbers: int, bytes_each: int = 4) -> None:
    """DataError if ``examples`` x ``numbers`` would not fit into 4 GiB."""
    if examples * numbers * bytes_each > MOST_BYTES:
        raise DataError(
            f"{path} would need {examples * numbers * bytes_each / 2**30:.1f} GiB as an array [{examples}, {numbers}], "
            f"more than {MOST_BYTES // 2**30} GiB; take a part of it"
        )
