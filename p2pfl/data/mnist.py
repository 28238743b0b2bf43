"""MNIST and its relatives (Fashion-MNIST, EMNIST, KMNIST) as idx files, plain or .gz.

idx: two zero bytes, the type (8: unsigned bytes), the number of dimensions, each as big-endian uint32, the bytes.
Source: LeCun, Cortes, Burges, "The MNIST database of handwritten digits", file formats.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np

from p2pfl.data.examples import Array, Examples
from p2pfl.data.reading import check_size, opened
from p2pfl.errors import DataError

UNSIGNED_BYTES = 8
MOST_DIMENSIONS = 4
NAMES = {"train": "train", "test": "t10k"}


def from_mnist(folder: Path | str, *, images: bool = False) -> Examples:
    """Training and test images of a folder with the four idx files under their usual names.

    Inputs float32 in [0, 1]: [examples, height x width], or [examples, 1, height, width] with ``images``; labels int64.
    DataError for files that are missing, damaged, or do not belong together.
    """
    sides = []
    for side, name in NAMES.items():
        pictures = read_idx(_found(Path(folder), f"{name}-images-idx3-ubyte"))
        labels = read_idx(_found(Path(folder), f"{name}-labels-idx1-ubyte"))
        if pictures.ndim != 3 or labels.ndim != 1 or len(pictures) != len(labels):
            raise DataError(
                f"the {side} files in {folder} hold arrays {list(pictures.shape)} and {list(labels.shape)}; "
                "images need [examples, height, width], labels [examples]"
            )
        check_size(Path(folder), len(pictures), pictures[0].size if len(pictures) else 0)
        inputs = pictures.astype(np.float32) / np.float32(255)
        form = (len(inputs), 1, *pictures.shape[1:]) if images else (len(inputs), -1)
        sides.append((inputs.reshape(form) if len(inputs) else inputs, labels.astype(np.int64)))
    return Examples(sides[0], sides[1], name="mnist")


def read_idx(path: Path | str) -> Array:
    """The uint8 array of one idx file. DataError for whatever is not exactly such a file."""
    path = Path(path)
    with opened(path) as file:
        head = file.read(4)
        if len(head) < 4 or head[:2] != b"\0\0" or head[2] != UNSIGNED_BYTES or not 1 <= head[3] <= MOST_DIMENSIONS:
            raise DataError(f"{path} is not an idx file of unsigned bytes; take the original files")
        sizes = file.read(4 * head[3])
        if len(sizes) < 4 * head[3]:
            raise DataError(f"{path} ends inside its header; get it again")
        shape = struct.unpack(f">{head[3]}I", sizes)
        wanted = int(np.prod([int(size) for size in shape], dtype=object))
        check_size(path, wanted, 1, 1)
        data = file.read(wanted + 1)
    if len(data) != wanted:
        found = "more" if len(data) > wanted else f"{len(data)}"
        raise DataError(f"{path} has {found} bytes where its header promises {wanted}; get it again")
    return np.frombuffer(data, dtype=np.uint8).reshape(shape)


def _found(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if os.path.exists(path):  # unlike Path.exists, no error for a name too long
            return path
    raise DataError(f"there is no {name} or {name}.gz in {folder}; name the folder with the four idx files")
