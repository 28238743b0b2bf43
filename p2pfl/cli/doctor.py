"""`p2pfl doctor`: a home's network, in plain words."""

from __future__ import annotations

import typer

from p2pfl.cli.home import AsJson, HomePath, run_loop
from p2pfl.cli.output import note, show
from p2pfl.peer import examine


def register(app: typer.Typer) -> None:
    """Add the verb to the root."""
    app.command("doctor")(doctor)


def doctor(home: HomePath, as_json: AsJson = False) -> int:
    """Look at this home's network, and say what to ask the firewall team for.

    Addresses, port, multicast, STUN and TURN; with a running peer also the partners' clocks, and whether they reach
    this site's port. Contacts only what home.toml names, and partners over existing links. Takes up to 40 seconds.
    Exit code 0: nothing is broken; 1: something is.

    Example: p2pfl doctor homes/lille
    """

    async def work() -> int:
        report = await examine(home, note)
        findings = report["findings"]
        lines = [f"{row['verdict']:<7} {row['check']:<11} {row['text']}" for row in findings]
        lines += ["", "for the firewall team:", *(f"  {line}" for line in report["firewall"])]
        show(report, as_json, lines)
        return int(any(row["verdict"] == "broken" for row in findings))

    return run_loop(work)
