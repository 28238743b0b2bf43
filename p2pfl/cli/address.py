"""`p2pfl address`: where a home listens, and the member records it knows."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from p2pfl.cli.home import PRIVATE, AsJson, HomePath, PassphraseFile
from p2pfl.cli.output import note, passphrase, show
from p2pfl.crypto import is_sealed
from p2pfl.errors import ConfigError, LinkError
from p2pfl.peer import ask, change_address, known_records, open_home, read_text, take_record

ASK_TIME = 5.0  # seconds; a running peer answers on this machine at once

ListenOption = Annotated[str | None, typer.Option("--listen", help="Address to listen on from now on: a multiaddr.")]
NoListen = Annotated[bool, typer.Option("--no-listen", help="No listening port from now on; this peer dials out.")]
Take = Annotated[
    Path | None, typer.Option("--take", help="File with another member's record, taken as if a neighbour had told it.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would change; sign and write nothing.")]


def register(app: typer.Typer) -> None:
    """Add the verb to the root."""
    app.command("address")(address)


def address(
    home: HomePath,
    listen: ListenOption = None,
    no_listen: NoListen = False,
    take: Take = None,
    dry_run: DryRun = False,
    passphrase_file: PassphraseFile = None,
    as_json: AsJson = False,
) -> None:
    """Show the members' addresses and records, or change where this home listens; its partners hear of that.

    Example: p2pfl address homes/lille --listen /ip4/10.1.2.3/tcp/4101
    """
    if (listen is not None) + no_listen + (take is not None) > 1:
        raise ConfigError("--listen, --no-listen and --take do different things; say only one of them")
    if dry_run and listen is None and not no_listen:
        raise ConfigError("--dry-run goes with a change; say --listen ADDRESS or --no-listen as well")
    os.umask(PRIVATE)
    if take is not None:
        _take(home, take, as_json)
    elif listen is not None or no_listen:
        _change(home, listen, dry_run, passphrase_file, as_json)
    else:
        _show(home, as_json)


def _show(home: Path, as_json: bool) -> None:
    rows = known_records(home)
    lines = []
    for row in rows:
        where = ", ".join(row["addresses"]) or ("found by discovery" if row["listens"] else "no port, it dials out")
        newer = "newer than the charter's" if row["newer"] else "from the charter"
        lines.append(f"member       {row['name']:<16} {where}")
        lines.append(f"  record     number {row['sequence']}, {newer}, holds until {row['holds_until']}")
    show(rows, as_json, lines)


def _take(home: Path, file: Path, as_json: bool) -> None:
    verdict = take_record(home, read_text(file))
    member = verdict.member
    known = "taken" if verdict.new else "known already"
    value = {"name": member.name, "peer": member.peer_id, "sequence": member.sequence, "new": verdict.new}
    show(value, as_json, [f"record       {member.name}, number {member.sequence}: {known}"])
    if verdict.new:
        _say_when(home)


def _change(home: Path, listen: str | None, dry_run: bool, file: Path | None, as_json: bool) -> None:
    identity = None
    if not dry_run:
        change_address(home, listen, None)  # before anybody types a passphrase
        opened = open_home(home)
        identity = opened.identity(passphrase(file, is_sealed(opened.path / "identity.key")))
    facts = change_address(home, listen, identity)
    show(facts, as_json, _changes(facts, dry_run))
    if not dry_run and (facts["changed"] or facts["new_record"]):
        _say_when(home)


def _changes(facts: dict[str, Any], dry_run: bool) -> list[str]:
    if not facts["changed"] and not facts.get("new_record"):
        return [f"listens      {facts['listen'] or 'no port'}, as before"]
    lines = [
        f"listens      {facts['listen'] or 'no port'} (before: {facts['before'] or 'no port'})",
        f"tells        {', '.join(facts['addresses']) or 'no address'}",
    ]
    return [*lines, "dry run      nothing was changed" if dry_run else f"record       number {facts['sequence']}"]


def _say_when(home: Path) -> None:
    try:
        asyncio.run(ask(home, "status", timeout=ASK_TIME))
    except LinkError:
        pass  # it runs, and is busy
    except ConfigError:
        return
    note(f"a peer is running on {home}: this takes effect at its next start")
