"""A whole log as a folder of tiles (c2sp.org/tlog-tiles), which clients of any transparency log read.

``checkpoint`` is the newest checkpoint; ``tile/<level>/<number>`` has up to 256 hashes of the tree's level 8 * level,
``tile/entries/<number>`` up to 256 entries, each with its length in two bytes before it. A tile that is not full has
the suffix ``.p/<width>``. Tiles hold entries of at most 65535 bytes, and so does the log (`p2pfl.crypto.log_entries`).

``cosigned`` is no part of C2SP: the checkpoints that witnesses have cosigned (`p2pfl.audit.cosigned`).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from p2pfl.audit.cosigned import (
    COSIGNED_LIMIT,
    Cosigned,
    check_cosigned,
    decode_cosigned,
    encode_cosigned,
    split_origin,
)
from p2pfl.audit.export import Part, Progress, read_entry
from p2pfl.audit.format import HASH_SIZE, START, Entry
from p2pfl.audit.held import HELD_LIMIT, check_held, decode_held, encode_held
from p2pfl.audit.tree import node_of
from p2pfl.audit.verify import Verification
from p2pfl.crypto.checkpoints import Checkpoint, open_checkpoint
from p2pfl.crypto.merkle import leaf_hash
from p2pfl.crypto.notes import NOTE_LIMIT
from p2pfl.crypto.proofs import Node, grow, join
from p2pfl.errors import ConfigError, RemoteError, StoreError

WIDTH = 256
COSIGNED = "cosigned"
HELD = "held"
HEIGHT = 8  # levels of the tree in one tile: 2^8 = WIDTH

_LENGTH = struct.Struct(">H")


def tile_path(kind: str, number: int, width: int) -> str:
    """Where a tile lies below the folder; ``kind`` is a level or "entries"."""
    parts = [f"{number % 1000:03d}"]
    while number >= 1000:
        number //= 1000
        parts.append(f"x{number % 1000:03d}")
    partial = "" if width == WIDTH else f".p/{width}"
    return f"tile/{kind}/{'/'.join(reversed(parts))}{partial}"


def _tiles(count: int) -> Iterator[tuple[int, int]]:
    """(number, width) of the tiles over so many items."""
    for number in range(-(-count // WIDTH)):
        yield number, min(WIDTH, count - number * WIDTH)


def write_tiles(part: Part, folder: Path, progress: Progress = lambda done, of: None) -> None:
    """Write the folder, the checkpoint last. Raises ConfigError for a part of a log, or a folder that is not empty."""
    if part.first != 0 or part.last != part.size:
        raise ConfigError("tiles hold a whole log; leave --from and --to out, or export json")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} exists and is not empty; name a new folder for the tiles")
    rows = part.rows()
    for number, width in _tiles(part.size):
        bundle = b"".join(_LENGTH.pack(len(data)) + data for data in (next(rows) for _ in range(width)))
        _write(folder / tile_path("entries", number, width), bundle)
        progress(number * WIDTH + width, part.size)
    for path, content in _hash_tiles(part.size, node_of(part.connection)):
        _write(folder / path, content)
    if part.cosigned:
        _write(folder / COSIGNED, encode_cosigned(part.cosigned, part.note).encode())
    if part.held:
        _write(folder / HELD, encode_held(part.held).encode())
    _write(folder / "checkpoint", part.note)


def _hash_tiles(size: int, node: Node) -> Iterator[tuple[str, bytes]]:
    level = 0
    while size >> (HEIGHT * level):
        for number, width in _tiles(size >> (HEIGHT * level)):
            hashes = b"".join(node(HEIGHT * level, number * WIDTH + place) for place in range(width))
            yield tile_path(str(level), number, width), hashes
        level += 1


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def is_tiled(path: Path) -> bool:
    """Whether a folder looks like a log in tiles."""
    return (path / "checkpoint").is_file() and (path / "tile").is_dir()


def log_of(folder: Path) -> tuple[str, str, bytes]:
    """Peer id, log's origin and note as the checkpoint claims them; nothing is verified. Raises StoreError."""
    try:
        with (folder / "checkpoint").open("rb") as file:
            note = file.read(NOTE_LIMIT + 1)
    except OSError as error:
        raise StoreError(
            f"{folder} has no checkpoint that can be read ({error.strerror}); export the log again"
        ) from None
    _, origin, peer = split_origin(note.partition(b"\n")[0].decode(errors="replace"))
    return peer, origin, note


def read_tiled(folder: Path) -> Iterator[Entry]:
    """The entries of a log in tiles, oldest first; checks no signature. Raises StoreError."""
    try:
        for data in _entries(folder, _checkpoint(folder).size):
            yield read_entry(data)[0]
    except (RemoteError, OSError) as error:
        raise StoreError(f"the tiles in {folder} cannot be read ({error}); run p2pfl audit verify") from None


def verify_tiles(folder: Path, expected_peer: str | None = None, expected_origin: str | None = None) -> Verification:
    """Check entries, tiles and checkpoint against each other. Never raises for damaged ones; StoreError without any."""
    log, origin, _ = log_of(folder)
    entries, root, previous, problem = 0, b"", START, None
    try:
        if expected_peer not in (None, log) or expected_origin not in (None, origin):
            raise StoreError(f"checkpoint: the log is {origin[:200]}, not the one asked for")
        checkpoint = _checkpoint(folder)
        edge: list[bytes] = []
        tiles = _TileCheck(folder)
        for data in _entries(folder, checkpoint.size):
            _, raw = read_entry(data)
            if raw.position != entries or raw.previous != previous:
                raise StoreError(f"entry {entries}: it does not follow the entry before it")
            previous = leaf_hash(data)
            tiles.add([previous, *grow(edge, entries, previous)])
            entries += 1
        if join(edge) != checkpoint.root:
            raise StoreError("checkpoint: the entries are not those that it was signed over")
        tiles.end()
        root = checkpoint.root
        check_cosigned(read_cosigned_beside(folder), checkpoint, origin, log)
        check_held(read_held_beside(folder))
    except (RemoteError, StoreError, OSError) as error:
        problem = str(error)
    return Verification(problem is None, entries, int(problem is None), root.hex(), origin[:200], log[:200], problem)


def read_cosigned_beside(folder: Path) -> tuple[Cosigned, ...]:
    """The cosigned checkpoints that came with it; nothing is verified. Raises RemoteError or StoreError."""
    path = folder / COSIGNED
    return decode_cosigned(_read(path, COSIGNED_LIMIT).decode(errors="replace"))[1] if path.exists() else ()


def read_held_beside(folder: Path) -> tuple[bytes, ...]:
    """The notes of others' logs that came with it; nothing is verified. Raises RemoteError or StoreError."""
    path = folder / HELD
    return decode_held(_read(path, HELD_LIMIT).decode(errors="replace")) if path.exists() else ()


class _TileCheck:
    """Compares the tiles of hashes with those of the entries as they come; keeps one tile per level."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._levels: list[tuple[int, list[bytes]]] = []  # number of the tile in work, and its hashes so far

    def add(self, completed: list[bytes]) -> None:
        """The hashes of the complete subtrees that end with the next entry, level 0 first."""
        for level, digest in enumerate(completed[::HEIGHT]):
            if level == len(self._levels):
                self._levels.append((0, []))
            number, hashes = self._levels[level]
            hashes.append(digest)
            if len(hashes) == WIDTH:
                self._compare(level, number, hashes)
                self._levels[level] = (number + 1, [])

    def end(self) -> None:
        """After the last entry: the tiles that are not full."""
        for level, (number, hashes) in enumerate(self._levels):
            if hashes:
                self._compare(level, number, hashes)

    def _compare(self, level: int, number: int, hashes: list[bytes]) -> None:
        path = tile_path(str(level), number, len(hashes))
        if _read(self._folder / path, WIDTH * HASH_SIZE) != b"".join(hashes):
            raise StoreError(f"{path}: its hashes are not those of the entries")


def _checkpoint(folder: Path) -> Checkpoint:
    log, origin, note = log_of(folder)
    return open_checkpoint(note, origin, log)


def _entries(folder: Path, size: int) -> Iterator[bytes]:
    for number, width in _tiles(size):
        path = tile_path("entries", number, width)
        bundle = _read(folder / path, WIDTH * (_LENGTH.size + 65535))
        at = 0
        for _ in range(width):
            if at + _LENGTH.size > len(bundle):
                raise StoreError(f"{path}: it is cut off")
            (length,) = _LENGTH.unpack_from(bundle, at)
            at += _LENGTH.size
            yield bundle[at : at + length]
            at += length
        if at != len(bundle):
            raise StoreError(f"{path}: its entries do not fill it")


def _read(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            found = file.read(limit + 1)
    except OSError as error:
        raise StoreError(f"{path.name}: it cannot be read ({error.strerror})") from None
    if len(found) > limit:
        raise StoreError(f"{path.name}: it is too long")
    return found
