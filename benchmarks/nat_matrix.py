"""Which kinds of NAT connect with which, how, and in how long: three real hospitals for every pair.

Each pair gets its own network (tests/nat_lab.py: namespaces, nftables, coturn) and three `p2pfl up` processes: two
behind the NATs without a port, one with a port that introduces them. Needs root, iproute2, nftables and coturn.
Ends with 1 when a pair does not connect, or connects through TURN where a direct path exists.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
from pathlib import Path
from typing import Any

from figures import machine, show, table

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from nat_lab import why_not
from nat_pairs import Pairing, pair

NATS = ("full-cone", "port-restricted", "symmetric")
MATRIX = (
    *(Pairing("none", kind) for kind in NATS),
    *(Pairing(first, second) for first, second in itertools.combinations_with_replacement(NATS, 2)),
    Pairing("symmetric", "symmetric", relay_only=True),
    Pairing("symmetric", "symmetric", turn="tcp"),
    Pairing("symmetric", "symmetric", turn="tls"),
    Pairing("udp-blocked", "udp-blocked", turn="tcp"),
)
LAST_LINES = 12  # of a failed pair's peers, in the report


def measure(pairing: Pairing) -> dict[str, Any]:
    """One pair, from nothing to the link."""
    row: dict[str, Any] = {
        "first": pairing.first,
        "second": pairing.second,
        "turn": pairing.turn,
        "relay_only": pairing.relay_only,
        "expected": pairing.expected,
    }
    with tempfile.TemporaryDirectory(prefix="p2pfl-nat-") as name, pair(Path(name), pairing) as hospitals:
        try:
            with hospitals.up() as outcome:
                row |= {
                    "link": outcome.link,
                    "path": outcome.path,
                    "carried": outcome.carried,
                    "introducer": outcome.introducer,
                    "seconds": round(outcome.seconds, 2),
                    "introduced_in": round(outcome.introduced_in, 2),
                }
        except AssertionError as error:
            row["failure"] = str(error)
    row["ok"] = row.get("link") == "webrtc" and {row["path"], row["carried"]} == {pairing.expected}
    return row


def tables(result: dict[str, Any]) -> str:
    """The matrix and what failed, for people."""
    rows = [
        [
            f"{row['first']} x {row['second']}",
            "relay only" if row["relay_only"] else row["turn"],
            row.get("link", "none"),
            row.get("path", "-"),
            row.get("carried", "-"),
            row.get("introduced_in", "-"),
            row.get("seconds", "-"),
            "" if row["ok"] else f"FAILED, {row['expected']} expected",
        ]
        for row in result["pairs"]
    ]
    head = ["NAT x NAT", "TURN", "link", "path", "as routers saw", "introduced in s", "from start s", ""]
    text = table(f"{len(rows)} pairs, each three `p2pfl up` processes", head, rows)
    for row in result["pairs"]:
        if "failure" in row:
            text += f"\n\n{row['first']} x {row['second']}:\n" + "\n".join(row["failure"].splitlines()[:LAST_LINES])
    return text


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", nargs="+", metavar="A:B[:tcp|:tls][:relay-only]", help="only these")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    try:
        pairings = [Pairing.parse(text) for text in arguments.pairs] if arguments.pairs else MATRIX
    except ValueError as error:
        parser.error(str(error))
    reason = why_not(turn=True)
    if reason is not None:
        print(f"nat_matrix: {reason}", file=sys.stderr)
        return 2
    rows = []
    for number, pairing in enumerate(pairings, 1):
        print(f"{number}/{len(pairings)} {pairing}", file=sys.stderr)
        rows.append(measure(pairing))
    result = {"machine": machine(), "pairs": rows}
    show(result, tables(result), arguments.json)
    return 0 if all(row["ok"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
