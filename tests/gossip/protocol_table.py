"""The state table of docs/protocol.md, from the code: `python tests/gossip/protocol_table.py` writes it into the page."""

from __future__ import annotations

import re
from pathlib import Path

from p2pfl.gossip import TABLE, State

PAGE = Path(__file__).parents[2] / "docs" / "protocol.md"
BEGIN, END = "<!-- table: generated -->\n", "<!-- end of table -->"


def words(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", " ", name).lower()


def table() -> str:
    """One row per state; the events that are legal there, with where they may lead."""
    everywhere = {kind for kind in TABLE[State.DONE] if all(kind in TABLE[state] for state in State)}
    lines = ["| state | event | may lead to |", "|---|---|---|"]
    for state in State:
        for kind in sorted(TABLE[state], key=lambda kind: kind.__name__):
            targets = TABLE[state][kind]
            if kind in everywhere and targets == {state}:
                continue  # said once below the table
            ordered = [str(target) for target in State if target in targets]
            lines.append(f"| {state} | {words(kind.__name__)} | {', '.join(ordered)} |")
    quiet = ", ".join(sorted(words(kind.__name__) for kind in everywhere))
    lines += ["", f"Legal everywhere, and without a change of state where no row says otherwise: {quiet}."]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Renew the page."""
    text = PAGE.read_text()
    head, rest = text.split(BEGIN)
    PAGE.write_text(head + BEGIN + table() + END + rest.split(END)[1])


if __name__ == "__main__":
    main()
