"""`p2pfl audit prove` and `check-proof`: one entry with its way into a signed checkpoint, checked anywhere, offline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from p2pfl.audit import as_dict, describe, entry_from_data, prove_entry
from p2pfl.cli.home import AsJson
from p2pfl.cli.output import note, show, write_result
from p2pfl.crypto import PROOF_LIMIT, epoch_of, log_origin, read_log_proof
from p2pfl.errors import ConfigError, RemoteError
from p2pfl.governance import Charter, fingerprint, missing_signatures, parse_charter
from p2pfl.peer import open_home, read_text
from p2pfl.types import Member


def prove(
    place: Annotated[Path, typer.Argument(help="A home folder, or an audit.db file.", metavar="HOME")],
    entry: Annotated[int, typer.Argument(help="The entry's number, as `p2pfl audit show` has it.", metavar="ENTRY")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write a file instead of printing.")] = None,
) -> None:
    """Give an entry with the proof that the log's newest checkpoint covers it: one text (C2SP tlog-proof).

    The entry itself is in it, its documents are not. `p2pfl audit check-proof` checks it with the charter alone.

    Example: p2pfl audit prove homes/lille 41 -o entry-41.tlog-proof
    """
    path = place if place.is_file() else open_home(place).audit
    proof = prove_entry(path, entry).encode()
    if output is None:
        typer.echo(proof.decode(), nl=False)
    else:
        write_result(output, proof)
        note(f"wrote {output}; anybody checks it with `p2pfl audit check-proof {output} --charter CHARTER`")


def check_proof(
    file: Annotated[Path, typer.Argument(help="A file from `p2pfl audit prove`.", metavar="FILE")],
    charter_file: Annotated[Path, typer.Option("--charter", help="The charter file of the consortium.")],
    as_json: AsJson = False,
) -> None:
    """Check a proof of an entry with no home, no key and no network: only the charter is trusted.

    Compare the printed fingerprint with one that you have from a founder.

    Example: p2pfl audit check-proof entry-41.tlog-proof --charter charter
    """
    charter = whole_charter(charter_file)
    text = read_text(file, PROOF_LIMIT)
    try:
        proof = read_log_proof(text.encode())
        member = owner_of(proof.checkpoint.partition(b"\n")[0].decode(errors="replace"), None, charter)
        entry, checkpoint = proof.open(log_origin(charter.name, member.peer_id), member.peer_id)
        found = entry_from_data(entry)
    except RemoteError as error:
        raise ConfigError(f"the proof in {file} does not hold: {error}") from error
    names = {str(item.peer_id): item.name for item in charter.members}
    facts: dict[str, Any] = {
        "log": member.peer_id, "member": member.name, "origin": checkpoint.origin, "size": checkpoint.size,
        "root": checkpoint.root.hex(), "fingerprint": fingerprint(charter), "entry": as_dict(found),
    }  # fmt: skip
    lines = [
        f"holds        entry {found.position} of {checkpoint.size} in the log of {member.name}",
        f"checkpoint   {checkpoint.origin}, root {checkpoint.root.hex()[:16]}",
        f"charter      {fingerprint(charter)}",
        describe(found, names),
    ]
    show(facts, as_json, lines)


def whole_charter(path: Path) -> Charter:
    """A charter file that all founders signed. Raises ConfigError for any other."""
    charter = parse_charter(read_text(path))
    if missing_signatures(charter):
        raise ConfigError(f"the charter in {path} is not signed by all its founders; ask for the whole one")
    return charter


def owner_of(origin: str, peer: str | None, charter: Charter) -> Member:
    """The member whose log an origin claims to be of, and that is this peer; signatures are checked elsewhere."""
    for member in charter.members:
        if epoch_of(origin, log_origin(charter.name, member.peer_id)) is not None and peer in (None, member.peer_id):
            return member
    raise ConfigError(f"the log {origin[:200]} is of no member of {charter.name}; give that charter")
