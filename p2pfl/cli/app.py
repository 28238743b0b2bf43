"""The root of the command line: verbs are joined here, and every error becomes one sentence."""

from __future__ import annotations

import asyncio
import os
import sys
import traceback

import click
import typer

from p2pfl.cli import audit, charter, data, demo, home, plan, topology
from p2pfl.cli.output import err
from p2pfl.errors import P2PFLError

app = typer.Typer(
    help="Train one model together, with nobody in the middle.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=False,
)
home.register(app)
app.add_typer(charter.app, name="charter", help="Make, sign, merge, accept and read the consortium's charter.")
app.add_typer(data.app, name="data", help="Grant data files to plans, under a tag.")
app.add_typer(plan.app, name="plan", help="Check, propose, read and approve plans.")
app.add_typer(audit.app, name="audit", help="Check and read a peer's audit log.")
app.add_typer(topology.app, name="topology", help="Look at graphs before a run.")
demo.register(app)

INTERRUPTED = 130  # 128 + SIGINT, as shells count


def main() -> None:
    """Entry point of `p2pfl`. Exit codes: 0 done, 1 an error said in one sentence, 2 wrong usage, 130 Ctrl-C."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Carry out one command line; returns its exit code."""
    try:
        result = app(arguments, standalone_mode=False)
    except click.exceptions.Exit as error:
        return int(error.exit_code)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt, asyncio.CancelledError):
        err.print("p2pfl: interrupted", markup=False)
        return INTERRUPTED
    except P2PFLError as error:
        err.print(f"p2pfl: error: {error}", markup=False)
        return 1
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if os.environ.get("P2PFL_DEBUG"):
            traceback.print_exc()
        hint = "set P2PFL_DEBUG=1 to see where, and please report it"
        err.print(f"p2pfl: internal error: {type(error).__name__}: {error}; {hint}", markup=False)
        return 1
    return int(result) if isinstance(result, int) else 0
