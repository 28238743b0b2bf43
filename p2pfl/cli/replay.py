"""What a replay of the mixing found, for people: `p2pfl audit lineage`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby

from p2pfl.peer import Replayed, RunReplay

Name = Callable[[str], str]


def replay_lines(found: RunReplay, name: Name) -> Iterator[str]:
    """One line per stretch of rounds of a site that were reproduced, one for each other mixing."""
    if found.problem is not None:
        yield f"replay       not done: {found.problem}"
        return
    yield "replay       mixing only, from kept deltas; local training is not repeated, it needs each site's data"
    for (peer, good), rows in groupby(found.rows, key=lambda row: (row.peer, row.verdict == "reproduced")):
        if good:
            yield f"replayed     {name(peer)}: {_rounds(list(rows))} reproduced"
        else:
            yield from (f"replayed     {name(peer)}: {_place(row)} {_words(row, name)}" for row in rows)
    told = {
        "reproduced": "reproduced: its parameters are what its owner's last mixing gave",
        "departs": "DEPARTS: its parameters are not what its owner's last mixing gave",
        "not replayed": "not reproduced: its owner's last mixing was not, or leaves out parameters that stay private",
    }
    yield f"model        {told[found.model]}"


def _place(row: Replayed) -> str:
    return f"round {row.round}" + (f", step {row.step}" if row.step else "")


def _rounds(rows: Sequence[Replayed]) -> str:
    first, last = _place(rows[0]), _place(rows[-1])
    return first if len(rows) == 1 else f"{first} to {last.removeprefix('round ')}"


def _words(row: Replayed, name: Name) -> str:
    whose = f" of {name(row.delta[0])}, round {row.delta[1]}" if row.delta is not None else ""
    if row.verdict == "not replayed":
        why = f"the kept delta{whose} was altered" if row.why == "altered" else _with(row.why, whose)
        return f"cannot be replayed: {why} (entry {row.entry})"
    at = ""
    if row.index is not None:
        where = f"{row.tensor or 'the vector'}[{row.index}]"
        at = f"; first at {where}: the log has {row.logged!r}, replayed {row.replayed!r}"
    return f"DEPARTS: {row.why}{at} (entry {row.entry})"


def _with(why: str, whose: str) -> str:
    head, comma, rest = why.partition(",")
    return f"{head}{whose}{comma}{rest}"
