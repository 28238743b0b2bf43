"""The root of the command line: verbs are joined here, and every error becomes one sentence."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import signal
import sys
import traceback
from typing import Any

import typer

from p2pfl.cli import address, audit, charter, data, demo, doctor, home, link, plan, sim, topology
from p2pfl.cli.output import note
from p2pfl.errors import P2PFLError

app = typer.Typer(
    help="Train one model together, with nobody in the middle.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=False,
)
home.register(app)
address.register(app)
doctor.register(app)
app.add_typer(charter.app, name="charter", help="Make, sign, merge, accept and read the consortium's charter.")
app.add_typer(data.app, name="data", help="Grant data files to plans, under a tag.")
app.add_typer(plan.app, name="plan", help="Check, propose, read and approve plans; pause, change and stop their runs.")
app.add_typer(link.app, name="link", help="Link two sites by hand, where no other member can introduce them.")
app.add_typer(audit.app, name="audit", help="Check and read a peer's audit log.")
app.add_typer(topology.app, name="topology", help="Look at graphs before a run.")
app.add_typer(sim.app, name="sim", help="Simulate whole consortia on this machine, and compare them.")
demo.register(app)

# typer carries its own copy of click from 0.27 on and uses click itself before: the class is asked of typer
USAGE_ERROR: type[Exception] = typer.BadParameter.__mro__[2]

WRONG_USAGE = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells count


def main() -> None:
    """Entry point of `p2pfl`. Exit codes: 0 done, 1 an error said in one sentence, 2 wrong usage, 130 Ctrl-C."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # a name that the terminal's encoding lacks is shown escaped, it is no reason to fail
            stream.reconfigure(errors="backslashreplace")
    try:
        code = run(sys.argv[1:])
    except KeyboardInterrupt:  # a second Ctrl-C, while the first one was being answered
        code = INTERRUPTED
    if code == INTERRUPTED:  # one more must not change how the process ends
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """Carry out one command line; returns its exit code."""
    try:
        result = app(arguments, prog_name="p2pfl", standalone_mode=False)
        sys.stdout.flush()  # here, where a closed pipe can still be caught
    except typer.Exit as error:
        return int(error.exit_code)
    except USAGE_ERROR as error:
        return _wrong_usage(error)
    except (typer.Abort, KeyboardInterrupt, asyncio.CancelledError):
        note("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        return _nobody_reads()
    except P2PFLError as error:
        note(f"error: {error}")
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        note(f"error: {where}{error.strerror or error}; check the name, the rights and the space there")
        return 1
    except Exception as error:
        if os.environ.get("P2PFL_DEBUG"):
            traceback.print_exc()
        hint = "set P2PFL_DEBUG=1 to see where, and please report it"
        note(f"internal error: {type(error).__name__}: {error}; {hint}")
        return 1
    code = int(result) if isinstance(result, int) else 0
    if code == INTERRUPTED:  # typer answers Ctrl-C itself with this code, and says nothing
        note("interrupted")
    return code


def _wrong_usage(error: Any) -> int:
    """One sentence, and where to read on; what the user typed cannot draw over the terminal."""
    if type(error).__name__ == "NoArgsIsHelpError":
        sys.stderr.write(error.format_message() + "\n")
        return WRONG_USAGE
    context = getattr(error, "ctx", None)
    verb = "p2pfl" if context is None else context.command_path
    note(f"error: {error.format_message().rstrip('.')}; see `{verb} --help`")
    return WRONG_USAGE


def _nobody_reads() -> int:
    """The reader of a pipe has gone (`p2pfl audit show HOME | head`): no complaint, and none at exit either."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1
