"""What the demo says at its end: facts gathered from homes and processes, as a table or one JSON object."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from p2pfl.audit import verify_log
from p2pfl.demo.consortium import Consortium, Site
from p2pfl.demo.evaluation import Evaluation, Evaluator
from p2pfl.governance import read_plan


def gather(consortium: Consortium, plan_folder: Path) -> tuple[dict[str, Any], Evaluation]:
    """All figures of a finished demo. The processes have ended; the logs are verified as they lie on disk."""
    reports = {site.name: _read_report(site, consortium.run_id) for site in consortium.sites}
    known = [report for report in reports.values() if report is not None]
    evaluation = _evaluate(consortium, plan_folder, known[0]["initial"])
    rows = {row.name: row for row in evaluation.rows}
    hospitals = []
    for site in consortium.sites:
        report, row, log = (
            reports[site.name],
            rows[site.name],
            verify_log(site.home / "audit.db", site.peer_id),
        )
        hospitals.append(
            {
                "name": site.name,
                "peer_id": site.peer_id,
                "patients": site.patients,
                "links": site.links,
                "auc_alone": row.alone,
                "auc_together": row.together,
                "auc_alone_home": row.alone_home,
                "auc_together_home": row.together_home,
                "rounds_done": None if report is None else report["rounds_done"],
                "log_entries": log.entries,
                "log_verified": log.ok,
                "bytes_sent": None if report is None else site.bytes_sent,
            }
        )
    value = {"hospitals": hospitals, "auc_pooled": evaluation.pooled, "missing": _missing(known)}
    return value, evaluation


def _read_report(site: Site, run: str) -> dict[str, Any] | None:
    path = site.home / "runs" / run / "report.json"
    return json.loads(path.read_text()) if path.exists() else None


def _missing(reports: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row per missing hospital: the earliest round any report names."""
    found: dict[str, dict[str, Any]] = {}
    for report in reports:
        for row in report["missing"]:
            known = found.get(row["name"])
            if known is None or row["from_round"] < known["from_round"]:
                found[row["name"]] = {name: row[name] for name in ("name", "from_round", "reason")}
    return [found[name] for name in sorted(found)]


def _evaluate(consortium: Consortium, plan_folder: Path, initial: str) -> Evaluation:
    folder = consortium.folder / "evaluation"
    folder.mkdir(exist_ok=True)
    evaluator = Evaluator(read_plan(plan_folder), consortium.hospitals, folder)
    models = {}
    for site in consortium.sites:
        path = site.home / "runs" / consortium.run_id / "model.safetensors"
        models[site.name] = path.read_bytes() if path.exists() else None
    first = consortium.sites[0].home / "contents" / initial
    return evaluator.evaluate(
        models,
        first.read_bytes(),
        lambda name: hashlib.sha256(f"demo {consortium.options.seed} {name}".encode()).digest(),
        rounds=consortium.options.rounds,
    )


def live_table(consortium: Consortium, messages: Sequence[str]) -> RenderableType:
    """The table that changes while the hospitals train."""
    table = Table("hospital", "process", "state", "round", "loss", "links", "bytes sent", box=None, pad_edge=False)
    for site in consortium.sites:
        table.add_row(
            site.name,
            str(site.process.pid) if site.process else "",
            site.state,
            str(site.round),
            "" if site.loss is None else f"{site.loss:.4f}",
            ", ".join(f"{name} {kind}" for name, kind in sorted(site.links.items())),
            f"{site.bytes_sent:,}",
        )
    return Group(*map(Text, messages[-6:]), table)


def print_report(out: Console, value: Mapping[str, Any], evaluation: Evaluation) -> None:
    """Tables for people."""
    table = Table(
        "hospital", "patients", "AUC alone", "together", "at home alone", "at home together", "rounds", "log",
        title="AUC on everybody's test patients, and on each hospital's own", title_justify="left", box=None,
    )  # fmt: skip
    for row in value["hospitals"]:
        table.add_row(
            row["name"], str(row["patients"]),
            *(_figure(row[key]) for key in ("auc_alone", "auc_together", "auc_alone_home", "auc_together_home")),
            "" if row["rounds_done"] is None else str(row["rounds_done"]),
            f"{row['log_entries']}, {'verified' if row['log_verified'] else 'BROKEN'}",
        )  # fmt: skip
    out.print(table)
    out.print(f"\nAUC if all data had been pooled in one place: {value['auc_pooled']:.4f}")
    names = list(evaluation.matrix)
    columns = list(next(iter(evaluation.matrix.values())))
    matrix = Table("trained alone at", *columns, title="\nTrained at, tested at", title_justify="left", box=None)
    for name in names:
        matrix.add_row(name, *(_figure(evaluation.matrix[name][at]) for at in columns))
    out.print(matrix)
    for row in value["missing"]:
        out.print(f"missing: {row['name']} from round {row['from_round']}: {row['reason']}")
    out.print(f"{value['seconds']:.1f} s")


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
