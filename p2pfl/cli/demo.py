"""`p2pfl demo`: four hospitals on this machine, four processes, one model."""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer
from rich.live import Live

from p2pfl.cli.output import err, note, out
from p2pfl.demo import Consortium, Options, copy_plan, gather, hospitals_for, live_table, print_report
from p2pfl.errors import ConfigError


def register(app: typer.Typer) -> None:
    """Add the verb to the root."""
    app.command("demo")(demo)


def demo(
    data: Annotated[Path | None, typer.Option("--data", help="Folder with the UCI heart-disease files.")] = None,
    topology: Annotated[str, typer.Option("--topology", help="ring, full or hierarchical.")] = "ring",
    rounds: Annotated[
        int | None, typer.Option("--rounds", help="Training rounds, instead of the plan's.", min=1)
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of split and initial parameters.", min=0)] = 0,
    kill: Annotated[
        str | None, typer.Option("--kill", help="NAME@ROUND: kill that hospital's process in that round.")
    ] = None,
    home: Annotated[Path | None, typer.Option("--home", help="Keep the homes in this new folder.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> int:
    """Four hospitals find each other, train on real patients without sharing them, and compare.

    Example: p2pfl demo --kill amiens@5
    """
    started = time.monotonic()
    with ExitStack() as stack:
        if home is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="p2pfl-demo-")))
        else:
            folder = home.absolute()
            if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
                raise ConfigError(f"{home} already exists and is not empty; choose a new folder for the homes")
            folder.mkdir(parents=True, exist_ok=True)
        hospitals, plan = hospitals_for(data, seed)
        options = Options(topology, rounds, seed, _kill(kill, [site.name for site in hospitals]))
        messages: list[str] = []

        def say(text: str) -> None:
            messages.append(text)
            if as_json or not out.is_terminal:
                note(text)

        consortium = Consortium(folder, copy_plan(plan, folder), hospitals, options, say)
        asyncio.run(_run(consortium, messages, live=not as_json and out.is_terminal))
        value, evaluation = gather(consortium, folder / "plan")
        value["seconds"] = round(time.monotonic() - started, 2)
        if as_json:
            sys.stdout.write(json.dumps(value, indent=1) + "\n")
        else:
            print_report(out, value, evaluation)
            if home is not None:
                note(
                    f"the homes stay in {home}; look at one with `p2pfl audit show {home / hospitals[0].name.lower()}`"
                )
    return 0 if all(row["log_verified"] for row in value["hospitals"]) else 1


async def _run(consortium: Consortium, messages: list[str], live: bool) -> None:
    with ExitStack() as stack:
        if live:
            display = stack.enter_context(Live(console=out, refresh_per_second=8, transient=False))
            consortium.watch = lambda: display.update(live_table(consortium, messages))
        else:
            err.print("p2pfl: four hospitals are starting; this takes half a minute", markup=False)
        await consortium.found()
        async with consortium.running():
            await consortium.train()


def _kill(text: str | None, names: list[str]) -> tuple[str, int] | None:
    if text is None:
        return None
    name, _, round_ = text.partition("@")
    if name.lower() not in [known.lower() for known in names] or not round_.isdigit():
        raise ConfigError(
            f"--kill {text!r}: write NAME@ROUND with one of {', '.join(names)}, such as {names[-1].lower()}@5"
        )
    return name, int(round_)
