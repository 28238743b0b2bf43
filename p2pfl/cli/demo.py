"""`p2pfl demo`: four hospitals on this machine, four processes, one model."""

from __future__ import annotations

import asyncio
import functools
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.live import Live

from p2pfl.cli.output import note, out, say, to_json
from p2pfl.demo import Consortium, Options, copy_plan, gather, hospitals_for, live_table, plan_rounds, print_report
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
    keep_deltas: Annotated[bool, typer.Option("--keep-deltas", help="All keep their deltas, for a replay.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> int:
    """Four hospitals find each other, train on real patients without sharing them, and compare.

    Ctrl-C ends all processes, removes temporary homes, and gives exit code 130.

    Example: p2pfl demo --kill amiens@5
    """
    started = time.monotonic()
    messages: list[str] = []

    def tell(text: str) -> None:
        messages.append(text)
        if as_json or not out.is_terminal:
            note(text)

    hospitals, plan = hospitals_for(data, seed)
    killed = _kill(kill, [site.name for site in hospitals], rounds, plan)
    options = Options(topology, rounds, seed, killed, keep_deltas)
    with ExitStack() as stack:
        if home is not None:
            folder = _new_folder(home)
        else:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="p2pfl-demo-")))
        consortium = Consortium(folder, folder / "plan", hospitals, options, tell)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        copy_plan(plan, folder)
        asyncio.run(_run(consortium, messages, live=not as_json and out.is_terminal))
        value, evaluation = gather(consortium, folder / "plan")
        value["seconds"] = round(time.monotonic() - started, 2)
        if as_json:
            say(to_json(value))
        else:
            print_report(out, value, evaluation)
            if home is not None:
                first = home / hospitals[0].name.lower()
                note(f"the homes stay in {home}; look at one with `p2pfl audit show {first}`")
    return 0 if all(row["log_verified"] for row in value["hospitals"]) else 1


def _new_folder(home: Path) -> Path:
    folder = home.absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{home} already exists and is not empty; choose a new folder for the homes")
    return folder


async def _run(consortium: Consortium, messages: list[str], live: bool) -> None:
    with ExitStack() as stack:
        stack.enter_context(_ended_by_signals())
        if live:
            display = stack.enter_context(Live(console=out, refresh_per_second=8, transient=False))
            consortium.watch = lambda: display.update(live_table(consortium, messages))
        else:
            note("four hospitals are starting; this takes half a minute")
        await consortium.found()
        async with consortium.running():
            await consortium.train()


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """The first of these signals cancels the demo; more of them cannot cut short the end of its processes."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    cancel = functools.cache(task.cancel)
    for number in signals:
        loop.add_signal_handler(number, cancel)
    try:
        yield
    finally:
        for number in signals:
            loop.remove_signal_handler(number)


def _kill(text: str | None, names: list[str], rounds: int | None, plan: Path) -> tuple[str, int] | None:
    if text is None:
        return None
    name, _, round_ = text.partition("@")
    if name.lower() not in [known.lower() for known in names] or not (round_.isdecimal() and len(round_) < 10):
        raise ConfigError(
            f"--kill {text!r}: write NAME@ROUND with one of {', '.join(names)}, such as {names[-1].lower()}@5"
        )
    last = (rounds or plan_rounds(plan)) - 1
    if int(round_) > last:
        raise ConfigError(f"--kill {text!r}: the run has the rounds 0 to {last}; name one of them")
    return name, int(round_)
