"""`p2pfl audit check-evidence`: that a log contradicts itself, checked with nothing but the charter."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from p2pfl.audit import CLAIMS, EVIDENCE_LIMIT, check_evidence, read_evidence
from p2pfl.cli.home import AsJson
from p2pfl.cli.output import show
from p2pfl.crypto import log_origin
from p2pfl.errors import ConfigError, RemoteError
from p2pfl.governance import fingerprint, missing_signatures, parse_charter
from p2pfl.peer import read_text


def check(
    file: Annotated[Path, typer.Argument(help="A file from the folder evidence of a home.", metavar="FILE")],
    charter_file: Annotated[Path, typer.Option("--charter", help="The charter file of the consortium.")],
    as_json: AsJson = False,
) -> None:
    """Check evidence that a member's log contradicts itself, with no home, no key and no network.

    Only the member's own signatures count, not who found it. Exit code 0: the evidence holds. Compare the printed
    fingerprint with one that you have from a founder.

    Example: p2pfl audit check-evidence evidence/rollback-….json --charter charter
    """
    charter = parse_charter(read_text(charter_file))
    if missing_signatures(charter):
        raise ConfigError(f"the charter in {charter_file} is not signed by all its founders; ask for the whole one")
    try:
        evidence = read_evidence(read_text(file, EVIDENCE_LIMIT).encode())
        member = next((item for item in charter.members if item.peer_id == evidence.owner), None)
        if member is None:
            raise ConfigError(f"the evidence in {file} is about no member of {charter.name}; give that charter")
        first, second = check_evidence(evidence, log_origin(charter.name, member.peer_id), member.peer_id)
    except RemoteError as error:
        raise ConfigError(f"the evidence in {file} does not hold: {error}") from error
    facts: dict[str, Any] = {
        "member": member.name, "log": member.peer_id, "claim": evidence.claim, "meaning": CLAIMS[evidence.claim],
        "checkpoints": [
            {"origin": item.origin, "size": item.size, "root": item.root.hex()} for item in (first, second)
        ],
        "fingerprint": fingerprint(charter),
    }  # fmt: skip
    lines = [
        f"holds        the log of {member.name} contradicts itself: {evidence.claim}",
        f"that is      {CLAIMS[evidence.claim]}",
        *(f"checkpoint   {item.origin}, size {item.size}, root {item.root.hex()[:16]}" for item in (first, second)),
        f"charter      {fingerprint(charter)}",
    ]
    show(facts, as_json, lines)
