"""How far `p2pfl sim` is, on a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from p2pfl.cli.output import visible

if TYPE_CHECKING:
    from p2pfl.sim import Cell


class Bars:
    """Two bars on the terminal: all runs, and the rounds of the present one."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._cells = progress.add_task("runs", total=None)
        self._rounds = progress.add_task("rounds", total=None)

    def cell(self, cell: Cell, done: int, cells: int) -> None:
        """The next run begins."""
        label = visible(f"{cell.setting}, seed {cell.seed}")
        self._progress.update(self._cells, total=cells, completed=done, description="runs")
        self._progress.reset(self._rounds, total=None, description=label)

    def round(self, done: int, rounds: int) -> None:
        """A round is over."""
        self._progress.update(self._rounds, total=rounds, completed=done)


@contextmanager
def bars(as_json: bool) -> Iterator[Bars | None]:
    """Bars with the time left on a terminal; nothing for programs and pipes."""
    console = Console(stderr=True)
    if as_json or not console.is_terminal:
        yield None
        return
    columns = (
        TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("left:"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True) as progress:
        yield Bars(progress)
