"""One self-contained HTML page about one or several settings: tables, charts, what ran and how to run it again."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from p2pfl.figures import to_svg
from p2pfl.files import write_atomic
from p2pfl.sim import charts
from p2pfl.sim.charts import Groups
from p2pfl.sim.results import SimResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MIXED_ENOUGH = 0.95  # of the edges; below, the result is about absences, not about the graph
MOST_GRAPHS = 6  # on one page; the others are in their own results
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
h1 { font-size: 1.6rem } h2 { font-size: 1.2rem; margin-top: 2rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .2rem .8rem; text-align: right } th { border-bottom: 1px solid }
th:first-child, td:first-child { text-align: left } tr:nth-child(even) { background: #f4f4f4 }
.charts { display: flex; flex-wrap: wrap; gap: 1rem } .charts svg { max-width: 100%; height: auto }
.warning { background: #fff3cd; padding: .5rem 1rem } pre { background: #f4f4f4; padding: 1rem; overflow: auto }
"""


def write_report(
    groups: Groups, path: Path, *, title: str = "", command: str = "", failed: Mapping[str, str] | None = None
) -> Path:
    """Write the page; returns its path. ``command`` makes the results again; ``failed``: why runs have no result.

    Raises StoreError, ConfigError.
    """
    write_atomic(path, report(groups, title=title, command=command, failed=failed).encode(), private=False)
    return path


def report(groups: Groups, *, title: str = "", command: str = "", failed: Mapping[str, str] | None = None) -> str:
    """The page as text. It loads nothing: no script, no font, no picture from elsewhere."""
    results = [result for group in groups.values() for result in group]
    title = title or " or ".join(groups)
    body = [
        f"<h1>{html.escape(title)}</h1>",
        *_warnings([*failures(failed or {}), *warnings_of(groups), *remarks_of(groups)]),
    ]
    body += ["<h2>Results</h2>", table(summary_rows(groups))]
    body += ["<h2>Over rounds, bytes and simulated hours</h2>", _charts(groups)]
    body += ["<h2>The sites at the end</h2>", _graphs(groups)]
    body += ["<h2>Time on the clock</h2>", table(cost_rows(groups))]
    body += ["<h2>What ran</h2>", f"<pre>{html.escape(_facts(results))}</pre>"]
    if command:
        body.append(f"<p>Made by: <code>{html.escape(command)}</code></p>")
    head = f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
    rules = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    policy = f'<meta http-equiv="Content-Security-Policy" content="{rules}">'
    return f"{head}{policy}<style>{STYLE}</style></head><body>{''.join(body)}</body></html>\n"


def summary_rows(groups: Groups) -> list[dict[str, Any]]:
    """One row for each group: the last evaluated figures, mean over its seeds with the lowest and highest.

    Of runs that were cut off, those of the last round that all seeds have: else different rounds would be averaged.
    """
    rows = []
    for name, results in groups.items():
        metric = results[0].metric
        common = set.intersection(*(set(result.evaluated) for result in results))
        finals = [result.final(max(common, default=None)) for result in results]
        row: dict[str, Any] = {"setting": name, "seeds": len(results), "rounds": max(f["round"] for f in finals)}
        for label, column in (("mean model", f"mean_model_{metric}"), ("worst site", f"worst_site_{metric}")):
            values = [final[column] for final in finals if column in final and np.isfinite(final[column])]
            row[f"{metric}, {label}"] = float(np.mean(values)) if values else None
            if len(values) > 1:
                row[f"{label}, lowest to highest"] = f"{min(values):.4f} to {max(values):.4f}"
        row["consensus distance"] = float(np.mean([final["distance"] for final in finals]))
        for column, label, unit in (("seconds", "simulated hours", 3600.0), ("bytes", "MB sent by all sites", 1e6)):
            values = [final[column] / unit for final in finals if np.isfinite(final.get(column, np.nan))]
            row[label] = float(np.mean(values)) if values else None
        rows.append(row)
    return rows


def cost_rows(groups: Groups) -> list[dict[str, Any]]:
    """One row for each group: seconds on the clock by phase, mean over its seeds, and what executed it."""
    rows = []
    for name, results in groups.items():
        phases = {
            phase: float(np.mean([result.cost.get(phase, 0.0) for result in results])) for phase in results[0].cost
        }
        rows.append({"setting": name, "execution": results[0].facts.get("execution", ""), **phases})
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as an HTML table."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
    lines = ("".join(f"<td>{html.escape(cell(row.get(name)))}</td>" for name in names) for row in rows)
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def cell(value: Any) -> str:
    """A value as a person reads it."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4f}" if 0.001 <= abs(value) < 1000 or value == 0 else f"{value:.4g}"
    return str(value)


def warnings_of(groups: Groups) -> list[str]:
    """What somebody who reads the figures must know first."""
    said = []
    stopped = [name for name, results in groups.items() if any(result.interrupted for result in results)]
    if stopped:
        said.append(
            f"Interrupted before the last round: {', '.join(stopped)}. The figures are those of the last round that "
            "all seeds have."
        )
    for name, results in groups.items():
        ends = [end for result in results if (end := result.facts.get("patience_ends_in_round")) is not None]
        if ends:
            said.append(
                f"{name}: from round {min(ends)} on deployed peers would not have waited so long for each other as the "
                'timing model does; for what they would have done, write clock = "machines".'
            )
        shares = [share for result in results if (share := result.facts.get("edges_mixed")) is not None]
        pause = any(fault["kind"] == "absent" for result in results for fault in result.facts.get("faults", ()))
        if shares and min(shares) < MIXED_ENOUGH and pause:
            said.append(
                f"{name}: only {100 * min(shares):.0f} % of the deltas between sites that were there were mixed: where "
                "users pause, neighbours may go on without the last delta, or wait for one that does not come."
            )
        elif shares and min(shares) < MIXED_ENOUGH and any((r.facts["time"] or {}).get("staleness") for r in results):
            said.append(
                f"{name}: only {100 * min(shares):.0f} % of the graph's deltas were mixed: in asynchronous runs a "
                "message that a newer one has overtaken is not; rounds that wait (staleness = 0) mix all of them."
            )
        elif shares and min(shares) < MIXED_ENOUGH:
            said.append(
                f"{name}: only {100 * min(shares):.0f} % of the graph's deltas were mixed: rounds take longer than the "
                "plan's deadline lets neighbours wait; raise the plan's deadline, or simulate shorter rounds."
            )
        fell = sorted({text for result in results for text in result.facts["execution_facts"]["fell_back"]})
        said += [f"{name}: {text}" for text in fell]
    return said


def remarks_of(groups: Groups) -> list[str]:
    """What was said of the runs before they began: another way of execution than was asked for, few examples."""
    said = [
        f"{name}: {text}." for name, results in groups.items() for r in results for text in r.facts.get("remarks", ())
    ]
    return list(dict.fromkeys(said))


def failures(failed: Mapping[str, str]) -> list[str]:
    """One sentence for each run that ended with an error: means over the other seeds would hide it."""
    return [f"No result of {which}: {why}." for which, why in failed.items()]


def _warnings(said: Sequence[str]) -> list[str]:
    return [f'<p class="warning">{html.escape(text)}</p>' for text in said]


def _charts(groups: Groups) -> str:
    figures = [charts.metric_chart(groups, over) for over in charts.AXES]
    figures += [charts.worst_chart(groups), charts.distance_chart(groups)]
    return f'<div class="charts">{"".join(_svg(figure) for figure in figures)}</div>'


def _graphs(groups: Groups) -> str:
    shown = list(groups.items())[:MOST_GRAPHS]
    parts = [f"<figure><figcaption>{html.escape(name)}</figcaption>{_svg(charts.graph_chart(results[0]))}</figure>"
             for name, results in shown]  # fmt: skip
    more = f"<p>{len(groups) - len(shown)} more settings.</p>" if len(groups) > len(shown) else ""
    return f'<div class="charts">{"".join(parts)}</div>{more}'


def _svg(figure: Figure) -> str:
    """The figure as an element of the page, without the head of a file of its own."""
    text = to_svg(figure)
    return text[text.index("<svg") :]


def _facts(results: Sequence[SimResult]) -> str:
    """The facts that all results share, then each result's own."""
    shared = {
        name: value
        for name, value in results[0].facts.items()
        if all(result.facts.get(name) == value for result in results)
    }
    own = [{name: value for name, value in result.facts.items() if name not in shared} for result in results]
    lines = [json.dumps(shared, indent=1, sort_keys=True)]
    lines += [json.dumps(facts, sort_keys=True) for facts in own if facts]
    return "\n".join(lines)
