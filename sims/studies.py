"""Six questions before four hospitals spend a month, each answered by a sweep; the tables are committed beside it.

    python sims/studies.py NAME... | all [--out DIR] [--resume] [--json]

Writes sims/studies/NAME.md: the question, the table over seeds, commit, machine, and the command. The whole results
(Parquet, HTML) come into DIR/NAME (default: results/studies).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from p2pfl.errors import P2PFLError
from p2pfl.sim import Inputs, backend_named, cells_of, prepared, read_scenario, summary_rows, sweep

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Study:
    """A question, what is varied on which scenario, and what the table says (written after looking at it)."""

    question: str
    scenario: str
    vary: Mapping[str, list[Any]]
    seeds: int = 3
    answer: str = ""
    then: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # further changes that belong to one value


STUDIES: Mapping[str, Study] = {
    "graph": Study(
        "Sixteen hospitals that see different kinds of cases: which graph?",
        "digits_ring.toml", {"topology": ["ring", "torus", "hypercube", "regular", "full"]},
        then={
            "torus": {"topology.rows": 4, "topology.columns": 4}, "regular": {"topology.degree": 4, "topology.seed": 1}
        },
        answer=(
            "One with four neighbours, or everybody. On the ring the worst site ends at 0.33, with four neighbours "
            "each at 0.66 to 0.70, for twice the traffic; everybody with everybody reaches 0.87 for nine times the "
            "ring's. Torus and hypercube do not differ; a random regular graph is nearly as good, and varies more "
            "between seeds."
        ),
    ),
    "degree": Study(
        "Sixty-four hospitals: how many neighbours are enough?",
        "digits_many.toml", {"degree": [2, 4, 8, 16]}, answer=(
            "Eight at least, where most see one kind of case: the worst site goes from 0.12 (two) to 0.24 (four), 0.55 "
            "(eight) and 0.75 (sixteen), while traffic doubles each time. The mean model hides this: from four on it "
            "hardly changes (0.83 to 0.86)."
        ),
    ),
    "rule": Study(
        "On a ring, the fewer kinds of cases each hospital sees: does gradient tracking help?",
        "digits_ring.toml", {"rule": ["dpsgd", "kgt"], "alpha": [0.05, 0.3, 10.0]}, answer=(
            "Yes. With the same learning rate, steps and rounds K-GT lifts the worst site from 0.37 to 0.82 where "
            "most hospitals see one kind, and still from 0.87 to 0.93 where each sees most kinds; it sends twice as "
            "much."
        ),
    ),
    "lying": Study(
        "One of twelve hospitals sends its parameters with the sign turned: what does it cost on which graph?",
        "digits_lying.toml", {"topology": ["ring", "regular", "full"], "fault": ["none", "flip"]},
        then={"regular": {"topology.degree": 4, "topology.seed": 1}}, answer=(
            "Averaging has no defence, and the better a graph mixes, the further one liar reaches: with everybody as "
            "neighbours all models are worthless (0.10 is guessing), with four neighbours nearly so, and on the ring "
            "the mean model keeps 0.86 while the worst site (the liar's own included) falls to 0.44. Rules that bound "
            "what one neighbour can do are needed before a consortium trusts strangers."
        ),
    ),
    "slow": Study(
        "One of eight hospitals takes five times as long: wait for it with a deadline, or mix when something arrives?",
        "digits_slow.toml", {"profiles": [{}, {"slow": 1}], "staleness": [0, 2]}, answer=(
            "Wait, with a deadline. Leaving the slow site behind costs the mean model a quarter (0.77 to 0.58) and the "
            "site itself, the worst one then, most of what it would have learnt (0.21): it should train fewer steps "
            "instead. Mixing on arrival saves a tenth to a fifth of the time and costs more accuracy (0.49 and 0.46), "
            "with and without a slow site, since weights must be smaller where deltas come late: it pays where rounds "
            "would otherwise stand still, not here."
        ),
    ),
    "local": Study(
        "More local steps, fewer rounds: how far can traffic be saved where hospitals differ?",
        "digits_ring.toml", {"local_steps": [1, 5, 20], "alpha": [0.1, 10.0]}, answer=(
            "Far, if they differ little: at the same number of rounds, and so of bytes, twenty steps beat five and "
            "one, for the worst site, too (0.62, 0.87, 0.92 with one, five, twenty). Where most see one kind of case "
            "they still do (0.22, 0.33, 0.38), but sites drift further apart, and none of the three makes up for a "
            "ring's few neighbours. The simulated hours are the same only because the scenario gives a round's work "
            "the same time whatever its steps."
        ),
    ),
}  # fmt: skip


def run(name: str, out: Path, resume: bool) -> list[dict[str, Any]]:
    """Run one study and write its page."""
    study, inputs = STUDIES[name], Inputs()
    scenario = read_scenario(HERE / "scenarios" / study.scenario)
    cells = cells_of(scenario, study.vary, range(study.seeds), inputs.digest, then=study.then)
    for cell in {cell.setting: cell for cell in cells}.values():
        prepared(cell, inputs)
    command = f"python sims/studies.py {name}"
    done = sweep(
        cells, out / name, backend_named("here", inputs, address=None), resume=resume, command=command,
        title=study.question,
    )  # fmt: skip
    groups = done.groups
    rows = summary_rows(groups)
    (HERE / "studies").mkdir(exist_ok=True)
    seconds = sum(sum(result.cost.values()) for results in groups.values() for result in results)
    page(name, study, rows, command, seconds)
    return rows


def page(name: str, study: Study, rows: list[dict[str, Any]], command: str, seconds: float) -> None:
    """The committed page of a study."""
    names = list(dict.fromkeys(column for row in rows for column in row))
    lines = [f"# {study.question}", "", study.answer, "", _line(names), _line(["---"] * len(names))]
    lines += [_line([_cell(row.get(column)) for column in names]) for row in rows]
    lines += ["", f"Scenario: [{study.scenario}](../scenarios/{study.scenario}), {study.seeds} seeds.",
              f"Made by `{command}` at commit {commit()} in {seconds:.0f} s on {os.cpu_count()} cores "
              f"({platform.machine()}), Python {platform.python_version()}.", ""]  # fmt: skip
    (HERE / "studies" / f"{name}.md").write_text("\n".join(lines))


def commit() -> str:
    """The commit that made the figures; marked where the tree had changes of its own."""
    head, changes = (
        subprocess.run(["git", *words], cwd=HERE, capture_output=True, text=True, check=False).stdout.strip()
        for words in (["rev-parse", "--short=12", "HEAD"], ["status", "--porcelain", "--", "../p2pfl"])
    )
    return (head or "unknown") + (" with changes" if changes else "")


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="+", metavar="NAME", help=f"{', '.join(STUDIES)}, or all")
    parser.add_argument("--out", type=Path, default=Path("results/studies"))
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    names = list(STUDIES) if chosen.names == ["all"] else chosen.names
    unknown = [name for name in names if name not in STUDIES]
    if unknown:
        parser.error(f"unknown study {unknown[0]}; choose of {', '.join(STUDIES)}, or all")
    try:
        for name in names:
            rows = run(name, chosen.out, chosen.resume)
            print(json.dumps({name: rows}) if chosen.json else f"sims/studies/{name}.md", flush=True)
    except P2PFLError as error:
        print(f"studies: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
