"""`p2pfl audit`: check and read a peer's log, also while the peer runs."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from p2pfl.audit import Kind, Witnessed, as_dict, describe, epoch_source, part_source, witnessed_source
from p2pfl.cli.cosigned import check_checkpoint, checkpoint, witness_facts, witness_lines
from p2pfl.cli.erase import erase
from p2pfl.cli.evidence import check as check_evidence
from p2pfl.cli.export import export
from p2pfl.cli.home import AsJson
from p2pfl.cli.lineage import show_lineage
from p2pfl.cli.logs import find_log
from p2pfl.cli.output import note, show
from p2pfl.cli.proofs import check_proof, owner_of, prove, whole_charter
from p2pfl.cli.reconcile import reconcile_logs
from p2pfl.errors import ConfigError, StoreError
from p2pfl.governance import fingerprint

app = typer.Typer(no_args_is_help=True)
app.command("prove")(prove)
app.command("check-proof")(check_proof)
app.command("check-evidence")(check_evidence)
app.command("checkpoint")(checkpoint)
app.command("check-checkpoint")(check_checkpoint)
app.command("export")(export)
app.command("erase")(erase)
app.command("lineage")(show_lineage)
app.command("reconcile")(reconcile_logs)
LogPlace = Annotated[Path, typer.Argument(help="A home folder, an audit.db file, or an export.", metavar="HOME")]


@app.command("verify")
def verify(
    place: LogPlace,
    charter_file: Annotated[
        Path | None, typer.Option("--charter", help="Also that the log is of a member of this charter.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check every entry, document, tree hash and signed checkpoint. Exit code 1 and the first bad place if one fails.

    Without a home or a charter anybody's log verifies: it says whose it is, and you compare the peer id.

    Example: p2pfl audit verify homes/lille
    """
    log = find_log(place)
    outcome = log.verify(lambda done, of: note(f"{done} of {of} entries checked"))
    lines = [
        f"{'verified' if outcome.ok else 'BROKEN'}     {log.path}",
        f"log          {outcome.origin}",
        f"entries      {outcome.entries}, checkpoints {outcome.heads}, root {outcome.root[:16]}",
    ]
    if outcome.torn:
        lines.append(f"torn end     {outcome.torn}")
    part = part_source(log.path) if outcome.ok else None
    if part is not None:
        lines.append(f"part         entries {part[0]} to {part[1]} of {part[2]}: of the others it says nothing")
    found, untold = _witnesses(log.path) if outcome.ok else ([], None)
    names = log.names
    epoch = epoch_source(log.path) if outcome.ok else None
    if epoch:
        lines.append(f"epoch        {epoch}: it lost its end so often, and says so in its entries epoch_opened")
    if outcome.problem:
        lines.append(f"first bad    {outcome.problem}")
    elif charter_file is not None:
        charter = whole_charter(charter_file)
        names = {str(member.peer_id): member.name for member in charter.members}
        lines.append(f"member       {owner_of(outcome.origin, outcome.peer_id, charter).name}")
        lines.append(f"charter      {fingerprint(charter)}")
    if untold:
        lines.append(f"not told     who cosigned it: {untold}")
    elif outcome.ok:
        lines += witness_lines(found, names, of_charter=charter_file is not None, part=part)
    first, last, size = part or (0, outcome.entries - 1, outcome.entries)
    value = {**asdict(outcome), "first": first, "last": last, "size": size, "epoch": epoch, "untold": untold}
    show({**value, "cosigned": witness_facts(found, names)}, as_json, lines)
    if not outcome.ok:
        raise typer.Exit(1)


def _witnesses(path: Path) -> tuple[list[Witnessed], str | None]:
    """Who has cosigned it, or why that cannot be told: what lies beside a log is no part of it."""
    try:
        return witnessed_source(path), None
    except StoreError as error:
        return [], str(error)


@app.command("show")
def show_log(
    place: LogPlace,
    start: Annotated[int, typer.Option("--from", help="First entry to print.")] = 0,
    kind: Annotated[str | None, typer.Option("--kind", help="Only entries of this kind, such as mixed.")] = None,
    last: Annotated[int | None, typer.Option("--last", help="Only so many of the newest entries.")] = None,
    as_json: AsJson = False,
) -> None:
    """Print the log in plain words, one line per entry. Reading checks nothing: use verify for that.

    Example: p2pfl audit show homes/lille --kind delta_sent
    """
    if start < 0 or (last is not None and last < 1):
        raise ConfigError("--from must be 0 or more, --last 1 or more")
    if kind is not None and kind not in set(Kind):
        raise ConfigError(f"no entries are of the kind {kind!r}; the kinds are {', '.join(Kind)}")
    log = find_log(place)
    entries = list(log.entries(start, kind))
    chosen = entries if last is None else entries[-last:]
    show([as_dict(entry) for entry in chosen], as_json, (describe(entry, log.names) for entry in chosen))
