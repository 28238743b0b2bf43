"""`p2pfl plan`: check, propose, read, approve."""

from __future__ import annotations

import asyncio
import contextlib
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from p2pfl.audit import directive_lines
from p2pfl.cli.home import AsJson, HomePath
from p2pfl.cli.output import note, say, show, show_table, to_json, visible
from p2pfl.cli.printing import joining, plain
from p2pfl.errors import ConfigError
from p2pfl.governance import closing_in_words, read_plan, weights_in_words
from p2pfl.peer import OVER, ask, check_plan, follow, open_home, read_text
from p2pfl.topology import is_graph_file, spec_from_text

app = typer.Typer(no_args_is_help=True)
PlanFolder = Annotated[Path, typer.Argument(help="A folder with plan.py and plan.toml.", metavar="PLAN")]
MOST_ROUNDS = 100_000  # as in plan.toml; every member refuses a proposal with more
Everybody = Annotated[bool, typer.Option("--everybody", help="For all sites; only the run's proposer can.")]
FromRound = Annotated[
    int | None,
    typer.Option(
        "--from-round",
        help="From this round on; two after the one that most sites are in if absent.",
        min=0,
        max=MOST_ROUNDS,
    ),
]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
RunName = Annotated[str, typer.Argument(help="The run's id or its beginning.", metavar="RUN")]


def _topology(home: Path, topology: str | None) -> dict[str, Any] | None:
    """A kind's spec, or that of a file whose nodes are the members' names or positions."""
    if topology is None or not is_graph_file(topology):
        return None if topology is None else {"kind": topology}
    members = [member.name for member in open_home(home).charter().members]
    return spec_from_text(Path(topology).name, read_text(Path(topology)), members)


def _mixing(spec: Mapping[str, Any]) -> list[str]:
    """Who mixes with whom, and what each site counts."""
    closing = [f"closing      {closing_in_words(spec)}"] if "closing" in spec else []
    return [f"topology     {spec['kind']}", f"weights      {weights_in_words(spec)}", *closing]


def _policy(staleness: int) -> str:
    return f", asynchronous with staleness {staleness}" if staleness else ""


@app.command("check")
def check(
    plan: PlanFolder,
    home: Annotated[Path | None, typer.Option("--home", help="Try it on this home's registered data, too.")] = None,
    as_json: AsJson = False,
) -> None:
    """Try a plan without starting anything: settings, code, model, loss; on real data with --home.

    Example: p2pfl plan check plans/heart --home homes/lille
    """
    read = read_plan(plan)
    facts = asyncio.run(check_plan(read, None if home is None else open_home(home)))
    lines = [
        f"plan         {read.settings.plan.name}",
        f"hash         {read.digest}",
        f"parameters   {facts['parameters']} of {facts['dtype']}",
        f"training     {read.settings.training.rule}, {read.settings.training.rounds} rounds of "
        f"{read.settings.training.local_steps} local steps{_policy(read.settings.training.late_rounds)}",
        *(_mixing(read.settings.topology) if read.settings.topology else []),  # else the charter's default
    ]
    if facts.get("examples") is not None:
        lines.append(
            f"data         {facts['examples']['train']} examples to train, {facts['examples']['test']} to test"
        )
    lines.append("usable       yes")
    show({"plan": read.digest, **facts}, as_json, lines)


@app.command("propose")
def propose(
    home: HomePath,
    plan: PlanFolder,
    patience: Annotated[float, typer.Option("--patience", help="Seconds to wait for approvals.")] = 24 * 3600.0,
    rounds: Annotated[
        int | None, typer.Option("--rounds", help="Rounds, instead of the plan's.", min=1, max=MOST_ROUNDS)
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Seed of the initial parameters.", min=0)] = None,
    topology: Annotated[
        str | None, typer.Option("--topology", help="ring, full or a graph file, instead of the plan's.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check only; tell nobody.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Follow the run until it is over.")] = False,
    as_json: AsJson = False,
) -> None:
    """Propose a plan to all members, and approve it here. It starts when all have approved, or after --patience.

    With --wait, events follow until the run is over (--json: one object per line); Ctrl-C then ends the
    watching with exit code 130, and the run goes on.

    Example: p2pfl plan propose homes/lille plans/heart
    """
    read = read_plan(plan)
    if dry_run:
        facts = asyncio.run(check_plan(read, open_home(home)))
        show({"plan": read.digest, **facts}, as_json, ["the plan runs on this home's data; nothing was proposed"])
        return
    spec = _topology(home, topology)
    value = asyncio.run(
        ask(
            home,
            "propose",
            plan=str(plan.absolute()),
            patience=patience,
            rounds=rounds,
            seed=seed,
            topology=spec,
        )
    )
    if wait:
        _event("proposed", value, as_json)
        asyncio.run(_follow(home, value["run"], as_json))
    else:
        show(value, as_json, [f"proposed run {value['run']}"])


@app.command("follow")
def follow_run(home: HomePath, run: RunName, as_json: AsJson = False) -> None:
    """Print what happens in a run until this peer's part is over; --json: one object per line.

    Example: p2pfl plan follow homes/lille 3f2a
    """
    asyncio.run(_follow(home, run, as_json))


async def _follow(home: Path, run: str, as_json: bool) -> None:
    async for topic, facts in follow(home, run):
        _event(topic, facts, as_json)
        if topic == OVER and facts.get("away"):
            raise ConfigError(f"this peer's part of run {run[:12]} ended without a model: {facts['away']}; see its log")


def _event(topic: str, facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        say(to_json({"topic": topic, **facts}, indent=None))
        return
    shown = "  ".join(f"{name} {plain(value)}" for name, value in facts.items() if not isinstance(value, dict | list))
    say(visible(f"{topic:<12} {shown}"))


@app.command("list")
def list_runs(home: HomePath, as_json: AsJson = False) -> None:
    """The runs a running peer knows: proposed, running, over.

    Example: p2pfl plan list homes/lille
    """
    runs: list[dict[str, Any]] = asyncio.run(ask(home, "list", timeout=30))
    rows = [
        (
            run["run"][:12],
            run["name"],
            run["proposer"],
            _state(run),
            f"{run['round']}/{run['of']}",
            len(run["approvals"]),
        )
        for run in runs
    ]
    show_table(runs, as_json, ("run", "plan", "proposer", "state", "round", "approvals"), rows)


def _state(run: dict[str, Any]) -> str:
    """For a site that was not there when the run began, whether it may still come in."""
    late = run["joining"]
    if late is None or run["outcome"] or run["state"] == "done":
        return str(run["state"])
    if late["from_round"] is not None:
        return f"{run['state']}, since round {late['from_round']}"
    return "waits for admission" if late["approved"] else "runs without this site"


@app.command("show")
def show_run(home: HomePath, run: RunName, as_json: AsJson = False) -> None:
    """The code and settings that came with a proposal. Read them before you approve.

    Example: p2pfl plan show homes/lille 3f2a
    """
    value = asyncio.run(ask(home, "show", timeout=30, run=run))
    late = value["status"]["joining"]
    show(value, as_json, [*_code(value), *([f"note: {joining(late)}"] if late else [])])


def _code(value: dict[str, Any]) -> list[str]:
    """Every line numbered and with its escapes: no text of the proposer's can pass for ours, or hide another."""
    lines = [f"run          {value['run']}", f"plan hash    {value['plan']}", *_mixing(value["topology"])]
    for file in ("plan.toml", "plan.py"):
        code = [line.removesuffix("\r").expandtabs(4) for line in value[file].removesuffix("\n").split("\n")]
        lines += ["", f"{file}, {len(code)} lines:"]
        lines += [f"{number:>5} | {line}" for number, line in enumerate(code, start=1)]
    strange = sum(visible(line) != line for line in lines)
    if strange:
        lines += ["", f"note: {strange} lines hold invisible or control characters, shown as escapes such as \\u202e"]
    return lines


@app.command("approve")
def approve(
    home: HomePath,
    run: RunName,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask; for scripts that have read the plan.")] = False,
    plan: Annotated[str | None, typer.Option("--plan", help="Approve only if the plan hash begins with this.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show the code that travels with a proposal, and approve it: this site takes part with its data.

    Where the run has begun without this site, the proposer's peer admits it from one of the next rounds on.

    Example: p2pfl plan approve homes/caen 3f2a
    """
    value = asyncio.run(ask(home, "show", timeout=30, run=run))
    if plan is not None and not (plan and value["plan"].startswith(plan.lower())):
        raise ConfigError(f"run {value['run'][:12]} carries the plan {value['plan'][:12]}, not {plan[:64]!r}; read it")
    late = value["status"]["joining"]
    if late and late["problem"] is not None:
        raise ConfigError(f"run {value['run'][:12]} cannot take this site in: {late['problem']}; wait for the next run")
    if not as_json:
        show(value, False, _code(value))
    if not yes:
        _ask_consent(value, shown=not as_json)
    done = asyncio.run(ask(home, "approve", run=value["run"], plan=value["plan"]))
    said = [f"approved run {done['run'][:12]}"]
    show(done, as_json, said + ([joining(done["joining"], done["proposer"])] if done.get("joining") else []))


def _ask_consent(value: dict[str, Any], *, shown: bool) -> None:
    if not sys.stdin.isatty():
        raise ConfigError("there is no terminal to ask; read the plan with `p2pfl plan show`, then give --yes")
    if not shown:
        for line in _code(value):
            sys.stderr.write(visible(line) + "\n")
    if not typer.confirm("Let this code train on this site's data?", err=True):
        note("not approved; nothing was sent")
        raise typer.Exit(1)


@app.command("pause")
def pause(
    home: HomePath, run: RunName, everybody: Everybody = False, from_round: FromRound = None, as_json: AsJson = False
) -> None:
    """Stop this site's part of a run before its next round; the others go on without it.

    The run's proposer pauses it for all sites with --everybody.

    Example: p2pfl plan pause homes/caen 3f2a
    """
    if everybody:
        _direct(home, run, "pause", from_round, as_json)
        return
    if from_round is not None:
        raise ConfigError("--from-round is for all sites; give --everybody too, or leave it out")
    done = asyncio.run(ask(home, "pause", timeout=30, run=run))
    show(done, as_json, ["paused before the next round; go on with `p2pfl plan resume`"])


@app.command("resume")
def resume(home: HomePath, run: RunName, everybody: Everybody = False, as_json: AsJson = False) -> None:
    """Take part again after a pause, from the round the others are in.

    The run's proposer ends a pause of all sites with --everybody.

    Example: p2pfl plan resume homes/caen 3f2a
    """
    if everybody:
        _direct(home, run, "resume", None, as_json)
        return
    done = asyncio.run(ask(home, "resume", timeout=30, run=run))
    held = done["paused_because"]
    show(done, as_json, [f"this site's own pause is over, but {held}" if held else "taking part again"])


@app.command("stop")
def stop(home: HomePath, run: RunName, from_round: FromRound = None, yes: Yes = False, as_json: AsJson = False) -> None:
    """End a run early for all sites, as its proposer: the closing rounds follow at once, and each site has its model.

    A stop is final.

    Example: p2pfl plan stop homes/lille 3f2a --yes
    """
    if not yes:
        if not sys.stdin.isatty():
            raise ConfigError("a stop is final, and there is no terminal to ask; give --yes")
        if not typer.confirm("Stop this run for all sites? It cannot be continued.", err=True):
            note("not stopped; nothing was sent")
            raise typer.Exit(1)
    _direct(home, run, "stop", from_round, as_json)


@app.command("change")
def change(
    home: HomePath,
    run: RunName,
    arguments: Annotated[
        list[str], typer.Argument(help="What changes, such as learning_rate=0.05", metavar="NAME=VALUE")
    ],
    from_round: FromRound = None,
    as_json: AsJson = False,
) -> None:
    """Change arguments of a run under way, as its proposer, within the ranges of the approved plan.

    Example: p2pfl plan change homes/lille 3f2a learning_rate=0.05 local_steps=10
    """
    values = [_argument(text) for text in arguments]
    if len(dict(values)) < len(values):
        raise ConfigError("one argument is given twice; say each once")
    _direct(home, run, "change", from_round, as_json, dict(values))


def _argument(text: str) -> tuple[str, int | float]:
    name, equals, value = text.partition("=")
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            if name and equals and math.isfinite(number := kind(value)):
                return name, number
    raise ConfigError(f"{text[:80]!r} is not an argument and its value; write for example learning_rate=0.05")


def _direct(
    home: Path,
    run: str,
    word: str,
    from_round: int | None,
    as_json: bool,
    arguments: dict[str, int | float] | None = None,
) -> None:
    done = asyncio.run(
        ask(home, "direct", timeout=30, run=run, word=word, from_round=from_round, arguments=arguments or {})
    )
    if word == "change":
        said = directive_lines({"changes": done["changes"][-1:]})[0] + " on"
    else:
        said = {
            "pause": f"all sites pause before round {done['paused_from']}",
            "resume": "all sites go on",
            "stop": f"the closing rounds begin at round {done['stop_at']}",
        }[word]
    show(done, as_json, [f"run {done['run'][:12]}, directive {done['version']}: {said}"])
