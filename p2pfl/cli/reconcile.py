"""`p2pfl audit reconcile`: the logs of several hospitals compared with each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from p2pfl.audit import Finding, Reconciliation, reconcile
from p2pfl.cli.home import AsJson
from p2pfl.cli.logs import CharterOption, GivenLogs, read_logs
from p2pfl.cli.output import show

SHORT_RUN, SHORT_PEER = 12, 12  # characters shown of a run's name and of a peer id's end
PARTLY = 3  # exit code: no finding, and not everything was looked at


def reconcile_logs(
    places: Annotated[
        list[Path], typer.Argument(help="Home folders, audit.db files or exports, one per hospital.", metavar="LOG...")
    ],
    charter_file: CharterOption = None,
    as_json: AsJson = False,
) -> None:
    """Compare the logs of several hospitals: what one sent, the other received; edges, weights and runs agree.

    Every log is verified first. Exit code 1 if anything is missing, contradictory or unexplained; 3 if nothing is, but
    a log was given in part, so that what it lacks could not be asked for.

    Example: p2pfl audit reconcile homes/lille homes/caen
    """
    given = read_logs(places, charter_file)
    outcome = reconcile(given.logs)
    peers = [log.peer for log in given.logs]
    value = {**_facts(outcome, peers, given.names), "fingerprint": given.fingerprint}
    show(value, as_json, _lines(outcome, given))
    if not outcome.clean:
        raise typer.Exit(exit_code(outcome))


def exit_code(outcome: Reconciliation) -> int:
    """0: nothing to ask about; 1: findings; 3: none, but a log was given in part."""
    return 1 if outcome.findings else PARTLY if outcome.parts else 0


def _name(peer: str, names: Mapping[str, str]) -> str:
    return names.get(peer) or f"…{peer[-SHORT_PEER:]}"


def _lines(outcome: Reconciliation, given: GivenLogs) -> Iterator[str]:
    logs, names = given.logs, given.names
    yield given.whose_names()
    for log in logs:
        yield f"log          {_name(log.peer, names)}: {log.entries} entries, all verified"
    yield from _said(outcome, names)
    for what, times in sorted(outcome.agreed.items()):
        yield f"agree        {times} {what}"
    for (what, why), times in sorted(outcome.explained.items()):
        yield f"explained    {times} {what}: {why}"
    for peer, times in sorted(outcome.not_judged.items()):
        here = "does not have them" if peer in {log.peer for log in logs} else "is not here"
        yield f"not judged   {times} statements about {_name(peer, names)}, whose log {here}"
    for run in ("", *outcome.runs):
        found = [finding for finding in outcome.findings if finding.run == run]
        if found and run:
            yield f"run {run[:SHORT_RUN]}"
        for finding in sorted(found, key=lambda item: (item.round is None, item.round or 0, item.peer)):
            yield sentence(finding, names)
    yield outcome.verdict


def _said(outcome: Reconciliation, names: Mapping[str, str]) -> Iterator[str]:
    """What logs declare and tell of each other, and what was given in part."""
    for notice in outcome.notices:
        other = "" if notice.other is None else f" {_name(notice.other, names)}"
        where = "" if notice.entry is None else f" (entry {notice.entry})"
        yield f"said         {_name(notice.peer, names)} {notice.text}{other}{where}"
    for peer, (first, last, size) in sorted(outcome.parts.items()):
        yield f"NOT JUDGED   {_name(peer, names)} gave entries {first} to {last} of {size}: the rest was not looked at"


def sentence(finding: Finding, names: Mapping[str, str]) -> str:
    where = "" if finding.round is None else f"round {finding.round}: "
    other = "" if finding.other is None else f" {_name(finding.other, names)}"
    places = ", ".join(f"entry {position} of {_name(peer, names)}" for peer, position in finding.entries)
    shown = f" ({places})" if places else ""
    return f"{finding.sort.upper():<12} {where}{_name(finding.peer, names)} {finding.text}{other}{shown}"


def _facts(outcome: Reconciliation, given: list[str], names: Mapping[str, str]) -> dict[str, Any]:
    return {
        "clean": outcome.clean,
        "verdict": outcome.verdict,
        "logs": [{"peer": peer, "name": names.get(peer)} for peer in given],
        "runs": outcome.runs,
        "agreed": dict(outcome.agreed),
        "explained": [
            {"what": what, "why": why, "times": times} for (what, why), times in sorted(outcome.explained.items())
        ],
        "not_judged": dict(outcome.not_judged),
        "parts": {peer: list(part) for peer, part in outcome.parts.items()},
        "said": [
            {"peer": row.peer, "other": row.other, "text": row.text, "entry": row.entry} for row in outcome.notices
        ],
        "findings": [
            {
                "sort": str(finding.sort),
                "run": finding.run,
                "round": finding.round,
                "peer": finding.peer,
                "name": names.get(finding.peer),
                "other": finding.other,
                "other_name": names.get(finding.other or ""),
                "text": finding.text,
                "entries": [list(entry) for entry in finding.entries],
            }
            for finding in outcome.findings
        ],
    }
