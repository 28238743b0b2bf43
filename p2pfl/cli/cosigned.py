"""`p2pfl audit checkpoint` and `check-checkpoint`: how much of a log its witnesses vouch for, checked anywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from p2pfl.audit import COSIGNED_LIMIT, Witnessed, check_cosigned, decode_cosigned, encode_cosigned, open_part
from p2pfl.cli.home import AsJson
from p2pfl.cli.logs import find_log
from p2pfl.cli.output import note, show, write_result
from p2pfl.cli.proofs import owner_of, whole_charter
from p2pfl.crypto import log_origin, open_checkpoint
from p2pfl.errors import ConfigError, RemoteError
from p2pfl.governance import fingerprint
from p2pfl.peer import read_text


def checkpoint(
    place: Annotated[Path, typer.Argument(help="A home folder.", metavar="HOME")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write a file instead of printing.")] = None,
    plain: Annotated[
        bool, typer.Option("--note", help="Only the newest cosigned one, as a C2SP signed note for other programs.")
    ] = False,
) -> None:
    """Give the checkpoints that other members have cosigned of this log: each one's newest, with its signed key.

    `p2pfl audit check-checkpoint` checks the file with the charter alone. An export in json or tlog holds the same.

    Example: p2pfl audit checkpoint homes/lille -o lille.cosigned
    """
    with open_part(find_log(place).path) as part:
        if not part.cosigned:
            raise ConfigError(f"nobody has cosigned the log in {place} yet; members do while their peers are linked")
        text = part.cosigned[0].note.decode() if plain else encode_cosigned(part.cosigned, part.note)
    if output is None:
        typer.echo(text, nl=False)
        return
    write_result(output, text.encode())
    how = "" if plain else f"; anybody checks it with `p2pfl audit check-checkpoint {output} --charter CHARTER`"
    note(f"wrote {output}{how}")


def check_checkpoint(
    file: Annotated[Path, typer.Argument(help="A file from `p2pfl audit checkpoint`.", metavar="FILE")],
    charter_file: Annotated[Path, typer.Option("--charter", help="The charter file of the consortium.")],
    as_json: AsJson = False,
) -> None:
    """Check cosigned checkpoints with no home, no key and no network: only the charter is trusted.

    Compare the printed fingerprint with one that you have from a founder.

    Example: p2pfl audit check-checkpoint lille.cosigned --charter charter
    """
    charter = whole_charter(charter_file)
    text = read_text(file, COSIGNED_LIMIT)
    try:
        newest, items = decode_cosigned(text)
        member = owner_of(newest.partition(b"\n")[0].decode(errors="replace"), None, charter)
        origin = log_origin(charter.name, member.peer_id)
        opened = open_checkpoint(newest, origin, member.peer_id)
        found = check_cosigned(items, opened, origin, member.peer_id)
    except RemoteError as error:
        raise ConfigError(f"the cosigned checkpoints in {file} do not hold: {error}") from error
    names = {str(item.peer_id): item.name for item in charter.members}
    facts: dict[str, Any] = {
        "log": member.peer_id, "member": member.name, "origin": opened.origin, "size": opened.size,
        "root": opened.root.hex(), "fingerprint": fingerprint(charter), "cosigned": witness_facts(found, names),
    }  # fmt: skip
    lines = [
        f"holds        the log of {member.name}, {opened.size} entries, root {opened.root.hex()[:16]}",
        *witness_lines(found, names, of_charter=True),
        f"charter      {fingerprint(charter)}",
    ]
    show(facts, as_json, lines)


def witness_facts(found: Sequence[Witnessed], names: Mapping[str, str]) -> list[dict[str, Any]]:
    """For programs; ``name`` is None for somebody whom these names do not have."""
    return [
        {"witness": row.witness, "name": names.get(row.witness), "epoch": row.epoch, "size": row.size, "time": row.time}
        for row in found
    ]


def witness_lines(
    found: Sequence[Witnessed],
    names: Mapping[str, str],
    *,
    of_charter: bool,
    part: tuple[int, int, int] | None = None,
) -> list[str]:
    """For people. ``of_charter``: the names are all members', so that somebody else does not count.

    ``part`` is first, last and number of all entries, where not all were given: none of the others is named.
    """
    lines = []
    for row in found:
        if of_charter and row.witness not in names:
            lines.append(f"not counted  a cosignature by {row.witness}, who is no member of this charter")
            continue
        moment = datetime.fromtimestamp(row.time, UTC)
        epoch = f" of epoch {row.epoch}" if row.epoch else ""
        which = f"up to entry {row.size - 1}"
        if part is not None:
            which = f"up to entry {min(row.size - 1, part[1])}" if row.size > part[0] else "none of these entries"
        who = names.get(row.witness, row.witness)
        lines.append(f"cosigned     by {who} {which}{epoch}, at {moment:%Y-%m-%d %H:%M:%SZ}")
    if of_charter and not any(row.witness in names for row in found):
        lines.append("cosigned     by nobody")
    return lines
