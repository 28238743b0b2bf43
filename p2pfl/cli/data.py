"""`p2pfl data`: which files plans may read here."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from p2pfl.cli.home import AsJson, HomePath
from p2pfl.cli.output import show, show_table
from p2pfl.peer import open_home

app = typer.Typer(no_args_is_help=True)


@app.command("add")
def add(
    home: HomePath,
    file: Annotated[Path, typer.Argument(help="A CSV file with a header row.", metavar="FILE")],
    tag: Annotated[str, typer.Option("--tag", help="The tag by which plans name this data.")],
    replace: Annotated[bool, typer.Option("--replace", help="Let the tag stand for this file from now on.")] = False,
    as_json: AsJson = False,
) -> None:
    """Grant a CSV file to plans that name its tag. The file stays where it is; its fingerprint is kept.

    Example: p2pfl data add homes/lille --tag heart /data/heart.csv
    """
    dataset = open_home(home).registry.add(tag, file, now=int(time.time()), replace=replace)
    show(
        asdict(dataset),
        as_json,
        [f"{tag}: {dataset.rows} rows, {dataset.columns} columns, fingerprint {dataset.fingerprint[:16]}"],
    )


@app.command("list")
def list_data(home: HomePath, as_json: AsJson = False) -> None:
    """The granted files.

    Example: p2pfl data list homes/lille
    """
    known = open_home(home).registry.list()
    rows = [(item.tag, item.rows, item.columns, item.fingerprint[:16], item.path) for item in known]
    show_table([asdict(item) for item in known], as_json, ("tag", "rows", "columns", "fingerprint", "file"), rows)
