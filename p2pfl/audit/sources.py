"""A log in whatever form it is at hand: the database of a home, an export in JSON lines, a folder of tiles."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from p2pfl.audit.cosigned import Cosigned, Witnessed, check_cosigned
from p2pfl.audit.export import COLUMNS, open_part
from p2pfl.audit.exported import is_export, read_exported, read_header, verify_export
from p2pfl.audit.facts import LogFacts
from p2pfl.audit.format import Entry
from p2pfl.audit.gathering import gather
from p2pfl.audit.held import notes_or_refusal, roots_at
from p2pfl.audit.store import read_entries, reading_log
from p2pfl.audit.tiles import is_tiled, log_of, read_cosigned_beside, read_held_beside, read_tiled, verify_tiles
from p2pfl.audit.tree import newest_head
from p2pfl.audit.verify import Progress, Verification, verify_log
from p2pfl.crypto import epoch_of, open_checkpoint
from p2pfl.errors import RemoteError, StoreError


def is_source(path: Path) -> bool:
    """Whether a file or folder holds a log itself, as a home does not."""
    return path.is_file() or is_tiled(path)


def is_table(path: Path) -> bool:
    """Whether a file begins like an export in CSV, of which nothing can be verified."""
    try:
        with path.open("rb") as file:
            return file.readline(256).rstrip() == ",".join(COLUMNS).encode()
    except OSError:
        return False


def is_cut_off(path: Path) -> bool:
    """Whether a folder has tiles and no checkpoint, which is written last."""
    return (path / "tile").is_dir() and not is_tiled(path)


def is_database(path: Path) -> bool:
    """Whether it is the database itself, and no export of it."""
    return path.is_file() and not is_export(path)


def verify_source(
    path: Path,
    expected_peer: str | None = None,
    expected_origin: str | None = None,
    progress: Progress = lambda done, of: None,
) -> Verification:
    """`verify_log` for a log in any form; of the progress, a database alone tells."""
    if is_tiled(path):
        return verify_tiles(path, expected_peer, expected_origin)
    if is_export(path):
        return verify_export(path, expected_peer, expected_origin)
    return verify_log(path, expected_peer, expected_origin, progress)


def read_source(path: Path, start: int = 0, kind: str | None = None) -> Iterator[Entry]:
    """The entries of a log in any form, oldest first; checks nothing. Raises ConfigError or StoreError."""
    if not is_tiled(path) and not is_export(path):
        return read_entries(path, start, kind)
    entries = read_tiled(path) if is_tiled(path) else read_exported(path)
    return (entry for entry in entries if entry.position >= start and kind in (None, entry.kind))


@dataclass(frozen=True, slots=True)
class Beside:
    """What lies with the entries of a log in any form; nothing of it is verified."""

    log: str
    origin: str
    checkpoint: bytes  # the newest one's note
    cosigned: tuple[Cosigned, ...]
    held: tuple[bytes, ...]  # checkpoints of other logs
    damaged: int = 0  # rows of a witness store that are no such checkpoint
    part: tuple[int, int, int] | None = None  # of an export of some entries: first, last (included), of how many


def beside(path: Path) -> Beside:
    """Read it. Raises ConfigError or StoreError."""
    if is_tiled(path):
        try:
            return Beside(*log_of(path), read_cosigned_beside(path), read_held_beside(path))
        except RemoteError as error:
            raise StoreError(f"the checkpoints beside {path} cannot be read: {error}") from None
    if is_export(path):
        header = read_header(path)
        some = None if header.whole else (header.first, header.last, header.size)
        return Beside(header.log, header.origin, header.checkpoint, header.cosigned, header.held, part=some)
    with open_part(path) as part:
        return Beside(part.log, part.origin, part.note, part.cosigned, part.held, part.damaged)


def witnessed_source(path: Path) -> list[Witnessed]:
    """Who has cosigned how much of a log in any form, the most first; empty where nothing of it is known.

    Whether they are members is the caller's question. Raises StoreError for what does not hold.
    """
    found = beside(path)
    try:
        newest = open_checkpoint(found.checkpoint, found.origin, found.log)
        return check_cosigned(found.cosigned, newest, found.origin, found.log)
    except RemoteError as error:
        raise StoreError(f"the cosigned checkpoints of {path} do not hold: {error}") from None


def roots_source(path: Path, sizes: Collection[int]) -> dict[int, bytes]:
    """The roots of a whole log at these sizes, from its entries; checks no signature. Raises StoreError."""
    if not sizes:
        return {}
    return roots_at((entry.hash for entry in read_source(path)), sizes)


def part_source(path: Path) -> tuple[int, int, int] | None:
    """First, last (included) and number of all entries, where a log was given in part. Raises StoreError."""
    header = read_header(path) if is_export(path) else None
    return None if header is None or header.whole else (header.first, header.last, header.size)


def epoch_source(path: Path) -> int:
    """Which epoch a log in any form is in, by its newest checkpoint; checks nothing. Raises StoreError."""
    if is_tiled(path):
        _, origin, note = log_of(path)
    elif is_export(path):
        header = read_header(path)
        origin, note = header.origin, header.checkpoint
    else:
        with reading_log(path) as connection:
            _, origin, _, note = newest_head(connection)
    return epoch_of(note.partition(b"\n")[0].decode(errors="replace"), origin) or 0


def gather_source(path: Path, expected_peer: str | None = None, expected_origin: str | None = None) -> LogFacts:
    """The facts of a log in any form, after it was checked as a whole. Raises StoreError if it does not hold."""
    verification = verify_source(path, expected_peer, expected_origin)
    if not verification.ok:
        raise StoreError(f"the log in {path} does not hold ({verification.problem}); compare it only once it does")
    found = beside(path)
    facts = gather(verification.peer_id, read_source(path), whole=found.part is None)
    facts.origin, facts.epoch, facts.part = verification.origin, epoch_source(path), found.part
    facts.damaged = found.damaged
    facts.held = notes_or_refusal(path, found.held)
    facts.shown = notes_or_refusal(path, (found.checkpoint, *(item.note for item in found.cosigned)))
    return facts


def gather_sources(sources: Iterable[tuple[Path, str | None, str | None]]) -> list[LogFacts]:
    """`gather_source` for logs that are compared with each other: each path, with the expected peer and origin if any.

    Each whole log also gets its roots at the sizes of which the others hold checkpoints. Raises StoreError.
    """
    given = list(sources)
    logs = [gather_source(path, peer, origin) for path, peer, origin in given]
    for (path, _, _), log in zip(given, logs, strict=True):
        if log.part is None:
            held = {note.size for other in logs for note in other.held if note.log == log.peer}
            log.roots = roots_source(path, {size for size in held if size <= log.entries})
    return logs
