"""`p2pfl sim`: simulate consortia on this machine, compare them, and read what came of it."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from p2pfl.cli.home import AsJson
from p2pfl.cli.output import note, show, show_table
from p2pfl.cli.sim_bars import bars
from p2pfl.errors import ConfigError

if TYPE_CHECKING:
    from p2pfl.sim import Cell, Inputs, Scenario, SimResult
    from p2pfl.sim.sweeps import Sweep

app = typer.Typer(no_args_is_help=True)
INTERRUPTED = 130  # 128 + SIGINT, as shells have it
UNFINISHED = "not complete; the command that began it goes on with --resume"

ScenarioFile = Annotated[Path, typer.Argument(help="The scenario's TOML file.", metavar="SCENARIO")]
Out = Annotated[
    Path | None, typer.Option("--out", help="Folder for the results. Default: results/NAME beside where you are.")
]
Seeds = Annotated[int | None, typer.Option("--seeds", help="So many seeds, from 0, in place of the scenario's.", min=1)]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume", help="Go on in a folder that holds results: none is made twice, runs that were cut off go on."
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check everything and say what would run; train nothing.")]
BackendName = Annotated[str, typer.Option("--backend", help="here, or ray: spread the runs over a Ray cluster.")]
RayAddress = Annotated[
    str | None,
    typer.Option("--ray", help="Address of a running Ray cluster. Default: P2PFL_RAY_ADDRESS, or one begun here."),
]
Workers = Annotated[
    int | None, typer.Option("--workers", help="Processes of a Ray cluster begun here; 2 if left out.", min=1, max=1024)
]


@app.callback()
def group() -> None:
    """Simulate whole consortia with the rules of the real one: thousands of peers, on this machine."""


@app.command("run")
def run(
    scenario: ScenarioFile, out: Out = None, seeds: Seeds = None, resume: Resume = False, dry_run: DryRun = False,
    backend: BackendName = "here", ray: RayAddress = None, workers: Workers = None, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Run a scenario with each of its seeds; tables (Parquet) and one page (HTML) come into the results' folder.

    Ctrl-C, or SIGTERM, leaves what was reached; --resume goes on.

    Example: p2pfl sim run sims/scenarios/digits_ring.toml --seeds 3
    """
    _study([scenario], {}, out, seeds, resume, dry_run, (backend, ray, workers), as_json)


@app.command("sweep")
def sweep_scenario(
    scenario: ScenarioFile,
    vary: Annotated[
        list[str], typer.Option("--vary", help="What to vary, and its values: topology=ring,full. Repeatable.")
    ],
    out: Out = None, seeds: Seeds = None, resume: Resume = False, dry_run: DryRun = False,
    backend: BackendName = "here", ray: RayAddress = None, workers: Workers = None, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Run every combination of what is varied, with every seed.

    Example: p2pfl sim sweep ring.toml --vary topology=ring,full --vary peers=16,64,256 --seeds 5
    """
    from p2pfl.sim import read_variation

    pairs = [read_variation(text) for text in vary]
    if len({name for name, _ in pairs}) != len(pairs):
        raise ConfigError("--vary names the same thing twice; give all its values at once, as peers=16,64")
    _study([scenario], dict(pairs), out, seeds, resume, dry_run, (backend, ray, workers), as_json)


@app.command("compare")
def compare(
    places: Annotated[
        list[Path], typer.Argument(help="Scenario files, or folders with results.", metavar="SCENARIO_OR_RESULT...")
    ],
    out: Out = None, seeds: Seeds = None, resume: Resume = False, dry_run: DryRun = False,
    backend: BackendName = "here", ray: RayAddress = None, workers: Workers = None, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Set several scenarios, or results that are there already, side by side on one page.

    Example: p2pfl sim compare ring.toml full.toml hierarchical.toml --out results/which-graph
    """
    folders = [place for place in places if os.path.isdir(place)]  # unlike Path.is_dir, no error for a name too long
    if folders and len(folders) != len(places):
        raise ConfigError("give either scenario files or folders with results, not both; run the scenarios first")
    if folders:
        given = {
            "--seeds": seeds is not None, "--resume": resume, "--dry-run": dry_run, "--backend": backend != "here",
            "--ray": ray is not None, "--workers": workers is not None,
        }  # fmt: skip
        if any(given.values()):
            names = ", ".join(name for name, there in given.items() if there)
            raise ConfigError(f"{names}: nothing runs where results are compared; leave that out, or give scenarios")
        _compare_results(folders, out, as_json)
    else:
        _study(places, {}, out, seeds, resume, dry_run, (backend, ray, workers), as_json)


@app.command("data")
def show_data(
    scenario: ScenarioFile,
    seed: Annotated[int, typer.Option("--seed", help="The seed of the partition.", min=0)] = 0,
    plot: Annotated[Path | None, typer.Option("--plot", help="Draw it into this SVG file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Who would hold which examples: the table of a scenario's partition.

    Example: p2pfl sim data ring.toml --plot holdings.svg
    """
    from p2pfl.sim import Inputs, holdings_of, read_scenario

    read = read_scenario(scenario)
    table = holdings_of(read, Inputs(), seed)
    if plot is not None:
        table.plot(plot)
    show(table.plain(), as_json, table.lines())


@app.command("show")
def show_result(
    folder: Annotated[Path, typer.Argument(help="A folder that p2pfl sim has written.", metavar="RESULTS")],
    as_json: AsJson = False,
) -> None:
    """Print what a simulation came to.

    Example: p2pfl sim show results/ring
    """
    from p2pfl.sim import load_failed, load_groups, load_waiting

    _print(load_groups(folder), as_json)
    _note_each(load_failed(folder).items(), "runs", "error: ")
    _note_each([(which, UNFINISHED) for which in load_waiting(folder)], "runs")


def _study(
    files: Sequence[Path], variations: dict[str, list[Any]], out: Path | None, seeds: int | None, resume: bool,
    dry_run: bool, backend: tuple[str, str | None, int | None], as_json: bool,
) -> None:  # fmt: skip
    from p2pfl.sim import Inputs, backend_named, check_folder, check_libraries, read_scenario

    name, address, workers = backend
    if name != "ray" and (address is not None or workers is not None):
        raise ConfigError("--ray and --workers are for --backend ray; add that, or leave them out")
    if address is not None and workers is not None:
        raise ConfigError("--workers are of a cluster begun here, --ray names one that runs; leave one out")
    check_libraries()
    scenarios = [read_scenario(file) for file in files]
    names = [scenario.scenario.name for scenario in scenarios]
    twice = [one for one in names if names.count(one) > 1]
    if twice:
        raise ConfigError(f"two of the scenarios are called {twice[0]}; give each a name of its own")
    folder = out or Path("results") / "-or-".join(names)[:100]
    check_folder(folder)
    inputs = Inputs()
    where = backend_named(name, inputs, address=address, workers=workers or 2)
    with contextlib.redirect_stdout(sys.stderr):  # what the plan prints is no part of the result
        cells = _checked(files, scenarios, variations, seeds, inputs)
    if dry_run:
        rows = [{"setting": cell.setting, "seed": cell.seed, "key": cell.key} for cell in cells]
        show(
            rows,
            as_json,
            [f"{len(cells)} runs into {folder}", *(f"{row['setting']}, seed {row['seed']}" for row in rows)],
        )
        return
    from p2pfl.sim import ended_by_sigterm, sweep

    with bars(as_json) as watch, ended_by_sigterm(), contextlib.redirect_stdout(sys.stderr):
        title = scenarios[0].scenario.description if len(names) == 1 else " or ".join(names)
        done = sweep(
            cells, folder, where, resume=resume, watch=watch, tell=note, title=title or names[0],
            command=shlex.join(["p2pfl", *sys.argv[1:]]),
        )  # fmt: skip
    _tell(done, folder, len(cells), as_json)


def _checked(
    files: Sequence[Path], scenarios: Sequence[Scenario], variations: dict[str, list[Any]], seeds: int | None,
    inputs: Inputs,
) -> list[Cell]:  # fmt: skip
    """All runs, each setting checked before the first of them trains, which is told what it remarks."""
    from p2pfl.sim import cells_of, prepared

    cells: list[Cell] = []
    for file, scenario in zip(files, scenarios, strict=True):
        beside = file.resolve().parent
        cells += cells_of(scenario, variations, _seeds(scenario, seeds), inputs.digest, beside=beside)
    remarks = {cell.setting: prepared(cell, inputs).remarks for cell in {cell.setting: cell for cell in cells}.values()}
    _note_each([(setting, said) for setting, all_said in remarks.items() for said in all_said], "settings")
    return cells


def _tell(done: Sweep, folder: Path, runs: int, as_json: bool) -> None:
    """What a sweep came to, and with which status the command ends."""
    ended = sum(not result.interrupted for results in done.groups.values() for result in results)
    if done.groups:
        _print(done.groups, as_json)
        note(f"results and report.html are in {folder}")
    _note_each(done.failed.items(), "runs", "error: ")
    if ended + len(done.failed) < runs:
        note(f"{ended} of {runs} runs are complete; the same command with --resume makes the others")
        raise typer.Exit(INTERRUPTED)
    if done.failed:
        raise typer.Exit(1)


def _note_each(said: Iterable[tuple[str, str]], what: str, before: str = "") -> None:
    """Say each thing once, with the first that it is said of, and of how many more."""
    by_text: dict[str, list[str]] = {}
    for which, text in said:
        by_text.setdefault(text, []).append(which)
    for text, (first, *others) in by_text.items():
        more = f" and {len(others)} other {what if len(others) > 1 else what[:-1]}" if others else ""
        note(f"{before}{first}{more}: {text}")


def _seeds(scenario: Scenario, count: int | None) -> list[int]:
    from p2pfl.sim import MOST_SEEDS

    if count is not None and count > MOST_SEEDS:
        raise ConfigError(f"{count} seeds are more than {MOST_SEEDS}; give fewer")
    return scenario.seeds if count is None else list(range(count))


def _compare_results(folders: Sequence[Path], out: Path | None, as_json: bool) -> None:
    from p2pfl.sim import check_folder, check_libraries, load_failed, load_groups, write_report

    check_libraries()
    page = (out or Path("results")) / "report.html"
    check_folder(page.parent)
    if os.path.lexists(page):
        raise ConfigError(f"{page} is there already; give another folder with --out, or move the page away")
    groups: dict[str, list[SimResult]] = {}
    failed: dict[str, str] = {}
    for folder, told in zip(folders, _told_apart(folders), strict=True):
        for name, results in load_groups(folder).items():
            groups[f"{told}: {name}" if len(folders) > 1 else name] = results
        failed |= {f"{told}: {which}": why for which, why in load_failed(folder).items()}
    page.parent.mkdir(parents=True, exist_ok=True)
    write_report(groups, page, command=shlex.join(["p2pfl", *sys.argv[1:]]), failed=failed)
    _print(groups, as_json)
    note(f"the page is {page}")


def _told_apart(folders: Sequence[Path]) -> list[str]:
    """Each folder by as few of its last names as no other one ends in. Raises ConfigError for one given twice."""
    whole = [folder.resolve() for folder in folders]
    twice = [folder for place, folder in enumerate(folders) if whole[place] in whole[:place]]
    if twice:
        raise ConfigError(f"{twice[0]} is given twice; give each folder with results once")
    most = max(len(folder.parts) for folder in whole)
    names = []
    for folder in whole:
        tails = ([other.parts[-many:] for other in whole] for many in range(1, most + 1))
        own = next(folder.parts[-many:] for many, ends in enumerate(tails, 1) if ends.count(folder.parts[-many:]) == 1)
        names.append(Path(*own).as_posix())
    return names


def _print(groups: dict[str, list[SimResult]], as_json: bool) -> None:
    from p2pfl.sim import summary_rows, warnings_of

    if as_json:
        show([result.summary() for results in groups.values() for result in results], True, ())
        return
    rows = summary_rows(groups)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[_cell(row.get(name)) for name in columns] for row in rows]
    show_table(rows, False, columns, cells)
    for said in warnings_of(groups):
        note(said)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
