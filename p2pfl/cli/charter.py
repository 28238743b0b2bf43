"""`p2pfl charter`: the consortium's constitution, passed round as files."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from p2pfl.cli.home import AsJson, HomePath, PassphraseFile
from p2pfl.cli.output import note, passphrase, show, write_result
from p2pfl.crypto import is_sealed
from p2pfl.errors import ConfigError
from p2pfl.governance import (
    Charter,
    accept_charter,
    charter_to_text,
    closing_in_words,
    fingerprint,
    merge_charters,
    missing_signatures,
    new_charter,
    parse_charter,
    record_from_text,
    sign_charter,
    weights_in_words,
)
from p2pfl.peer import open_home, read_text
from p2pfl.topology import build_graph, is_graph_file, spec_from_text
from p2pfl.types import PeerId

app = typer.Typer(no_args_is_help=True)
CharterFile = Annotated[Path, typer.Argument(help="A charter file.", metavar="CHARTER")]
Output = Annotated[Path, typer.Option("-o", "--output", help="The charter file to write.")]


@app.command("new")
def new(
    records: Annotated[
        list[Path], typer.Argument(help="The founders' member records, in ring order.", metavar="RECORD...")
    ],
    name: Annotated[str, typer.Option("--name", help="The consortium's name.")],
    output: Output,
    topology: Annotated[
        str, typer.Option("--topology", help="Default graph: ring, full, star, chain, hierarchical, or a graph file.")
    ] = "ring",
    clusters: Annotated[int | None, typer.Option("--clusters", help="Number of clusters, for hierarchical.")] = None,
    weights: Annotated[
        str | None, typer.Option("--weights", help="What sites count: shares (the default), metropolis, uniform.")
    ] = None,
    closing: Annotated[
        str | None, typer.Option("--closing", help="How closing rounds mix: plain (the default), chebyshev.")
    ] = None,
    quorum: Annotated[
        int | None, typer.Option("--quorum", help="Signatures needed; more than half by default.")
    ] = None,
) -> None:
    """Make version 1 from the founders' records. Every founder then signs the same file.

    Example: p2pfl charter new --name north -o charter lille.record caen.record rouen.record
    """
    spec: dict[str, Any] = {"kind": topology, **({"clusters": clusters} if clusters is not None else {})}
    founders = [record_from_text(read_text(path)) for path in records]
    if is_graph_file(topology):
        members = new_charter(name, founders, quorum=quorum).members
        spec = spec_from_text(Path(topology).name, read_text(Path(topology)), [member.name for member in members])
    if weights is not None:
        spec["weights"] = weights
    if closing is not None:
        spec["closing"] = closing
    charter = new_charter(name, founders, quorum=quorum, topology=spec)
    build_graph(spec, [PeerId(member.peer_id) for member in charter.members])
    _write(output, charter)
    note(f"wrote {output}; every founder signs it with `p2pfl charter sign HOME {output}`")
    typer.echo(f"fingerprint  {fingerprint(charter)}")


@app.command("sign")
def sign(
    home: HomePath,
    file: CharterFile,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write elsewhere than into CHARTER.")] = None,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Add this founder's signature to a charter file.

    Example: p2pfl charter sign homes/lille charter
    """
    opened = open_home(home)
    charter = parse_charter(read_text(file))
    identity = opened.identity(passphrase(passphrase_file, is_sealed(opened.path / "identity.key")))
    signed = sign_charter(charter, identity)
    _write(output or file, signed)
    _tell_missing(signed)


@app.command("merge")
def merge(
    files: Annotated[list[Path], typer.Argument(help="Copies of one charter.", metavar="CHARTER...")],
    output: Output,
) -> None:
    """Unite the signatures of several copies of one charter.

    Example: p2pfl charter merge charter.lille charter.caen -o charter
    """
    merged = merge_charters([parse_charter(read_text(path)) for path in files])
    _write(output, merged)
    _tell_missing(merged)


def _write(path: Path, charter: Charter) -> None:
    """Write a charter file, never over another file: signatures that others sent would be lost."""
    if path.is_file() and path.stat().st_size:
        try:
            known = parse_charter(read_text(path))
        except ConfigError as error:
            raise ConfigError(f"{path} exists and is no intact charter file; choose another name for -o") from error
        if known.document != charter.document or not set(known.signatures) <= set(charter.signatures):
            raise ConfigError(
                f"{path} holds {'signatures that' if known.document == charter.document else 'another charter, which'} "
                "would be lost; merge the files, or choose another name for -o"
            )
    write_result(path, charter_to_text(charter).encode())


def _tell_missing(charter: Charter) -> None:
    missing = missing_signatures(charter)
    if missing:
        note(f"still to sign: {', '.join(member.name for member in missing)}")
    else:
        note(f"all {len(charter.members)} founders have signed; accept it with `p2pfl charter accept`")


@app.command("accept")
def accept(
    home: HomePath,
    file: CharterFile,
    told: Annotated[str | None, typer.Option("--fingerprint", help="The fingerprint read out to you.")] = None,
) -> None:
    """Take a fully signed charter into a home, if its fingerprint is the one you were told by telephone.

    Example: p2pfl charter accept homes/lille charter --fingerprint "1a2b 3c4d ..."
    """
    if told is None:
        raise ConfigError("give --fingerprint with the fingerprint read out to you; do not copy it from the file")
    opened = open_home(home)
    charter = parse_charter(read_text(file))
    if opened.member().peer_id not in {member.peer_id for member in charter.members}:
        raise ConfigError(f"{home} is not among this charter's members; use the right home or charter")
    accept_charter(opened.charter_file, charter, told, now=int(time.time()))
    note(f"accepted; start the peer with `p2pfl up {home}`")


@app.command("show")
def show_charter(file: CharterFile, as_json: AsJson = False) -> None:
    """Print a charter: members, quorum, topology, fingerprint, who has signed.

    Example: p2pfl charter show charter
    """
    charter = parse_charter(read_text(file))
    signed = {peer for peer, _ in charter.signatures}
    value = {
        "name": charter.name,
        "version": charter.version,
        "digest": charter.digest,
        "fingerprint": fingerprint(charter),
        "quorum": charter.quorum,
        "topology": charter.topology,
        "limits": charter.limits,
        "members": [
            {
                "name": member.name, "peer": member.peer_id, "addresses": list(member.addresses),
                "listens": member.listens, "expires": member.expires, "signed": member.peer_id in signed,
            }
            for member in charter.members
        ],
    }  # fmt: skip
    lines = [
        f"consortium   {charter.name}, version {charter.version}",
        f"fingerprint  {fingerprint(charter)}",
        f"quorum       {charter.quorum} of {len(charter.members)}",
        f"topology     {charter.topology['kind']}",
        f"weights      {weights_in_words(charter.topology)}",
        *([f"closing      {closing_in_words(charter.topology)}"] if "closing" in charter.topology else []),
    ]
    for member in charter.members:
        state = "signed" if member.peer_id in signed else "NOT signed"
        port = ", ".join(member.addresses) or ("listens" if member.listens else "no port")
        lines.append(f"member       {member.name:<16} {state:<11} {port}  {member.peer_id}")
    show(value, as_json, lines)
