"""`p2pfl audit reconcile`: the logs of several hospitals compared with each other."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from p2pfl.audit import FORK, Evidence, Finding, Reconciliation, reconcile
from p2pfl.cli.home import AsJson
from p2pfl.cli.logs import CharterOption, GivenLogs, read_logs
from p2pfl.cli.output import note, show, write_result
from p2pfl.crypto import sha256

SHORT_RUN, SHORT_PEER = 12, 12  # characters shown of a run's name and of a peer id's end
PARTLY = 3  # exit code: no finding, and not everything was looked at


def reconcile_logs(
    places: Annotated[
        list[Path], typer.Argument(help="Home folders, audit.db files or exports, one per hospital.", metavar="LOG...")
    ],
    charter_file: CharterOption = None,
    evidence: Annotated[
        Path | None,
        typer.Option("--evidence", help="Write a file into this folder for each log that was forked, by its own key."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare the logs of several hospitals: what one sent, the other received; edges, weights and runs agree.

    Every log is verified first. Exit code 1 if anything is missing, contradictory or unexplained; 3 if nothing is, but
    a log was given in part, or its history compared with no checkpoint that another given log holds of it.

    Example: p2pfl audit reconcile homes/lille homes/caen
    """
    given = read_logs(places, charter_file)
    outcome = reconcile(given.logs)
    peers = [log.peer for log in given.logs]
    value = {**_facts(outcome, peers, given.names), "fingerprint": given.fingerprint}
    show(value, as_json, _lines(outcome, given))
    if evidence is not None:
        _write_evidence(evidence, outcome)
    elif outcome.forks:
        note(
            f"{len(outcome.forks)} logs were forked, as their owners' signatures show; --evidence FOLDER writes it down"
        )
    if not outcome.clean:
        raise typer.Exit(exit_code(outcome))


def exit_code(outcome: Reconciliation) -> int:
    """0: nothing to ask about; 1: findings; 3: none, but not everything could be looked at."""
    return 1 if outcome.findings else PARTLY if outcome.partly else 0


def _write_evidence(folder: Path, outcome: Reconciliation) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for fork in outcome.forks:
        found = {"by": "p2pfl audit reconcile", "at": time.time_ns() // 1_000_000}
        data = Evidence(FORK, fork.log, fork.origin, fork.notes, b"", found).encode()
        path = folder / f"{FORK}-{fork.log[-SHORT_PEER:]}-{sha256(b''.join(fork.notes))[:12]}.json"
        write_result(path, data)
        note(f"wrote {path}; anybody checks it with `p2pfl audit check-evidence {path} --charter CHARTER`")


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
    for peer, history in sorted(outcome.histories.items()):
        if history.agreed:
            whose = f"{history.agreed} checkpoints that witnesses hold of the log of {_name(peer, names)}"
            seen = (
                f"in {len(history.holders)} of the given logs, its first {history.up_to} of {history.entries} entries"
            )
            yield f"agree        {whose} ({seen})"
    for (what, why), times in sorted(outcome.explained.items()):
        yield f"explained    {times} {what}: {why}"
    for peer, times in sorted(outcome.not_judged.items()):
        here = "does not have them" if peer in {log.peer for log in logs} else "is not here"
        yield f"not judged   {times} statements about {_name(peer, names)}, whose log {here}"
    for peer in outcome.unwitnessed:
        yield f"NOT JUDGED   the history of {_name(peer, names)}: no other log given holds a checkpoint that is in it"
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
        line = f"NOT JUDGED   {_name(peer, names)} gave entries {first} to {last} of {size}"
        if peer in outcome.cut:
            holders = ", ".join(_name(holder, names) for holder in outcome.cut[peer])
            yield f"{line} or more, as checkpoints that {holders} hold show: it was cut, or is older; copy again"
        else:
            yield f"{line}: the rest was not looked at"
    for peer, entry in outcome.unseen:
        loss = f"the loss that {_name(peer, names)} declares (entry {entry})"
        yield (
            f"NOT JUDGED   {loss}: others hold checkpoints of what was lost, and no log given says that it was told; "
            "link the sites, and copy again"
        )


def sentence(finding: Finding, names: Mapping[str, str]) -> str:
    where = "" if finding.round is None else f"round {finding.round}: "
    other = "" if finding.other is None else f" {_name(finding.other, names)}"
    about = "" if finding.about is None else f", both of the log of {_name(finding.about, names)}"
    places = ", ".join(f"entry {position} of {_name(peer, names)}" for peer, position in finding.entries)
    shown = f" ({places})" if places else ""
    return f"{finding.sort.upper():<12} {where}{_name(finding.peer, names)} {finding.text}{other}{about}{shown}"


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
        "cut": {peer: list(holders) for peer, holders in outcome.cut.items()},
        "histories": {
            peer: {"agreed": row.agreed, "up_to": row.up_to, "entries": row.entries, "holders": sorted(row.holders)}
            for peer, row in outcome.histories.items()
        },
        "unwitnessed": outcome.unwitnessed,
        "unseen_losses": [list(place) for place in outcome.unseen],
        "forks": [fork.log for fork in outcome.forks],
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
                "about": finding.about,
                "text": finding.text,
                "entries": [list(entry) for entry in finding.entries],
            }
            for finding in outcome.findings
        ],
    }
