"""`p2pfl link`: an offer and an answer that people carry between two sites."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from p2pfl.cli.home import AsJson, HomePath
from p2pfl.cli.output import note, say, to_json, visible, write_result
from p2pfl.errors import ConfigError
from p2pfl.peer import ask, read_text

app = typer.Typer(no_args_is_help=True)

STANDARD_INPUT = Path("-")
TEXT_LIMIT = 48 * 1024  # bytes; a block has about 12,000, and a request to the peer 64 KiB at most
ANSWER_TIME = 60.0  # seconds; gathering addresses and connecting have limits below this

Out = Annotated[Path | None, typer.Option("--out", help="Write the block to this file instead.")]


@app.command("offer")
def offer(
    home: HomePath,
    member: Annotated[str, typer.Argument(help="The other site: its name, or its peer id.", metavar="MEMBER")],
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Make an offer for one member: a block of text that you carry to it (mail, stick, telephone conference).

    The peer must be running. The offer is good for 15 minutes and for this member alone. There, `p2pfl link accept`
    prints an answer; carry it back and give it to `p2pfl link accept` here.

    Example: p2pfl link offer homes/caen Amiens > offer.txt
    """
    value = asyncio.run(ask(home, "link_offer", timeout=ANSWER_TIME, member=member))
    _print(value, out, as_json)
    note(f"carry this to {visible(value['member'])} within 15 minutes; there: p2pfl link accept HOME FILE")


@app.command("accept")
def accept(
    home: HomePath,
    block: Annotated[Path, typer.Argument(help="The file with the block; - reads standard input.", metavar="FILE")],
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Take an offer, and print the answer to carry back; or take the answer, and link.

    Example: p2pfl link accept homes/amiens offer.txt > answer.txt
    """
    text = _standard_input() if block == STANDARD_INPUT else read_text(block, TEXT_LIMIT)
    value = asyncio.run(ask(home, "link_accept", timeout=ANSWER_TIME, text=text))
    if value["kind"] == "answer":
        _print(value, out, as_json)
        note(f"carry this back to {visible(value['member'])}; there: p2pfl link accept HOME FILE")
        return
    say(to_json(value) if as_json else f"linked to {visible(value['member'])} over {value['link']}")


def _standard_input() -> str:
    data = sys.stdin.buffer.read(TEXT_LIMIT + 1)
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise ConfigError("standard input is no text; give it the block that the other site printed") from None
    if len(data) > TEXT_LIMIT:
        raise ConfigError(f"standard input has more than {TEXT_LIMIT} bytes; give it the block alone")
    return text


def _print(value: dict[str, Any], out: Path | None, as_json: bool) -> None:
    if out is not None:
        write_result(out, value["text"].encode())
        value = {**value, "text": None, "file": str(out)}
    if as_json:
        say(to_json(value))
    elif out is None:
        sys.stdout.write(value["text"])
        sys.stdout.flush()
