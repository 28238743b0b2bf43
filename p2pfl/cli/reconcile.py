"""`p2pfl audit reconcile`: the logs of several hospitals compared with each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from p2pfl.audit import Finding, LogFacts, Reconciliation, reconcile
from p2pfl.cli.home import AsJson
from p2pfl.cli.logs import find_log
from p2pfl.cli.output import show

SHORT_RUN, SHORT_PEER = 12, 12  # characters shown of a run's name and of a peer id's end


def reconcile_logs(
    places: Annotated[
        list[Path], typer.Argument(help="Home folders, audit.db files or exports, one per hospital.", metavar="LOG...")
    ],
    as_json: AsJson = False,
) -> None:
    """Compare the logs of several hospitals: what one sent, the other received; edges, weights and runs agree.

    Every log is verified first. Exit code 1 if anything is missing, contradictory or unexplained.

    Example: p2pfl audit reconcile homes/lille homes/caen
    """
    logs, names = _read(places)
    outcome = reconcile(logs)
    known = {**{log.peer: log.name for log in logs if log.name}, **names}
    given = [log.peer for log in logs]
    show(_facts(outcome, given, known), as_json, _lines(outcome, logs, known))
    if not outcome.clean:
        raise typer.Exit(1)


def _read(places: list[Path]) -> tuple[list[LogFacts], dict[str, str]]:
    """The facts of each log, after its verification, and the names of the charters."""
    logs, names = [], {}
    for place in places:
        log = find_log(place)
        logs.append(log.facts())
        names.update(log.names)
    return logs, names


def _name(peer: str, names: Mapping[str, str]) -> str:
    return names.get(peer) or f"…{peer[-SHORT_PEER:]}"


def _lines(outcome: Reconciliation, logs: list[LogFacts], names: Mapping[str, str]) -> Iterator[str]:
    for log in logs:
        yield f"log          {_name(log.peer, names)}: {log.entries} entries, all verified"
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
            yield _sentence(finding, names)
    count = len(outcome.findings)
    yield f"{'FINDINGS' if count else 'clean'}{f'     {count}' if count else ''}"


def _sentence(finding: Finding, names: Mapping[str, str]) -> str:
    where = "" if finding.round is None else f"round {finding.round}: "
    other = "" if finding.other is None else f" {_name(finding.other, names)}"
    places = ", ".join(f"entry {position} of {_name(peer, names)}" for peer, position in finding.entries)
    shown = f" ({places})" if places else ""
    return f"{finding.sort.upper():<13}{where}{_name(finding.peer, names)} {finding.text}{other}{shown}"


def _facts(outcome: Reconciliation, given: list[str], names: Mapping[str, str]) -> dict[str, Any]:
    return {
        "clean": outcome.clean,
        "logs": [{"peer": peer, "name": names.get(peer)} for peer in given],
        "runs": outcome.runs,
        "agreed": dict(outcome.agreed),
        "explained": [
            {"what": what, "why": why, "times": times} for (what, why), times in sorted(outcome.explained.items())
        ],
        "not_judged": dict(outcome.not_judged),
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
